// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses to restricted pages: told to the tool, and let through one by one.
 *
 * What the tool lets through (CONTINUE, or silently where it does not want to
 * know) is remembered by vCPU, for the instruction that RIP stands on.  The vCPU
 * then executes that one instruction on a root of its own, in which those pages
 * alone are less restricted; the other vCPUs run on, on theirs.  Any other page
 * that the instruction offends is told in turn, so that an instruction takes as
 * many turns as it has accesses that are denied, and happens in the last.
 *
 * That root belongs to the vCPU alone (kvm_mmu_page.stepping_vcpu), so that no vCPU
 * waits for another one's step (step.c).  The MMU makes it at need, keeps it with
 * what was mapped beside what was let through, and drops it with the session.
 */
#include <linux/uaccess.h>

#include "introspection/pages.h"
#include "introspection/session.h"
#include "kvm_cache_regs.h"
#include "mmu.h"
#include "mmu/mmu_internal.h"
#include "mmu/spte.h"
#include "mmu/tdp_mmu.h"
#include "smm.h"
#include "x86.h"

static struct kvmi_let_through *find(struct kvm_vcpu_introspection *vi, gfn_t gfn)
{
	unsigned int i;

	for (i = 0; i < vi->let_through_count; i++) {
		if (vi->let_through[i].gfn == gfn)
			return &vi->let_through[i];
	}
	return NULL;
}

/* What the CPU is let do with the page now, as KVMI_PAGE_ACCESS_*.  Within SRCU. */
u8 kvmi_let_through_access(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	struct kvmi_let_through *page = vi ? find(vi, gfn) : NULL;

	return page ? page->access | page->walk : 0;
}

/* From now on nothing is let through, on the stepping root neither. */
void kvmi_take_back(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	unsigned int i;

	if (vcpu->arch.introspection.let_through) {
		write_lock(&vcpu->kvm->mmu_lock);
		for (i = 0; i < vi->let_through_count; i++)
			kvm_tdp_mmu_zap_stepping(vcpu, vi->let_through[i].gfn);
		write_unlock(&vcpu->kvm->mmu_lock);
	}
	vi->let_through_count = 0;
}

/* The instruction is known by RIP alone: a far CALL has loaded CS before it writes its stack. */
static void let_through(struct kvm_vcpu_introspection *vi, gfn_t gfn, u8 access, u8 walk)
{
	unsigned long rip = kvm_rip_read(vi->vcpu);
	struct kvmi_let_through *page;

	if (vi->let_through_rip != rip)
		kvmi_take_back(vi);
	vi->let_through_rip = rip;

	page = find(vi, gfn);
	if (!page) {
		if (vi->let_through_count == KVMI_MAX_LET_THROUGH)
			kvmi_take_back(vi);
		page = &vi->let_through[vi->let_through_count++];
		*page = (struct kvmi_let_through) { .gfn = gfn };
	}
	page->access |= access;
	page->walk |= walk;
}

/* Whether the tool has let the instruction at RIP do this. */
bool kvmi_is_let_through(struct kvm_vcpu_introspection *vi, gfn_t gfn, u8 kind)
{
	struct kvmi_let_through *page;

	if (vi->let_through_rip != kvm_rip_read(vi->vcpu))
		return false;
	page = find(vi, gfn);
	return page && (page->access & kind);
}

static u8 access_kind(u64 error_code)
{
	if (error_code & PFERR_FETCH_MASK)
		return KVMI_PAGE_ACCESS_X;
	/* Also one that reads and writes: the vendors tell that apart differently. */
	if (error_code & PFERR_WRITE_MASK)
		return KVMI_PAGE_ACCESS_W;
	return KVMI_PAGE_ACCESS_R;
}

/* True when the access is let through; else it waits for the tool, or was not to be. */
bool kvmi_tell_access(struct kvm_vcpu_introspection *vi, const struct kvmi_occurrence *pf,
		      enum kvmi_accessor accessor)
{
	if (kvmi_site(vi->vcpu, pf) == KVMI_SITE_PASS) {
		let_through(vi, gpa_to_gfn(pf->a), pf->detail, 0);
		return true;
	}
	vi->told = *pf;
	vi->told_of = accessor;
	return false;
}

