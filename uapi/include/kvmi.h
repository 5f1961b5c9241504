/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * The KVMI contract as C sees it.  `cargo xtask docs` writes this file from
 * the Rust types of uapi/src: change those.  docs/protocol.md explains it.
 *
 * Byte order is the host's.  Fields named pad, pad1 and so on are padding:
 * zero in both directions.  (P1) and the like are numbers of that page.
 */
#ifndef _LINUX_KVMI_H
#define _LINUX_KVMI_H

#include <linux/types.h>
#include <linux/ioctl.h>
#include <linux/errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>

/* ---- messages: even ids are about the VM, odd ids about one vCPU ------------ */

enum {
	KVMI_GET_VERSION		= 2,	/* Version, message size and features. */
	KVMI_VM_CHECK_COMMAND		= 4,	/* Whether a command may be used. */
	KVMI_VM_CHECK_EVENT		= 6,	/* Whether an event may be used. */
	KVMI_VM_GET_INFO		= 8,	/* Number of vCPUs. */
	KVMI_VM_CONTROL_EVENTS		= 10,	/* Switches a VM event on or off. */
	KVMI_VM_READ_PHYSICAL		= 12,	/* Reads guest memory. */
	KVMI_VM_WRITE_PHYSICAL		= 14,	/* Writes guest memory. */
	KVMI_VM_PAUSE_VCPU		= 16,	/* Asks for a PAUSE event. */
	KVMI_VM_CONTROL_CLEANUP		= 18,	/* Whether unhook undoes what the tool changed. */
	KVMI_VM_SET_PAGE_ACCESS		= 20,	/* Restricts access to guest pages. */
	/*
	 * Reads access restrictions of guest pages back (P21). Since extension
	 * level 1.
	 */
	KVMI_VM_GET_PAGE_ACCESS		= 128,
	/* What each vCPU is doing. Since extension level 2. */
	KVMI_VM_GET_VCPU_STATES		= 130,
	/* Lets vCPUs go that HOOK keeps stopped. Since extension level 2. */
	KVMI_VM_RELEASE			= 132,
	KVMI_VCPU_GET_INFO		= 3,	/* Information about a vCPU. */
	KVMI_VCPU_CONTROL_EVENTS	= 5,	/* Switches an event on or off on one vCPU. */
	KVMI_VCPU_GET_REGISTERS		= 7,	/* Reads general and special registers and MSRs. */
	/* Writes general registers while an event is open. */
	KVMI_VCPU_SET_REGISTERS		= 9,
	KVMI_VCPU_GET_CPUID		= 11,	/* Reads a CPUID leaf of the guest. */
	/* Switches CR events on or off for one control register. */
	KVMI_VCPU_CONTROL_CR		= 13,
	KVMI_VCPU_INJECT_EXCEPTION	= 15,	/* Injects an exception. */
	KVMI_VCPU_GET_XCR		= 17,	/* Reads an extended control register. */
	KVMI_VCPU_GET_XSAVE		= 19,	/* Reads the extended state. */
	KVMI_VCPU_SET_XSAVE		= 21,	/* Writes the extended state. */
	KVMI_VCPU_GET_MTRR_TYPE		= 23,	/* Memory type of a guest page. */
	KVMI_VCPU_CONTROL_MSR		= 25,	/* Switches MSR events on or off for one MSR. */
	KVMI_VCPU_CONTROL_SINGLESTEP	= 27,	/* Starts or stops stepping. */
	KVMI_VCPU_TRANSLATE_GVA		= 29,	/* Translates a guest virtual address. */
};

