// SPDX-License-Identifier: GPL-2.0-only
/*
 * A step (step.c) on SVM, which has no monitor trap flag: TF is set for the
 * entry alone, from svm_step_arm() right before VMRUN to svm_step_disarm() right
 * after the exit, and the guest is not to find it, nor to lose its own.  So all
 * that would show it is intercepted or emulated for that entry: exceptions, which
 * are given back when TF is gone, INT n, INT1, PUSHF, POPF and SYSCALL; and what
 * would hold the trap back (MOV SS, POP SS) is emulated before.  IRET and SYSRET
 * load an RFLAGS of their own, and keep the TF in it.  The guest cannot turn TF
 * into a trap of branches alone: KVM does not give it DEBUGCTL.BTF.  An event that
 * is injected is itself the step, ended as that of a nested guest's entry is, by
 * an interrupt of the CPU's own.
 *
 * Part of kvm-amd.ko.  AMD64 APM volume 2: 13.1.4 (single-stepping), 15.9, 15.12
 * (intercepts of instructions and exceptions), 15.20 (event injection).
 */
#include <linux/kvm_host.h>

#include "kvm_emulate.h"
#include "lapic.h"
#include "x86.h"
#include "svm/svm.h"

#include "introspection/events.h"

static bool svm_decodes_sysret(struct x86_emulate_ctxt *ctxt)
{
	/* The emulator does not know SYSRET, but reads as far as its opcode. */
	return ctxt->opcode_len == 2 && ctxt->b == 0x07;
}

/*
 * Whether the instruction at RIP would be stepped together with the next, so that
 * it has to be emulated.  Those that load RFLAGS and are not intercepted can be
 * helped.
 */
static bool svm_instruction_hides_trap(struct vcpu_svm *svm)
{
	struct x86_emulate_ctxt *ctxt = svm->vcpu.arch.emulate_ctxt;
	int r = x86_decode_emulated_instruction(&svm->vcpu, EMULTYPE_SKIP, NULL, 0);

	svm->step.decoded_rip = kvm_rip_read(&svm->vcpu);
	svm->step.by_sysret = svm_decodes_sysret(ctxt);
	if (r != EMULATION_OK || ctxt->opcode_len != 1)
		return false;

	svm->step.by_iret = ctxt->b == 0xcf;
	switch (ctxt->b) {
	case 0x17:		/* pop ss */
		return true;
	case 0x8e:		/* mov to a segment register: ss */
		return ctxt->modrm_reg == VCPU_SREG_SS;
	default:
		return false;
	}
}

/* One instruction by TF.  Where an event is to be injected, that is the step. */
bool svm_introspection_step(struct kvm_vcpu *vcpu, bool step)
{
	struct vcpu_svm *svm = to_svm(vcpu);

	if (!step) {
		/* What svm_step_disarm() put back, before the exit marked everything clean. */
		vmcb_mark_dirty(svm->vmcb01.ptr, VMCB_INTERCEPTS);
		vmcb_mark_dirty(svm->vmcb01.ptr, VMCB_CR);
		vmcb_mark_dirty(svm->vmcb01.ptr, VMCB_DR);
		return true;
	}

	/* DR6 gets the step's trap: the guest is not left alone with it. */
	if (vcpu->arch.switch_db_regs & KVM_DEBUGREG_WONT_EXIT) {
		vcpu->arch.switch_db_regs &= ~KVM_DEBUGREG_WONT_EXIT;
		set_dr_intercepts(svm);
	}

	svm->step.by_iret = svm->step.by_sysret = false;
	return kvm_event_needs_reinjection(vcpu) || kvm_is_exception_pending(vcpu) ||
	       !svm_instruction_hides_trap(svm);
}

/*
 * What this entry alone intercepts: whatever the instruction raises is given back
 * when TF is gone, and so are INT n and INT1; PUSHF and POPF are emulated.  The
 * guest is not to find TF on its stack.  SYSCALL, which would save TF and might
 * then run on without it, is no instruction meanwhile: the #UD has it emulated.
 */
