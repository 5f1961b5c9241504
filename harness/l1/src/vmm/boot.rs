// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a program finds when it starts: itself, tables, registers.

use std::fs::File;

use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use kvmi_guests::layout;
use kvmi_lab_scenarios::vmm::Refusal;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::{Refused, refuse};

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// IF set: while a guest has it clear, Bochs keeps the host's interrupts from ending the guest's run, and a guest that
/// only counts would never give L1 its CPU back. No guest is sent an interrupt, so none sees the difference.
const RFLAGS: u64 = 0x202;
/// CR0: PE, MP, ET, NE, WP, PG.
const CR0: u64 = 0x8001_0033;
/// CR4: PAE, and MCE, which a guest on SVM reads as its host has it.
const CR4: u64 = 0x60;
/// EFER: LME, LMA.
const EFER: u64 = 0x500;
/// IA32_APIC_BASE: the usual address, enabled, in x2APIC mode.
const APIC_BASE: u64 = 0xfee0_0c00;
/// IA32_APIC_BASE: this is the bootstrap processor.
const APIC_BSP: u64 = 0x100;

/// Loads the program and writes page tables and GDT; the program's entry.
pub(super) fn prepare(ram: &GuestMemoryMmap, guest: &str) -> Result<u64, Refusal> {
    let path = format!("/guests/{guest}");
    let mut file = File::open(&path).map_err(|e| refuse(format!("open {path}: {e}")))?;
    let loaded = Elf::load(ram, None, &mut file, None).map_err(|e| refuse(format!("load {path}: {e}")))?;
    write_tables(ram).map_err(|e| refuse(format!("write the guest's tables: {e}")))?;
    Ok(loaded.kernel_load.raw_value())
}

fn write_tables(ram: &GuestMemoryMmap) -> vm_memory::guest_memory::Result<()> {
    let word = |gpa: u64, value: u64| ram.write_obj(value, GuestAddress(gpa));
    // Selectors of `layout`: null, 64-bit code, data, 16-byte TSS descriptor (available, 64-bit; the CPU never loads it again).
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8900_0000_0067 | layout::TSS << 16,
        0,
    ];
    for (i, descriptor) in (0u64..).zip(gdt) {
        word(layout::GDT + 8 * i, descriptor)?;
    }
    for root in [layout::ROOT, layout::OTHER_ROOT] {
        word(root, layout::PDPT | PRESENT_WRITABLE)?;
    }
    word(layout::PDPT, layout::PAGE_DIRECTORY | PRESENT_WRITABLE)?;
    for i in 0..512 {
        word(
            layout::PAGE_DIRECTORY + 8 * i,
            (i * LARGE_PAGE_BYTES) | LARGE_PAGE | PRESENT_WRITABLE,
        )?;
    }
    Ok(())
}

fn segment(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    }
}

fn special_registers(before: kvm_sregs, index: usize) -> kvm_sregs {
    let mut sregs = before;
    sregs.cs = segment(layout::CODE_SELECTOR, 11, 1);
    let data = segment(layout::DATA_SELECTOR, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: layout::TSS,
        limit: 0x67,
        selector: layout::TSS_SELECTOR,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, 5 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, layout::ROOT, CR4, EFER);
    sregs.apic_base = APIC_BASE | if index == 0 { APIC_BSP } else { 0 };
    sregs
}

/// Sets a new vCPU up to enter the program, its index in RDI.
pub(super) fn set_up(vcpu: &VcpuFd, index: usize, entry: u64, cpuid: &CpuId, initialised: bool) -> Result<(), Refusal> {
    let mut cpuid = cpuid.clone();
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            // The APIC's id, as x2APIC logical mode and the doorbell use it.
            1 => leaf.ebx = (leaf.ebx & 0x00ff_ffff) | ((index as u32) << 24),
            0xb => leaf.edx = index as u32,
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid).refused("KVM_SET_CPUID2")?;
    let before = vcpu.get_sregs().refused("KVM_GET_SREGS")?;
    vcpu.set_sregs(&special_registers(before, index))
        .refused("KVM_SET_SREGS")?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsp: layout::initial_rsp(index),
        rdi: index as u64,
        rflags: RFLAGS,
        ..Default::default()
    })
    .refused("KVM_SET_REGS")?;
    if initialised {
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set_mp_state(runnable).refused("KVM_SET_MP_STATE")?;
    }
    Ok(())
}
