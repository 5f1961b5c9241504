// SPDX-License-Identifier: GPL-2.0-only
/*
 * MSRs that the tool watches.  The hardware intercepts what KVM, the VMM's
 * filter or the tool wants intercepted: vendor code asks here wherever it is
 * about to let the guest write one by itself.
 */
#include <linux/export.h>

#include "introspection/events.h"
#include "introspection/session.h"
#include "x86.h"

/* vcpu->mutex is held, or the vCPU is new. */
bool __kvm_introspection_watches_msr(struct kvm_vcpu *vcpu, u32 msr)
{
	struct kvm_vcpu_introspection *vi;
	bool watches;
	int idx;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	vi = kvmi_vcpu(vcpu);
	watches = vi && kvmi_wants_msr_write(vi->state, msr);
	srcu_read_unlock(&vcpu->kvm->srcu, idx);

	return watches;
}
EXPORT_SYMBOL_GPL(__kvm_introspection_watches_msr);

/*
 * KVM learns whether a value is legal by writing it, so that the tool is asked
 * first.  What the VMM denies the guest is no write of KVM's.  Nor is a veto one:
 * the old value, written, might send the last IPI again or set a clock back.
 */
enum kvm_introspection_wrmsr __kvm_introspection_wrmsr(struct kvm_vcpu *vcpu, u32 msr, u64 *data)
{
	struct kvmi_occurrence write = { .event = KVMI_VCPU_EVENT_MSR, .code = msr };
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	u64 new;

	if (!vi || is_guest_mode(vcpu) ||
	    !kvmi_event_wanted(vi->session->state, vi->state, write.event, msr) ||
	    !kvm_msr_allowed(vcpu, msr, KVM_MSR_FILTER_WRITE))
		return KVM_WRMSR_WRITE;

	if (kvmi_reply_vetoes(vi->state, write.event, msr))
		return KVM_WRMSR_VETOED;
	if (kvmi_reply_value(vi->state, write.event, msr, &new))
		*data = new;
	write.b = *data;
	if (kvm_get_msr(vcpu, msr, &write.a))
		return KVM_WRMSR_WRITE;
	/* LMA is not the guest's to write: KVM leaves it as it is. */
	if (msr == MSR_EFER)
		write.b = (write.b & ~EFER_LMA) | (write.a & EFER_LMA);
	if (write.a == write.b)
		return KVM_WRMSR_WRITE;

	return kvmi_site(vcpu, &write) == KVMI_SITE_DEFER ? KVM_WRMSR_DEFERRED : KVM_WRMSR_WRITE;
}

int kvmi_glue_msr_write_allowed(struct kvm_vcpu_introspection *vi, u32 index)
{
	return kvm_msr_allowed(vi->vcpu, index, KVM_MSR_FILTER_WRITE) ? 0 : -KVM_EPERM;
}