static void svm_step_intercept(struct vcpu_svm *svm)
{
	struct vmcb_control_area *control = &svm->vmcb->control;
	struct vmcb_save_area *save = &svm->vmcb->save;

	memcpy(svm->step.intercepts, control->intercepts, sizeof(svm->step.intercepts));
	control->intercepts[INTERCEPT_EXCEPTION] = ~(u32)BIT(NMI_VECTOR);
	vmcb_set_intercept(control, INTERCEPT_INTn);
	vmcb_set_intercept(control, INTERCEPT_ICEBP);
	vmcb_set_intercept(control, INTERCEPT_PUSHF);
	vmcb_set_intercept(control, INTERCEPT_POPF);
	vmcb_mark_dirty(svm->vmcb, VMCB_INTERCEPTS);

	svm->step.guest_sce = save->efer & EFER_SCE;
	svm->step.guest_sfmask = save->sfmask;
	/* Another vCPU may write SYSCALL where SYSRET was; it keeps TF at least. */
	if (svm->step.by_sysret)
		save->sfmask &= ~(u64)X86_EFLAGS_TF;
	else
		save->efer &= ~(u64)EFER_SCE;
	vmcb_mark_dirty(svm->vmcb, VMCB_CR);
}

/* A virtual NMI, which the CPU delivers without asking KVM, waits as well. */
static void svm_step_hold_nmi(struct vcpu_svm *svm)
{
	struct vmcb_control_area *control = &svm->vmcb->control;

	svm->step.held_nmi = 0;
	if (!svm->vcpu.arch.introspection.step_holds_events)
		return;

	WARN_ON_ONCE(kvm_vcpu_apicv_active(&svm->vcpu));
	if (is_vnmi_enabled(svm))
		svm->step.held_nmi = control->int_ctl & V_NMI_PENDING_MASK;
	control->int_ctl &= ~svm->step.held_nmi;
}

/* False: an event is injected, and the vCPU has to leave the guest right after. */
bool svm_step_arm(struct vcpu_svm *svm)
{
	struct kvm_vcpu *vcpu = &svm->vcpu;

	/* An SMI has come in between: it is another instruction that is stepped. */
	if (kvm_rip_read(vcpu) != svm->step.decoded_rip || is_smm(vcpu))
		svm->step.by_iret = svm->step.by_sysret = false;
	svm_step_hold_nmi(svm);
	svm_step_intercept(svm);
	svm->step.guest_tf = false;
	svm->step.armed = !(svm->vmcb->control.event_inj & SVM_EVTINJ_VALID);
	if (!svm->step.armed)
		return false;

	svm->step.guest_tf = svm->vmcb->save.rflags & X86_EFLAGS_TF;
	svm->vmcb->save.rflags |= X86_EFLAGS_TF;
	/* SYSRET loads RFLAGS from R11 and looks at the new TF. */
	if (svm->step.by_sysret) {
		svm->step.guest_r11_tf = vcpu->arch.regs[VCPU_REGS_R11] & X86_EFLAGS_TF;
		vcpu->arch.regs[VCPU_REGS_R11] |= X86_EFLAGS_TF;
	}
	return true;
}

