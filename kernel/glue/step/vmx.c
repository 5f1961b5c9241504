// SPDX-License-Identifier: GPL-2.0-only
/*
 * A step (step.c) on VMX: the monitor trap flag ends the entry after one
 * instruction, or after the delivery of one event, unseen by the guest.
 *
 * Part of kvm-intel.ko.  Intel SDM volume 3, "VMX non-root operation": monitor trap flag.
 */
#include <linux/kvm_host.h>

#include "x86.h"
#include "vmx/vmx.h"
#include "vmx/x86_ops.h"

/* One instruction, or the delivery of one event; false where the CPU cannot do that. */
bool vmx_introspection_step(struct kvm_vcpu *vcpu, bool step)
{
	struct vcpu_vmx *vmx = to_vmx(vcpu);

	if (!step) {
		/* The step may have entered a nested guest, which has a VMCS of its own. */
		if (is_guest_mode(vcpu))
			vmx->nested.recalc_vmcs01_introspection = true;
		else
			exec_controls_clearbit(vmx, CPU_BASED_MONITOR_TRAP_FLAG);
		return true;
	}
	if (!(vmcs_config.cpu_based_exec_ctrl & CPU_BASED_MONITOR_TRAP_FLAG))
		return false;
	exec_controls_setbit(vmx, CPU_BASED_MONITOR_TRAP_FLAG);
	/* A vCPU that halts in the guest has executed its HLT. */
	if (kvm_hlt_in_guest(vcpu->kvm) &&
	    vmcs_read32(GUEST_ACTIVITY_STATE) == GUEST_ACTIVITY_HLT)
		vmcs_write32(GUEST_ACTIVITY_STATE, GUEST_ACTIVITY_ACTIVE);
	return true;
}