enum {
	/* VM event: the VMM asks the tool to undo its hooks and close. */
	KVMI_VM_EVENT_UNHOOK		= 0,
	KVMI_VCPU_EVENT_PAUSE		= 1,	/* Answer to VM_PAUSE_VCPU. */
	KVMI_VCPU_EVENT_HYPERCALL	= 3,	/* The guest signals to the tool. */
	KVMI_VCPU_EVENT_BREAKPOINT	= 5,	/* The guest executed int3. */
	KVMI_VCPU_EVENT_CR		= 7,	/* The guest changes a control register. */
	KVMI_VCPU_EVENT_TRAP		= 9,	/* What became of an injected exception. */
	KVMI_VCPU_EVENT_XSETBV		= 11,	/* The guest changed XCR0. */
	KVMI_VCPU_EVENT_DESCRIPTOR	= 13,	/* The guest touches a descriptor table register. */
	KVMI_VCPU_EVENT_MSR		= 15,	/* The guest changes an MSR. */
	KVMI_VCPU_EVENT_PF		= 17,	/* The guest touches a restricted page. */
	KVMI_VCPU_EVENT_SINGLESTEP	= 19,	/* The guest executed one instruction. */
	/* The VMM has created a vCPU, which is about to run. */
	KVMI_VCPU_EVENT_CREATE_VCPU	= 129,
};

/* ---- errors, which replies carry negated ------------------------------------ */

/* As in <linux/kvm_para.h>, which lacks some. */
#ifndef KVM_EPERM
/*
 * The VMM does not allow the command or the event; the memory slot is
 * read-only.
 */
#define KVM_EPERM	1
#endif
#ifndef KVM_ENOENT
#define KVM_ENOENT	2	/* No such command or event in this kernel; no memory there. */
#endif
#ifndef KVM_E2BIG
#define KVM_E2BIG	7	/* Nothing so far. */
#endif
#ifndef KVM_EAGAIN
/*
 * The vCPU is not initialised: an AP before its INIT. The same command may
 * succeed later.
 */
#define KVM_EAGAIN	11
#endif
#ifndef KVM_ENOMEM
/*
 * The kernel has no memory for a command that is to wait for its vCPU; it was
 * not carried out.
 */
#define KVM_ENOMEM	12
#endif
#ifndef KVM_EFAULT
#define KVM_EFAULT	14	/* Nothing so far. */
#endif
#ifndef KVM_EBUSY
#define KVM_EBUSY	16	/* Somebody else has it, or too much is waiting already. */
#endif
#ifndef KVM_EINVAL
/* Padding that is not zero, a value out of range, a message too short. */
#define KVM_EINVAL	22
#endif
#ifndef KVM_EOPNOTSUPP
#define KVM_EOPNOTSUPP	95	/* Not on this CPU, in this VM or at this moment. */
#endif
#ifndef KVM_ENOSYS
#define KVM_ENOSYS	1000	/* This kernel does not carry out a command of this id. */
#endif

/* ---- versions and limits ---------------------------------------------------- */

/* What tells dialects apart. */
/*
 * version of GET_VERSION, in every dialect since the first, and what
 * KVM_CHECK_EXTENSION answers.
 */
#define KVMI_VERSION		1
/* extension in the features of GET_VERSION (P20); v12 has 0 there. */
#define KVMI_EXTENSION_LEVEL	2

/* Limits. */
/* Most bytes of payload in a message; GET_VERSION's max_msg_size. */
#define KVMI_MAX_PAYLOAD		8184
#define KVMI_MAX_MESSAGE		8192	/* Most bytes of a message, header included. */
#define KVMI_MAX_QUEUED_COMMANDS	1024	/* Most commands that wait for one vCPU (P15). */
/* Most bytes of them, headers included (P15). */
#define KVMI_MAX_QUEUED_BYTES		(1 << 20)
/*
 * Most bytes that VM_READ_PHYSICAL and VM_WRITE_PHYSICAL move, all within one
 * page.
 */
#define KVMI_MAX_PHYSICAL		4096
/* Most MSRs of one VCPU_GET_REGISTERS: what fits into the largest reply. */
#define KVMI_MAX_MSRS			481
/*
 * Most MSRs outside of 0 to 0x1fff and 0xc0000000 to 0xc0001fff that a vCPU's
 * VCPU_CONTROL_MSR watches at a time.
 */
#define KVMI_MAX_OTHER_MSRS		128
/* Most vCPUs of one VM_GET_VCPU_STATES: what fits into the largest reply. */
#define KVMI_MAX_VCPU_STATES		1022
/* Most entries of one VM_SET_PAGE_ACCESS or VM_GET_PAGE_ACCESS. */
#define KVMI_MAX_PAGE_ACCESS_ENTRIES	511

