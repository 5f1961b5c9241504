/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the C side (kernel/glue) and the Rust side (kernel/module, which wraps
 * kernel/core) know of each other.  Both directions are here, nothing else
 * crosses.
 *
 * Contexts, which every function below names:
 *   reader  who carries out a message of the tool's: the thread that receives from the
 *           session's socket, or who writes to its descriptor; one at a time, with
 *           conn->lock; may sleep
 *   vcpu    the vCPU's own thread inside KVM_RUN, or another holder of
 *           vcpu->mutex; exclusive use of that vCPU's state; may sleep
 *   site    as vcpu, but inside an exit handler: SRCU held, must not sleep
 *           for anything but memory that KVM itself may fault in there
 *   ioctl   a VM ioctl, with a reference on the session
 *
 * The VM's state is shared between contexts: it consists of atomics alone.
 * The vCPU's state is plain data and belongs to the vcpu context.
 */
#ifndef KVMI_SEAM_H
#define KVMI_SEAM_H

#include <linux/types.h>

struct kvm_introspection;		/* the session, C side */
struct kvm_vcpu_introspection;		/* a vCPU of it, C side */
struct kvmi_vm_state;			/* the session, Rust side */
struct kvmi_vcpu_state;			/* a vCPU of it, Rust side */

#define KVMI_BUFFER_BYTES	8192	/* one whole message, header included */

/* ---- Rust, called by C ------------------------------------------------ */

/* Sizes of the opaque states, whose memory is to be 8-byte aligned. */
size_t kvmi_vm_state_bytes(void);
size_t kvmi_vcpu_state_bytes(void);

/* ioctl: make fresh states in zeroed memory of the sizes above. */
void kvmi_vm_state_init(struct kvmi_vm_state *vm);
void kvmi_vcpu_state_init(struct kvmi_vcpu_state *vcpu);

/* ioctl: KVM_INTROSPECTION_COMMAND / EVENT.  0, -EINVAL or -EPERM. */
int kvmi_allow_command(struct kvmi_vm_state *vm, u32 allow, s32 id);
int kvmi_allow_event(struct kvmi_vm_state *vm, u32 allow, s32 id);
/* before the not-hooked check of the ioctls: 0 or -EINVAL */
int kvmi_check_command_feature(u32 allow, s32 id);
int kvmi_check_event_feature(u32 allow, s32 id);

/* any context: VM_CONTROL_CLEANUP's value; whether UNHOOK is allowed and enabled. */
bool kvmi_cleanup_enabled(const struct kvmi_vm_state *vm);
bool kvmi_unhook_event_enabled(const struct kvmi_vm_state *vm);

#define KVMI_UNHOOK_EVENT_BYTES	16

/* ioctl: write the UNHOOK event (a VM event), of sequence number seq, to out[KVMI_UNHOOK_EVENT_BYTES]. */
void kvmi_build_unhook_event(u32 seq, u8 *out);

/* What becomes of a message from the tool. */
enum kvmi_verdict {
	KVMI_ANSWERED	= 0,	/* done; a reply of *out_len bytes is in out (0: none) */
	KVMI_QUEUE	= 1,	/* goes to vCPU *vcpu_idx (kvmi_glue_queue was NOT called) */
	KVMI_CLOSE	= 2,	/* hard error: the connection is to be closed */
	KVMI_REPLIED	= 3,	/* vcpu context only: it was the awaited event reply */
};

/*
 * reader: true when a header of 8 bytes announces an acceptable size; the
 * payload's size (0..8184) is stored to *payload_bytes.
 */
bool kvmi_header_ok(const u8 *hdr, size_t *payload_bytes);

/*
 * reader: one message. msg = header and payload in a zero-filled buffer of
 * KVMI_BUFFER_BYTES.  session is passed back to the kvmi_glue_*() calls.
 */
enum kvmi_verdict kvmi_vm_message(struct kvmi_vm_state *vm,
				  struct kvm_introspection *session,
				  const u8 *msg, size_t msg_bytes,
				  u8 *out, size_t *out_len, u16 *vcpu_idx);

/* reader: true when msg is an event reply (not limited by P15). */
bool kvmi_is_event_reply(const u8 *msg);
/* reader: P15: may a job of bytes join a queue of count jobs and queued_bytes? */
bool kvmi_queue_admits(u32 count, size_t queued_bytes, size_t bytes);
/* reader: may one more reply join those that wait, with so many events sent whose reply was not taken? */
bool kvmi_reply_admits(u32 waiting, u32 unanswered);
/* reader: the error reply (header + error code) to msg: for a queue that is full (-KVM_EBUSY), no memory ... */
size_t kvmi_build_error_reply(const u8 *msg, s32 kvm_err, u8 *out);

