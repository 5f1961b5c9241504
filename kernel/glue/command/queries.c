// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a vCPU holds beside its registers; the vCPU is loaded, inside KVM_RUN or outside.
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
 * may be changed there, between giving it back and taking it again.  True when it was.
 */
static bool give_back_fpu(struct kvm_vcpu *vcpu)
{
	bool in_use = vcpu->arch.guest_fpu.fpstate->in_use;

	if (in_use)
		fpu_swap_kvm_fpstate(&vcpu->arch.guest_fpu, false);
	return in_use;
}

static void take_fpu(struct kvm_vcpu *vcpu, bool was_in_use)
{
	if (was_in_use)
		fpu_swap_kvm_fpstate(&vcpu->arch.guest_fpu, true);
}

int kvmi_glue_get_xsave(struct kvm_vcpu_introspection *vi, u8 *out)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	bool in_use;

	if (!fits_xsave(vcpu))
		return -KVM_EOPNOTSUPP;

	in_use = give_back_fpu(vcpu);
	fpu_copy_guest_fpstate_to_uabi(&vcpu->arch.guest_fpu, out, sizeof(struct kvm_xsave),
				       vcpu->arch.guest_supported_xcr0 | XFEATURE_MASK_FPSSE,
				       vcpu->arch.pkru);
	take_fpu(vcpu, in_use);

	return 0;
}

int kvmi_glue_set_xsave(struct kvm_vcpu_introspection *vi, const u8 *state)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	bool in_use;
	int r;

	if (!fits_xsave(vcpu))
		return -KVM_EOPNOTSUPP;

	in_use = give_back_fpu(vcpu);
	r = fpu_copy_uabi_to_guest_fpstate(&vcpu->arch.guest_fpu, state,
					   kvm_caps.supported_xcr0, &vcpu->arch.pkru);
	take_fpu(vcpu, in_use);

	return r ? -KVM_EINVAL : 0;
}

/*
 * With nested paging on SVM the CPU reads the pointers in memory, when it needs them; to ask
 * KVM for them would have it read the memory of whichever process asks.
 */
static bool has_pdptrs(struct kvm_vcpu *vcpu)
{
	return is_pae_paging(vcpu) &&
	       (kvm_register_is_available(vcpu, VCPU_EXREG_PDPTR) || kvm_cpu_cap_has(X86_FEATURE_VMX));
}

void kvmi_glue_get_control(struct kvm_vcpu_introspection *vi, struct kvmi_control *out)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	struct kvm_mmu *mmu = vcpu->arch.mmu;
	int i;

	*out = (struct kvmi_control) {
		.cr0 = kvm_read_cr0(vcpu),
		.cr3 = kvm_read_cr3(vcpu),
		.cr4 = kvm_read_cr4(vcpu),
		.efer = vcpu->arch.efer,
		.rflags = kvm_get_rflags(vcpu),
		.physical_bits = cpuid_maxphyaddr(vcpu),
		.long_code = is_64_bit_mode(vcpu),
		.delivers_interrupt = vcpu->arch.interrupt.injected && !vcpu->arch.interrupt.soft,
		.has_pdptrs = has_pdptrs(vcpu),
	};
	for (i = 0; out->has_pdptrs && i < ARRAY_SIZE(out->pdptrs); i++)
		out->pdptrs[i] = kvm_pdptr_read(vcpu, i);

	if (mmu_is_nested(vcpu)) {
		out->nested_root = mmu->get_guest_pgd(vcpu);
		out->nested_levels = mmu->cpu_role.base.level;
		out->nested_ept = kvm_cpu_cap_has(X86_FEATURE_VMX);
		out->nested_pse = mmu->cpu_role.ext.cr4_pse;
	}
}

int kvmi_glue_read_table(struct kvm_vcpu_introspection *vi, u64 gpa, u8 *out, size_t len)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int idx, r;

	/* In another process the VMM's memory is somebody else's. */
	if (vi->outside)
		return kvmi_read_physical(vi->session, vcpu, gpa, out, len);

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	/* KVM's own slots hold no tables of the guest's. */
	r = kvm_is_visible_memslot(kvm_vcpu_gfn_to_memslot(vcpu, gpa_to_gfn(gpa))) &&
	    !kvm_vcpu_read_guest(vcpu, gpa, out, len) ? 0 : -KVM_ENOENT;
	srcu_read_unlock(&vcpu->kvm->srcu, idx);

	return r;
}