/* ---- ioctls on the VM's file descriptor ------------------------------------- */

/* Argument of HOOK. */
struct kvm_introspection_hook {
	__s32 fd;	/* A connected stream socket, unix or vsock (P16). */
	__u32 flags;	/* KVM_INTROSPECTION_HOOK_* bits (P10). */
	__u8 uuid[16];	/* The VM, as VMM and tool know it; the kernel does nothing with it. */
};

/* Argument of OPEN. */
struct kvm_introspection_open {
	__u32 flags;	/* KVM_INTROSPECTION_HOOK_* and KVM_INTROSPECTION_OPEN_* bits. */
	__u32 pad;
	/*
	 * With OPEN_MASKED: the commands that may be used, bit n of word m for
	 * id 64 m + n.
	 */
	__u64 commands[4];
	__u64 events[4];	/* With OPEN_MASKED: the events that may be used, likewise. */
};

/* What STATUS answers; zeroes for a VM that nobody introspects. */
struct kvm_introspection_status {
	__u32 state;	/* KVM_INTROSPECTION_STATUS_* bits. */
	__u32 flags;	/* The flags of HOOK or OPEN. */
	__u64 since_ns;	/* When the session began, in ns of CLOCK_BOOTTIME. */
	/*
	 * The process that called HOOK or OPEN, as the caller numbers
	 * processes; 0: it is gone, or out of sight.
	 */
	__s32 pid;
	__u32 pad;
};

/* Argument of COMMAND and EVENT. */
struct kvm_introspection_feature {
	__u32 allow;	/* 1: allow, 0: forbid. */
	__s32 id;	/* Id of a command or event; -1 for all. */
};

/* The capability, the ioctls, and the flags of HOOK. */
/* The capability (P19): KVM_CHECK_EXTENSION answers KVMI_VERSION, or 0. */
#define KVM_CAP_INTROSPECTION			0x4b564d49
/* Starts introspection; argument struct kvm_introspection_hook. */
#define KVM_INTROSPECTION_HOOK			_IOW(KVMIO, 0xc8, struct kvm_introspection_hook)
/* Ends introspection; no argument. */
#define KVM_INTROSPECTION_UNHOOK		_IO(KVMIO, 0xc9)
/* Allows or forbids a command; argument struct kvm_introspection_feature. */
#define KVM_INTROSPECTION_COMMAND		_IOW(KVMIO, 0xca, struct kvm_introspection_feature)
/* Allows or forbids an event; argument struct kvm_introspection_feature. */
#define KVM_INTROSPECTION_EVENT			_IOW(KVMIO, 0xcb, struct kvm_introspection_feature)
/* Asks the tool to undo its hooks: sends the UNHOOK event; no argument. */
#define KVM_INTROSPECTION_PREUNHOOK		_IO(KVMIO, 0xcc)
/*
 * Starts introspection and answers with the session's own descriptor; argument
 * struct kvm_introspection_open.
 */
#define KVM_INTROSPECTION_OPEN			_IOW(KVMIO, 0xcd, struct kvm_introspection_open)
/* Tells who introspects the VM; argument struct kvm_introspection_status. */
#define KVM_INTROSPECTION_STATUS		_IOR(KVMIO, 0xce, struct kvm_introspection_status)
/* Ends introspection, whoever began it; no argument. */
#define KVM_INTROSPECTION_FREE			_IO(KVMIO, 0xcf)
/*
 * On a session's descriptor: as its last close, whoever else holds it; no
 * argument.
 */
#define KVM_INTROSPECTION_HANG_UP		_IO(KVMIO, 0xd0)
/*
 * Flag of HOOK: when the tool is lost, vCPUs stop at their next event until
 * UNHOOK or a new HOOK.
 */
#define KVM_INTROSPECTION_HOOK_FAIL_CLOSED	(1 << 0)
/*
 * Flag of HOOK: when the tool is lost, vCPUs crash as after the action CRASH.
 */