/*
 * vcpu: one queued message, as kvmi_vm_message().  A request that is shorter
 * than its structure reads as zero in the tail: msg lies in a buffer of
 * buffer_bytes >= KVMI_BUFFER_BYTES whose tail is zero.
 */
enum kvmi_verdict kvmi_vcpu_message(struct kvmi_vm_state *vm,
				    struct kvmi_vcpu_state *state,
				    struct kvm_vcpu_introspection *vcpu,
				    const u8 *msg, size_t msg_bytes,
				    u8 *out, size_t *out_len);

/* vcpu, site: where the current page tables map gva, as VCPU_TRANSLATE_GVA; all ones: nowhere */
u64 kvmi_translate(struct kvm_vcpu_introspection *vcpu, u64 gva);

/* An occurrence in the guest, recorded by an event site. */
struct kvmi_occurrence {
	u16 event;	/* KVMI_VCPU_EVENT_* as in protocol.md section 5 */
	u8  which;	/* CR: 0, 3, 4; TRAP: vector; XSETBV: 0; DESCRIPTOR: KVMI_DESCRIPTOR_* */
	u8  detail;	/* BREAKPOINT: bytes of the instruction; DESCRIPTOR: 1 for a load; PF: a KVMI_PAGE_ACCESS_* */
	u32 code;	/* TRAP: error code; MSR: index */
	u64 a;		/* BREAKPOINT, PF: gpa; TRAP: CR2; CR, XSETBV, MSR: old value */
	u64 b;		/* CR, XSETBV, MSR: new value; PF: gva */
};

enum kvmi_site {
	KVMI_SITE_PASS		= 0,	/* nobody wants it: as stock KVM does */
	KVMI_SITE_DEFER		= 1,	/* recorded: leave the handler, change nothing */
	KVMI_SITE_CONTINUE	= 2,	/* the reply is here and consumed: complete it */
	KVMI_SITE_RETRY		= 3,	/* the reply is here and consumed: re-enter the guest */
};

/*
 * site: wanted (allowed, enabled, for CR and MSR also the register) -> DEFER and remembered; with
 * the reply at hand for the same event -> CONTINUE or RETRY, reply consumed.
 * PAUSE and TRAP are recorded through here as well (always wanted when allowed).
 */
enum kvmi_site kvmi_record(struct kvmi_vm_state *vm, struct kvmi_vcpu_state *state,
			   const struct kvmi_occurrence *what);
/*
 * site: whether kvmi_record() of this event would return anything but PASS,
 * coming from the guest; reg: CR number or MSR index, of no matter for others.
 */
bool kvmi_event_wanted(const struct kvmi_vm_state *vm, const struct kvmi_vcpu_state *state,
		       u16 event, u32 reg);
/*
 * site: the replacement value of a CR or MSR reply at hand for that register: true and
 * *new_val when there is one.  Does not consume.
 */
bool kvmi_reply_value(const struct kvmi_vcpu_state *state, u16 event, u32 reg, u64 *new_val);
/* site: the same value is the one that the event told as the old one. */
bool kvmi_reply_vetoes(const struct kvmi_vcpu_state *state, u16 event, u32 reg);

/* Where a vCPU stands with its event. */
enum kvmi_phase {
	KVMI_IDLE	= 0,	/* none */
	KVMI_RECORDED	= 1,	/* to be sent */
	KVMI_SENT	= 2,	/* reply awaited */
	KVMI_REPLY_HERE	= 3,	/* CONTINUE or RETRY: the exit handler is to be called again */
	KVMI_CRASHED	= 4,	/* CRASH was the reply: for good */
};
enum kvmi_phase kvmi_phase(const struct kvmi_vcpu_state *state);		/* vcpu */
bool kvmi_is_quiet(const struct kvmi_vcpu_state *state);		/* vcpu: KVMI_IDLE, with nothing to inject */
u16 kvmi_phase_event(const struct kvmi_vcpu_state *state);		/* vcpu: id of the event it is about */
/* vcpu: the reply is here and its exit is to be handled once more: not for PAUSE and TRAP. */
bool kvmi_completes_exit(const struct kvmi_vcpu_state *state);
/* vcpu: the recorded event as a message with sequence number seq; returns its length. Phase stays RECORDED. */
size_t kvmi_build_event(struct kvmi_vcpu_state *state, struct kvm_vcpu_introspection *vcpu,
			u32 seq, u8 *out);
