// SPDX-License-Identifier: GPL-2.0-only
/*
 * Exceptions that the tool wants the guest to take.  Handed to KVM when no
 * event of the vCPU is open; from then on KVM delivers it before anything else,
 * and TRAP tells what it is.
 */
#include "introspection/events.h"
#include "introspection/session.h"
#include "smm.h"
#include "x86.h"

/*
 * While an interrupt or NMI whose delivery was interrupted waits for its next
 * try, an exception would come between: it waits as well.
 */
static bool is_delivering(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.nmi_injected || vcpu->arch.interrupt.injected;
}

/*
 * Where the guest that is introspected takes no exception: its own guest runs,
 * or its firmware, which no register tells; or it waits for SIPI, to which an
 * exception would be no end but an endless errand.
 */
static bool is_out_of_reach(struct kvm_vcpu *vcpu)
{
	return is_guest_mode(vcpu) || is_smm(vcpu) ||
	       vcpu->arch.mp_state == KVM_MP_STATE_INIT_RECEIVED;
}

int kvmi_glue_injection_free(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	return kvm_is_exception_pending(vcpu) || vcpu->arch.exception.injected ||
	       is_delivering(vcpu) || is_out_of_reach(vcpu) ? -KVM_EBUSY : 0;
}

/* An instruction that is let through comes first. */
bool kvmi_injection_due(struct kvm_vcpu_introspection *vi)
{
	return kvmi_has_injection(vi->state) && !READ_ONCE(vi->session->lost) &&
	       !vi->let_through_count && !is_delivering(vi->vcpu) && !is_out_of_reach(vi->vcpu);
}

static void queue(struct kvm_vcpu *vcpu, const struct kvmi_injection *what)
{
	struct x86_exception fault = {
		.vector = PF_VECTOR, .error_code_valid = true,
		.error_code = what->error_code, .address = what->address,
	};

	if (what->nr == PF_VECTOR)
		kvm_introspection_call_page_fault(kvm_inject_page_fault, vcpu, &fault, false);
	else if (what->has_error_code)
		kvm_queue_exception_e(vcpu, what->nr, what->error_code);
	else
		kvm_queue_exception(vcpu, what->nr);
}

/*
 * Hand over what is due, unless the guest is to take another exception already:
 * what the tool has just answered can have raised one.  True when there is a
 * TRAP to be sent.
 */
bool kvmi_inject(struct kvm_vcpu_introspection *vi)
{
	struct kvmi_occurrence trap = { .event = KVMI_VCPU_EVENT_TRAP };
	struct kvm_vcpu *vcpu = vi->vcpu;
	const struct kvm_queued_exception *queued = &vcpu->arch.exception;
	struct kvmi_injection what;

	if (!kvmi_injection_due(vi) || !kvmi_take_injection(vi->state, &what))
		return false;
	if (!queued->pending && !queued->injected)
		queue(vcpu, &what);

	trap.which = queued->vector;
	if (queued->has_error_code)
		trap.code = queued->error_code;
	if (queued->vector == PF_VECTOR)
		trap.a = queued->has_payload ? queued->payload : vcpu->arch.cr2;
	return kvmi_record(vi->session->state, vi->state, &trap) == KVMI_SITE_DEFER;
}
