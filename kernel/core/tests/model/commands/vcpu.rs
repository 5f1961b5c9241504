// SPDX-License-Identifier: GPL-2.0-only
//! 4.2: vCPU commands.

use kvmi_uapi::{
    error::{EBUSY, EINVAL, EOPNOTSUPP, EPERM},
    event, msg,
};
use proptest::{collection::vec, prelude::*};

use super::{Command, DONE, Run, event_id, nothing, refuse_if, switch, switch_on};
use crate::{
    events::{EVENTS, Event},
    fake::NO_MSR,
    spec::{OF_VM, Stage},
    steps::RIP,
};

pub(super) const COMMANDS: &[Command] = &[
    Command {
        id: msg::VCPU_GET_INFO,
        name: "VCPU_GET_INFO",
        weight: 3,
        bytes: 0,
        request: nothing,
        pads: &[],
        errors: &[],
        run: Run::Vcpu(|_, _, _| Ok(2_000_000_000u64.to_le_bytes().to_vec())),
    },
    Command {
        id: msg::VCPU_CONTROL_EVENTS,
        name: "VCPU_CONTROL_EVENTS",
        weight: 70,
        bytes: 8,
        request: || {
            let ids: Vec<u16> = EVENTS.iter().map(|event| event.id).collect();
            let id = prop_oneof![9 => proptest::sample::select(ids), 1 => event_id()];
            (id, prop_oneof![3 => Just(1), 2 => switch()])
                .prop_map(|(id, enable)| [&id.to_le_bytes()[..], &[enable]].concat())
                .boxed()
        },
        pads: &[3, 4, 5, 6, 7],
        errors: &[EINVAL, EPERM, EBUSY],
        run: Run::Vcpu(|spec, vcpu, request| {
            request.padding()?;
            let (id, enable) = (request.u16(0), request.u8(2) == 1);
            refuse_if(
                request.u8(2) > 1 || Event::by_id(id).is_none() || OF_VM.contains(&id),
                EINVAL,
            )?;
            refuse_if(!spec.hooked().events.contains(&id), EPERM)?;
            let is_on = spec.switches(vcpu).events.contains(&id);
            if id == event::BREAKPOINT {
                let debugged = spec.cpus[vcpu].debugged;
                refuse_if(if enable { !is_on && debugged } else { !is_on }, EBUSY)?;
            }
            switch_on(&mut spec.switches(vcpu).events, id, enable);
            DONE
        }),
    },
    Command {
        id: msg::VCPU_GET_REGISTERS,
        name: "VCPU_GET_REGISTERS",
        weight: 3,
        bytes: 8,
        request: || {
            let nmsrs = prop_oneof![8 => 0u16..4, 1 => 480u16..483];
            let index = prop_oneof![7 => 0u32..0x100, 1 => Just(NO_MSR)];
            (nmsrs, vec(index, 3))
                .prop_map(|(nmsrs, indices)| {
                    let mut request = nmsrs.to_le_bytes().to_vec();
                    request.resize(8, 0);
                    let indices = indices.iter().cycle().take(nmsrs.into());
                    request.extend(indices.flat_map(|index| index.to_le_bytes()));
                    request
                })
                .boxed()
        },
        pads: &[2, 3, 4, 5, 6, 7],
        errors: &[EINVAL],
        run: Run::Vcpu(|_, _, request| {
            request.padding()?;
            let nmsrs = usize::from(request.u16(0));
            refuse_if(
                nmsrs > 481 || request.bytes.len() < nmsrs * 4 + if nmsrs > 0 { 8 } else { 0 },
                EINVAL,
            )?;
            let mut data = vec![8, 0, 0, 0, 0, 0, 0, 0];
            // As the fake vCPU shows them.
            data.extend([0xbb; 144]);
            data.extend([0xcc; 312]);
            data.extend((nmsrs as u32).to_le_bytes());
            data.extend([0; 4]);
            for nr in 0..nmsrs {
                let index = request.u32(8 + 4 * nr);
                refuse_if(index == NO_MSR, EINVAL)?;
                data.extend(index.to_le_bytes());
                data.extend([0; 4]);
                data.extend((u64::from(index) << 8).to_le_bytes());
            }
            Ok(data)
        }),
    },
    Command {
        id: msg::VCPU_SET_REGISTERS,
        name: "VCPU_SET_REGISTERS",
        weight: 8,
        bytes: 144,
        request: || {
            let rip = prop_oneof![12 => Just(RIP), 6 => 0u64..9, 1 => Just(1 << 47)];
            let rflags = prop_oneof![8 => Just(2u64), 4 => Just(0x20_0246), 1 => any::<u64>()];
            (any::<u8>(), rip, rflags)
                .prop_map(|(byte, rip, rflags)| {
                    let mut regs = vec![byte; 144];
                    regs[128..136].copy_from_slice(&rip.to_le_bytes());
                    regs[136..].copy_from_slice(&rflags.to_le_bytes());
                    regs
                })
                .boxed()
        },
        pads: &[],
        errors: &[EINVAL, EOPNOTSUPP],
        run: Run::Vcpu(|spec, vcpu, request| {
            refuse_if(request.bytes.len() < 144, EINVAL)?;
            // The fake vCPU is in 64-bit mode, with four levels of page tables and RFLAGS 2.
            let (rip, rflags) = (request.u64(128), request.u64(136));
            refuse_if(!matches!(rip >> 47, 0 | 0x1_ffff), EINVAL)?;
            let fixed = [(0, 3), (1, 1), (0, 5), (0, 15), (0, 17)];
            refuse_if(fixed.iter().any(|(value, bit)| rflags >> bit & 1 != *value), EINVAL)?;
            refuse_if(rflags >> 22 != 0, EINVAL)?;
            let vcpu = spec.vcpu(vcpu);
            refuse_if(!matches!(vcpu.stage, Stage::Open { .. }), EOPNOTSUPP)?;
            vcpu.registers = Some(request.bytes[..144].to_vec());
            DONE
        }),
    },
    Command {
        id: msg::VCPU_CONTROL_CR,
        name: "VCPU_CONTROL_CR",
        weight: 10,
        bytes: 8,
        request: || {
            let cr = prop_oneof![6 => proptest::sample::select(&[0u8, 3, 4][..]), 1 => any::<u8>()];
            (cr, prop_oneof![4 => Just(1), 1 => switch()])
                .prop_map(|(cr, enable)| vec![cr, enable])
                .boxed()
        },
        pads: &[2, 3, 4, 5, 6, 7],
        errors: &[EINVAL],
        run: Run::Vcpu(|spec, vcpu, request| {
            request.padding()?;
            let (cr, enable) = (request.u8(0), request.u8(1));
            refuse_if(enable > 1 || ![0, 3, 4].contains(&cr), EINVAL)?;
            switch_on(&mut spec.switches(vcpu).crs, cr, enable == 1);
            DONE
        }),
    },
    Command {
        id: msg::VCPU_CONTROL_SINGLESTEP,
        name: "VCPU_CONTROL_SINGLESTEP",
        weight: 10,
        bytes: 8,
        request: || {
            (switch(), switch())
                .prop_map(|(enable, interrupts)| vec![enable, interrupts])
                .boxed()
        },
        pads: &[2, 3, 4, 5, 6, 7],
        // EOPNOTSUPP where the CPU cannot be stepped, which is none of these.
        errors: &[EPERM, EINVAL, EBUSY],
        run: Run::Vcpu(|spec, vcpu, request| {
            refuse_if(!spec.hooked().events.contains(&event::SINGLESTEP), EPERM)?;
            request.padding()?;
            refuse_if(request.u8(0) > 1 || request.u8(1) > 1, EINVAL)?;
            let enable = request.u8(0) == 1;
            let debugged = spec.cpus[vcpu].debugged;
            let switches = spec.switches(vcpu);
            refuse_if(enable && !switches.singlestep && debugged, EBUSY)?;
            switches.singlestep = enable;
            DONE
        }),
    },
];