#define KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS	(1 << 1)
/*
 * Flag of HOOK: vCPUs stay stopped, and what a session before denied them stays
 * denied, until VM_RELEASE.
 */
#define KVM_INTROSPECTION_HOOK_STOPPED		(1 << 2)
#define KVM_INTROSPECTION_HOOK_FLAGS		7	/* Every flag of HOOK. */
/* Flag of OPEN: takes over a session that failed closed. */
#define KVM_INTROSPECTION_OPEN_TAKE_OVER	(1 << 3)
/* Flag of OPEN: commands and events say what may be used. Without it, all. */
#define KVM_INTROSPECTION_OPEN_MASKED		(1 << 4)
#define KVM_INTROSPECTION_OPEN_FLAGS		31	/* Every flag of OPEN. */
#define KVM_INTROSPECTION_STATUS_HOOKED		(1 << 0)	/* State: there is a session. */
#define KVM_INTROSPECTION_STATUS_LOST		(1 << 1)	/* State: its tool is lost. */
#define KVM_INTROSPECTION_STATUS_ENDING		(1 << 2)	/* State: it is about to end. */
/* State: it has a descriptor, not a socket. */
#define KVM_INTROSPECTION_STATUS_DESCRIPTOR	(1 << 3)
/* State: vCPUs wait for VM_RELEASE. */
#define KVM_INTROSPECTION_STATUS_STOPPED	(1 << 4)

/* ---- headers ---------------------------------------------------------------- */

/* Begins each message. */
struct kvmi_msg_hdr {
	__u16 id;	/* What it is: a message id. */
	__u16 size;	/* Bytes of payload after this header, at most KVMI_MAX_PAYLOAD. */
	/*
	 * Chosen by the tool for a command, by the kernel for an event; the
	 * answer carries the same.
	 */
	__u32 seq;
};

/* Begins the payload of each reply to a command. */
struct kvmi_error_code {
	__s32 err;	/* 0, or an error value, negated. */
	__u32 pad;
};

/* Begins the payload of each vCPU command and of each reply to a vCPU event. */
struct kvmi_vcpu_hdr {
	__u16 vcpu;	/* Index of the vCPU, not its APIC id. */
	__u16 pad1;
	__u32 pad2;
};

/* Begins the payload of each event. */
struct kvmi_event_hdr {
	__u16 event;	/* Which event, by its id. */
	__u16 pad[3];
};

/* The x86 part of each vCPU event, 536 bytes. */
struct kvmi_vcpu_event_arch {
	__u8 mode;	/* Operand mode in bytes: 2, 4 or 8. */
	__u8 pad[7];
	struct kvm_regs regs;	/* General registers. */
	struct kvm_sregs sregs;	/* Special registers. */
	__u64 sysenter_cs;	/* MSR SYSENTER_CS. */
	__u64 sysenter_esp;	/* MSR SYSENTER_ESP. */
	__u64 sysenter_eip;	/* MSR SYSENTER_EIP. */
	__u64 efer;	/* MSR EFER. */
	__u64 star;	/* MSR STAR. */
	__u64 lstar;	/* MSR LSTAR. */
	__u64 cstar;	/* MSR CSTAR. */
	__u64 pat;	/* MSR PAT. */
	__u64 shadow_gs;	/* MSR KERNEL_GS_BASE. */
};

/* State of the vCPU, in each vCPU event after struct kvmi_event_hdr. */
struct kvmi_vcpu_event {
	/*
	 * Bytes of this structure (544); event data begins after so many, also
	 * in later versions.
	 */
	__u16 size;
	__u16 vcpu;	/* Index of the vCPU that the event is about. */
	__u32 pad;
	struct kvmi_vcpu_event_arch arch;	/* Registers as the event found them. */
};

/*
 * The tool's decision, after struct kvmi_vcpu_hdr in the reply to a vCPU event.
 */
struct kvmi_vcpu_event_reply {
	/*
	 * One of KVMI_EVENT_ACTION_CONTINUE, KVMI_EVENT_ACTION_RETRY,
	 * KVMI_EVENT_ACTION_CRASH.
	 */
	__u8 action;
	/*
	 * Id of the event that is answered; another one than was sent closes
	 * the connection (P14).
	 */
	__u8 event;
	__u16 pad1;
	__u32 pad2;
};

