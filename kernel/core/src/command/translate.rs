// SPDX-License-Identifier: GPL-2.0-only
//! VCPU_TRANSLATE_GVA: what the guest's page tables map, whoever may access it. No access: neither permissions nor
//! SMAP, SMEP and protection keys are looked at, and no accessed bit is set (Intel SDM volume 3, "Paging"; AMD64 APM
//! volume 2, chapter 5).

use kvmi_uapi::{VcpuTranslateGva, VcpuTranslateGvaReply, error::EOPNOTSUPP};

use super::{registers::is_canonical, valid};
use crate::effects::{Control, KvmError, VcpuEffects};

/// What the reply holds where nothing is mapped.
const NOWHERE: u64 = u64::MAX;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1 << 0;
/// An entry of extended page tables that lets read, write or execute.
const EPT_PRESENT: u64 = 0b111;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51 to 12 of an entry, an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits of CR3 that are a PCID or say how the table is cached, and bit 63, which a MOV to CR3 does not keep.
const NO_ROOT: u64 = 0xfff | 1 << 63;
/// Bits of a page directory pointer of PAE paging that are reserved, beside those above physical addresses.
const PDPTR_RESERVED: u64 = 0x1e6;

pub(super) fn command<E: VcpuEffects>(
    effects: &mut E,
    request: VcpuTranslateGva,
) -> Result<VcpuTranslateGvaReply, KvmError> {
    let control = effects.control();
    valid(request.by_root <= 1)?;
    let gpa = if request.by_root == 0 {
        translate(effects, request.gva)
    } else {
        valid(request.root & !NO_ROOT & !physical(&control) == 0)?;
        if control.cr0 & CR0_PG == 0 {
            return Err(KvmError(EOPNOTSUPP));
        }
        walk(effects, &control, Some(request.root), request.gva)
    };
    Ok(VcpuTranslateGvaReply {
        gpa: gpa.unwrap_or(NOWHERE),
    })
}

/// The guest physical address to which a guest virtual one is mapped now.
pub fn translate<E: VcpuEffects>(effects: &mut E, gva: u64) -> Option<u64> {
    let control = effects.control();
    walk(effects, &control, None, gva)
}

/// The same by these tables, or the current ones.
fn walk<E: VcpuEffects>(effects: &mut E, control: &Control, root: Option<u64>, gva: u64) -> Option<u64> {
    let is_long = control.efer & EFER_LMA != 0;
    let is_address = if is_long {
        is_canonical(gva, control.cr4)
    } else {
        gva <= u64::from(u32::MAX)
    };
    if !is_address {
        return None;
    }
    let table = root.unwrap_or(control.cr3) & !NO_ROOT;
    let gpa = if control.cr0 & CR0_PG == 0 {
        Some(gva)
    } else if is_long {
        let levels = if control.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
        wide(effects, &Format::of_guest(control), table & ADDRESS, gva, levels)
    } else if control.cr4 & CR4_PAE != 0 {
        let pointer = if root.is_none() && control.has_pdptrs == 1 {
            *control.pdptrs.get((gva >> 30 & 3) as usize)?
        } else {
            // CR3 holds bits 31 to 5 of where the four pointers are.
            let pointers = root.unwrap_or(control.cr3) & 0xffff_ffe0;
            pointer(effects, Some(control), pointers, gva)?
        };
        wide(
            effects,
            &Format::of_guest(control),
            directory(control, pointer)?,
            gva,
            2,
        )
    } else {
        let has_large = control.cr4 & CR4_PSE != 0;
        narrow(effects, control, Some(control), has_large, table & 0xffff_f000, gva)
    }?;
    by_nested(effects, control, gpa)
}

/// What an address that page tables give is in the introspected guest: itself, unless it is that of a guest of the guest's
/// behind nested paging (AMD64 APM volume 2, 15.25; Intel SDM volume 3, "The Extended Page Table Mechanism").
fn by_nested<E: VcpuEffects>(effects: &mut E, control: &Control, gpa: u64) -> Option<u64> {
    let root = control.nested_root & physical(control);
    let levels = u32::from(control.nested_levels);
    let address_bits = match levels {
        0 => return Some(gpa),
        2 | 3 => 32,
        _ => levels.checked_mul(9)?.checked_add(12)?,
    };
    if gpa.checked_shr(address_bits)? != 0 {
        return None;
    }
    match levels {
        2 => narrow(effects, control, None, control.nested_pse == 1, root & 0xffff_f000, gpa),
        3 => {
            let pointer = pointer(effects, None, root & !0x1f, gpa)?;
            wide(effects, &Format::nested(control), directory(control, pointer)?, gpa, 2)
        }
        _ => wide(effects, &Format::nested(control), root & ADDRESS, gpa, levels),
    }
}

