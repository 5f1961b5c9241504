// SPDX-License-Identifier: MIT OR Apache-2.0
//! VM_READ_PHYSICAL and VM_WRITE_PHYSICAL.

use std::time::Duration;

use kvmi_guests::{MemoryOp, Op, layout};
use kvmi_uapi::error::{EINVAL, ENOENT, EPERM};
use kvmi_uapi::{VmWritePhysical, msg};
use zerocopy::IntoBytes;

use super::padding_is_checked;
use crate::{Context, Failure, Scenario, check, check_eq, scenario};

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "commands::vm_read_physical",
        "VM_READ_PHYSICAL: what the guest wrote, within one page",
        read,
    ),
    scenario(
        "commands::vm_write_physical",
        "VM_WRITE_PHYSICAL: the guest reads it, within one page; what is refused changes nothing",
        write,
    ),
    scenario(
        "commands::vm_write_physical_marks_dirty",
        "a written page shows in the dirty log, a page that was only read does not",
        dirty,
    ),
    scenario(
        "commands::vm_write_physical_read_only_slot",
        "a read-only slot can be read; writing it answers EPERM and changes nothing",
        read_only,
    ),
    scenario(
        "commands::vm_memory_is_the_vmms",
        "the page that KVM itself puts at the APIC's address is no guest memory: ENOENT to read, to write, EINVAL to restrict",
        own_slots,
    ),
];

fn own_slots(context: &mut Context) -> Result<(), Failure> {
    /// `APIC_DEFAULT_PHYS_BASE`: KVM has a slot of its own there where the CPU virtualizes APIC accesses.
    const APIC_PAGE: u64 = 0xfee0_0000;
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("memory", 1)?;
    check_eq!(wire.read_physical(APIC_PAGE, 8)?, Err(ENOENT), "VM_READ_PHYSICAL");
    check_eq!(
        wire.write_physical(APIC_PAGE, &[0; 8])?,
        Err(ENOENT),
        "VM_WRITE_PHYSICAL"
    );
    let request = crate::pages::request(&[(APIC_PAGE, 0)]);
    check_eq!(
        wire.vm(msg::VM_SET_PAGE_ACCESS, &request[..])?,
        Err(EINVAL),
        "VM_SET_PAGE_ACCESS"
    );
    vm.exit()
}

fn read(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("memory", 1)?;
    let page = layout::SCRATCH;
    vm.carry_out(
        context,
        0,
        Op::Memory,
        [MemoryOp::Fill as u64, page, 1024, 0x0101_0101_0101_0101],
    )?;
    let mut wanted = vec![0; 8192];
    vm.guest.read(page, &mut wanted)?;
    context.stage("answers", Duration::from_secs(10));
    for (offset, size) in [(0, 1), (0, 4096), (4095, 1), (4088, 8), (100, 3000), (4096, 4096)] {
        let got = wire.read_physical(page + offset as u64, size as u16)?;
        check_eq!(
            got,
            Ok(wanted[offset..offset + size].to_vec()),
            "{size} bytes at {offset:#x}"
        );
    }
    for (offset, size) in [(1, 4096), (4095, 2), (4089, 8)] {
        let got = wire.read_physical(page + offset, size)?;
        check_eq!(got, Err(EINVAL), "{size} bytes at {offset:#x}, of two pages");
    }
    // A shorter request reads as zero in the tail: without a size, size 0.
    check_eq!(
        wire.vm(msg::VM_READ_PHYSICAL, &page)?,
        Err(EINVAL),
        "a request without size"
    );
    vm.exit()
}

