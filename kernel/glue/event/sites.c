// SPDX-License-Identifier: GPL-2.0-only
/*
 * The event sites: what exit handlers call when the guest does something that
 * a tool may want to know.  All run with SRCU held and, on the second call with
 * the reply at hand, complete what the first call deferred.
 */
#include <linux/export.h>
#include <linux/kvm_para.h>

#include "introspection/events.h"
#include "introspection/lifecycle.h"
#include "introspection/session.h"
#include "kvm_cache_regs.h"
#include "kvm_emulate.h"
#include "x86.h"

/* The agent's way to call the tool: KVM_HC_XEN_HVM_OP, "guest request vm event". */
#define HYPERCALL_HVM_OP		34
#define HYPERCALL_GUEST_REQUEST		24

static bool is_tool_hypercall(struct kvm_vcpu *vcpu)
{
	if (is_64_bit_hypercall(vcpu))
		return kvm_rax_read(vcpu) == HYPERCALL_HVM_OP &&
		       kvm_rdi_read(vcpu) == HYPERCALL_GUEST_REQUEST && !kvm_rsi_read(vcpu);

	return (u32)kvm_rax_read(vcpu) == HYPERCALL_HVM_OP &&
	       (u32)kvm_rbx_read(vcpu) == HYPERCALL_GUEST_REQUEST && !(u32)kvm_rcx_read(vcpu);
}

/* The reply to such an event is here. */
static bool is_being_answered(struct kvm_vcpu *vcpu, u16 event)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);

	return vi && kvmi_phase(vi->state) == KVMI_REPLY_HERE &&
	       kvmi_phase_event(vi->state) == event;
}

bool __kvm_introspection_hypercall(struct kvm_vcpu *vcpu, int *r)
{
	static const struct kvmi_occurrence hypercall = { .event = KVMI_VCPU_EVENT_HYPERCALL };

	/* The tool may have changed the very registers by which the hypercall was known. */
	if (is_guest_mode(vcpu) ||
	    !(is_being_answered(vcpu, hypercall.event) || is_tool_hypercall(vcpu)))
		return false;

	switch (kvmi_site(vcpu, &hypercall)) {
	case KVMI_SITE_PASS:
		return false;
	case KVMI_SITE_CONTINUE:
		kvm_rax_write(vcpu, 0);
		*r = kvm_skip_emulated_instruction(vcpu);
		return true;
	default:
		*r = 1;
		return true;
	}
}

static bool userspace_owns_breakpoint(struct kvm_vcpu *vcpu)
{
	const unsigned long sw_bp = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;

	return (vcpu->guest_debug & sw_bp) == sw_bp;
}

/* Where the CPU does not say how long the instruction was (SVM without next-RIP save). */
u8 kvmi_decoded_insn_len(struct kvm_vcpu *vcpu)
{
	struct x86_emulate_ctxt *ctxt = vcpu->arch.emulate_ctxt;

	if (x86_decode_emulated_instruction(vcpu, EMULTYPE_SKIP, NULL, 0) != EMULATION_OK)
		return 1;
	return ctxt->_eip - ctxt->eip;
}

/*
 * A #BP exit; insn_len is 0 where the CPU does not tell.  True when the exit is
 * dealt with, false when it is for userspace's debugger.
 */
bool kvm_introspection_breakpoint(struct kvm_vcpu *vcpu, u8 insn_len)
{
	struct kvmi_occurrence bp = { .event = KVMI_VCPU_EVENT_BREAKPOINT };
	struct kvm_vcpu_introspection *vi;
	enum kvmi_site site = KVMI_SITE_PASS;

	if (!kvm_is_introspection_enabled() || userspace_owns_breakpoint(vcpu))
		return false;

	vi = kvmi_vcpu(vcpu);
	if (vi && !is_guest_mode(vcpu) &&
	    kvmi_event_wanted(vi->session->state, vi->state, bp.event, 0)) {
		bp.a = kvmi_translate(vi, kvm_get_linear_rip(vcpu));
		bp.detail = insn_len ? : kvmi_decoded_insn_len(vcpu);
		site = kvmi_site(vcpu, &bp);
	}

	/* Not, or no longer, the tool's: the guest's own. */
	if (site == KVMI_SITE_PASS || site == KVMI_SITE_CONTINUE)
		kvm_queue_exception(vcpu, BP_VECTOR);
	return true;
}
EXPORT_SYMBOL_GPL(kvm_introspection_breakpoint);

/*
 * Whether the tool has any of what the VMM's debugger asks for (KVM_GUESTDBG_*).
 * vcpu->mutex is held, SRCU is not.
 */
bool kvm_introspection_owns_debugging(struct kvm_vcpu *vcpu, u32 control)
{
	struct kvm_vcpu_introspection *vi;
	bool owns = false;
	int idx;

	if (!kvm_is_introspected(vcpu))
		return false;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	vi = kvmi_vcpu(vcpu);
	if (vi && !kvmi_fails_open(vi->session))
		owns = ((control & KVM_GUESTDBG_USE_SW_BP) && kvmi_wants_breakpoint(vi->state)) ||
		       ((control & KVM_GUESTDBG_SINGLESTEP) && vcpu->arch.introspection.singlestep);
	srcu_read_unlock(&vcpu->kvm->srcu, idx);

	return owns;
}