/* Messages that are no commands. */
#define KVMI_VM_EVENT	0	/* Message id of each VM event, kernel to tool. */
/* Message id of each vCPU event, kernel to tool, and of the reply to it. */
#define KVMI_VCPU_EVENT	1

/* Actions: what the tool may answer to a vCPU event. */
/*
 * Complete what the guest was about to do, with the value of the reply where
 * there is one.
 */
#define KVMI_EVENT_ACTION_CONTINUE	0
#define KVMI_EVENT_ACTION_RETRY		1	/* Do nothing more: enter the guest at its RIP. */
/*
 * The vCPU executes nothing more until UNHOOK; KVM_RUN returns
 * KVM_EXIT_SHUTDOWN each time (P2).
 */
#define KVMI_EVENT_ACTION_CRASH		2

/* ---- VM commands ------------------------------------------------------------ */

/* Feature bytes of struct kvmi_get_version_reply (P20). */
struct kvmi_features {
	__u8 singlestep;	/* 1 when VCPU_CONTROL_SINGLESTEP works. */
	__u8 extension;	/* 0: plain v12; else KVMI_EXTENSION_LEVEL. */
	__u8 access;	/* Which access restrictions can be expressed: KVMI_FEATURE_* bits. */
	__u8 pad[5];
};

/* Reply to GET_VERSION. */
struct kvmi_get_version_reply {
	__u32 version;	/* KVMI_VERSION. */
	__u32 max_msg_size;	/* KVMI_MAX_PAYLOAD; 0 in old dialects. */
	struct kvmi_features features;	/* What this kernel and CPU offer. */
};

/* Request of VM_CHECK_COMMAND. */
struct kvmi_vm_check_command {
	__u16 id;	/* Id of the command that is asked about. */
	__u16 pad1;
	__u32 pad2;
};

/* Request of VM_CHECK_EVENT. */
struct kvmi_vm_check_event {
	__u16 id;	/* Id of the event that is asked about. */
	__u16 pad1;
	__u32 pad2;
};

/* Reply to VM_GET_INFO. */
struct kvmi_vm_get_info_reply {
	__u32 vcpu_count;	/* vCPUs online now; indices are 0 to one less. */
	__u32 pad[3];
};

/* Request of VM_CONTROL_EVENTS. */
struct kvmi_vm_control_events {
	__u16 event_id;	/* The event, by its id: that of UNHOOK or of CREATE_VCPU. */
	__u8 enable;	/* 1: send it, 0: do not. */
	__u8 pad1;
	__u32 pad2;
};

/* Request of VM_READ_PHYSICAL; the reply data are size raw bytes. */
struct kvmi_vm_read_physical {
	__u64 gpa;	/* Guest physical address of the first byte. */
	__u16 size;	/* Bytes to read, 1 to 4096, all in one page. */
	__u16 pad1;
	__u32 pad2;
};

/* Request of VM_WRITE_PHYSICAL; size raw bytes follow. */
struct kvmi_vm_write_physical {
	__u64 gpa;	/* Guest physical address of the first byte. */
	__u16 size;	/* Bytes to write, 1 to 4096, all in one page. */
	__u16 pad1;
	__u32 pad2;
	__u8 data[];	/* as many as size says */
};

/* Request of VM_PAUSE_VCPU. */
struct kvmi_vm_pause_vcpu {
	__u16 vcpu;	/* Index of the vCPU. */
	__u8 wait;	/* 1: reply after the vCPU has left guest mode, 0: reply at once. */
	__u8 pad1;
	__u32 pad2;
};

/* Request of VM_CONTROL_CLEANUP. */
struct kvmi_vm_control_cleanup {
	/*
	 * 1 (the default): unhook removes the intercepts that the tool asked
	 * for, 0: it leaves them.
	 */
	__u8 enable;
	__u8 pad[7];
};

/*
 * Request of VM_GET_VCPU_STATES; the reply data are so many struct
 * kvmi_vcpu_run_state.
 */
