/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all hooks of introspection in KVM's own code have in common.  The hooks are in
 * the headers beside this one, by subject.  Each is behind a static key that is off
 * until the first HOOK, and behind vcpu->arch.introspection.vi.
 */
#ifndef KVM_INTROSPECTION_H
#define KVM_INTROSPECTION_H

#include <linux/jump_label.h>
#include <linux/kvm_host.h>

DECLARE_STATIC_KEY_FALSE(kvm_introspection_hooked);

static __always_inline bool kvm_is_introspected(struct kvm_vcpu *vcpu)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       rcu_access_pointer(vcpu->arch.introspection.vi);
}

#endif