/* vcpu: it was sent as seq: RECORDED -> SENT. */
void kvmi_event_sent(struct kvmi_vcpu_state *state, u32 seq);
/*
 * vcpu: the VMM wrote this vCPU's registers.  RECORDED -> IDLE; SENT -> IDLE with
 * the late reply to that seq to be taken and ignored; REPLY_HERE -> IDLE.
 */
void kvmi_event_void(struct kvmi_vcpu_state *state);
/* vcpu: the exit handler was called again and is through: REPLY_HERE -> IDLE, whatever it used. */
void kvmi_event_done(struct kvmi_vcpu_state *state);
/*
 * vcpu: the tool is gone and the session fails open: RECORDED, SENT -> REPLY_HERE
 * as if answered CONTINUE with unmodified values; pending registers dropped.
 */
void kvmi_event_fail_open(struct kvmi_vcpu_state *state);
/* vcpu: crash on loss: -> CRASHED */
void kvmi_crash(struct kvmi_vcpu_state *state);
/*
 * vcpu: registers set by VCPU_SET_REGISTERS during the event, to be written now that the reply is here:
 * true and the 144-byte struct kvm_regs in regs; taken once.
 */
bool kvmi_take_registers(struct kvmi_vcpu_state *state, u8 *regs);
/* An exception that the tool wants the guest to take; KVM knows the vector. */
struct kvmi_injection {
	u8  nr;
	u8  has_error_code;
	u16 pad;
	u32 error_code;
	u64 address;	/* #PF: CR2 */
};
/* vcpu: no event is open and an exception is to be injected; taken once. */
bool kvmi_has_injection(const struct kvmi_vcpu_state *state);
bool kvmi_take_injection(struct kvmi_vcpu_state *state, struct kvmi_injection *what);
/* vcpu: which intercepts the tool asked for (the session may be gone: then ask with cleanup in mind). */
bool kvmi_wants_breakpoint(const struct kvmi_vcpu_state *state);
bool kvmi_wants_cr0_write(const struct kvmi_vcpu_state *state);
bool kvmi_wants_cr3_write(const struct kvmi_vcpu_state *state);
bool kvmi_wants_msr_write(const struct kvmi_vcpu_state *state, u32 msr);
bool kvmi_wants_any_msr(const struct kvmi_vcpu_state *state);
bool kvmi_wants_descriptor(const struct kvmi_vcpu_state *state);
bool kvmi_wants_singlestep(const struct kvmi_vcpu_state *state);
bool kvmi_steps_with_interrupts(const struct kvmi_vcpu_state *state);

/* ---- C, called by Rust ------------------------------------------------- */
/* Errors are 0 or a negated KVM_E* of protocol.md 3.4 unless said otherwise. */

/* reader */
u32  kvmi_glue_vcpu_count(struct kvm_introspection *session);
/* vcpu index < count is checked by the caller; 0 or -KVM_EAGAIN */
int  kvmi_glue_vcpu_ready(struct kvm_introspection *session, u16 vcpu_idx);
/* len 1..4096 within one page, checked by the caller; 0 or -KVM_ENOENT */
int  kvmi_glue_read_physical(struct kvm_introspection *session, u64 gpa, u8 *out, size_t len);
/* 0, -KVM_ENOENT, -KVM_EPERM (read-only slot), -KVM_EOPNOTSUPP (dirty ring alone) */
int  kvmi_glue_write_physical(struct kvm_introspection *session, u64 gpa, const u8 *data, size_t len);
/* 0, -KVM_EBUSY; wait: return after the vCPU has left guest mode */
int  kvmi_glue_pause_vcpu(struct kvm_introspection *session, u16 vcpu_idx, bool wait);
/*
 * gfn and access are checked by the caller for what can be expressed; 0,
 * -KVM_EINVAL (no slot) or -KVM_ENOMEM.  In force only after kvmi_glue_page_access_set().
 */
int  kvmi_glue_set_page_access(struct kvm_introspection *session, u16 view, u64 gfn, u8 access);
/* what was set is in force on every vCPU when this returns */
void kvmi_glue_page_access_set(struct kvm_introspection *session);
/* 0 or -KVM_EINVAL (no slot) */
int  kvmi_glue_page_access(struct kvm_introspection *session, u16 view, u64 gfn, u8 *access);
/* vcpu index < count is checked by the caller: what that vCPU is doing, 8 bytes */
struct kvmi_vcpu_run_state;
void kvmi_glue_vcpu_state(struct kvm_introspection *session, u16 vcpu_idx,
			  struct kvmi_vcpu_run_state *out);