struct kvmi_vm_get_vcpu_states {
	__u16 first;	/* Index of the first vCPU that is asked about. */
	__u16 count;	/* How many are, at most KVMI_MAX_VCPU_STATES. */
	__u32 pad;
};

/* What a vCPU is doing. */
struct kvmi_vcpu_run_state {
	__u8 state;	/* KVMI_VCPU_*: the highest that is true. */
	__u8 event;	/* The event that is open, if the state is KVMI_VCPU_HELD, otherwise 0. */
	__u8 in_run;	/* 1 while the VMM has it in KVM_RUN. */
	__u8 pad;
	__u32 seq;	/* seq of that event, otherwise 0. */
};

/*
 * One page and its access; also each entry of the reply to VM_GET_PAGE_ACCESS.
 */
struct kvmi_page_access_entry {
	__u64 gpa;	/* Guest physical address of the page. */
	/*
	 * What the guest may do: KVMI_PAGE_ACCESS_* bits; all three lift a
	 * restriction.
	 */
	__u8 access;
	__u8 pad[7];
};

/*
 * Head of VM_SET_PAGE_ACCESS and of VM_GET_PAGE_ACCESS (P21); so many struct
 * kvmi_page_access_entry follow.
 */
struct kvmi_vm_page_access {
	__u16 count;	/* Number of entries, at most KVMI_MAX_PAGE_ACCESS_ENTRIES. */
	__u16 pad1;
	__u32 pad2;
	struct kvmi_page_access_entry entries[];	/* as many as count says */
};

/*
 * Bits of access in struct kvmi_features: restrictions that can be expressed.
 */
#define KVMI_FEATURE_READ_DENY	(1 << 0)	/* Reads can be denied. */
#define KVMI_FEATURE_WRITE_DENY	(1 << 1)	/* Writes can be denied. */
#define KVMI_FEATURE_EXEC_DENY	(1 << 2)	/* Execution can be denied. */
#define KVMI_FEATURE_EXEC_ONLY	(1 << 3)	/* Reads can be denied where execution is not. */

/* Bits of access in struct kvmi_page_access_entry: what the guest may do. */
#define KVMI_PAGE_ACCESS_R	(1 << 0)	/* Read. */
#define KVMI_PAGE_ACCESS_W	(1 << 1)	/* Write. */
#define KVMI_PAGE_ACCESS_X	(1 << 2)	/* Execute. */

/* Values of state in struct kvmi_vcpu_run_state. */
/* In KVM_RUN: in the guest, or in the host on its behalf. */
#define KVMI_VCPU_RUNS		0
#define KVMI_VCPU_OUT		1	/* The VMM has it, outside of KVM_RUN. */
#define KVMI_VCPU_HALTED	2	/* It sleeps in HLT. */
#define KVMI_VCPU_STOPPED	3	/* It waits for VM_RELEASE. */
#define KVMI_VCPU_UNINITIALISED	4	/* An AP that waits for INIT or SIPI. */
#define KVMI_VCPU_HELD		5	/* It has an event open, and waits for the reply. */
#define KVMI_VCPU_CRASHED	6	/* It crashed. */

/* ---- vCPU commands ---------------------------------------------------------- */

/* Reply to VCPU_GET_INFO. */
struct kvmi_vcpu_get_info_reply {
	__u64 tsc_speed;	/* Guest TSC frequency in Hz; 0 when the CPU cannot control it. */
};

/* Request of VCPU_CONTROL_EVENTS. */
struct kvmi_vcpu_control_events {
	__u16 event_id;	/* A vCPU event, by its id. */
	__u8 enable;	/* 1: send it, 0: do not. */
	__u8 pad1;
	__u32 pad2;
};

/* Head of VCPU_GET_REGISTERS; so many u32 MSR indices follow. */
struct kvmi_vcpu_get_registers {
	__u16 nmsrs;	/* Number of MSRs, at most KVMI_MAX_MSRS. */
	__u16 pad1;
	__u32 pad2;
	__u32 msr_index[];	/* as many as nmsrs says */
};

/*
 * Head of the reply to VCPU_GET_REGISTERS; msrs.nmsrs entries of struct
 * kvm_msr_entry follow.
 */
