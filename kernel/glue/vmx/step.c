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

/* One instruction, or the delivery of one event; false where the CPU cannot do that. */
bool vmx_introspection_step(struct kvm_vcpu *vcpu, bool step)
{
	struct vcpu_vmx *vmx = to_vmx(vcpu);
	unsigned long rflags;
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
	if (!kvm_vcpu_apicv_active(vcpu) || kvm_event_needs_reinjection(vcpu))
		return true;

	/*
	 * Else a virtual interrupt that the APIC holds would come before the
	 * instruction.  (With TF set, VM entry would want a pending #DB as well.)
	 */
	rflags = vmx_get_rflags(vcpu);
	if ((rflags & X86_EFLAGS_IF) && !(rflags & X86_EFLAGS_TF)) {
		blocked = vmcs_read32(GUEST_INTERRUPTIBILITY_INFO);
		if (!(blocked & (GUEST_INTR_STATE_MOV_SS | GUEST_INTR_STATE_STI))) {
			vmx->step_shadowed = true;
			vmcs_write32(GUEST_INTERRUPTIBILITY_INFO, blocked | GUEST_INTR_STATE_STI);
		}
	}
	return true;
}
