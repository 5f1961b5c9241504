// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executes instructions of system software on command: [`Op::WriteMsr`], [`Op::ReadMsr`], [`Op::WriteXcr0`], [`Op::WriteXmm`],
//! [`Op::ReadXmm`], [`Op::WriteYmm`], [`Op::ReadYmm`], [`Op::Descriptor`], [`Op::StoreInRing3`], [`Op::Repeat`], [`Op::Hypercall`].
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering::Relaxed;

use kvmi_guests::runtime::{
    Cpu, descriptor, enable_extended_state, hypercall, int3, read_cr, read_msr, read_xcr0, read_xmm, read_ymm,
    store_in_ring_3, vendor, write_cr, write_cr_or_fault, write_msr_or_fault, write_xcr0_or_fault, write_xmm,
    write_ymm,
};
use kvmi_guests::{DescriptorOp, Op, RepeatOp, StoreOp, layout};

const KERNEL_GS_BASE: u32 = 0xc000_0102;

kvmi_guests::guest!(program);

fn program(cpu: Cpu) -> ! {
    enable_extended_state(&cpu);
    cpu.serve(|op, [first, second, third, ..]| match op {
        Op::WriteMsr => {
            write_msr_or_fault(&cpu, first as u32, second, third != 0);
            Some(0)
        }
        Op::ReadMsr => Some(read_msr(first as u32)),
        Op::WriteXcr0 => {
            write_xcr0_or_fault(&cpu, first, second != 0);
            Some(read_xcr0())
        }
        Op::WriteXmm => {
            write_xmm(first);
            Some(0)
        }
        Op::ReadXmm => Some(read_xmm()),
        Op::WriteYmm => {
            write_ymm(first);
            Some(0)
        }
        Op::ReadYmm => Some(read_ymm()),
        Op::Descriptor => DescriptorOp::from_number(first).map(descriptor),
        Op::StoreInRing3 => StoreOp::from_number(first).map(|op| store_in_ring_3(&cpu, op)),
        Op::WriteCr => {
            write_cr_or_fault(&cpu, first, second);
            Some(read_cr(first))
        }
        Op::ReadCr => Some(read_cr(first)),
        Op::Repeat => RepeatOp::from_number(first).map(|op| repeat(&cpu, op, second)),
        // What CPUID says is kept in no register: events show them all.
        Op::Hypercall => Some(hypercall(vendor(), first, second, third)[0]),
        _ => None,
    })
}

fn repeat(cpu: &Cpu, op: RepeatOp, rounds: u64) -> u64 {
    for round in 1..=rounds {
        match op {
            RepeatOp::KernelGsBase => write_msr_or_fault(cpu, KERNEL_GS_BASE, round, false),
            RepeatOp::Sgdt => {
                let _ = descriptor(DescriptorOp::Sgdt);
            }
            RepeatOp::Cr3 => write_cr(cpu, 3, [layout::ROOT, layout::OTHER_ROOT][(round % 2) as usize]),
            RepeatOp::Int3 => int3(),
        }
    }
    match op {
        RepeatOp::KernelGsBase => read_msr(KERNEL_GS_BASE),
        RepeatOp::Sgdt => descriptor(DescriptorOp::Sgdt),
        RepeatOp::Cr3 => read_cr(3),
        RepeatOp::Int3 => cpu.slot.breakpoints.load(Relaxed),
    }
}
