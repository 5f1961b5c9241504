// SPDX-License-Identifier: MIT OR Apache-2.0
//! The differences that there are, each with its reason.

/// A field that may differ between lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// What the line is about ends with this, e.g. ` cs` or `GET_VERSION`.
    pub line: &'static str,
    /// The field.
    pub key: &'static str,
    /// Why it differs.
    pub reason: &'static str,
}

/// All of them. One that no longer shows has to go.
pub const NAMED: &[Named] = &[
    Named {
        line: "GET_VERSION",
        key: "data",
        reason: "EPT has pages that can be executed and not read, NPT has none",
    },
    Named {
        line: "GET_VERSION, good",
        key: "data",
        reason: "as GET_VERSION",
    },
    Named {
        line: "VCPU_GET_CPUID, good",
        key: "data",
        reason: "leaf 0 is the vendor's name",
    },
    Named {
        line: "VCPU_GET_XSAVE, good",
        key: "data",
        reason: "as VCPU_GET_XSAVE of ones",
    },
    Named {
        line: "VCPU_GET_INFO, good",
        key: "data",
        reason: "as VCPU_GET_INFO of ones",
    },
    Named {
        line: "PF event",
        key: "data0",
        reason: "SVM does not tell the linear address of an access",
    },
    Named {
        line: "PF regs",
        key: "rf",
        reason: "VMX saves RF as the fault would push it, SVM as it was",
    },
    Named {
        line: "behind a hypercall regs",
        key: "rip",
        reason: TWO_INSTRUCTIONS,
    },
    Named {
        line: "GET_VERSION of ones",
        key: "data",
        reason: "as GET_VERSION, which has no request to be wrong",
    },
    Named {
        line: "VCPU_GET_XSAVE of ones",
        key: "data",
        reason: "the layout is that of the CPU, and the emulators' CPUs have different extended state",
    },
    Named {
        line: "HYPERCALL regs",
        key: "rip",
        reason: TWO_INSTRUCTIONS,
    },
    Named {
        line: "PAUSE regs",
        key: "rip",
        reason: TWO_INSTRUCTIONS,
    },
    Named {
        line: "VCPU_GET_REGISTERS regs",
        key: "rip",
        reason: TWO_INSTRUCTIONS,
    },
    Named {
        line: "VCPU_GET_INFO of ones",
        key: "data",
        reason: "tsc_speed is 0 on a CPU that cannot scale the TSC; QEMU's TCG cannot, Bochs can",
    },
];

const TWO_INSTRUCTIONS: &str = "VMCALL and VMMCALL stand at different places of the guest's program, which has both";
