// SPDX-License-Identifier: GPL-2.0-only
/*
 * A step (../step.c) on VMX: the monitor trap flag ends the entry after one
 * instruction, or after the delivery of one event, unseen by the guest.
 *
 * Part of kvm-intel.ko.  Intel SDM volume 3, "VMX non-root operation": monitor trap flag.
 */
#include <linux/kvm_host.h>

#include "lapic.h"
#include "x86.h"
#include "vmx/vmx.h"
#include "vmx/x86_ops.h"

#include "introspection/introspection.h"

/* Whether interrupts come without asking KVM; for tests, as if they did (Kbuild). */
static bool takes_virtual_interrupts(struct kvm_vcpu *vcpu)
{
	return IS_ENABLED(KVMI_APICV_STEPS) || kvm_vcpu_apicv_active(vcpu);
}

/*
 * Hold them back by blocking by STI, where VM entry allows that ("Checks on Guest
 * Non-Register State"): with IF, and not beside MOV SS.  While events are so blocked a
 * pending single-step trap has to be there exactly if TF is.  With TF set there is none
 * as a rule, and with TF clear there is one behind the POPF that has cleared it.  Any
 * pending debug exception is delivered first, and is the step.
 */
static void hold_virtual_interrupts(struct vcpu_vmx *vmx)
{
	unsigned long rflags = vmx_get_rflags(&vmx->vcpu);
	u32 blocked = vmcs_read32(GUEST_INTERRUPTIBILITY_INFO);

	if (!(rflags & X86_EFLAGS_IF) || (rflags & X86_EFLAGS_TF) ||
	    (blocked & (GUEST_INTR_STATE_MOV_SS | GUEST_INTR_STATE_STI)) ||
	    vmcs_readl(GUEST_PENDING_DBG_EXCEPTIONS))
		return;

	vmx->step_shadowed = true;
	vmcs_write32(GUEST_INTERRUPTIBILITY_INFO, blocked | GUEST_INTR_STATE_STI);
}

/* One instruction, or the delivery of one event; false where the CPU cannot do that. */
bool vmx_introspection_step(struct kvm_vcpu *vcpu, bool step)
{
	struct vcpu_vmx *vmx = to_vmx(vcpu);
	u32 blocked;

	if (!step) {
		/* The step may have entered a nested guest, which has a VMCS of its own. */
		if (is_guest_mode(vcpu))
			vmx->nested.recalc_vmcs01_introspection = true;
		else
			exec_controls_clearbit(vmx, CPU_BASED_MONITOR_TRAP_FLAG);
		/* An instruction that has ended took the shadow with it. */
		if (vmx->step_shadowed && !vcpu->arch.introspection.stepped && !is_guest_mode(vcpu)) {
			blocked = vmcs_read32(GUEST_INTERRUPTIBILITY_INFO);
			vmcs_write32(GUEST_INTERRUPTIBILITY_INFO, blocked & ~GUEST_INTR_STATE_STI);
		}
		vmx->step_shadowed = false;
		return true;
	}
	if (!(vmcs_config.cpu_based_exec_ctrl & CPU_BASED_MONITOR_TRAP_FLAG))
		return false;
	exec_controls_setbit(vmx, CPU_BASED_MONITOR_TRAP_FLAG);
	/* A vCPU that halts in the guest has executed its HLT. */
	vmx_clear_hlt(vcpu);

	/* The delivery of an event is a step, which nothing may block. */
	if (vcpu->arch.introspection.step_holds_events && takes_virtual_interrupts(vcpu) &&
	    !kvm_event_needs_reinjection(vcpu))
		hold_virtual_interrupts(vmx);
	return true;
}
