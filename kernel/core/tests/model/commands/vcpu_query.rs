// SPDX-License-Identifier: GPL-2.0-only
//! 4.2: vCPU commands about what a vCPU holds beside its registers, as the fake vCPU has it.

use kvmi_uapi::{
    error::{EINVAL, ENOENT},
    msg,
};
use proptest::prelude::*;

use super::{Command, DONE, Run, nothing, refuse_if};

const XSAVE_BYTES: usize = 4096;

pub(super) const COMMANDS: &[Command] = &[
    Command {
        id: msg::VCPU_GET_CPUID,
        name: "VCPU_GET_CPUID",
        weight: 3,
        bytes: 8,
        request: || {
            (0u32..3, prop_oneof![3 => Just(0u32), 1 => any::<u32>()])
                .prop_map(|(function, index)| [function.to_le_bytes(), index.to_le_bytes()].concat())
                .boxed()
        },
        pads: &[],
        errors: &[ENOENT],
        run: Run::Vcpu(|_, _, request| {
            refuse_if((request.u32(0), request.u32(4)) != (1, 0), ENOENT)?;
            Ok([1u32, 2, 3, 0].map(u32::to_le_bytes).concat())
        }),
    },
    Command {
        id: msg::VCPU_GET_XCR,
        name: "VCPU_GET_XCR",
        weight: 3,
        bytes: 8,
        request: || prop_oneof![4 => Just(vec![0]), 1 => any::<u8>().prop_map(|xcr| vec![xcr])].boxed(),
        pads: &[1, 2, 3, 4, 5, 6, 7],
        errors: &[EINVAL],
        run: Run::Vcpu(|_, _, request| {
            request.padding()?;
            refuse_if(request.u8(0) != 0, EINVAL)?;
            Ok(7u64.to_le_bytes().to_vec())
        }),
    },
    Command {
        id: msg::VCPU_GET_XSAVE,
        name: "VCPU_GET_XSAVE",
        weight: 2,
        bytes: 0,
        request: nothing,
        pads: &[],
        errors: &[],
        run: Run::Vcpu(|spec, vcpu, _| Ok(spec.cpus[vcpu].xsave.clone())),
    },
    Command {
        id: msg::VCPU_SET_XSAVE,
        name: "VCPU_SET_XSAVE",
        weight: 3,
        bytes: XSAVE_BYTES,
        request: || any::<u8>().prop_map(|byte| vec![byte; XSAVE_BYTES]).boxed(),
        pads: &[],
        errors: &[EINVAL],
        run: Run::Vcpu(|spec, vcpu, request| {
            refuse_if(request.bytes.len() < XSAVE_BYTES, EINVAL)?;
            spec.cpus[vcpu].xsave = request.bytes[..XSAVE_BYTES].to_vec();
            DONE
        }),
    },
    Command {
        id: msg::VCPU_GET_MTRR_TYPE,
        name: "VCPU_GET_MTRR_TYPE",
        weight: 2,
        bytes: 8,
        request: || any::<u64>().prop_map(|gpa| gpa.to_le_bytes().to_vec()).boxed(),
        pads: &[],
        errors: &[],
        // It has no MTRRs.
        run: Run::Vcpu(|_, _, _| Ok(vec![6, 0, 0, 0, 0, 0, 0, 0])),
    },
    Command {
        id: msg::VCPU_TRANSLATE_GVA,
        name: "VCPU_TRANSLATE_GVA",
        weight: 2,
        bytes: 24,
        request: || {
            let gva = prop_oneof![0u64..1 << 31, any::<u64>()];
            let root =
                prop_oneof![4 => Just(0x1000u64), 2 => Just(1 << 63 | 0x1abc), 1 => 0u64..1 << 40, 1 => any::<u64>()];
            let by_root = prop_oneof![8 => 0u8..2, 1 => any::<u8>()];
            (gva, root, by_root)
                .prop_map(|(gva, root, by_root)| [&gva.to_le_bytes()[..], &root.to_le_bytes(), &[by_root]].concat())
                .boxed()
        },
        pads: &[17, 18, 19, 20, 21, 22, 23],
        // EOPNOTSUPP while paging is off, which it never is here.
        errors: &[EINVAL],
        run: Run::Vcpu(|_, _, request| {
            request.padding()?;
            let (gva, root, by_root) = (request.u64(0), request.u64(8), request.u8(16));
            refuse_if(by_root > 1, EINVAL)?;
            // Bit 63 and the PCID are ignored; physical addresses have 40 bits.
            let root = root << 1 >> 1;
            refuse_if(by_root == 1 && root >> 40 != 0, EINVAL)?;
            // The fake vCPU's tables: at 0x1000, and of the first GiB alone.
            let is_mapped = gva < 1 << 30 && (by_root == 0 || root >> 12 == 1);
            let gpa = if is_mapped { gva + (1 << 30) } else { u64::MAX };
            Ok(gpa.to_le_bytes().to_vec())
        }),
    },
];
