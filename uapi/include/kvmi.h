/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The KVMI contract as C sees it.  The Rust types of the crate kvmi-uapi are
 * the other view of the same bytes and carry the description of each field; a
 * test of that crate compares the two.  Byte order is the host's.
 */
#ifndef _LINUX_KVMI_H
#define _LINUX_KVMI_H

#include <linux/types.h>
#include <linux/ioctl.h>
#include <linux/errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>

#define KVMI_VERSION			1
#define KVMI_MAX_PAYLOAD		8184
#define KVMI_MAX_MESSAGE		8192
#define KVMI_EXTENSION_LEVEL		2
#define KVMI_MAX_QUEUED_COMMANDS	1024
#define KVMI_MAX_QUEUED_BYTES		(1 << 20)
#define KVMI_MAX_PHYSICAL		4096
#define KVMI_MAX_MSRS			481
#define KVMI_MAX_PAGE_ACCESS_ENTRIES	511
#define KVMI_MAX_OTHER_MSRS		128
#define KVMI_MAX_VCPU_STATES		1022

/* Errors that <linux/kvm_para.h> lacks.  KVM_EFAULT and others are there. */
#ifndef KVM_ENOENT
#define KVM_ENOENT	2
#endif
#ifndef KVM_EAGAIN
#define KVM_EAGAIN	11
#endif
#ifndef KVM_ENOMEM
#define KVM_ENOMEM	12
#endif
#ifndef KVM_EBUSY
#define KVM_EBUSY	16
#endif

/* ---- ioctls on the VM file descriptor --------------------------------- */

#define KVM_CAP_INTROSPECTION	0x4b564d49

struct kvm_introspection_hook {
	__s32 fd;
	__u32 flags;
	__u8  uuid[16];
};

#define KVM_INTROSPECTION_HOOK_FAIL_CLOSED	(1u << 0)
#define KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS	(1u << 1)
#define KVM_INTROSPECTION_HOOK_STOPPED		(1u << 2)
#define KVM_INTROSPECTION_HOOK_FLAGS		(KVM_INTROSPECTION_HOOK_FAIL_CLOSED | \
						 KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS | \
						 KVM_INTROSPECTION_HOOK_STOPPED)

struct kvm_introspection_feature {
	__u32 allow;
	__s32 id;	/* -1: all */
};

#define KVM_INTROSPECTION_HOOK		_IOW(KVMIO, 0xc8, struct kvm_introspection_hook)
#define KVM_INTROSPECTION_UNHOOK	_IO(KVMIO, 0xc9)
#define KVM_INTROSPECTION_COMMAND	_IOW(KVMIO, 0xca, struct kvm_introspection_feature)
#define KVM_INTROSPECTION_EVENT		_IOW(KVMIO, 0xcb, struct kvm_introspection_feature)
#define KVM_INTROSPECTION_PREUNHOOK	_IO(KVMIO, 0xcc)

/* ---- messages: even ids about the VM, odd ids about one vCPU ----------- */

enum {
	KVMI_VM_EVENT			= 0,
	KVMI_VCPU_EVENT			= 1,
	KVMI_GET_VERSION		= 2,
	KVMI_VCPU_GET_INFO		= 3,
	KVMI_VM_CHECK_COMMAND		= 4,
	KVMI_VCPU_CONTROL_EVENTS	= 5,
	KVMI_VM_CHECK_EVENT		= 6,
	KVMI_VCPU_GET_REGISTERS		= 7,
	KVMI_VM_GET_INFO		= 8,
	KVMI_VCPU_SET_REGISTERS		= 9,
	KVMI_VM_CONTROL_EVENTS		= 10,
	KVMI_VCPU_GET_CPUID		= 11,
	KVMI_VM_READ_PHYSICAL		= 12,
	KVMI_VCPU_CONTROL_CR		= 13,
	KVMI_VM_WRITE_PHYSICAL		= 14,
	KVMI_VCPU_INJECT_EXCEPTION	= 15,
	KVMI_VM_PAUSE_VCPU		= 16,
	KVMI_VCPU_GET_XCR		= 17,
	KVMI_VM_CONTROL_CLEANUP		= 18,
	KVMI_VCPU_GET_XSAVE		= 19,
	KVMI_VM_SET_PAGE_ACCESS		= 20,
	KVMI_VCPU_SET_XSAVE		= 21,
	KVMI_VCPU_GET_MTRR_TYPE		= 23,
	KVMI_VCPU_CONTROL_MSR		= 25,
	KVMI_VCPU_CONTROL_SINGLESTEP	= 27,
	KVMI_VCPU_TRANSLATE_GVA		= 29,

	/* not in the twelfth posting */
	KVMI_VM_GET_PAGE_ACCESS		= 128,
	KVMI_VM_GET_VCPU_STATES		= 130,
	KVMI_VM_RELEASE			= 132,
};

