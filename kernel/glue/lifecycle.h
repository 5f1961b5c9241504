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

int __kvm_introspection_work(struct kvm_vcpu *vcpu);
void kvm_introspection_recalc_intercepts(struct kvm_vcpu *vcpu);

/* In the run loop nothing else waits for the VMM. */
static __always_inline bool kvm_introspection_is_half_way(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       vcpu->arch.complete_userspace_io;
}

/*
 * Send what was recorded, wait for replies, run commands.  Called within
 * kvm->srcu read side, which it leaves and takes again.  1: go on;
 * 0, -EINTR: KVM_RUN is to return.
 */
static inline int kvm_introspection_work(struct kvm_vcpu *vcpu)
{
	/* What a session has left half-way (emulated.c) is to be ended, and the next waited for. */
	return kvm_is_introspected(vcpu) || kvm_introspection_is_half_way(vcpu) ||
	       READ_ONCE(vcpu->kvm->arch.introspection.stopped) ?
		__kvm_introspection_work(vcpu) : 1;
}

#endif