/* VM_RELEASE: vCPUs that HOOK keeps stopped go on */
void kvmi_glue_release(struct kvm_introspection *session);
/* any: @10 of GET_VERSION's features: bits 0..3 as P20; @8: single-step available */
u8   kvmi_glue_access_bits(void);
u8   kvmi_glue_singlestep(void);

/* vcpu */
u16  kvmi_glue_vcpu_index(struct kvm_vcpu_introspection *vcpu);	/* vcpu->vcpu_idx: events carry it */
u64  kvmi_glue_tsc_hz(struct kvm_vcpu_introspection *vcpu);	/* 0: unsupported */
void kvmi_glue_get_arch(struct kvm_vcpu_introspection *vcpu, u8 *out);	/* 536 bytes: the event's arch part */
u8   kvmi_glue_mode(struct kvm_vcpu_introspection *vcpu);	/* 2, 4, 8 */
void kvmi_glue_get_regs(struct kvm_vcpu_introspection *vcpu, u8 *out);	/* 144: struct kvm_regs */
void kvmi_glue_get_sregs(struct kvm_vcpu_introspection *vcpu, u8 *out);	/* 312: struct kvm_sregs */
int  kvmi_glue_get_msr(struct kvm_vcpu_introspection *vcpu, u32 index, u64 *value); /* 0 or -KVM_EINVAL */
/* EAX, EBX, ECX, EDX in regs; 0 or -KVM_ENOENT */
int  kvmi_glue_cpuid(struct kvm_vcpu_introspection *vcpu, u32 function, u32 index, u32 *regs);
u64  kvmi_glue_xcr0(struct kvm_vcpu_introspection *vcpu);
/* 4096: struct kvm_xsave; 0, -KVM_EOPNOTSUPP (the vCPU may have more), setting also -KVM_EINVAL */
int  kvmi_glue_get_xsave(struct kvm_vcpu_introspection *vcpu, u8 *out);
int  kvmi_glue_set_xsave(struct kvm_vcpu_introspection *vcpu, const u8 *state);
/* What says how page tables are read, and which registers the vCPU can have. */
struct kvmi_control {
	u64 cr0, cr3, cr4, efer, rflags;
	u64 pdptrs[4];		/* with has_pdptrs */
	u64 nested_root;	/* of a guest's guest behind nested paging: EPTP or nCR3 */
	u8  physical_bits;
	u8  long_code;		/* 1 in 64-bit mode */
	u8  delivers_interrupt;	/* 1: an external interrupt is to be delivered at the next entry */
	u8  has_pdptrs;		/* 1: the CPU has loaded them; 0: they are in memory, where CR3 says */
	u8  nested_levels;	/* 0: there are no such tables */
	u8  nested_ept;		/* 1: they are extended page tables */
	u8  nested_pse;		/* 1: with two levels, pages of 4 MiB */
	u8  pad;
};
void kvmi_glue_get_control(struct kvm_vcpu_introspection *vcpu, struct kvmi_control *out);
/* of a page table, within a page; 0 or -KVM_ENOENT */
int  kvmi_glue_read_table(struct kvm_vcpu_introspection *vcpu, u64 gpa, u8 *out, size_t len);
/* before watching it: 0 or -KVM_EPERM (the VMM's MSR filter denies the write) */
int  kvmi_glue_msr_write_allowed(struct kvm_vcpu_introspection *vcpu, u32 index);
/* before switching the event: 0 or -KVM_EOPNOTSUPP */
int  kvmi_glue_descriptor_exits(void);
/* before accepting an exception: 0 or -KVM_EBUSY (something else is on its way into the guest) */
int  kvmi_glue_injection_free(struct kvm_vcpu_introspection *vcpu);
/* before enabling: 0 or -KVM_EBUSY (userspace guest-debug owns #BP) */
int  kvmi_glue_breakpoint_free(struct kvm_vcpu_introspection *vcpu);
/* before stepping: 0 or -KVM_EBUSY (userspace guest-debug steps) */
int  kvmi_glue_singlestep_free(struct kvm_vcpu_introspection *vcpu);
/* kvmi_wants_*() may have changed: apply before the guest runs again.  The one function that may call back with the state. */
void kvmi_glue_intercepts_changed(struct kvm_vcpu_introspection *vcpu);

#endif