/* Right after the exit, before anybody looks at the registers. */
void svm_step_disarm(struct vcpu_svm *svm)
{
	struct kvm_vcpu *vcpu = &svm->vcpu;
	struct vmcb_control_area *control = &svm->vmcb->control;
	struct vmcb_save_area *save = &svm->vmcb->save;
	bool tf = svm->step.guest_tf;
	bool stepped;

	memcpy(control->intercepts, svm->step.intercepts, sizeof(svm->step.intercepts));
	save->efer |= svm->step.guest_sce;
	/* What svm_step_intercept() took away, not what the guest has written itself. */
	if (svm->step.by_sysret && save->sfmask == (svm->step.guest_sfmask & ~(u64)X86_EFLAGS_TF))
		save->sfmask = svm->step.guest_sfmask;
	control->int_ctl |= svm->step.held_nmi;

	if (!svm->step.armed) {
		/* The event that was injected has arrived, unless something came between. */
		vcpu->arch.introspection.stepped = !(control->exit_int_info & SVM_EXITINTINFO_VALID);
		return;
	}
	svm->step.armed = false;

	stepped = control->exit_code == SVM_EXIT_EXCP_BASE + DB_VECTOR && (save->dr6 & DR6_BS);
	if (svm->step.by_sysret) {
		if (!svm->step.guest_r11_tf)
			vcpu->arch.regs[VCPU_REGS_R11] &= ~X86_EFLAGS_TF;
		if (stepped)
			tf = svm->step.guest_r11_tf;
	}
	if (svm->step.by_iret && stepped)
		tf = save->rflags & X86_EFLAGS_TF;
	if (!tf)
		save->rflags &= ~X86_EFLAGS_TF;

	/* The trap is the guest's only if its own TF was set. */
	if (stepped && !svm->step.guest_tf)
		save->dr6 &= ~DR6_BS;

	if (stepped)
		vcpu->arch.introspection.stepped = true;
}

/* The guest gets the exception that it has raised. */
static void svm_step_give_back(struct vcpu_svm *svm, unsigned int vector)
{
	struct kvm_vcpu *vcpu = &svm->vcpu;
	u32 error_code = svm->vmcb->control.exit_info_1;
	struct x86_exception fault;

	if (vector == PF_VECTOR) {
		fault = (struct x86_exception) {
			.vector = PF_VECTOR,
			.error_code_valid = true,
			.error_code = error_code,
			.address = svm->vmcb->control.exit_info_2,
		};
		kvm_introspection_inject_page_fault(vcpu, &fault);
	} else if (x86_exception_has_error_code(vector)) {
		kvm_queue_exception_e(vcpu, vector, error_code);
	} else {
		kvm_queue_exception(vcpu, vector);
	}
}

/* True: the exit was for the step alone; r is what its handler returns. */
bool svm_step_exit(struct kvm_vcpu *vcpu, u32 exit_code, int *r)
{
	struct vcpu_svm *svm = to_svm(vcpu);
	unsigned int vector = exit_code - SVM_EXIT_EXCP_BASE;

	*r = 1;
	switch (exit_code) {
	case SVM_EXIT_PUSHF:
	case SVM_EXIT_POPF:
		*r = kvm_emulate_instruction(vcpu, 0);
		return true;
	case SVM_EXIT_ICEBP:
		*r = svm_skip_emulated_instruction(vcpu);
		if (*r)
			kvm_queue_exception_p(vcpu, DB_VECTOR, 0);
		return true;
	case SVM_EXIT_EXCP_BASE ... SVM_EXIT_EXCP_BASE + 31:
		break;
	default:
		return false;
	}

	if (vector == DB_VECTOR)
		return vcpu->arch.introspection.stepped && !svm->step.guest_tf &&
		       !(svm->vmcb->save.dr6 & DR_TRAP_BITS);
	/* Another vCPU has written SYSRET where something else was. */
	if (vector == UD_VECTOR && !svm->step.by_sysret && svm->step.guest_sce) {
		x86_decode_emulated_instruction(vcpu, EMULTYPE_SKIP, NULL, 0);
		if (svm_decodes_sysret(vcpu->arch.emulate_ctxt))
			return true;
	}
	if (svm->step.intercepts[INTERCEPT_EXCEPTION] & BIT(vector))
		return false;
	/* An asynchronous page fault is for this host, of the one that it runs in. */
	if (vector == PF_VECTOR && vcpu->arch.apf.host_apf_flags)
		return false;

	svm_step_give_back(svm, vector);
	return true;
}