/*
 * Bits that VMX leaves to the guest are reported on neither vendor, so that a
 * tool sees the same on both.
 */
static bool is_reported_change(int cr, unsigned long old, unsigned long new)
{
	switch (cr) {
	case 0:
		return (old ^ new) & ~KVM_POSSIBLE_CR0_GUEST_BITS;
	case 4:
		return (old ^ new) & ~KVM_POSSIBLE_CR4_GUEST_BITS;
	default:
		return old != new;
	}
}

/* What the tool answered instead of the guest's value; to be checked like the guest's. */
static unsigned long replaced_value(struct kvm_vcpu *vcpu, struct kvm_vcpu_introspection *vi,
				    int cr, unsigned long val)
{
	u64 new;

	if (!kvmi_reply_value(vi->state, KVMI_VCPU_EVENT_CR, cr, &new))
		return val;
	/* The tool was not shown the guest's wish to keep the TLB, and has none of its own. */
	if (cr == 3 && kvm_is_cr4_bit_set(vcpu, X86_CR4_PCIDE))
		new = (new & ~X86_CR3_PCID_NOFLUSH) | (val & X86_CR3_PCID_NOFLUSH);
	return new;
}

/* The write as a tool is told of it; false where it is to raise #GP. */
static bool is_legal_write(struct kvm_vcpu *vcpu, int cr, unsigned long val,
			   struct kvmi_occurrence *write)
{
	write->b = val;
	switch (cr) {
	case 0:
		write->a = kvm_read_cr0(vcpu);
		write->b = (val | X86_CR0_ET) & ~CR0_RESERVED_BITS;
		return kvm_is_legal_cr0_write(vcpu, val);
	case 3:
		write->a = kvm_read_cr3(vcpu);
		if (kvm_is_cr4_bit_set(vcpu, X86_CR4_PCIDE))
			write->b &= ~X86_CR3_PCID_NOFLUSH;
		return kvm_vcpu_is_legal_cr3(vcpu, write->b);
	default:
		write->a = kvm_read_cr4(vcpu);
		return kvm_is_legal_cr4_write(vcpu, val);
	}
}

/*
 * The guest's own MOV to CR or LMSW: an instruction that can be left and run again.
 * A value that is illegal, the guest's or the tool's, is left to kvm_set_crN().
 */
bool __kvm_introspection_write_cr(struct kvm_vcpu *vcpu, int cr, unsigned long *val)
{
	struct kvmi_occurrence write = { .event = KVMI_VCPU_EVENT_CR, .which = cr };
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);

	if (!vi || is_guest_mode(vcpu) || (cr != 0 && cr != 3 && cr != 4))
		return false;

	*val = replaced_value(vcpu, vi, cr, *val);
	if (!is_legal_write(vcpu, cr, *val, &write) || !is_reported_change(cr, write.a, write.b))
		return false;

	return kvmi_site(vcpu, &write) == KVMI_SITE_DEFER;
}
EXPORT_SYMBOL_GPL(__kvm_introspection_write_cr);

/* The exit handler that runs was called to complete what the tool has replied to. */
bool kvm_introspection_has_reply(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;

	if (!kvm_is_introspected(vcpu))
		return false;

	vi = kvmi_vcpu(vcpu);
	return vi && kvmi_phase(vi->state) == KVMI_REPLY_HERE;
}
EXPORT_SYMBOL_GPL(kvm_introspection_has_reply);

/*
 * XCR0 holds the new value already, and the instruction will be run again: it
 * changes nothing then.
 */
bool __kvm_introspection_defer_xsetbv(struct kvm_vcpu *vcpu, u64 old)
{
	struct kvmi_occurrence write = {
		.event = KVMI_VCPU_EVENT_XSETBV, .a = old, .b = vcpu->arch.xcr0,
	};

	if (is_guest_mode(vcpu))
		return false;
	if (write.a == write.b && !is_being_answered(vcpu, write.event))
		return false;

	return kvmi_site(vcpu, &write) == KVMI_SITE_DEFER;
}

/* True when the exit is dealt with, false when the instruction is to be emulated. */
bool kvm_introspection_descriptor(struct kvm_vcpu *vcpu, u8 descriptor, bool write)
{
	struct kvmi_occurrence access = {
		.event = KVMI_VCPU_EVENT_DESCRIPTOR, .which = descriptor, .detail = write,
	};
	enum kvmi_site site;

	if (!kvm_is_introspected(vcpu) || is_guest_mode(vcpu))
		return false;
	/* Refused, where KVM does for UMIP what the CPU would have done before it exits. */
	if (!write && kvm_is_cr4_bit_set(vcpu, X86_CR4_UMIP) && kvm_x86_call(get_cpl)(vcpu) > 0)
		return false;

	site = kvmi_site(vcpu, &access);
	return site == KVMI_SITE_DEFER || site == KVMI_SITE_RETRY;
}
EXPORT_SYMBOL_GPL(kvm_introspection_descriptor);
