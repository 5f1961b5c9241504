// SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT
//! One table of every structure and constant, asserted here and compared with `include/kvmi.h` by a test.

use core::mem::{offset_of, size_of};

use crate::{
    Dtable, ErrorCode, EventHdr, Features, GetVersionReply, MsgHdr, MsrEntry, MsrsHdr, PageAccessEntry, Regs, Segment,
    Sregs, ToolHandshake, VcpuControlCr, VcpuControlEvents, VcpuControlMsr, VcpuControlSinglestep, VcpuEvent,
    VcpuEventArch, VcpuEventReply, VcpuGetCpuid, VcpuGetCpuidReply, VcpuGetInfoReply, VcpuGetMtrrType,
    VcpuGetMtrrTypeReply, VcpuGetRegisters, VcpuGetRegistersReply, VcpuGetXcr, VcpuGetXcrReply, VcpuHdr,
    VcpuInjectException, VcpuTranslateGva, VcpuTranslateGvaReply, VmCheckCommand, VmCheckEvent, VmControlCleanup,
    VmControlEvents, VmGetInfoReply, VmPageAccess, VmPauseVcpu, VmReadPhysical, VmWritePhysical, VmmHandshake, Xsave,
    error, event, ioctl, msg,
};

/// A structure of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Struct {
    /// Its name in C, without `struct`.
    pub c_name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Fields by their names in C, with their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
}

macro_rules! structs {
    ($(
        $rust:ty, $c:literal, $size:literal {
            $( $field:ident $(as $cfield:literal)? @ $offset:literal ),* $(,)?
        }
    )*) => {
        /// Every structure.
        pub const STRUCTS: &[Struct] = &[$( Struct {
            c_name: $c,
            size: $size,
            fields: &[$( (structs!(@name $field $($cfield)?), $offset) ),*],
        } ),*];
        const _: () = {
            $(
                assert!(size_of::<$rust>() == $size);
                $( assert!(offset_of!($rust, $field) == $offset); )*
            )*
        };
    };
    (@name $field:ident $cfield:literal) => { $cfield };
    (@name $field:ident) => { stringify!($field) };
}

