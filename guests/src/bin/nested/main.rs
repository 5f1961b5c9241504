// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hypervisor with one guest, which lives in the same address space ([`Op::Nested`]).
//!
//! The guest is one function on a stack of its own. It ends with the hypercall that a tool is told of when the program itself makes it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code)]

mod svm;
mod vmx;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use kvmi_guests::runtime::{
    Cpu, Vendor, descriptor, int3, mailbox, read_cr, read_msr, table_registers, vendor, write_cr, write_msr_or_fault,
};
use kvmi_guests::{DescriptorOp, Level, NestedOp, Op, Operand, layout};

kvmi_guests::guest!(program);

const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// RAX and RDI of the hypercall that ends the guest: what a tool would be told of. The result is in RSI.
const HYPERCALL: [u64; 2] = [34, 24];

/// For the guest, which may not ask: on Intel CPUID is an exit.
static IS_AMD: AtomicBool = AtomicBool::new(false);

/// A page that the CPU reads or writes by its physical address.
#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: one vCPU runs this program, and it does one thing after the other.
unsafe impl Sync for Page {}

impl Page {
    const fn zero() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }

    /// Its address: guest virtual, and physical.
    fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// A word, by its index.
    fn get(&self, index: usize) -> u64 {
        // SAFETY: as in `set`; the CPU has written it before.
        unsafe { self.0.get().cast::<u64>().add(index % 512).read_volatile() }
    }

    /// Writes a word, by its index.
    fn set(&self, index: usize, word: u64) {
        // SAFETY: the page is this program's alone; the index is within it.
        unsafe { self.0.get().cast::<u64>().add(index % 512).write_volatile(word) }
    }
}

/// How a guest came back.
enum Exit {
    /// By its hypercall, with this result.
    Hypercall(u64),
    /// Otherwise: the exit's number, as the vendor counts.
    Other(u64),
}

/// Page tables by which the guest's memory is what it is here.
struct NestedPaging {
    root: &'static Page,
}

impl NestedPaging {
    /// The first GiB, in 2 MiB pages; the second is the first once more. `table` and `leaf` are what entries hold beside
    /// addresses.
    fn new(table: u64, leaf: u64) -> Self {
        static TABLES: [Page; 3] = [const { Page::zero() }; 3];
        let [root, pointers, directory] = &TABLES;
        root.set(0, pointers.address() | table);
        for index in 0..2 {
            pointers.set(index, directory.address() | table);
        }
        for index in 0..512 {
            directory.set(index, (index as u64) << 21 | leaf);
        }
        Self { root }
    }
}

fn program(cpu: Cpu) -> ! {
    let vendor = vendor();
    IS_AMD.store(vendor == Vendor::Amd, Relaxed);
    // Now: later a tool may watch these instructions.
    let tables = table_registers();
    cpu.serve(|op, [deed, argument, level, is_framed]| {
        if op == Op::HypervisorOperand {
            let operand = Operand::from_number(deed)?;
            return match vendor {
                Vendor::Intel => vmx::operand(&cpu, operand, argument),
                Vendor::Amd => svm::operand(&cpu, tables, operand, argument),
            };
        }
        if op != Op::Nested {
            return None;
        }
        let deed = NestedOp::from_number(deed)?;
        let has_paging = match Level::from_number(level)? {
            Level::Own => return Some(carry_out(deed, argument)),
            Level::Nested => false,
            Level::NestedPaging => true,
        };
        if is_framed != 0 {
            int3();
        }
        let exit = match vendor {
            Vendor::Intel => vmx::run(&cpu, tables, [deed as u64, argument], has_paging),
            Vendor::Amd => svm::run(&cpu, tables, [deed as u64, argument], has_paging),
        };
        if is_framed != 0 {
            int3();
        }
        match exit {
            Exit::Hypercall(result) => Some(result),
            // What no deed results in.
            Exit::Other(number) => Some(0xbad0_0000_0000_0000 | number),
        }
    })
}

/// Where the guest's stack begins: in the lower half of the vCPU's own, as after a call.
fn nested_rsp() -> u64 {
    layout::NESTED_STACK_END - 8
}

/// Where the guest starts, with what it is to do in RDI and RSI.
extern "C" fn nested(deed: u64, argument: u64) -> ! {
    let result = NestedOp::from_number(deed).map_or(u64::MAX, |deed| carry_out(deed, argument));
    let [rax, rdi] = HYPERCALL;
    loop {
        // SAFETY: an exit to the hypervisor, which does not come back.
        unsafe {
            if IS_AMD.load(Relaxed) {
                asm!("vmmcall", in("rax") rax, in("rdi") rdi, in("rsi") result);
            } else {
                asm!("vmcall", in("rax") rax, in("rdi") rdi, in("rsi") result);
            }
        }
    }
}

fn carry_out(deed: NestedOp, argument: u64) -> u64 {
    let cpu = Cpu {
        index: 0,
        slot: &mailbox().slots[0],
    };
    match deed {
        NestedOp::Nothing => 1,
        NestedOp::Int3 => {
            int3();
            cpu.slot.breakpoints.load(Relaxed)
        }
        NestedOp::Cr3 => (0..argument).fold(0, |_, _| {
            write_cr(&cpu, 3, layout::OTHER_ROOT);
            let held = read_cr(3);
            write_cr(&cpu, 3, layout::ROOT);
            held
        }),
        NestedOp::KernelGsBase => {
            write_msr_or_fault(&cpu, KERNEL_GS_BASE, argument, false);
            read_msr(KERNEL_GS_BASE)
        }
        NestedOp::Sgdt => (0..argument).fold(0, |_, _| descriptor(DescriptorOp::Sgdt)),
        NestedOp::Store => {
            let word = ptr::with_exposed_provenance_mut::<u64>(argument as usize);
            // SAFETY: the scenario names memory that the program does not use.
            unsafe {
                word.write_volatile(7);
                word.read_volatile()
            }
        }
        NestedOp::Wait => {
            let word = ptr::with_exposed_provenance_mut::<u64>(argument as usize);
            // SAFETY: as above; the scenario writes it too, and each access is one instruction.
            unsafe {
                word.write_volatile(1);
                while word.read_volatile() != 2 {}
                word.read_volatile()
            }
        }
    }
}