struct kvmi_vcpu_get_registers_reply {
	__u32 mode;	/* Operand mode in bytes: 2, 4 or 8. */
	__u32 pad;
	struct kvm_regs regs;	/* General registers. */
	struct kvm_sregs sregs;	/* Special registers. */
	struct kvm_msrs msrs;	/* How many MSRs follow. */
};

/* Request of VCPU_GET_CPUID. */
struct kvmi_vcpu_get_cpuid {
	__u32 function;	/* Leaf. */
	__u32 index;	/* Sub-leaf. */
};

/* Reply to VCPU_GET_CPUID. */
struct kvmi_vcpu_get_cpuid_reply {
	__u32 eax;	/* EAX. */
	__u32 ebx;	/* EBX. */
	__u32 ecx;	/* ECX. */
	__u32 edx;	/* EDX. */
};

/* Request of VCPU_CONTROL_CR. */
struct kvmi_vcpu_control_cr {
	__u8 cr;	/* Which register: 0, 3 or 4. */
	__u8 enable;	/* 1: its changes are CR events, 0: they are not. */
	__u16 pad1;
	__u32 pad2;
};

/* Request of VCPU_INJECT_EXCEPTION. */
struct kvmi_vcpu_inject_exception {
	__u8 nr;	/* Vector. */
	__u8 pad1;
	__u16 pad2;
	__u32 error_code;	/* Used if the exception has an error code. */
	__u64 address;	/* CR2, for a page fault. */
};

/* Request of VCPU_GET_XCR. */
struct kvmi_vcpu_get_xcr {
	__u8 xcr;	/* Which register: 0. */
	__u8 pad[7];
};

/* Reply to VCPU_GET_XCR. */
struct kvmi_vcpu_get_xcr_reply {
	__u64 value;	/* Value of the register. */
};

/* Request of VCPU_GET_MTRR_TYPE. */
struct kvmi_vcpu_get_mtrr_type {
	__u64 gpa;	/* Guest physical address in the page that is asked about. */
};

/* Reply to VCPU_GET_MTRR_TYPE. */
struct kvmi_vcpu_get_mtrr_type_reply {
	__u8 type;	/* Memory type as in MTRRs: 0, 1, 4, 5 or 6. */
	__u8 pad[7];
};

/* Request of VCPU_CONTROL_MSR. */
struct kvmi_vcpu_control_msr {
	__u8 enable;	/* 1: its changes are MSR events, 0: they are not. */
	__u8 pad1;
	__u16 pad2;
	/*
	 * Which MSR. At most KVMI_MAX_OTHER_MSRS outside of 0 to 0x1fff and
	 * 0xc0000000 to 0xc0001fff at a time.
	 */
	__u32 msr;
};

/* Request of VCPU_CONTROL_SINGLESTEP. */
struct kvmi_vcpu_control_singlestep {
	__u8 enable;	/* 1: step, 0: run. */
	__u8 interrupts;	/* 1: interrupts, NMIs and SMIs come in between, 0: they wait. */
	__u8 pad[6];
};

/* Request of VCPU_TRANSLATE_GVA. */
struct kvmi_vcpu_translate_gva {
	__u64 gva;	/* Guest virtual address. */
	__u64 root;	/* The root of the page tables, as CR3 holds it, if by_root is 1. */
	__u8 by_root;	/* 1: by the page tables at root, 0: by those of the current CR3. */
	__u8 pad[7];
};

/* Reply to VCPU_TRANSLATE_GVA. */
struct kvmi_vcpu_translate_gva_reply {
	__u64 gpa;	/* Guest physical address, all ones when there is no translation. */
};

/* ---- events: data, and data of replies -------------------------------------- */

/* Data of BREAKPOINT. */
struct kvmi_vcpu_event_breakpoint {
	__u64 gpa;	/* Guest physical address of the instruction. */
	/*
	 * Length of the instruction in bytes: 1 (0xcc), more with prefixes;
	 * 0xcd 0x03 is a software interrupt to both vendors and raises no
	 * event.
	 */
	__u8 insn_len;
	__u8 pad[7];
};

