// SPDX-License-Identifier: GPL-2.0-only
/*
 * When the VMM changes a vCPU whose event is open, what the event told is no longer
 * true: it is void (docs/protocol.md, 3.7).
 *
 * A VMM that looks at its vCPUs (a monitor's "info registers") writes back what it
 * has read.  So a write alone is not a change: before the first one the vCPU's state
 * is kept, and before the vCPU goes on it is compared with what is there then.
 */
#include <linux/string.h>

#include "introspection/events.h"
#include "introspection/session.h"
#include "kvm_cache_regs.h"
#include "smm.h"
#include "x86.h"

static void take_exception(struct kvmi_pending *to, const struct kvm_queued_exception *exception)
{
	if (!exception->pending && !exception->injected)
		return;
	to->pending = true;
	to->vector = exception->vector;
	to->error_code = exception->has_error_code ? exception->error_code : 0;
}

/* All that the ioctls of kvm_introspection_vmm_writes() can write; the vCPU is loaded. */
static void take_snapshot(struct kvm_vcpu *vcpu, struct kvmi_snapshot *to)
{
	memset(to, 0, sizeof(*to));
	__get_regs(vcpu, &to->regs);
	__get_sregs(vcpu, &to->sregs);
	take_exception(&to->exception, &vcpu->arch.exception);
	take_exception(&to->exception_vmexit, &vcpu->arch.exception_vmexit);
	if (vcpu->arch.interrupt.injected) {
		to->interrupt.pending = true;
		to->interrupt.vector = vcpu->arch.interrupt.nr;
		to->interrupt.error_code = vcpu->arch.interrupt.soft;
	}
	to->external_vector = vcpu->arch.pending_external_vector;
	to->mp_state = vcpu->arch.mp_state;
	to->shadow = kvm_x86_call(get_interrupt_shadow)(vcpu);
	to->nmi_injected = vcpu->arch.nmi_injected;
	to->nmi_masked = kvm_x86_call(get_nmi_mask)(vcpu);
	to->guest_mode = is_guest_mode(vcpu);
	to->smm = is_smm(vcpu);
}

static void make_void(struct kvm_vcpu_introspection *vi)
{
	vi->vmm_writes = false;
	kvmi_event_void(vi->state);
	kvmi_take_back(vi);
	kvmi_forget_half_way(vi->vcpu);
	vi->vcpu->arch.introspection.stepped = false;
	kvmi_show(vi);
}

void __kvm_introspection_vmm_writes(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;
	int idx;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	vi = kvmi_vcpu(vcpu);
	if (vi && !vi->vmm_writes) {
		take_snapshot(vcpu, &vi->before);
		vi->vmm_writes = true;
	}
	srcu_read_unlock(&vcpu->kvm->srcu, idx);
}

/* vcpu: the VMM may have written something since KVM_RUN was in the last time. */
void kvmi_settle_writes(struct kvm_vcpu_introspection *vi)
{
	struct kvmi_snapshot now;

	vi->vmm_writes = false;
	take_snapshot(vi->vcpu, &now);
	if (memcmp(&now, &vi->before, sizeof(now)))
		make_void(vi);
}

/* vcpu->mutex is held: the vCPU is reset. */
void __kvm_introspection_void_event(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;
	int idx;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	vi = kvmi_vcpu(vcpu);
	if (vi)
		make_void(vi);
	srcu_read_unlock(&vcpu->kvm->srcu, idx);
}
