// SPDX-License-Identifier: GPL-2.0-only
/*
 * A step: the vCPU executes one instruction and is back.  For the tool that wants
 * to know of each (VCPU_CONTROL_SINGLESTEP), and for accesses that are let through
 * (let_through.c).
 *
 * A step is one call of vcpu_enter_guest(), from kvmi_step() to
 * kvm_introspection_step_end(); nothing of it is left in between, so that there
 * is nothing to undo when a session ends.  It need not end the instruction: the
 * host may want the CPU, or a page may have to be mapped, and the next step tries
 * again.  vcpu->arch.introspection.stepped tells that an instruction has ended, whoever
 * has carried it out: the CPU, or KVM after an exit, perhaps after the VMM has had
 * its part in it.  So does the arrival of an exception or interrupt at its
 * handler, which is a step of its own: instructions that fault do not end.
 */
#include <linux/entry-kvm.h>
#include <linux/export.h>

#include "introspection/session.h"
#include "introspection/steps.h"
#include "mmu.h"
#include "smm.h"
#include "x86.h"

/* Whether each instruction of this vCPU's is to be told now. */
static bool singlesteps(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;

	return READ_ONCE(vi->vcpu->arch.introspection.singlestep) && !READ_ONCE(session->closing) &&
	       !kvmi_fails_open(session) &&
	       kvmi_event_wanted(session->state, vi->state, KVMI_VCPU_EVENT_SINGLESTEP, 0);
}

/* Of the guests in the guest, and of SMM, the tool sees that they are over. */
static bool is_where_the_tool_looks(struct kvm_vcpu *vcpu)
{
	return !is_guest_mode(vcpu) && !is_smm(vcpu);
}

/* Whether the vCPU is to execute but one instruction next. */
bool kvmi_wants_step(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	return singlesteps(vi) && is_where_the_tool_looks(vcpu) &&
	       vcpu->arch.mp_state == KVM_MP_STATE_RUNNABLE && !vcpu->arch.apf.halted;
}

/* Whether an instruction has ended that is to be told. */
bool kvmi_has_step(struct kvm_vcpu_introspection *vi)
{
	return vi->vcpu->arch.introspection.stepped && singlesteps(vi) &&
	       is_where_the_tool_looks(vi->vcpu);
}

/* With no event open: true when that of such an instruction is now. */
bool kvmi_take_step(struct kvm_vcpu_introspection *vi)
{
	static const struct kvmi_occurrence singlestep = { .event = KVMI_VCPU_EVENT_SINGLESTEP };

	if (!kvmi_has_step(vi))
		return false;

	vi->vcpu->arch.introspection.stepped = false;
	return kvmi_record(vi->session->state, vi->state, &singlestep) == KVMI_SITE_DEFER;
}

/* site: of an instruction of SMM's, nobody is told. */
void __kvm_introspection_instruction_ends(struct kvm_vcpu *vcpu)
{
	if (is_smm(vcpu))
		return;

	vcpu->arch.introspection.stepped = true;
	/* Nor does KVM go on to the next where it emulates many in a row. */
	kvm_make_request(KVM_REQ_EVENT, vcpu);
}
EXPORT_SYMBOL_GPL(__kvm_introspection_instruction_ends);

/*
 * Before there is a step: interrupts come by KVM's hand alone, so that they can wait.
 * For the rest of the session, since each change stops all vCPUs.
 */
void kvmi_block_irqs(struct kvm *kvm, bool blocks)
{
	/* KVM writes it last, when all vCPUs have been stopped. */
	unsigned long reasons = READ_ONCE(kvm->arch.apicv_inhibit_reasons);

	if (!!(reasons & BIT(APICV_INHIBIT_REASON_INTROSPECTION)) != blocks)
		kvm_set_or_clear_apicv_inhibit(kvm, APICV_INHIBIT_REASON_INTROSPECTION, blocks);
}

/* The tool has switched it on or off. */
void kvmi_singlestep_changed(struct kvm_vcpu_introspection *vi, bool on)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	if (vcpu->arch.introspection.singlestep == on)
		return;
	if (on)
		kvmi_block_irqs(vcpu->kvm, true);
	/* Of what went before nobody asked. */
	vcpu->arch.introspection.stepped = false;
	vcpu->arch.introspection.singlestep = on;
}

/*
 * site: what the CPU cannot step is emulated, the rest is done by the next entry.
 * As an exit handler.
 */
int kvmi_step(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	bool lets_through = kvmi_wants_let_through(vi);
	int r = 0;

	vcpu->arch.introspection.step_holds_events =
		lets_through || !kvmi_steps_with_interrupts(vi->state);
	if (!kvm_x86_call(introspection_step)(vcpu, true))
		return kvmi_emulates_fetch(vcpu) ? 1 : kvm_emulate_instruction(vcpu, 0);

	vcpu->arch.introspection.stepped = false;
	vcpu->arch.introspection.stepping = true;
	if (lets_through)
		r = kvmi_enter_let_through(vi);
	if (r) {
		__kvm_introspection_step_end(vcpu);
		return r;
	}
	return 1;
}

/*
 * The step is ready, in SRCU: the host has its CPU now, if it wants it.  It would
 * have the entry put off, all that was made ready would be gone, and where that
 * takes longer than the scheduler gives it would be so each time.  Meanwhile the
 * session may have ended, or the instruction may have become one that cannot be stepped;
 * then there is no step.
 */
int kvmi_yield_before_step(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	unsigned long session = vi ? vi->session->number : 0;
	int r;

	if (!__xfer_to_guest_mode_work_pending())
		return 1;

	kvm_vcpu_srcu_read_unlock(vcpu);
	r = xfer_to_guest_mode_handle_work(vcpu);
	kvm_vcpu_srcu_read_lock(vcpu);
	vi = kvmi_vcpu(vcpu);
	if (!r && vi && vi->session->number == session && !READ_ONCE(vi->session->closing) &&
	    kvm_x86_call(introspection_step)(vcpu, true))
		return 1;

	__kvm_introspection_step_end(vcpu);
	return r ? r : 1;
}

/* The vCPU is back from the guest, or did not get there; its exit has been handled. */
void __kvm_introspection_step_end(struct kvm_vcpu *vcpu)
{
	kvm_x86_call(introspection_step)(vcpu, false);
	vcpu->arch.introspection.stepping = false;
	if (vcpu->arch.introspection.let_through)
		kvmi_leave_let_through(vcpu, kvmi_vcpu(vcpu));

	/* Interrupts were held back. */
	kvm_make_request(KVM_REQ_EVENT, vcpu);
}

/* site: interrupts wait, the VMM's own too. */
bool __kvm_introspection_holds_interrupts(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;
	bool holds;
	int idx;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	vi = kvmi_vcpu(vcpu);
	holds = vi && (kvmi_has_let_through(vi) ||
		       (singlesteps(vi) && !kvmi_steps_with_interrupts(vi->state)));
	srcu_read_unlock(&vcpu->kvm->srcu, idx);

	return holds;
}

u8 kvmi_glue_singlestep(void)
{
	return kvm_caps.has_introspection_step;
}

/* Guest debugging by the VMM has the same CPU feature. */
int kvmi_glue_singlestep_free(struct kvm_vcpu_introspection *vi)
{
	return vi->vcpu->guest_debug & KVM_GUESTDBG_SINGLESTEP ? -KVM_EBUSY : 0;
}