/// PAE paging: one of the four pointers, which lie in memory at root.
fn pointer<E: VcpuEffects>(effects: &mut E, of: Option<&Control>, root: u64, address: u64) -> Option<u64> {
    entry(effects, of, root.checked_add(8 * (address >> 30 & 3))?, 8)
}

/// PAE paging: the page directory to which a pointer points.
fn directory(control: &Control, pointer: u64) -> Option<u64> {
    let reserved = PDPTR_RESERVED | !physical(control) & !0xfff;
    (pointer & PRESENT != 0 && pointer & reserved == 0).then_some(pointer & ADDRESS)
}

/// How entries of 8 bytes are read.
struct Format<'a> {
    /// One of these bits has to be set.
    present: u64,
    /// None of these may be.
    reserved: u64,
    /// The guest's own tables, whose addresses nested paging translates.
    of: Option<&'a Control>,
}

impl<'a> Format<'a> {
    fn of_guest(control: &'a Control) -> Self {
        let mut reserved = ADDRESS & !physical(control);
        if control.efer & EFER_NXE == 0 {
            reserved |= NO_EXECUTE;
        }
        // Bits 62 to 52 are the guest's in long mode alone.
        if control.efer & EFER_LMA == 0 {
            reserved |= 0x7ff << 52;
        }
        Self {
            present: PRESENT,
            reserved,
            of: Some(control),
        }
    }

    fn nested(control: &Control) -> Self {
        Self {
            present: if control.nested_ept == 1 { EPT_PRESENT } else { PRESENT },
            reserved: ADDRESS & !physical(control),
            of: None,
        }
    }
}

/// Tables of 512 entries of 8 bytes, in so many levels.
fn wide<E: VcpuEffects>(effects: &mut E, format: &Format<'_>, table: u64, address: u64, levels: u32) -> Option<u64> {
    let mut table = table;
    for level in (0..levels).rev() {
        let shift = level.checked_mul(9)?.checked_add(12)?;
        let index = address.checked_shr(shift)? & 511;
        let entry = entry(effects, format.of, table.checked_add(8 * index)?, 8)?;
        if entry & format.present == 0 || entry & format.reserved != 0 {
            return None;
        }
        let in_page = 1u64.checked_shl(shift)?.checked_sub(1)?;
        if level == 0 {
            return Some(entry & ADDRESS | address & in_page);
        }
        if entry & LARGE != 0 {
            // Bit 12 is of the memory type, those above it are zero.
            let is_page = level <= 2 && entry & ADDRESS & in_page & !(1 << 12) == 0;
            return is_page.then_some(entry & ADDRESS & !in_page | address & in_page);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Tables of 1024 entries of 4 bytes, in two levels.
fn narrow<E: VcpuEffects>(
    effects: &mut E,
    control: &Control,
    of: Option<&Control>,
    has_large: bool,
    table: u64,
    address: u64,
) -> Option<u64> {
    let directory = entry(effects, of, table.checked_add(4 * (address >> 22 & 1023))?, 4)?;
    if directory & PRESENT == 0 {
        return None;
    }
    if directory & LARGE != 0 && has_large {
        // Bits 39 to 32 of the address lie in bits 20 to 13; bit 21 is reserved.
        let high = (directory >> 13 & 0xff) << 32;
        let is_page = directory & 1 << 21 == 0 && high & !physical(control) == 0;
        return is_page.then_some(high | directory & 0xffc0_0000 | address & 0x3f_ffff);
    }
    let table = directory & 0xffff_f000;
    let page = entry(effects, of, table.checked_add(4 * (address >> 12 & 1023))?, 4)?;
    (page & PRESENT != 0).then_some(page & 0xffff_f000 | address & 0xfff)
}

/// An entry of a table of the introspected guest, or, with `of`, of one that nested paging may lie under.
fn entry<E: VcpuEffects>(effects: &mut E, of: Option<&Control>, at: u64, bytes: usize) -> Option<u64> {
    let gpa = match of {
        Some(control) => by_nested(effects, control, at)?,
        None => at,
    };
    let mut entry = [0; 8];
    effects.read_table(gpa, entry.get_mut(..bytes)?).ok()?;
    Some(u64::from_le_bytes(entry))
}

/// The bits that a physical address can have.
fn physical(control: &Control) -> u64 {
    1u64.checked_shl(control.physical_bits.into())
        .map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}