fn write(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("memory", 1)?;
    let page = layout::SCRATCH;
    context.stage("answers", Duration::from_secs(10));
    let pattern: Vec<u8> = (0..4096u32).map(|i| (i * 7 + i / 256) as u8).collect();
    check_eq!(wire.write_physical(page, &pattern)?, Ok(vec![]), "a whole page");
    let mut got = vec![0; 4096];
    vm.guest.read(page, &mut got)?;
    check!(got == pattern, "the page is not what was written");
    check_eq!(
        wire.write_physical(page + 4095, &[0xab])?,
        Ok(vec![]),
        "a page's last byte"
    );
    check_eq!(
        wire.write_physical(page + 8, &77u64.to_ne_bytes())?,
        Ok(vec![]),
        "eight bytes"
    );
    let sum = vm.carry_out(context, 0, Op::Memory, [MemoryOp::Sum as u64, page + 8, 1, 0])?;
    check_eq!(sum, 77, "the word that the guest reads");
    vm.guest.read(page, &mut got)?;
    let wanted = [&pattern[..8], &77u64.to_ne_bytes(), &pattern[16..4095], &[0xab]].concat();
    check!(got == wanted, "bytes beside the written ones have changed");
    context.stage("what is refused changes nothing", Duration::from_secs(10));
    let request = VmWritePhysical {
        gpa: page,
        size: 8,
        ..Default::default()
    };
    let request = [request.as_bytes(), &[0; 8]].concat();
    padding_is_checked(&mut wire, msg::VM_WRITE_PHYSICAL, &request, 10..16)?;
    vm.guest.read(page, &mut got)?;
    check!(got == wanted, "a refused write has changed the page");
    context.stage(
        "a size that exceeds the message closes the connection",
        Duration::from_secs(10),
    );
    wire.send(msg::VM_WRITE_PHYSICAL, &request[..request.len() - 1])?;
    wire.expect_closed()?;
    check_eq!(wire.untaken_answers(), 0, "answers");
    vm.guest.read(page, &mut got)?;
    check!(got == wanted, "the refused write has changed the page");
    vm.exit()
}

fn dirty(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("halt", 1)?;
    let page = layout::SCRATCH + 0x3000;
    context.stage("write and read", Duration::from_secs(10));
    vm.log_dirty(true)?;
    vm.dirty_gfns()?;
    check_eq!(
        wire.read_physical(page + 0x1000, 4096)?,
        Ok(vec![0; 4096]),
        "a page of zeros"
    );
    check_eq!(wire.write_physical(page, &[1])?, Ok(vec![]), "a byte");
    let dirty = vm.dirty_gfns()?;
    check!(
        dirty.contains(&(page >> 12)),
        "gfn {:#x} was written and is not dirty: {dirty:x?}",
        page >> 12
    );
    check!(
        !dirty.contains(&((page >> 12) + 1)),
        "the next gfn was read and is dirty: {dirty:x?}"
    );
    let dirty = vm.dirty_gfns()?;
    check!(
        !dirty.contains(&(page >> 12)),
        "gfn {:#x} is dirty a second time: {dirty:x?}",
        page >> 12
    );
    check_eq!(wire.write_physical(page, &[2])?, Ok(vec![]), "a byte");
    let dirty = vm.dirty_gfns()?;
    check!(
        dirty.contains(&(page >> 12)),
        "gfn {:#x} was written again and is not dirty: {dirty:x?}",
        page >> 12
    );
    vm.exit()
}

fn read_only(context: &mut Context) -> Result<(), Failure> {
    context.stage("start", Duration::from_secs(20));
    let (vm, mut wire) = context.hooked_vm("memory", 1)?;
    vm.add_read_only_slot(0x4000)?;
    let gpa = layout::READ_ONLY_SLOT;
    context.stage("read and write", Duration::from_secs(10));
    check_eq!(wire.read_physical(gpa, 4096)?, Ok(vec![0xa5; 4096]), "a read-only page");
    check_eq!(
        wire.write_physical(gpa, &[0; 8])?,
        Err(EPERM),
        "a write to a read-only page"
    );
    check_eq!(
        wire.read_physical(gpa, 8)?,
        Ok(vec![0xa5; 8]),
        "the read-only page after it"
    );
    let sum = vm.carry_out(context, 0, Op::Memory, [MemoryOp::Sum as u64, gpa, 1, 0])?;
    check_eq!(sum, 0xa5a5_a5a5_a5a5_a5a5, "what the guest reads there");
    check_eq!(
        wire.read_physical(gpa + 0x4000, 8)?,
        Err(ENOENT),
        "a read behind the slot"
    );
    vm.exit()
}
