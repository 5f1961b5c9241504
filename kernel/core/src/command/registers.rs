// SPDX-License-Identifier: GPL-2.0-only
//! VCPU_SET_REGISTERS: what a vCPU may be given. With other values VM entry fails, on one vendor at least (Intel SDM
//! volume 3, "Checks on Guest RIP, RFLAGS, and SSP"; AMD64 APM volume 2, 15.5.1).

use kvmi_uapi::{Regs, error::EOPNOTSUPP};

use super::valid;
use crate::{
    effects::{Control, KvmError, VcpuEffects},
    state::vcpu::{Phase, VcpuState},
    wire::Message,
};

/// RFLAGS: every flag that there is.
const FLAGS: u64 = 0x3f_7fd5;
/// RFLAGS bit 1 is always set.
const FLAGS_FIXED: u64 = 1 << 1;
/// RFLAGS.IF.
const FLAGS_IF: u64 = 1 << 9;
/// RFLAGS.VM: a CPU sets and clears it together with the segments, which a tool cannot set.
const FLAGS_VM: u64 = 1 << 17;
/// CR4.LA57.
const CR4_LA57: u64 = 1 << 12;

/// Keeps the registers until the reply to the open event arrives.
pub(super) fn set<E: VcpuEffects>(
    state: &mut VcpuState,
    effects: &mut E,
    message: Message<'_>,
) -> Result<(), KvmError> {
    let regs: Regs = message.request();
    valid(are_possible(&regs, &effects.control()))?;
    if state.phase != Phase::Sent {
        return Err(KvmError(EOPNOTSUPP));
    }
    state.registers = Some(regs);
    Ok(())
}

fn are_possible(regs: &Regs, control: &Control) -> bool {
    let rip_is_possible = if control.long_code == 1 {
        is_canonical(regs.rip, control.cr4)
    } else {
        regs.rip <= u64::from(u32::MAX)
    };
    let interrupt_is_possible = control.delivers_interrupt == 0 || regs.rflags & FLAGS_IF != 0;
    rip_is_possible
        && interrupt_is_possible
        && regs.rflags & !FLAGS == FLAGS_FIXED
        && (regs.rflags ^ control.rflags) & FLAGS_VM == 0
}

/// Whether all bits of an address above those that are translated are the same.
pub(super) fn is_canonical(address: u64, cr4: u64) -> bool {
    let unused = if cr4 & CR4_LA57 == 0 { 16 } else { 7 };
    ((address << unused) as i64 >> unused) as u64 == address
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Control = Control {
        cr0: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        rflags: 2,
        pdptrs: [0; 4],
        nested_root: 0,
        physical_bits: 40,
        long_code: 1,
        delivers_interrupt: 0,
        has_pdptrs: 0,
        nested_levels: 0,
        nested_ept: 0,
        nested_pse: 0,
        pad: 0,
    };

    fn with(rip: u64, rflags: u64) -> Regs {
        Regs {
            rip,
            rflags,
            ..Regs::default()
        }
    }

    #[test]
    fn rip_has_to_be_an_address_of_the_mode() {
        let five_levels = Control { cr4: CR4_LA57, ..LONG };
        let compatible = Control { long_code: 0, ..LONG };
        for (rip, modes) in [
            (0, [true, true, true]),
            (0xffff_ffff, [true, true, true]),
            (0x1_0000_0000, [true, true, false]),
            (0x7fff_ffff_ffff, [true, true, false]),
            (0x8000_0000_0000, [false, true, false]),
            (0xffff_8000_0000_0000, [true, true, false]),
            (0xff00_0000_0000_0000, [false, true, false]),
            (0x0100_0000_0000_0000, [false, false, false]),
            (u64::MAX, [true, true, false]),
        ] {
            let got = [LONG, five_levels, compatible].map(|control| are_possible(&with(rip, 2), &control));
            assert_eq!(got, modes, "{rip:#x}");
        }
    }

    #[test]
    fn flags_that_are_none_have_their_value_and_vm_stays() {
        for bit in 0..64 {
            let is_flag = ![1, 3, 5, 15].contains(&bit) && bit < 22 && bit != 17;
            assert_eq!(
                are_possible(&with(0, 2 | 1 << bit), &LONG),
                is_flag || bit == 1,
                "{bit}"
            );
        }
        assert!(!are_possible(&with(0, 0), &LONG));
        let delivers = Control {
            delivers_interrupt: 1,
            ..LONG
        };
        assert!(!are_possible(&with(0, 2), &delivers));
        assert!(are_possible(&with(0, 2 | FLAGS_IF), &delivers));
        let virtual_86 = Control {
            rflags: 2 | FLAGS_VM,
            long_code: 0,
            ..LONG
        };
        assert!(are_possible(&with(0, 2 | FLAGS_VM), &virtual_86));
        assert!(!are_possible(&with(0, 2), &virtual_86));
    }
}