/* site: the reply to PF is here.  As an exit handler. */
int kvmi_complete_access(struct kvm_vcpu_introspection *vi, bool changed)
{
	bool goes_on = kvmi_site(vi->vcpu, &vi->told) == KVMI_SITE_CONTINUE;

	if (goes_on)
		let_through(vi, gpa_to_gfn(vi->told.a), vi->told.detail, 0);
	/* With other registers it is another instruction, or has other operands. */
	if (changed) {
		kvmi_forget_half_way(vi->vcpu);
		return 1;
	}
	switch (vi->told_of) {
	case KVMI_EMULATOR:
		return kvmi_emulate_anew(vi->vcpu, goes_on);
	case KVMI_EXIT_HANDLER:
		return goes_on ? kvmi_handle_exit(vi->vcpu) : 1;
	default:
		/* The CPU executes the instruction again, stepped or as it is. */
		return 1;
	}
}

/*
 * What the CPU would: set the accessed bit of an entry of the guest's page tables,
 * or the dirty bit.  They lie in the byte that also says whether the entry is
 * there, of whatever paging mode.  Which of them the CPU wants the exit does not
 * say: the accessed bit where it is clear; where it is set, another CPU may have
 * been faster, and only a second fault is about the dirty bit.  False: it cannot
 * be done here, and the CPU has to be let write the page.
 */
static bool mark_entry(struct kvm_vcpu_introspection *vi, gpa_t gpa)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	unsigned long rip = kvm_rip_read(vcpu);
	bool again = vi->marked_entry == gpa && vi->marked_rip == rip;
	gfn_t gfn = gpa_to_gfn(gpa);
	unsigned long hva;
	u8 __user *byte;
	bool writable;
	u8 old, new;
	int r;

	hva = kvm_vcpu_gfn_to_hva_prot(vcpu, gfn, &writable);
	if (kvm_is_error_hva(hva) || !writable)
		return false;
	byte = (u8 __user *)(hva + offset_in_page(gpa));
	if (get_user(old, byte))
		return false;

	new = old;
	if (old & PT_PRESENT_MASK) {
		if (!(old & PT_ACCESSED_MASK))
			new |= PT_ACCESSED_MASK;
		else if (again && (old & PT_WRITABLE_MASK || !kvm_is_cr0_bit_set(vcpu, X86_CR0_WP)))
			new |= PT_DIRTY_MASK;
	}
	vi->marked_entry = new & PT_DIRTY_MASK ? INVALID_GPA : gpa;
	vi->marked_rip = rip;
	if (new == old)
		return true;
	r = __try_cmpxchg_user(byte, &old, new, fault);
	if (r < 0)
		return false;
	if (!r)
		kvm_vcpu_mark_page_dirty(vcpu, gfn);
	return true;
}

/*
 * The CPU on its way through the guest's page tables, which is no access of the
 * guest's.  As __kvm_introspection_page_fault().  Where the hardware tells the way
 * from a write (EPT without accessed and dirty flags, as in the step), the page is
 * not let be written: what is a write of such a way then is made here.
 */
static void let_walk_through(struct kvm_vcpu_introspection *vi, gpa_t gpa, u8 kind,
			     u64 error_code)
{
	if (kind == KVMI_PAGE_ACCESS_W && kvm_introspection_tells_walks()) {
		if (!vi->vcpu->arch.mmu->root_role.ad_disabled)
			kind = KVMI_PAGE_ACCESS_R;
		else if ((error_code & PFERR_GUEST_PAGE_MASK) && mark_entry(vi, gpa))
			return;
	}
	let_through(vi, gpa_to_gfn(gpa), 0, kind);
}

/*
 * site: an EPT violation or nested page fault.  True when it is dealt with: it
 * waits for the tool, or the vCPU is to be stepped.
 */
