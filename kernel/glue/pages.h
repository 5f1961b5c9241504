/* SPDX-License-Identifier: GPL-2.0-only */
/* Accesses of the guest to pages that are restricted (page/). */
#ifndef KVM_INTROSPECTION_PAGES_H
#define KVM_INTROSPECTION_PAGES_H

#include "introspection/introspection.h"

bool kvm_introspection_tells_walks(void);
bool kvm_introspection_has_execute_only(void);
int __kvm_introspection_max_level(struct kvm *kvm, gfn_t gfn, int level);
unsigned int __kvm_introspection_pte_access(struct kvm_vcpu *vcpu, union kvm_mmu_page_role role,
					    gfn_t gfn, unsigned int access);
bool __kvm_introspection_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code);
bool __kvm_introspection_emulates(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva, bool write);
bool __kvm_introspection_emulates_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				       bool write);
bool __kvm_introspection_handles_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				      bool write);
bool __kvm_introspection_handles_phys(struct kvm_vcpu *vcpu, gpa_t gpa, bool write);
void __kvm_introspection_round_ends(struct kvm_vcpu *vcpu);

/* By which level a gfn may be mapped, its pages being restricted one by one. */
static inline int kvm_introspection_max_level(struct kvm *kvm, gfn_t gfn, int level)
{
	if (!static_branch_unlikely(&kvm_introspection_hooked) ||
	    xa_empty(&kvm->arch.introspection.denied))
		return level;
	return __kvm_introspection_max_level(kvm, gfn, level);
}

/* What is left of the MMU's access bits for a page; 0: it is not to be mapped. */
static inline unsigned int kvm_introspection_pte_access(struct kvm_vcpu *vcpu,
							 union kvm_mmu_page_role role,
							 gfn_t gfn, unsigned int access)
{
	if (!static_branch_unlikely(&kvm_introspection_hooked) ||
	    xa_empty(&vcpu->kvm->arch.introspection.denied))
		return access;
	return __kvm_introspection_pte_access(vcpu, role, gfn, access);
}

/* True when a page fault of the second level is introspection's, and dealt with. */
static inline bool kvm_introspection_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code)
{
	return kvm_is_introspected(vcpu) && __kvm_introspection_page_fault(vcpu, gpa, error_code);
}

/* True when the emulator has to leave the instruction because of an access. */
static inline bool kvm_introspection_emulates(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva,
					      bool write)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_emulates(vcpu, gpa, gva, write);
}

/* The same for all pages of an access, none of which has been looked at. */
static inline bool kvm_introspection_emulates_virt(struct kvm_vcpu *vcpu, gva_t gva,
						   unsigned int bytes, bool write)
{
	return static_branch_unlikely(&kvm_introspection_hooked) &&
	       !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_emulates_virt(vcpu, gva, bytes, write);
}

/* True when an exit handler has to return before it accesses a memory operand. */
static inline bool kvm_introspection_handles_virt(struct kvm_vcpu *vcpu, gva_t gva,
						  unsigned int bytes, bool write)
{
	return kvm_is_introspected(vcpu) && !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_handles_virt(vcpu, gva, bytes, write);
}

/* The same for one in the page at gpa. */
static inline bool kvm_introspection_handles_phys(struct kvm_vcpu *vcpu, gpa_t gpa, bool write)
{
	return kvm_is_introspected(vcpu) && !xa_empty(&vcpu->kvm->arch.introspection.denied) &&
	       __kvm_introspection_handles_phys(vcpu, gpa, write);
}

/* The emulator is through with an instruction, or with a round of a REP instruction. */
static inline void kvm_introspection_round_ends(struct kvm_vcpu *vcpu)
{
	if (kvm_is_introspected(vcpu))
		__kvm_introspection_round_ends(vcpu);
}

#endif