/* Data of CR. */
struct kvmi_vcpu_event_cr {
	__u8 cr;	/* Which register: 0, 3 or 4. */
	__u8 pad[7];
	__u64 old_value;	/* Value before. */
	__u64 new_value;	/* Value that the guest writes. */
};

/* Data of the reply to CR. */
struct kvmi_vcpu_event_cr_reply {
	__u64 new_val;	/* Value to be taken instead, validated as if the guest wrote it (P7). */
};

/* Data of TRAP. */
struct kvmi_vcpu_event_trap {
	__u8 nr;	/* Vector. */
	__u8 pad1;
	__u16 pad2;
	__u32 error_code;	/* Error code, if the exception has one. */
	__u64 address;	/* CR2, for a page fault. */
};

/* Data of XSETBV. */
struct kvmi_vcpu_event_xsetbv {
	__u8 xcr;	/* Which register: 0. */
	__u8 pad[7];
	__u64 old_value;	/* Value before. */
	__u64 new_value;	/* Value that is in place now. */
};

/* Data of DESCRIPTOR. */
struct kvmi_vcpu_event_descriptor {
	__u8 descriptor;	/* Which register: KVMI_DESCRIPTOR_*. */
	__u8 write;	/* 0: the guest reads it; 1: the guest loads it. */
	__u8 pad[6];
};

/* Data of MSR. */
struct kvmi_vcpu_event_msr {
	__u32 msr;	/* Which MSR. */
	__u32 pad;
	__u64 old_value;	/* Value before. */
	__u64 new_value;	/* Value that the guest writes. */
};

/* Data of the reply to MSR. */
struct kvmi_vcpu_event_msr_reply {
	__u64 new_val;	/* Value to be taken instead, validated as if the guest wrote it (P7). */
};

/* Data of PF. */
struct kvmi_vcpu_event_pf {
	__u64 gva;	/* Guest virtual address, all ones when unknown. */
	__u64 gpa;	/* Guest physical address. */
	__u8 access;	/* The kind of access: one bit of KVMI_PAGE_ACCESS_*. */
	__u8 pad1;
	__u16 pad2;
	__u32 pad3;
};

/* Data of SINGLESTEP. */
struct kvmi_vcpu_event_singlestep {
	__u8 failed;	/* Always 0; in v12 it is 1 when another exit came first. */
	__u8 pad[7];
};

/* The guest's signal to the tool. */
/* Number of the hypercall that is a signal to the tool: RAX or EAX. */
#define KVMI_HYPERCALL_NUMBER		34
/* Its first argument: RDI or EBX. The second, RSI or ECX, is 0. */
#define KVMI_HYPERCALL_GUEST_REQUEST	24

/* Registers that DESCRIPTOR is about. */
#define KVMI_DESCRIPTOR_IDTR	1	/* SIDT, LIDT. */
#define KVMI_DESCRIPTOR_GDTR	2	/* SGDT, LGDT. */
#define KVMI_DESCRIPTOR_LDTR	3	/* SLDT, LLDT. */
#define KVMI_DESCRIPTOR_TR	4	/* STR, LTR. */

/* ---- VMM and tool before HOOK; the kernel never sees it --------------------- */

/*
 * First words of the VMM, 104 bytes; older VMMs send 96 (no max_gpa). Sizes
 * make it extensible.
 */
struct kvmi_vmm_handshake {
	__u32 struct_size;	/* Bytes that the VMM sends, this field included. */
	__u8 uuid[16];	/* Names the VM. */
	__u32 padding;
	__s64 start_time;	/* When the VM started, in seconds since the epoch. */
	char name[64];	/* Name of the VM, padded with NUL. */
	__u64 max_gpa;	/* Highest guest physical address, in bytes; 0 when unknown. */
};

/* Answer of the tool, 24 bytes. */
struct kvmi_tool_handshake {
	__u32 struct_size;	/* Bytes that the tool sends, this field included. */
	__u8 cookie_hash[20];	/* SHA-1 of the shared key, zero without one. */
};

#endif /* _LINUX_KVMI_H */
