// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a vCPU holds beside its registers, on its own thread inside KVM_RUN.
 */
#include <asm/fpu/api.h>

#include "session.h"
#include "cpuid.h"
#include "mmu.h"
#include "x86.h"

static_assert(sizeof(struct kvm_xsave) == 4096);

int kvmi_glue_cpuid(struct kvm_vcpu_introspection *vi, u32 function, u32 index, u32 *regs)
{
	struct kvm_cpuid_entry2 *entry;

	entry = kvm_find_cpuid_entry_index(vi->vcpu, function, index);
	if (!entry)
		return -KVM_ENOENT;

	regs[0] = entry->eax;
	regs[1] = entry->ebx;
	regs[2] = entry->ecx;
	regs[3] = entry->edx;
	return 0;
}

u64 kvmi_glue_xcr0(struct kvm_vcpu_introspection *vi)
{
	return vi->vcpu->arch.xcr0;
}

/* As KVM_GET_XSAVE: a guest that may have AMX has more than fits. */
static bool fits_xsave(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.guest_fpu.uabi_size <= sizeof(struct kvm_xsave);
}

/*
 * While KVM_RUN is in, the CPU holds the guest's state: it is in memory, and
 * may be changed there, between giving it back and taking it again.
 */
int kvmi_glue_get_xsave(struct kvm_vcpu_introspection *vi, u8 *out)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	if (!fits_xsave(vcpu))
		return -KVM_EOPNOTSUPP;

	fpu_swap_kvm_fpstate(&vcpu->arch.guest_fpu, false);
	fpu_copy_guest_fpstate_to_uabi(&vcpu->arch.guest_fpu, out, sizeof(struct kvm_xsave),
				       vcpu->arch.guest_supported_xcr0 | XFEATURE_MASK_FPSSE,
				       vcpu->arch.pkru);
	fpu_swap_kvm_fpstate(&vcpu->arch.guest_fpu, true);

	return 0;
}

int kvmi_glue_set_xsave(struct kvm_vcpu_introspection *vi, const u8 *state)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int r;

	if (!fits_xsave(vcpu))
		return -KVM_EOPNOTSUPP;

	fpu_swap_kvm_fpstate(&vcpu->arch.guest_fpu, false);
	r = fpu_copy_uabi_to_guest_fpstate(&vcpu->arch.guest_fpu, state,
					   kvm_caps.supported_xcr0, &vcpu->arch.pkru);
	fpu_swap_kvm_fpstate(&vcpu->arch.guest_fpu, true);

	return r ? -KVM_EINVAL : 0;
}

u64 kvmi_glue_translate(struct kvm_vcpu_introspection *vi, u64 gva)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	struct x86_exception ignored;
	u64 gpa;
	int idx;

	/* Bits that the guest's paging does not look at. */
	if (is_long_mode(vcpu) ? is_noncanonical_address(gva, vcpu, 0) : gva > U32_MAX)
		return INVALID_GPA;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	gpa = kvm_mmu_gva_to_gpa_system(vcpu, gva, &ignored);
	srcu_read_unlock(&vcpu->kvm->srcu, idx);

	return gpa;
}
