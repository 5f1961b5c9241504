// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiler flags for Rust inside a kernel, from that kernel's configuration, as its own arch/x86/Makefile and
//! scripts/Makefile.kasan derive them.

use std::collections::BTreeMap;

/// A kernel's `.config`.
#[derive(Clone, Debug)]
pub(crate) struct Config(BTreeMap<String, String>);

impl Config {
    pub(crate) fn parse(text: &str) -> Self {
        let set = text.lines().filter_map(|l| l.strip_prefix("CONFIG_")?.split_once('='));
        Self(set.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Whether an option, without `CONFIG_`, is built in.
    fn is_on(&self, option: &str) -> bool {
        self.value(option) == Some("y")
    }

    fn value(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str)
    }
}

/// What a module needs whatever the configuration is.
const ALWAYS: &[&str] = &[
    "-Crelocation-model=static",
    "-Ccode-model=kernel",
    "-Cno-redzone=y",
    "-Cpanic=abort",
    // Without these two there are GOTPCREL relocations, which the module loader refuses.
    "-Zplt=yes",
    "-Zdirect-access-external-data=yes",
    // Without it there is .eh_frame, which objtool warns about.
    "-Cforce-unwind-tables=no",
];

/// The flags that make Rust objects which the kernel's objtool and modpost take as its own.
pub(crate) fn rust_flags(config: &Config) -> Vec<String> {
    let mut flags: Vec<String> = ALWAYS.iter().map(|&f| f.to_owned()).collect();
    let mut add = |wanted: bool, more: &[&str]| {
        if wanted {
            flags.extend(more.iter().map(|&f| f.to_owned()));
        }
    };
    add(
        config.is_on("X86_KERNEL_IBT"),
        &["-Zcf-protection=branch", "-Cjump-tables=no"],
    );
    let retpoline = config.is_on("MITIGATION_RETPOLINE");
    add(
        retpoline,
        &[
            "-Zretpoline",
            "-Zretpoline-external-thunk",
            "-Zindirect-branch-cs-prefix=yes",
        ],
    );
    add(config.is_on("MITIGATION_RETHUNK"), &["-Zfunction-return=thunk-extern"]);
    add(
        config.is_on("MITIGATION_SLS"),
        &["-Ctarget-feature=+harden-sls-ijmp,+harden-sls-ret"],
    );
    add(config.is_on("UNWINDER_FRAME_POINTER"), &["-Cforce-frame-pointers=y"]);
    if config.is_on("CALL_PADDING")
        && let Some(bytes) = config.value("FUNCTION_PADDING_BYTES")
    {
        add(true, &[&format!("-Zpatchable-function-entry={bytes},{bytes}")]);
    }
    if config.is_on("KASAN_GENERIC")
        && let Some(offset) = config.value("KASAN_SHADOW_OFFSET")
    {
        let is_inline = config.is_on("KASAN_INLINE");
        // The number of accesses in a function from which on each becomes a call.
        let threshold = if is_inline { 10_000 } else { 0 };
        let parameters = [
            format!("asan-mapping-offset={offset}"),
            format!("asan-instrumentation-with-call-threshold={threshold}"),
            format!("asan-stack={}", u8::from(config.is_on("KASAN_STACK"))),
            "asan-kernel-mem-intrinsic-prefix=1".to_owned(),
            // They would need constructors, which the linked object does not keep.
            "asan-globals=0".to_owned(),
        ];
        add(
            true,
            &["-Zsanitizer=kernel-address", "-Zsanitizer-recover=kernel-address"],
        );
        for parameter in parameters {
            add(true, &[&format!("-Cllvm-args=-{parameter}")]);
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_stock_configuration() {
        let config = Config::parse(
            "# CONFIG_KASAN is not set\nCONFIG_X86_KERNEL_IBT=y\nCONFIG_CALL_PADDING=y\nCONFIG_FUNCTION_PADDING_BYTES=16\n\
             CONFIG_MITIGATION_RETPOLINE=y\nCONFIG_MITIGATION_RETHUNK=y\nCONFIG_MITIGATION_SLS=y\nCONFIG_UNWINDER_ORC=y\n",
        );
        let flags = rust_flags(&config);
        assert_eq!(flags[..ALWAYS.len()], *ALWAYS);
        assert_eq!(
            flags[ALWAYS.len()..],
            [
                "-Zcf-protection=branch",
                "-Cjump-tables=no",
                "-Zretpoline",
                "-Zretpoline-external-thunk",
                "-Zindirect-branch-cs-prefix=yes",
                "-Zfunction-return=thunk-extern",
                "-Ctarget-feature=+harden-sls-ijmp,+harden-sls-ret",
                "-Zpatchable-function-entry=16,16",
            ]
        );
    }

    #[test]
    fn a_kernel_that_checks_its_memory_has_rust_checked_too() {
        let text = "CONFIG_KASAN_GENERIC=y\nCONFIG_KASAN_INLINE=y\nCONFIG_KASAN_STACK=y\nCONFIG_KASAN_SHADOW_OFFSET=0xdffffc0000000000\n";
        let flags = rust_flags(&Config::parse(text));
        assert_eq!(
            flags[ALWAYS.len()..],
            [
                "-Zsanitizer=kernel-address",
                "-Zsanitizer-recover=kernel-address",
                "-Cllvm-args=-asan-mapping-offset=0xdffffc0000000000",
                "-Cllvm-args=-asan-instrumentation-with-call-threshold=10000",
                "-Cllvm-args=-asan-stack=1",
                "-Cllvm-args=-asan-kernel-mem-intrinsic-prefix=1",
                "-Cllvm-args=-asan-globals=0",
            ]
        );
    }

    #[test]
    fn a_kernel_without_mitigations_has_no_thunks() {
        assert_eq!(
            rust_flags(&Config::parse(
                "CONFIG_64BIT=y\n# CONFIG_MITIGATION_RETPOLINE is not set\n"
            )),
            *ALWAYS
        );
        assert!(
            rust_flags(&Config::parse("CONFIG_UNWINDER_FRAME_POINTER=y"))
                .contains(&"-Cforce-frame-pointers=y".to_owned())
        );
    }
}
