// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vCPU's registers and intercepts, on its own thread with the vCPU loaded.
 */
#include "introspection/events.h"
#include "introspection/lifecycle.h"
#include "introspection/session.h"
#include "kvm_cache_regs.h"
#include "x86.h"

static_assert(sizeof(struct kvm_regs) == 144);
static_assert(sizeof(struct kvm_sregs) == 312);

u16 kvmi_glue_vcpu_index(struct kvm_vcpu_introspection *vi)
{
	return vi->vcpu->vcpu_idx;
}

/* Operand mode in bytes. */
u8 kvmi_glue_mode(struct kvm_vcpu_introspection *vi)
{
	int db, l;

	if (is_64_bit_mode(vi->vcpu))
		return 8;
	kvm_x86_call(get_cs_db_l_bits)(vi->vcpu, &db, &l);
	return is_protmode(vi->vcpu) && db ? 4 : 2;
}

void kvmi_glue_get_regs(struct kvm_vcpu_introspection *vi, u8 *out)
{
	struct kvm_regs regs;

	__get_regs(vi->vcpu, &regs);
	memcpy(out, &regs, sizeof(regs));
}

void kvmi_glue_get_sregs(struct kvm_vcpu_introspection *vi, u8 *out)
{
	struct kvm_sregs sregs = {};

	__get_sregs(vi->vcpu, &sregs);
	memcpy(out, &sregs, sizeof(sregs));
}

int kvmi_glue_get_msr(struct kvm_vcpu_introspection *vi, u32 index, u64 *value)
{
	return kvm_get_msr(vi->vcpu, index, value) ? -KVM_EINVAL : 0;
}

/* An MSR that this guest does not have reads as zero. */
static u64 msr_or_zero(struct kvm_vcpu_introspection *vi, u32 index)
{
	u64 value;

	return kvm_get_msr(vi->vcpu, index, &value) ? 0 : value;
}

void kvmi_glue_get_arch(struct kvm_vcpu_introspection *vi, u8 *out)
{
	struct kvmi_vcpu_event_arch *arch = (struct kvmi_vcpu_event_arch *)out;

	memset(arch, 0, sizeof(*arch));
	arch->mode = kvmi_glue_mode(vi);
	__get_regs(vi->vcpu, &arch->regs);
	__get_sregs(vi->vcpu, &arch->sregs);
	arch->sysenter_cs = msr_or_zero(vi, MSR_IA32_SYSENTER_CS);
	arch->sysenter_esp = msr_or_zero(vi, MSR_IA32_SYSENTER_ESP);
	arch->sysenter_eip = msr_or_zero(vi, MSR_IA32_SYSENTER_EIP);
	arch->efer = vi->vcpu->arch.efer;
	arch->star = msr_or_zero(vi, MSR_STAR);
	arch->lstar = msr_or_zero(vi, MSR_LSTAR);
	arch->cstar = msr_or_zero(vi, MSR_CSTAR);
	arch->pat = vi->vcpu->arch.pat;
	arch->shadow_gs = msr_or_zero(vi, MSR_KERNEL_GS_BASE);
}

u64 kvmi_glue_tsc_hz(struct kvm_vcpu_introspection *vi)
{
	return kvm_caps.has_tsc_control ? (u64)vi->vcpu->arch.virtual_tsc_khz * 1000 : 0;
}

int kvmi_glue_breakpoint_free(struct kvm_vcpu_introspection *vi)
{
	return vi->vcpu->guest_debug & KVM_GUESTDBG_USE_SW_BP ? -KVM_EBUSY : 0;
}

int kvmi_glue_descriptor_exits(void)
{
	return kvm_caps.has_descriptor_exits ? 0 : -KVM_EOPNOTSUPP;
}

void kvmi_glue_intercepts_changed(struct kvm_vcpu_introspection *vi)
{
	unsigned long intercepts = 0;

	if (kvmi_wants_breakpoint(vi->state))
		intercepts |= KVM_INTROSPECT_BP;
	if (kvmi_wants_cr0_write(vi->state))
		intercepts |= KVM_INTROSPECT_CR0;
	if (kvmi_wants_cr3_write(vi->state))
		intercepts |= KVM_INTROSPECT_CR3;
	if (kvmi_wants_any_msr(vi->state))
		intercepts |= KVM_INTROSPECT_MSR;
	if (kvmi_wants_descriptor(vi->state))
		intercepts |= KVM_INTROSPECT_DESC;

	kvmi_singlestep_changed(vi, kvmi_wants_singlestep(vi->state));
	WRITE_ONCE(vi->vcpu->arch.introspection.intercepts, intercepts);
	kvmi_recalc_intercepts(vi->vcpu);
}
