// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a kernel says when something is wrong with it.

/// Texts of which one in a kernel's log means that the kernel complained.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "unable to handle",
    "double fault",
    "stack segment",
    "invalid opcode: ",
    "divide error:",
    "unchecked MSR access",
    "soft lockup",
    "LOCKUP",
    "self-detected stall",
    "detected stalls",
    "blocked for more than",
    "KASAN",
    "KCSAN",
    "KFENCE",
    "UBSAN",
    "kmemleak",
    "memory leak",
    "Objects remaining",
    "still has objects",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "possible recursive locking",
    "possible circular locking",
    "suspicious RCU usage",
    "inconsistent lock state",
    "bad unlock balance",
    "scheduling while atomic",
    "sleeping function called",
    "DEBUG_LOCKS_WARN_ON",
    "stack-protector:",
    "Bad page state",
    "Bad rss-counter",
    "Call Trace:",
    "vmwrite failed",
    "vmread failed",
    "vmptrld failed",
    "invept failed",
    "invvpid failed",
    "MMU-present spte",
    "disagrees about version of symbol",
    "Unknown symbol",
];

/// Texts that look like one and are none.
const HARMLESS: &[&str] = &[
    // An option of Debian's kernel, said at each boot with mitigations on.
    "WARNING: Unprivileged eBPF is enabled",
];

/// The lines of a kernel's log in which it complains, in order, without what comes before a line's text on a serial console.
#[must_use]
pub fn complaints(log: &str) -> Vec<&str> {
    let complains =
        |line: &&str| COMPLAINTS.iter().any(|c| line.contains(c)) && !HARMLESS.iter().any(|h| line.contains(h));
    log.lines().map(str::trim_end).filter(complains).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_log_has_none() {
        let log = "[    0.000000] Linux version 6.12.117+deb12-cloud-amd64 (debian-kernel@lists.debian.org)\r\n\
                   [    0.1] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on, data leaks possible\r\n\
                   [    0.2] ACPI BIOS Warning (bug): Incorrect checksum in table\r\n\
                   [    1.0] kvm_amd: Nested Paging enabled\r\n\
                   [    1.1] kvm: module verification failed: signature and/or required key missing - tainting kernel\r\n\
                   [    2.0] reboot: Power down\r\n";
        assert_eq!(complaints(log), [""; 0]);
    }

    #[test]
    fn each_kind_is_heard() {
        for line in [
            "[    2.1] BUG: kernel NULL pointer dereference, address: 0000000000000010",
            "[    2.1] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI",
            "[    2.1] WARNING: CPU: 0 PID: 77 at arch/x86/kvm/x86.c:11 kvm_vcpu_ioctl+0x1/0x2 [kvm]",
            "[   30.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:1]",
            "[   30.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    2.1] unchecked MSR access error: RDMSR from 0x1d9 at rIP: 0xffffffff81",
            "[    2.1] BUG: KASAN: slab-use-after-free in kvm_introspection",
            "[    2.1] general protection fault, probably for non-canonical address 0xdead000000000108",
            "[  121.0] INFO: task kvmi-recv:99 blocked for more than 120 seconds.",
            "[    2.1] refcount_t: underflow; use-after-free.",
            "[    2.1] WARNING: possible circular locking dependency detected",
            "[    2.1] kmem_cache of name 'kvmi': Objects remaining on __kmem_cache_shutdown()",
        ] {
            let log = format!("[    2.0] fine\r\n{line}\r\n[    3.0] fine\r\n");
            assert_eq!(complaints(&log), [line]);
        }
    }
}
