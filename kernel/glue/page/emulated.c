// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses to restricted pages that KVM makes for the guest: told as those of the
 * CPU, and let through by the same list (let_through.c).
 *
 * The emulator leaves the instruction without write-back, and with the reply at
 * hand it is emulated anew.  A REP instruction is emulated round by round, each
 * with what is let through for it alone.  Exit handlers that access the operand of a
 * hypervisor's own instruction (VMREAD, VMRUN) return having done nothing, and are
 * called again.
 *
 * An instruction for which the VMM has given something already (a port's value) is
 * half-way.  It waits as it does for the VMM, in vcpu->arch.complete_userspace_io, so
 * that the next KVM_RUN ends it whatever has become of the event: a device would not
 * give the same again.
 */
#include <linux/export.h>

#include "introspection/pages.h"
#include "introspection/session.h"
#include "kvm_emulate.h"
#include "mmu.h"
#include "smm.h"
#include "x86.h"

static int complete_half_way(struct kvm_vcpu *vcpu);

/* True when it waits for the tool. */
static bool tell_access(struct kvm_vcpu *vcpu, gpa_t gpa, gva_t gva, u8 kind,
			enum kvmi_accessor accessor)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	struct kvmi_occurrence pf = {
		.event = KVMI_VCPU_EVENT_PF, .a = gpa, .b = gva, .detail = kind,
	};
	gfn_t gfn = gpa_to_gfn(gpa);

	/* The emulator switches tasks and, in real mode, delivers interrupts: neither can be left. */
	if (accessor == KVMI_EMULATOR && !vcpu->arch.emulate_ctxt->opcode_len)
		return false;
	if (is_guest_mode(vcpu) || is_smm(vcpu) || !is_protmode(vcpu) ||
	    !(kvmi_denied_access(vcpu->kvm, KVMI_VIEW, gfn) & kind) ||
	    !kvm_is_visible_gfn(vcpu->kvm, gfn))
		return false;
	/* Between two sessions it waits for the second one, in the run loop. */
	if (!vi)
		return READ_ONCE(vcpu->kvm->arch.introspection.stopped);
	if (kvmi_is_let_through(vi, gfn, kind))
		return false;
	/* What KVM still has to complete waits for VM_RELEASE, and is told then. */
	if (kvmi_is_stopped(vi->session) && !READ_ONCE(vi->session->closing))
		return true;

	return !kvmi_tell_access(vi, &pf, accessor);
}

/* The same for each page of a range of linear addresses, as far as it is mapped. */
static bool tell_range(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes, u8 kind,
		       enum kvmi_accessor accessor)
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
		if (tell_access(vcpu, gpa, gva, kind, accessor))
			return true;
	}
	return false;
}

static u8 kind_of(bool write)
{
	return write ? KVMI_PAGE_ACCESS_W : KVMI_PAGE_ACCESS_R;
}

bool kvmi_is_half_way(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.complete_userspace_io == complete_half_way;
}

/* What is half-way is not to be ended: its registers are others now. */
void kvmi_forget_half_way(struct kvm_vcpu *vcpu)
{
	if (kvmi_is_half_way(vcpu))
		vcpu->arch.complete_userspace_io = NULL;
}

/* Whether the tool is still to say what becomes of the instruction that is half-way. */
bool kvmi_half_way_waits(struct kvm_vcpu_introspection *vi)
{
	if (!vi || READ_ONCE(vi->session->closing))
		return false;
	/* The guest does not move before VM_RELEASE, and a vCPU that crashed does not at all. */
	if (kvmi_is_stopped(vi->session) || kvmi_phase(vi->state) == KVMI_CRASHED)
		return true;
	return kvmi_phase(vi->state) != KVMI_IDLE &&
	       kvmi_phase_event(vi->state) == KVMI_VCPU_EVENT_PF;
}

/* At the start of KVM_RUN, as for the VMM's own part; KVM has cleared the pointer. */
static int complete_half_way(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);

	vcpu->arch.complete_userspace_io = complete_half_way;
	/* The run loop waits for the next session. */
	if (READ_ONCE(vcpu->kvm->arch.introspection.stopped))
		return 1;
	if (vi)
		kvmi_settle(vi);
	return !kvmi_is_half_way(vcpu) || kvmi_half_way_waits(vi) ?
		1 : kvmi_emulate_anew(vcpu, true);
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
	struct x86_emulate_ctxt *ctxt = vcpu->arch.emulate_ctxt;
	unsigned int count = 1;

	if (ctxt->io_read.end || ((ctxt->emulation_type & EMULTYPE_NO_DECODE) &&
				  ctxt->mem_read.end && ctxt->src.type != OP_REG))
		vcpu->arch.complete_userspace_io = complete_half_way;
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
	if (!tell_access(vcpu, gpa, gva, kind_of(write), KVMI_EMULATOR))
		return false;
	leave_emulation(vcpu);
	return true;
}

/* site: the same where nobody has looked up the pages, and before the first is accessed. */
bool __kvm_introspection_emulates_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				       bool write)
{
	if (!tell_range(vcpu, gva, bytes, kind_of(write), KVMI_EMULATOR))
		return false;
	leave_emulation(vcpu);
	return true;
}

/* site: KVM is about to emulate an instruction that the CPU has not fetched.  True as above. */
bool kvmi_emulates_fetch(struct kvm_vcpu *vcpu)
{
	return tell_range(vcpu, kvm_get_linear_rip(vcpu), kvmi_decoded_insn_len(vcpu),
			  KVMI_PAGE_ACCESS_X, KVMI_EMULATOR);
}

/*
 * site: an exit handler is about to access memory that is the operand of the guest's
 * instruction, by linear address.  True when it has to return, having done nothing.
 */
bool __kvm_introspection_handles_virt(struct kvm_vcpu *vcpu, gva_t gva, unsigned int bytes,
				      bool write)
{
	return tell_range(vcpu, gva, bytes, kind_of(write), KVMI_EXIT_HANDLER);
}
EXPORT_SYMBOL_GPL(__kvm_introspection_handles_virt);

/* The same by physical address: the page of a VMCB. */
bool __kvm_introspection_handles_phys(struct kvm_vcpu *vcpu, gpa_t gpa, bool write)
{
	return tell_access(vcpu, gpa, ~0ul, kind_of(write), KVMI_EXIT_HANDLER);
}
EXPORT_SYMBOL_GPL(__kvm_introspection_handles_phys);

/* site: what follows at the same RIP is another instruction, or another round. */
void __kvm_introspection_round_ends(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);

	if (vi && vi->let_through_count)
		kvmi_take_back(vi);
}

/*
 * The reply to an access of the emulator's is here: CONTINUE if it goes on, else
 * RETRY.  Or nobody is asked any more.  As an exit handler.  What is half-way goes on
 * from there either way.
 */
int kvmi_emulate_anew(struct kvm_vcpu *vcpu, bool goes_on)
{
	int r = 1;

	if (kvmi_is_half_way(vcpu)) {
		vcpu->arch.complete_userspace_io = NULL;
		r = kvm_emulate_instruction(vcpu, EMULTYPE_NO_DECODE);
	} else if (goes_on) {
		r = kvm_emulate_instruction(vcpu, 0);
	}
	/* It may have faulted where KVM cannot enter the guest with an exception. */
	return r > 0 ? kvm_x86_call(vcpu_pre_run)(vcpu) : r;
}