structs! {
    MsgHdr, "kvmi_msg_hdr", 8 { id @ 0, size @ 2, seq @ 4 }
    ErrorCode, "kvmi_error_code", 8 { err @ 0, pad @ 4 }
    VcpuHdr, "kvmi_vcpu_hdr", 8 { vcpu @ 0, pad1 @ 2, pad2 @ 4 }
    EventHdr, "kvmi_event_hdr", 8 { event @ 0, pad @ 2 }
    VcpuEvent, "kvmi_vcpu_event", 544 { size @ 0, vcpu @ 2, pad @ 4, arch @ 8 }
    VcpuEventReply, "kvmi_vcpu_event_reply", 8 { action @ 0, event @ 1, pad1 @ 2, pad2 @ 4 }
    VcpuEventArch, "kvmi_vcpu_event_arch", 536 {
        mode @ 0, pad @ 1, regs @ 8, sregs @ 152, sysenter_cs @ 464, sysenter_esp @ 472, sysenter_eip @ 480,
        efer @ 488, star @ 496, lstar @ 504, cstar @ 512, pat @ 520, shadow_gs @ 528,
    }
    Regs, "kvm_regs", 144 {
        rax @ 0, rbx @ 8, rcx @ 16, rdx @ 24, rsi @ 32, rdi @ 40, rsp @ 48, rbp @ 56, r8 @ 64, r9 @ 72, r10 @ 80,
        r11 @ 88, r12 @ 96, r13 @ 104, r14 @ 112, r15 @ 120, rip @ 128, rflags @ 136,
    }
    Segment, "kvm_segment", 24 {
        base @ 0, limit @ 8, selector @ 12, type_ as "type" @ 14, present @ 15, dpl @ 16, db @ 17, s @ 18, l @ 19,
        g @ 20, avl @ 21, unusable @ 22, padding @ 23,
    }
    Dtable, "kvm_dtable", 16 { base @ 0, limit @ 8, padding @ 10 }
    Sregs, "kvm_sregs", 312 {
        cs @ 0, ds @ 24, es @ 48, fs @ 72, gs @ 96, ss @ 120, tr @ 144, ldt @ 168, gdt @ 192, idt @ 208, cr0 @ 224,
        cr2 @ 232, cr3 @ 240, cr4 @ 248, cr8 @ 256, efer @ 264, apic_base @ 272, interrupt_bitmap @ 280,
    }
    MsrEntry, "kvm_msr_entry", 16 { index @ 0, reserved @ 4, data @ 8 }
    MsrsHdr, "kvm_msrs", 8 { nmsrs @ 0, pad @ 4 }
    Xsave, "kvm_xsave", 4096 { region @ 0 }

    GetVersionReply, "kvmi_get_version_reply", 16 { version @ 0, max_msg_size @ 4, features @ 8 }
    Features, "kvmi_features", 8 { singlestep @ 0, extension @ 1, access @ 2, pad @ 3 }
    VmCheckCommand, "kvmi_vm_check_command", 8 { id @ 0, pad1 @ 2, pad2 @ 4 }
    VmCheckEvent, "kvmi_vm_check_event", 8 { id @ 0, pad1 @ 2, pad2 @ 4 }
    VmGetInfoReply, "kvmi_vm_get_info_reply", 16 { vcpu_count @ 0, pad @ 4 }
    VmControlEvents, "kvmi_vm_control_events", 8 { event_id @ 0, enable @ 2, pad1 @ 3, pad2 @ 4 }
    VmReadPhysical, "kvmi_vm_read_physical", 16 { gpa @ 0, size @ 8, pad1 @ 10, pad2 @ 12 }
    VmWritePhysical, "kvmi_vm_write_physical", 16 { gpa @ 0, size @ 8, pad1 @ 10, pad2 @ 12 }
    VmPauseVcpu, "kvmi_vm_pause_vcpu", 8 { vcpu @ 0, wait @ 2, pad1 @ 3, pad2 @ 4 }
    VmControlCleanup, "kvmi_vm_control_cleanup", 8 { enable @ 0, pad @ 1 }
    VmPageAccess, "kvmi_vm_page_access", 8 { count @ 0, pad1 @ 2, pad2 @ 4 }
    PageAccessEntry, "kvmi_page_access_entry", 16 { gpa @ 0, access @ 8, pad @ 9 }

    VcpuGetInfoReply, "kvmi_vcpu_get_info_reply", 8 { tsc_speed @ 0 }
    VcpuControlEvents, "kvmi_vcpu_control_events", 8 { event_id @ 0, enable @ 2, pad1 @ 3, pad2 @ 4 }
    VcpuGetRegisters, "kvmi_vcpu_get_registers", 8 { nmsrs @ 0, pad1 @ 2, pad2 @ 4 }
    VcpuGetRegistersReply, "kvmi_vcpu_get_registers_reply", 472 {
        mode @ 0, pad @ 4, regs @ 8, sregs @ 152, msrs @ 464,
    }
    VcpuGetCpuid, "kvmi_vcpu_get_cpuid", 8 { function @ 0, index @ 4 }
    VcpuGetCpuidReply, "kvmi_vcpu_get_cpuid_reply", 16 { eax @ 0, ebx @ 4, ecx @ 8, edx @ 12 }
    VcpuControlCr, "kvmi_vcpu_control_cr", 8 { cr @ 0, enable @ 1, pad1 @ 2, pad2 @ 4 }
    VcpuInjectException, "kvmi_vcpu_inject_exception", 16 { nr @ 0, pad1 @ 1, pad2 @ 2, error_code @ 4, address @ 8 }
    VcpuGetXcr, "kvmi_vcpu_get_xcr", 8 { xcr @ 0, pad @ 1 }
    VcpuGetXcrReply, "kvmi_vcpu_get_xcr_reply", 8 { value @ 0 }
    VcpuGetMtrrType, "kvmi_vcpu_get_mtrr_type", 8 { gpa @ 0 }
    VcpuGetMtrrTypeReply, "kvmi_vcpu_get_mtrr_type_reply", 8 { type_ as "type" @ 0, pad @ 1 }
    VcpuControlMsr, "kvmi_vcpu_control_msr", 8 { enable @ 0, pad1 @ 1, pad2 @ 2, msr @ 4 }
    VcpuControlSinglestep, "kvmi_vcpu_control_singlestep", 8 { enable @ 0, pad @ 1 }
    VcpuTranslateGva, "kvmi_vcpu_translate_gva", 8 { gva @ 0 }
    VcpuTranslateGvaReply, "kvmi_vcpu_translate_gva_reply", 8 { gpa @ 0 }

    event::Breakpoint, "kvmi_vcpu_event_breakpoint", 16 { gpa @ 0, insn_len @ 8, pad @ 9 }
    event::Cr, "kvmi_vcpu_event_cr", 24 { cr @ 0, pad @ 1, old_value @ 8, new_value @ 16 }
    event::CrReply, "kvmi_vcpu_event_cr_reply", 8 { new_val @ 0 }
    event::Trap, "kvmi_vcpu_event_trap", 16 { nr @ 0, pad1 @ 1, pad2 @ 2, error_code @ 4, address @ 8 }
    event::Xsetbv, "kvmi_vcpu_event_xsetbv", 24 { xcr @ 0, pad @ 1, old_value @ 8, new_value @ 16 }
    event::Descriptor, "kvmi_vcpu_event_descriptor", 8 { descriptor @ 0, write @ 1, pad @ 2 }
    event::Msr, "kvmi_vcpu_event_msr", 24 { msr @ 0, pad @ 4, old_value @ 8, new_value @ 16 }
    event::MsrReply, "kvmi_vcpu_event_msr_reply", 8 { new_val @ 0 }
    event::Pf, "kvmi_vcpu_event_pf", 24 { gva @ 0, gpa @ 8, access @ 16, pad1 @ 17, pad2 @ 18, pad3 @ 20 }
    event::Singlestep, "kvmi_vcpu_event_singlestep", 8 { failed @ 0, pad @ 1 }

    ioctl::Hook, "kvm_introspection_hook", 24 { fd @ 0, flags @ 4, uuid @ 8 }
    ioctl::Feature, "kvm_introspection_feature", 8 { allow @ 0, id @ 4 }

    VmmHandshake, "kvmi_vmm_handshake", 104 {
        struct_size @ 0, uuid @ 4, padding @ 20, start_time @ 24, name @ 32, max_gpa @ 96,
    }
    ToolHandshake, "kvmi_tool_handshake", 24 { struct_size @ 0, cookie_hash @ 4 }
}

