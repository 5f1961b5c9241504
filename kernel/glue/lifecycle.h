/* SPDX-License-Identifier: GPL-2.0-only */
/* A VM, a vCPU and the VMM come and go (session/); what a vCPU does between two entries (vcpu.c). */
#ifndef KVM_INTROSPECTION_LIFECYCLE_H
#define KVM_INTROSPECTION_LIFECYCLE_H

#include "introspection/introspection.h"

bool kvm_is_introspection_enabled(void);
void kvm_introspection_vm_init(struct kvm *kvm);
void kvm_introspection_vm_destroy(struct kvm *kvm);
void kvm_introspection_vmm_exit(struct kvm *kvm);
int kvm_introspection_vcpu_create(struct kvm_vcpu *vcpu);
void kvm_introspection_vcpu_destroy(struct kvm_vcpu *vcpu);
void kvm_introspection_exit(void);

int __kvm_introspection_work(struct kvm_vcpu *vcpu);

/* What a session has left half-way (emulated.c) is to be ended, and the next one waited for. */
static __always_inline bool kvm_introspection_may_have_work(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       (rcu_access_pointer(vcpu->arch.introspection.vi) ||
		/* In the run loop nothing else waits for the VMM. */
		vcpu->arch.complete_userspace_io ||
		/* A request that nobody takes keeps the vCPU out of the guest. */
		kvm_request_pending(vcpu) ||
		READ_ONCE(vcpu->kvm->arch.introspection.stopped));
}

/*
 * Send what was recorded, wait for replies, run commands.  Called within
 * kvm->srcu read side, which it leaves and takes again.  1: go on;
 * 0, -EINTR: KVM_RUN is to return.
 */
static __always_inline int kvm_introspection_work(struct kvm_vcpu *vcpu)
{
	return kvm_introspection_may_have_work(vcpu) ? __kvm_introspection_work(vcpu) : 1;
}

#endif
