// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses to restricted pages that KVM's emulator makes for the guest: told as
 * those of the CPU, and let through by the same list (let_through.c).
 *
 * The emulator leaves the instruction without write-back, and with the reply at
 * hand it is emulated anew.  A REP instruction is emulated round by round, each
 * with what is let through for it alone.
 */
#include "session.h"
#include "kvm_emulate.h"
#include "mmu.h"
#include "smm.h"
#include "x86.h"

/* True when it waits for the tool. */
static bool tell_emulated(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva, u8 kind)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	struct kvmi_occurrence pf = {
		.event = KVMI_VCPU_EVENT_PF, .a = gpa, .b = gva, .detail = kind,
	};
	gfn_t gfn = gpa_to_gfn(gpa);

	/* In real mode the emulator may be delivering an interrupt, which it cannot leave, nor a task switch. */
	if (!vi || is_guest_mode(vcpu) || is_smm(vcpu) || !is_protmode(vcpu) ||
	    vcpu->introspection_in_task_switch ||
	    !(kvmi_denied_access(vcpu->kvm, KVMI_VIEW, gfn) & kind) ||
	    !kvm_is_visible_gfn(vcpu->kvm, gfn))
		return false;
	if (kvmi_is_let_through(vi, gfn, kind))
		return false;

	return !kvmi_tell_access(vi, &pf);
}

/* The same for each page of a range of linear addresses, as far as it is mapped. */
static bool tell_emulated_range(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes, u8 kind)
{
	struct kvm_mmu *mmu = vcpu->arch.walk_mmu;
	u64 access = kvm_x86_call(get_cpl)(vcpu) == 3 ? PFERR_USER_MASK : 0;
	struct x86_exception ignored;
	unsigned int in_page;
	gpa_t gpa;

	if (kind == KVMI_PAGE_ACCESS_W)
		access |= PFERR_WRITE_MASK;
	else if (kind == KVMI_PAGE_ACCESS_X)
		access |= PFERR_FETCH_MASK;

	for (; bytes; bytes -= in_page, gva += in_page) {
		if (!is_64_bit_mode(vcpu))
			gva = (u32)gva;
		in_page = min_t(unsigned int, bytes, PAGE_SIZE - offset_in_page(gva));
		gpa = mmu->gva_to_gpa(vcpu, mmu, gva, access, &ignored);
		/* The access itself comes upon that. */
		if (gpa == INVALID_GPA)
			return false;
		if (tell_emulated(vcpu, gpa, gva, kind))
			return true;
	}
	return false;
}

/*
 * The emulator leaves the instruction, of which nothing is to have happened yet:
 * what it did to registers, flags and RIP is forgotten, and so is what the VMM was
 * to be asked for.  What the VMM has given, as a port or in place of memory, is
 * kept: it would not give the same again.  Not so where a register is an operand,
 * which is not looked up again: one operand then lies across a device and a page.
 */
static void leave_emulation(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	struct x86_emulate_ctxt *ctxt = vcpu->arch.emulate_ctxt;
	unsigned int count = 1;

	vi->told_emulator = true;
	vi->told_half_way = ctxt->io_read.end ||
			    (vcpu->introspection_completes_io && ctxt->mem_read.end &&
			     ctxt->src.type != OP_REG);
	vcpu->arch.emulate_regs_need_sync_to_vcpu = false;
	vcpu->arch.emulate_regs_need_sync_from_vcpu = true;
	ctxt->eflags = kvm_get_rflags(vcpu);
	ctxt->_eip = ctxt->eip + (ctxt->fetch.ptr - ctxt->fetch.data);
	vcpu->mmio_needed = false;
	/* Nor does KVM go on where it emulates many in a row. */
	kvm_make_request(KVM_REQ_EVENT, vcpu);

	if (!ctxt->io_read.end)
		return;
	if (ctxt->dst.type == OP_MEM_STR) {
		count = ctxt->dst.count;
		ctxt->dst.type = OP_MEM;
	}
	ctxt->io_read.pos -= count * ctxt->dst.bytes;
}

/*
 * site: the emulator reads or writes for the guest.  True when it has to leave
 * the instruction, which is emulated anew, with what was let through before.
 */
bool __kvm_introspection_emulates(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva, bool write)
{
	if (!tell_emulated(vcpu, gpa, gva, write ? KVMI_PAGE_ACCESS_W : KVMI_PAGE_ACCESS_R))
		return false;
	leave_emulation(vcpu);
	return true;
}

/* site: the same where nobody has looked up the pages, and before the first is accessed. */
bool __kvm_introspection_emulates_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				       bool write)
{
	if (!tell_emulated_range(vcpu, gva, bytes, write ? KVMI_PAGE_ACCESS_W : KVMI_PAGE_ACCESS_R))
		return false;
	leave_emulation(vcpu);
	return true;
}

/* site: KVM is about to emulate an instruction that the CPU has not fetched.  True as above. */
bool kvmi_emulates_fetch(struct kvm_vcpu *vcpu)
{
	return tell_emulated_range(vcpu, kvm_get_linear_rip(vcpu), kvmi_decoded_insn_len(vcpu),
				   KVMI_PAGE_ACCESS_X);
}

/* site: what follows at the same RIP is another instruction, or another round. */
void __kvm_introspection_round_ends(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);

	if (vi && vi->let_through_count)
		kvmi_take_back(vi);
}

/*
 * The reply to such an access is here: CONTINUE if it goes on, else RETRY.  As an
 * exit handler.  What the VMM has given something for goes on from there either way.
 */
int kvmi_emulate_anew(struct kvm_vcpu_introspection *vi, bool goes_on)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int r = 1;

	if (vi->told_half_way) {
		vcpu->introspection_completes_io = true;
		r = kvm_emulate_instruction(vcpu, EMULTYPE_NO_DECODE);
		vcpu->introspection_completes_io = false;
	} else if (goes_on) {
		r = kvm_emulate_instruction(vcpu, 0);
	}
	/* It may have faulted where KVM cannot enter the guest with an exception. */
	return r > 0 ? kvm_x86_call(vcpu_pre_run)(vcpu) : r;
}

/* Whether the session's end leaves an instruction half-way: its event is open and will not be answered. */
bool kvmi_is_left_half_way(struct kvm_vcpu_introspection *vi)
{
	enum kvmi_phase phase = kvmi_phase(vi->state);

	return READ_ONCE(vi->session->closing) &&
	       (phase == KVMI_RECORDED || phase == KVMI_SENT) &&
	       kvmi_phase_event(vi->state) == KVMI_VCPU_EVENT_PF &&
	       vi->told_emulator && vi->told_half_way;
}