/// Constants other than ids and errors, by their names in C. Ids are `KVMI_` + [`msg::COMMANDS`],
/// `KVMI_VM_EVENT_UNHOOK` and `KVMI_VCPU_EVENT_` + [`event::ALL`]; errors are `KVM_` + [`error::ALL`].
pub const CONSTANTS: &[(&str, u64)] = &[
    ("KVMI_VERSION", crate::VERSION as u64),
    ("KVMI_MAX_PAYLOAD", crate::MAX_PAYLOAD as u64),
    ("KVMI_MAX_MESSAGE", crate::MAX_MESSAGE as u64),
    ("KVMI_EXTENSION_LEVEL", crate::EXTENSION_LEVEL as u64),
    ("KVMI_MAX_QUEUED_COMMANDS", crate::MAX_QUEUED_COMMANDS as u64),
    ("KVMI_MAX_QUEUED_BYTES", crate::MAX_QUEUED_BYTES as u64),
    ("KVMI_MAX_PHYSICAL", crate::MAX_PHYSICAL as u64),
    ("KVMI_MAX_MSRS", crate::MAX_MSRS as u64),
    ("KVMI_MAX_PAGE_ACCESS_ENTRIES", crate::MAX_PAGE_ACCESS_ENTRIES as u64),
    ("KVMI_VM_EVENT", msg::VM_EVENT as u64),
    ("KVMI_VCPU_EVENT", msg::VCPU_EVENT as u64),
    ("KVMI_EVENT_ACTION_CONTINUE", event::CONTINUE as u64),
    ("KVMI_EVENT_ACTION_RETRY", event::RETRY as u64),
    ("KVMI_EVENT_ACTION_CRASH", event::CRASH as u64),
    ("KVMI_HYPERCALL_NUMBER", event::HYPERCALL_NUMBER),
    ("KVMI_HYPERCALL_GUEST_REQUEST", event::HYPERCALL_GUEST_REQUEST),
    ("KVMI_DESCRIPTOR_IDTR", event::DESCRIPTOR_IDTR as u64),
    ("KVMI_DESCRIPTOR_GDTR", event::DESCRIPTOR_GDTR as u64),
    ("KVMI_DESCRIPTOR_LDTR", event::DESCRIPTOR_LDTR as u64),
    ("KVMI_DESCRIPTOR_TR", event::DESCRIPTOR_TR as u64),
    ("KVMI_PAGE_ACCESS_R", PageAccessEntry::READ as u64),
    ("KVMI_PAGE_ACCESS_W", PageAccessEntry::WRITE as u64),
    ("KVMI_PAGE_ACCESS_X", PageAccessEntry::EXEC as u64),
    ("KVMI_FEATURE_READ_DENY", Features::READ_DENY as u64),
    ("KVMI_FEATURE_WRITE_DENY", Features::WRITE_DENY as u64),
    ("KVMI_FEATURE_EXEC_DENY", Features::EXEC_DENY as u64),
    ("KVMI_FEATURE_EXEC_ONLY", Features::EXEC_ONLY as u64),
    ("KVM_CAP_INTROSPECTION", ioctl::KVM_CAP_INTROSPECTION as u64),
    ("KVM_INTROSPECTION_HOOK", ioctl::KVM_INTROSPECTION_HOOK as u64),
    ("KVM_INTROSPECTION_UNHOOK", ioctl::KVM_INTROSPECTION_UNHOOK as u64),
    ("KVM_INTROSPECTION_COMMAND", ioctl::KVM_INTROSPECTION_COMMAND as u64),
    ("KVM_INTROSPECTION_EVENT", ioctl::KVM_INTROSPECTION_EVENT as u64),
    ("KVM_INTROSPECTION_PREUNHOOK", ioctl::KVM_INTROSPECTION_PREUNHOOK as u64),
    ("KVM_INTROSPECTION_HOOK_FAIL_CLOSED", ioctl::HOOK_FAIL_CLOSED as u64),
    ("KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS", ioctl::HOOK_CRASH_ON_LOSS as u64),
    ("KVM_INTROSPECTION_HOOK_FLAGS", ioctl::HOOK_FLAGS as u64),
];

const _: () = {
    assert!(crate::MAX_MSRS == 481);
    assert!(crate::MAX_PAGE_ACCESS_ENTRIES == 511);
    assert!(crate::MAX_PAYLOAD + size_of::<MsgHdr>() == crate::MAX_MESSAGE);
    assert!(error::ENOSYS == 1000);
};