enum {
	KVMI_VM_EVENT_UNHOOK		= 0,
	KVMI_VCPU_EVENT_PAUSE		= 1,
	KVMI_VCPU_EVENT_HYPERCALL	= 3,
	KVMI_VCPU_EVENT_BREAKPOINT	= 5,
	KVMI_VCPU_EVENT_CR		= 7,
	KVMI_VCPU_EVENT_TRAP		= 9,
	KVMI_VCPU_EVENT_XSETBV		= 11,
	KVMI_VCPU_EVENT_DESCRIPTOR	= 13,
	KVMI_VCPU_EVENT_MSR		= 15,
	KVMI_VCPU_EVENT_PF		= 17,
	KVMI_VCPU_EVENT_SINGLESTEP	= 19,

	/* not in the twelfth posting */
	KVMI_VCPU_EVENT_CREATE_VCPU	= 129,
};

enum {
	KVMI_EVENT_ACTION_CONTINUE	= 0,
	KVMI_EVENT_ACTION_RETRY		= 1,
	KVMI_EVENT_ACTION_CRASH		= 2,
};

/* The guest's signal to the tool: RAX (EAX), RDI (EBX); RSI (ECX) is 0. */
#define KVMI_HYPERCALL_NUMBER		34
#define KVMI_HYPERCALL_GUEST_REQUEST	24

/* ---- headers ------------------------------------------------------------ */

struct kvmi_msg_hdr {
	__u16 id;
	__u16 size;
	__u32 seq;
};

struct kvmi_error_code {
	__s32 err;
	__u32 pad;
};

struct kvmi_vcpu_hdr {
	__u16 vcpu;
	__u16 pad1;
	__u32 pad2;
};

struct kvmi_event_hdr {
	__u16 event;
	__u16 pad[3];
};

struct kvmi_vcpu_event_arch {
	__u8  mode;	/* 2, 4 or 8 */
	__u8  pad[7];
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	__u64 sysenter_cs;
	__u64 sysenter_esp;
	__u64 sysenter_eip;
	__u64 efer;
	__u64 star;
	__u64 lstar;
	__u64 cstar;
	__u64 pat;
	__u64 shadow_gs;
};

struct kvmi_vcpu_event {
	__u16 size;
	__u16 vcpu;
	__u32 pad;
	struct kvmi_vcpu_event_arch arch;
};

struct kvmi_vcpu_event_reply {
	__u8  action;
	__u8  event;
	__u16 pad1;
	__u32 pad2;
};

/* ---- VM commands -------------------------------------------------------- */

#define KVMI_FEATURE_READ_DENY	(1 << 0)
#define KVMI_FEATURE_WRITE_DENY	(1 << 1)
#define KVMI_FEATURE_EXEC_DENY	(1 << 2)
#define KVMI_FEATURE_EXEC_ONLY	(1 << 3)

struct kvmi_features {
	__u8 singlestep;
	__u8 extension;
	__u8 access;	/* KVMI_FEATURE_* */
	__u8 pad[5];
};

struct kvmi_get_version_reply {
	__u32 version;
	__u32 max_msg_size;
	struct kvmi_features features;
};

struct kvmi_vm_check_command {
	__u16 id;
	__u16 pad1;
	__u32 pad2;
};

struct kvmi_vm_check_event {
	__u16 id;
	__u16 pad1;
	__u32 pad2;
};

struct kvmi_vm_get_info_reply {
	__u32 vcpu_count;
	__u32 pad[3];
};

struct kvmi_vm_control_events {
	__u16 event_id;
	__u8  enable;
	__u8  pad1;
	__u32 pad2;
};

struct kvmi_vm_get_vcpu_states {
	__u16 first;
	__u16 count;
	__u32 pad;
};

#define KVMI_VCPU_RUNS		0
#define KVMI_VCPU_OUT		1
#define KVMI_VCPU_HALTED	2
#define KVMI_VCPU_STOPPED	3
#define KVMI_VCPU_UNINITIALISED	4
#define KVMI_VCPU_HELD		5
#define KVMI_VCPU_CRASHED	6

struct kvmi_vcpu_run_state {
	__u8  state;	/* KVMI_VCPU_* */
	__u8  event;
	__u8  in_run;
	__u8  pad;
	__u32 seq;
};

struct kvmi_vm_read_physical {
	__u64 gpa;
	__u16 size;
	__u16 pad1;
	__u32 pad2;
};

struct kvmi_vm_write_physical {
	__u64 gpa;
	__u16 size;
	__u16 pad1;
	__u32 pad2;
	__u8  data[];
};

struct kvmi_vm_pause_vcpu {
	__u16 vcpu;
	__u8  wait;
	__u8  pad1;
	__u32 pad2;
};

struct kvmi_vm_control_cleanup {
	__u8 enable;
	__u8 pad[7];
};

