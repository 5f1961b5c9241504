// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things lie in guest physical memory. Addresses are guest physical and, identity mapped, guest virtual.

/// RAM from address 0, in bytes.
pub const RAM_BYTES: u64 = 8 << 20;

/// How many vCPUs a guest may have: there is a stack and a [`crate::Slot`] for each.
pub const MAX_VCPUS: usize = 15;

/// The GDT: null, code, data, TSS (two entries).
pub const GDT: u64 = 0x1000;

/// Selector of the 64-bit code segment.
pub const CODE_SELECTOR: u16 = 0x08;

/// Selector of the data segment.
pub const DATA_SELECTOR: u16 = 0x10;

/// Selector of the task state segment.
pub const TSS_SELECTOR: u16 = 0x18;

/// The task state segment; all zero.
pub const TSS: u64 = 0x1800;

/// The page table root (PML4) that the VMM loads into CR3.
pub const ROOT: u64 = 0x2000;

/// A second root with the same content, so that a guest has another legal value to write to CR3.
pub const OTHER_ROOT: u64 = 0x3000;

/// The page directory pointer table that both roots share.
pub const PDPT: u64 = 0x4000;

/// The page directory of the first GiB, in 2 MiB pages.
pub const PAGE_DIRECTORY: u64 = 0x5000;

/// The page at which a vCPU that gets a SIPI starts in real mode; the program `resets` writes it.
pub const TRAMPOLINE: u64 = 0x7000;

/// What the trampoline writes to KERNEL_GS_BASE, between its second and its last write of CR0.
pub const TRAMPOLINE_WRITES: [u32; 2] = [0x1000, 0x2000];

/// The page that holds the [`crate::Mailbox`].
pub const MAILBOX: u64 = 0x8000;

/// The lowest stack; vCPU n's lies [`STACK_BYTES`] × n higher.
pub const STACKS: u64 = 0x1_0000;

/// Size of one stack, a power of two to which the stack is aligned.
pub const STACK_BYTES: u64 = 0x4000;

/// The end of the stack of the program `nested`'s guest: the middle of vCPU 0's.
pub const NESTED_STACK_END: u64 = STACKS + STACK_BYTES / 2;

/// RFLAGS with which the program `nested` enters its guest. IF is set, as the VMM sets it for the program, and nobody sends an interrupt.
pub const NESTED_RFLAGS: u64 = 0x202;

/// Where programs are linked.
pub const PROGRAM: u64 = 0x10_0000;

/// Memory that no program uses unless a command names it, to the end of RAM.
pub const SCRATCH: u64 = 0x40_0000;

/// The read-only slot, where a scenario asks the VMM for one; above RAM and inside what the page tables map.
pub const READ_ONLY_SLOT: u64 = 0x1000_0000;

/// The sparse slot, where a scenario asks the VMM for one; beyond what the page tables map.
pub const SPARSE_SLOT: u64 = 4 << 30;

/// A slot of the VMM's anonymous memory, where a scenario asks for one; inside what the page tables map.
pub const ANONYMOUS_SLOT: u64 = 0x2000_0000;

/// The value of RSP with which vCPU `index` starts: as after a call, 8 below a multiple of 16.
#[must_use]
pub const fn initial_rsp(index: usize) -> u64 {
    STACKS + STACK_BYTES * (index as u64 + 1) - 8
}

/// The vCPU whose stack `rsp` points into.
#[must_use]
pub const fn vcpu_of_rsp(rsp: u64) -> usize {
    ((rsp - STACKS) / STACK_BYTES) as usize
}

const _: () = assert!(
    STACKS + STACK_BYTES * MAX_VCPUS as u64 <= 0x8_0000,
    "stacks reach into the BIOS hole"
);
const _: () = assert!(vcpu_of_rsp(initial_rsp(0)) == 0 && vcpu_of_rsp(initial_rsp(14)) == 14);
