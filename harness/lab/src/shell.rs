// SPDX-License-Identifier: MIT OR Apache-2.0
//! A prompt in L1: the modules loaded, a guest running, and for those who want it a debugger at its kernel.

mod terminal;

use anyhow::{Context, Result, bail};
use kvmi_lab_control::{Backend, Lane, LoadedModule, Platform};
use kvmi_lab_environment::Environment;
use kvmi_lab_environment::apt;
use kvmi_lab_environment::complain;
use kvmi_lab_environment::exit;
use kvmi_lab_kernel::{self as kernel, Built, Choice};
use kvmi_lab_machine::clock::Clock;
use kvmi_lab_machine::prompt::{Debugging, Prompt, PromptInfo};

use crate::busybox;
use crate::emulators;
use crate::gdb::{self, Gdb, Module};
use crate::hardware;
use crate::images;
use crate::snapshots;
use crate::table::relative;

/// Where in a run's folder of a lane the logs are.
const FOLDER: &str = "shell";

/// What is wanted.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The lane
    #[arg(long, default_value_t = Lane::SvmTcg)]
    lane: Lane,
    #[command(flatten)]
    choice: Choice,
    /// Have QEMU's debug stub listen for gdb, and say how to call it; not where L1 runs in Bochs
    #[arg(long)]
    gdb: bool,
}

/// Has L1 stand at a prompt until the person there leaves.
pub fn run(env: &Environment, wanted: &Arguments) -> Result<u8> {
    let lane = wanted.lane;
    apt::require_debian()?;
    if wanted.gdb {
        require_stub(lane)?;
        gdb::require()?;
    }
    let mut facts = hardware::look();
    apt::install_needed(env)?;
    let built = kernel::build(env, &wanted.choice)?;
    let fetched = emulators::fetch(env)?;
    if !lane.platform().is_emulated() {
        let kernel = built.kernel.image.join("vmlinuz");
        hardware::try_guest(env, &mut facts, &fetched.emulators, &kernel)?;
        if let Some(lack) = hardware::lack(&facts, lane) {
            bail!("lane {lane} does not run on this machine: {}", lack.text());
        }
    }
    let programs = [("bin/busybox".to_owned(), busybox::fetch(env)?)].into();
    let boot = images::boot_with(env, &built, &programs)?;
    let folder = env.runs.new_folder()?;
    let standing = snapshots::prepare(env, &[lane], Clock::Host, &boot, &fetched, &folder)?;
    let standing = standing.first().context("no lane was prepared")?;
    let logs = folder.join(lane.name()).join(FOLDER);
    let gdb = wanted.gdb.then(Gdb::new).transpose()?;
    let kernel = gdb::Kernel::of(&built.kernel.image.join("vmlinuz"))?;
    let named = kernel.known(&env.cache)?;
    let debugging = gdb.as_ref().map(|gdb| Debugging {
        socket: gdb.socket(),
        symbols: named.is_none(),
    });
    let prompt = Prompt::open(&standing.prepared, &logs, &terminal::screen(), debugging)?;
    complain!("{}", welcome(lane, &built, &prompt.about));
    if let Some(gdb) = &gdb {
        let PromptInfo { symbols, modules, .. } = &prompt.about;
        let named = named.map_or_else(|| kernel.named(&env.cache, symbols), Ok)?;
        let command = gdb.write(&logs, Some(&named), &with_lines(&built, modules))?;
        complain!("\n  the kernel and KVM's modules in gdb, from another terminal:\n    {command}");
    }
    complain!("");
    let left = terminal::attach(prompt)?;
    let off = match left {
        terminal::Left::Off => "L1 is off",
        terminal::Left::Escaped => "L1 was ended",
    };
    complain!(
        "\n{off}; its kernel's log: {}",
        relative(&logs.join("console.log"), &env.checkout)
    );
    Ok(exit::OK)
}

/// Fails where the emulator has no stub for gdb.
fn require_stub(lane: Lane) -> Result<()> {
    if lane.platform() == Platform::Bochs {
        bail!("lane {lane} has no stub for gdb; lanes in QEMU have: cargo xtask shell --gdb --lane svm-tcg");
    }
    Ok(())
}

/// The modules that L1 loaded, as they were before they were stripped.
fn with_lines(built: &Built, loaded: &[LoadedModule]) -> Vec<Module> {
    let module = |LoadedModule { file, sections }: &LoadedModule| Module {
        file: built.modules.join("debug").join(file),
        sections: sections.clone(),
    };
    loaded.iter().map(module).collect()
}

/// What there is to try.
fn welcome(lane: Lane, built: &Built, about: &PromptInfo) -> String {
    let module = match lane.backend() {
        Backend::Svm => "kvm-amd",
        Backend::Vmx => "kvm-intel",
    };
    let with = if about.introspection {
        "with introspection"
    } else {
        "without introspection"
    };
    let PromptInfo { guest, vcpus, vmm, .. } = about;
    let mut lines = vec![
        String::new(),
        format!("{lane}: {} with {module}, {with}", built.kernel.version),
        format!("guest {guest} runs on {vcpus} vCPUs, its VMM is process {vmm}"),
        String::new(),
    ];
    let mut row = |command: &str, what: &str| lines.push(format!("  {command:34} {what}"));
    if about.introspection {
        row("kvmi", "the VMs of this host; kvmi --help says what else there is");
        row(
            &format!("introspect {vmm}"),
            "a small tool: where each vCPU of that guest stands",
        );
    }
    row("vm storm 2 &", "start another guest; vm --help names them all");
    row("kill PID", "end a guest with its VMM");
    row("head /sys/kernel/debug/kvm/exits", "what KVM counts; ls that folder");
    row("dmesg | tail", "what L1's kernel says");
    row("exit", "power off; Ctrl-] ends L1 whatever it does");
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bochs_has_no_stub() {
        let refused = require_stub(Lane::VmxBochs).unwrap_err().to_string();
        assert!(refused.contains("--lane svm-tcg"), "{refused}");
    }
}