#define KVMI_PAGE_ACCESS_R	(1 << 0)
#define KVMI_PAGE_ACCESS_W	(1 << 1)
#define KVMI_PAGE_ACCESS_X	(1 << 2)

struct kvmi_page_access_entry {
	__u64 gpa;
	__u8  access;	/* KVMI_PAGE_ACCESS_* */
	__u8  pad[7];
};

/* SET and GET alike */
struct kvmi_vm_page_access {
	__u16 count;
	__u16 pad1;
	__u32 pad2;
	struct kvmi_page_access_entry entries[];
};

/* ---- vCPU commands ------------------------------------------------------ */

struct kvmi_vcpu_get_info_reply {
	__u64 tsc_speed;	/* Hz */
};

struct kvmi_vcpu_control_events {
	__u16 event_id;
	__u8  enable;
	__u8  pad1;
	__u32 pad2;
};

struct kvmi_vcpu_get_registers {
	__u16 nmsrs;
	__u16 pad1;
	__u32 pad2;
	__u32 msr_index[];
};

struct kvmi_vcpu_get_registers_reply {
	__u32 mode;
	__u32 pad;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_msrs msrs;	/* entries follow */
};

struct kvmi_vcpu_get_cpuid {
	__u32 function;
	__u32 index;
};

struct kvmi_vcpu_get_cpuid_reply {
	__u32 eax;
	__u32 ebx;
	__u32 ecx;
	__u32 edx;
};

struct kvmi_vcpu_control_cr {
	__u8  cr;
	__u8  enable;
	__u16 pad1;
	__u32 pad2;
};

struct kvmi_vcpu_inject_exception {
	__u8  nr;
	__u8  pad1;
	__u16 pad2;
	__u32 error_code;
	__u64 address;
};

struct kvmi_vcpu_get_xcr {
	__u8 xcr;
	__u8 pad[7];
};

struct kvmi_vcpu_get_xcr_reply {
	__u64 value;
};

struct kvmi_vcpu_get_mtrr_type {
	__u64 gpa;
};

struct kvmi_vcpu_get_mtrr_type_reply {
	__u8 type;
	__u8 pad[7];
};

struct kvmi_vcpu_control_msr {
	__u8  enable;
	__u8  pad1;
	__u16 pad2;
	__u32 msr;
};

struct kvmi_vcpu_control_singlestep {
	__u8 enable;
	__u8 interrupts;
	__u8 pad[6];
};

struct kvmi_vcpu_translate_gva {
	__u64 gva;
	__u64 root;
	__u8  by_root;
	__u8  pad[7];
};

struct kvmi_vcpu_translate_gva_reply {
	__u64 gpa;	/* ~0: no translation */
};

/* ---- events: data, and data of replies ---------------------------------- */

struct kvmi_vcpu_event_breakpoint {
	__u64 gpa;
	__u8  insn_len;
	__u8  pad[7];
};

struct kvmi_vcpu_event_cr {
	__u8  cr;
	__u8  pad[7];
	__u64 old_value;
	__u64 new_value;
};

struct kvmi_vcpu_event_cr_reply {
	__u64 new_val;
};

struct kvmi_vcpu_event_trap {
	__u8  nr;
	__u8  pad1;
	__u16 pad2;
	__u32 error_code;
	__u64 address;
};

struct kvmi_vcpu_event_xsetbv {
	__u8  xcr;
	__u8  pad[7];
	__u64 old_value;
	__u64 new_value;
};

#define KVMI_DESCRIPTOR_IDTR	1
#define KVMI_DESCRIPTOR_GDTR	2
#define KVMI_DESCRIPTOR_LDTR	3
#define KVMI_DESCRIPTOR_TR	4

struct kvmi_vcpu_event_descriptor {
	__u8 descriptor;
	__u8 write;
	__u8 pad[6];
};

struct kvmi_vcpu_event_msr {
	__u32 msr;
	__u32 pad;
	__u64 old_value;
	__u64 new_value;
};

struct kvmi_vcpu_event_msr_reply {
	__u64 new_val;
};

struct kvmi_vcpu_event_pf {
	__u64 gva;	/* ~0: unknown */
	__u64 gpa;
	__u8  access;	/* one bit of KVMI_PAGE_ACCESS_* */
	__u8  pad1;
	__u16 pad2;
	__u32 pad3;
};

struct kvmi_vcpu_event_singlestep {
	__u8 failed;
	__u8 pad[7];
};

/* ---- VMM and tool before HOOK; the kernel never sees it ----------------- */

struct kvmi_vmm_handshake {
	__u32 struct_size;
	__u8  uuid[16];
	__u32 padding;
	__s64 start_time;
	char  name[64];
	__u64 max_gpa;
};

struct kvmi_tool_handshake {
	__u32 struct_size;
	__u8  cookie_hash[20];
};

#endif /* _LINUX_KVMI_H */
