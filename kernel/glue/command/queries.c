// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a vCPU holds beside its registers, on its own thread inside KVM_RUN.
 */
#include <asm/fpu/api.h>

#include "introspection/session.h"
#include "cpuid.h"
#include "kvm_cache_regs.h"
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

void kvmi_glue_get_control(struct kvm_vcpu_introspection *vi, struct kvmi_control *out)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int i, idx;

	*out = (struct kvmi_control) {
		.cr0 = kvm_read_cr0(vcpu),
		.cr3 = kvm_read_cr3(vcpu),
		.cr4 = kvm_read_cr4(vcpu),
		.efer = vcpu->arch.efer,
		.rflags = kvm_get_rflags(vcpu),
		.physical_bits = cpuid_maxphyaddr(vcpu),
		.long_code = is_64_bit_mode(vcpu),
		.delivers_interrupt = vcpu->arch.interrupt.injected && !vcpu->arch.interrupt.soft,
	};
	if (!is_pae_paging(vcpu))
		return;

	/* On SVM they may have to be read from the guest's memory. */
	idx = srcu_read_lock(&vcpu->kvm->srcu);
	for (i = 0; i < ARRAY_SIZE(out->pdptrs); i++)
		out->pdptrs[i] = kvm_pdptr_read(vcpu, i);
	srcu_read_unlock(&vcpu->kvm->srcu, idx);
}

/* Within SRCU: of a guest's guest behind nested paging the addresses are others. */
static gpa_t guest_gpa(struct kvm_vcpu *vcpu, u64 gpa)
{
	struct x86_exception ignored;

	return kvm_translate_gpa(vcpu, vcpu->arch.walk_mmu, gpa, 0, &ignored);
}

int kvmi_glue_read_table(struct kvm_vcpu_introspection *vi, u64 gpa, u8 *out, size_t len)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int idx, r = -KVM_ENOENT;
	gpa_t at;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	at = guest_gpa(vcpu, gpa);
	if (at != INVALID_GPA && !kvm_vcpu_read_guest(vcpu, at, out, len))
		r = 0;
	srcu_read_unlock(&vcpu->kvm->srcu, idx);

	return r;
}

u64 kvmi_glue_guest_gpa(struct kvm_vcpu_introspection *vi, u64 gpa)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int idx = srcu_read_lock(&vcpu->kvm->srcu);
	gpa_t at = guest_gpa(vcpu, gpa);

	srcu_read_unlock(&vcpu->kvm->srcu, idx);
	return at;
}