bool __kvm_introspection_page_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 error_code)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	struct kvmi_occurrence pf = { .event = KVMI_VCPU_EVENT_PF, .a = gpa };
	gfn_t gfn = gpa_to_gfn(gpa);
	u8 kind = access_kind(error_code);

	if (!vi || READ_ONCE(vi->session->closing) ||
	    is_guest_mode(vcpu) || is_smm(vcpu) || (error_code & PFERR_RSVD_MASK) ||
	    !(kvmi_denied_access(vcpu->kvm, KVMI_VIEW, gfn) & kind) ||
	    !kvm_is_visible_gfn(vcpu->kvm, gfn))
		return false;
	if (vcpu->arch.introspection.let_through &&
	    vi->let_through_rip == kvm_rip_read(vcpu) &&
	    (kvmi_let_through_access(vcpu, gfn) & kind))
		return false;

	if (!(error_code & PFERR_GUEST_FINAL_MASK)) {
		let_walk_through(vi, gpa, kind, error_code);
		return true;
	}

	pf.detail = kind;
	pf.b = kvm_x86_call(introspection_fault_gva)(vcpu);
	kvmi_tell_access(vi, &pf, KVMI_CPU);
	return true;
}

/* Whether what is let through is about the instruction that comes next. */
static bool is_about_next(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	return vi->let_through_count && kvm_rip_read(vcpu) == vi->let_through_rip &&
	       !kvm_is_exception_pending(vcpu) && !is_guest_mode(vcpu) && !is_smm(vcpu);
}

/* Whether the vCPU is to execute such an instruction next. */
bool kvmi_has_let_through(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	return is_about_next(vi) && vcpu->arch.mp_state == KVM_MP_STATE_RUNNABLE &&
	       !vcpu->arch.apf.halted;
}

/* The same, and what was for another instruction is let through no more. */
bool kvmi_wants_let_through(struct kvm_vcpu_introspection *vi)
{
	if (vi->let_through_count && !is_about_next(vi))
		kvmi_take_back(vi);
	return kvmi_has_let_through(vi);
}

static void set_let_through(struct kvm_vcpu *vcpu, bool let_through)
{
	vcpu->arch.introspection.let_through = let_through;
	/* Another role, and so another root; loading it flushes. */
	kvm_mmu_reset_context(vcpu);
}

/*
 * Before the entry, which is one: a fault would end it and take them back.  One
 * that cannot be mapped, a page of a read-only slot for a write, say, is left
 * to that fault.
 */
static void map_let_through(struct kvm_vcpu_introspection *vi)
{
	unsigned int i;
	u8 access;

	for (i = 0; i < vi->let_through_count; i++) {
		access = vi->let_through[i].access | vi->let_through[i].walk;
		kvm_mmu_do_page_fault(vi->vcpu, gfn_to_gpa(vi->let_through[i].gfn),
				      access & KVMI_PAGE_ACCESS_W ? PFERR_WRITE_MASK :
				      access & KVMI_PAGE_ACCESS_X ? PFERR_FETCH_MASK : 0,
				      false, NULL, NULL);
	}
}

/* site: the step is to be on the root of its own. */
int kvmi_enter_let_through(struct kvm_vcpu_introspection *vi)
{
	int r;

	set_let_through(vi->vcpu, true);
	r = kvm_mmu_reload(vi->vcpu);
	if (!r)
		map_let_through(vi);
	return r;
}

/* Such a step is over; vi is NULL when the session has ended meanwhile. */
void kvmi_leave_let_through(struct kvm_vcpu *vcpu, struct kvm_vcpu_introspection *vi)
{
	unsigned int count;

	/* The session's end has every root zapped, this one too. */
	if (vi) {
		count = vi->let_through_count;
		kvmi_take_back(vi);
		/* Not through yet: the entry was for something else. */
		if (!vcpu->arch.introspection.stepped && kvm_rip_read(vcpu) == vi->let_through_rip)
			vi->let_through_count = count;
	}
	set_let_through(vcpu, false);
}
