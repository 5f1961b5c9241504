// SPDX-License-Identifier: GPL-2.0-only
//! 4.2: vCPU commands that make a vCPU tell of something, or have something happen to it.

use kvmi_core::Occurrence;
use kvmi_uapi::{
    error::{EBUSY, EINVAL, EPERM},
    event, msg,
};
use proptest::prelude::*;

use super::{Command, DONE, Run, refuse_if, switch, switch_on};
use crate::{events::MSRS, spec::Stage};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        id: msg::VCPU_CONTROL_MSR,
        name: "VCPU_CONTROL_MSR",
        weight: 10,
        bytes: 8,
        request: || {
            let msr = prop_oneof![6 => proptest::sample::select(MSRS), 1 => 0u32..0x2010, 1 => any::<u32>()];
            (msr, prop_oneof![4 => Just(1), 1 => switch()])
                .prop_map(|(msr, enable)| [&[enable, 0, 0, 0], &msr.to_le_bytes()[..]].concat())
                .boxed()
        },
        pads: &[1, 2, 3],
        errors: &[EINVAL],
        run: Run::Vcpu(|spec, vcpu, request| {
            request.padding()?;
            let (enable, msr) = (request.u8(0), request.u32(4));
            refuse_if(enable > 1, EINVAL)?;
            // EBUSY for the 129th that the hardware cannot be told of: no session of this length watches so many.
            switch_on(&mut spec.switches(vcpu).msrs, msr, enable == 1);
            DONE
        }),
    },
    Command {
        id: msg::VCPU_INJECT_EXCEPTION,
        name: "VCPU_INJECT_EXCEPTION",
        weight: 40,
        bytes: 16,
        request: || {
            let nr = prop_oneof![6 => proptest::sample::select(&[6u8, 13, 14][..]), 1 => 0u8..34, 1 => any::<u8>()];
            let code = prop_oneof![6 => 0u32..0x1_0000, 1 => any::<u32>()];
            (nr, code, 0u64..9)
                .prop_map(|(nr, code, address)| {
                    [&[nr, 0, 0, 0], &code.to_le_bytes()[..], &address.to_le_bytes()].concat()
                })
                .boxed()
        },
        pads: &[1, 2, 3],
        errors: &[EPERM, EINVAL, EBUSY],
        run: Run::Vcpu(|spec, vcpu, request| {
            refuse_if(!spec.hooked().events.contains(&event::TRAP), EPERM)?;
            request.padding()?;
            let (nr, code, address) = (request.u8(0), request.u32(4), request.u64(8));
            let has_code = matches!(nr, 8 | 10..=14 | 17);
            refuse_if(!matches!(nr, 0 | 1 | 5..=8 | 10..=14 | 16..=19), EINVAL)?;
            refuse_if(has_code && code > 0xffff, EINVAL)?;
            refuse_if(spec.switches(vcpu).singlestep, EBUSY)?;
            let vcpu = spec.vcpu(vcpu);
            let owes_trap = vcpu.injection.is_some() || matches!(vcpu.stage, Stage::Due(Occurrence::Trap { .. }));
            refuse_if(owes_trap, EBUSY)?;
            vcpu.injection = Some(Occurrence::Trap {
                nr,
                error_code: if has_code { code } else { 0 },
                address: if nr == 14 { address } else { 0 },
            });
            DONE
        }),
    },
];
