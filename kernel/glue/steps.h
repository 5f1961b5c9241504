/* SPDX-License-Identifier: GPL-2.0-only */
/* A vCPU executes one instruction and is back (step/). */
#ifndef KVM_INTROSPECTION_STEPS_H
#define KVM_INTROSPECTION_STEPS_H

#include "introspection/introspection.h"

void __kvm_introspection_step_end(struct kvm_vcpu *vcpu);
void __kvm_introspection_instruction_ends(struct kvm_vcpu *vcpu);
bool __kvm_introspection_holds_interrupts(struct kvm_vcpu *vcpu);

/* The vCPU is to execute one instruction and no more. */
static __always_inline bool kvm_introspection_is_stepping(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) && vcpu->arch.introspection.stepping;
}

/* Interrupts, NMIs and SMIs wait until that instruction is through. */
static inline bool kvm_introspection_holds_events(struct kvm_vcpu *vcpu)
{
	return kvm_introspection_is_stepping(vcpu) && vcpu->arch.introspection.step_holds_events;
}

/* After each call of vcpu_enter_guest(). */
static inline void kvm_introspection_step_end(struct kvm_vcpu *vcpu)
{
	if (kvm_introspection_is_stepping(vcpu))
		__kvm_introspection_step_end(vcpu);
}

/* An instruction ends that KVM has carried out for the guest. */
static inline void kvm_introspection_instruction_ends(struct kvm_vcpu *vcpu)
{
	if (static_branch_unlikely(&kvm_introspection_hooked) && vcpu->arch.introspection.singlestep)
		__kvm_introspection_instruction_ends(vcpu);
}

/* While the tool steps the vCPU, or has let an access of its next instruction through. */
static inline bool kvm_introspection_holds_interrupts(struct kvm_vcpu *vcpu)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_holds_interrupts(vcpu);
}

#endif
