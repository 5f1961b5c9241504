// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest memory as the VMM mapped it, read and written by whoever carries out a message.
 *
 * The page is had first, with nothing of KVM's held: that may take as long as the VMM's
 * memory makes it take, and a signal ends it.  Then it is looked up again, under SRCU,
 * and used if it is still what the slot has there.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

#include "introspection/session.h"

/*
 * Within SRCU: the slot of gpa and its address in the VMM, or -KVM_ENOENT.  vcpu: as it sees
 * memory, which in SMM is another.
 */
static int find_page(struct kvm *kvm, struct kvm_vcpu *vcpu, u64 gpa,
		     struct kvm_memory_slot **slot, unsigned long *hva)
{
	gfn_t gfn = gpa_to_gfn(gpa);

	*slot = vcpu ? kvm_vcpu_gfn_to_memslot(vcpu, gfn) : gfn_to_memslot(kvm, gfn);
	/* KVM's own slots (APIC access page, TSS, identity map) are not guest memory. */
	if (!kvm_is_visible_memslot(*slot))
		return -KVM_ENOENT;

	*hva = __gfn_to_hva_memslot(*slot, gfn);
	return 0;
}

/*
 * No vCPU is at hand whose dirty ring could take the page: where the ring is
 * the only record, a write that nobody would see in it is refused.
 */
static bool dirty_is_recordable(struct kvm_memory_slot *slot)
{
	return !kvm_slot_dirty_track_enabled(slot) || slot->dirty_bitmap;
}

static void record_dirty(struct kvm_memory_slot *slot, u64 gpa)
{
	if (slot->dirty_bitmap)
		set_bit_le(gpa_to_gfn(gpa) - slot->base_gfn, slot->dirty_bitmap);
}

/* Within SRCU. */
static int find_access(struct kvm *kvm, struct kvm_vcpu *vcpu, u64 gpa, bool writes,
		       struct kvm_memory_slot **slot, unsigned long *hva)
{
	int r = find_page(kvm, vcpu, gpa, slot, hva);

	if (r || !writes)
		return r;
	if ((*slot)->flags & KVM_MEM_READONLY)
		return -KVM_EPERM;
	return dirty_is_recordable(*slot) ? 0 : -KVM_EOPNOTSUPP;
}

/*
 * The page at hva of the VMM, held for a read or pinned for a write.  It comes in from
 * where it is, and a write makes it the VMM's own; a read of what the VMM has never touched
 * finds the zero page, and leaves what others share shared.
 */
static int get_guest_page(struct kvm_introspection *session, unsigned long hva, bool writes,
			  bool waits, struct page **page)
{
	unsigned int flags = (waits ? FOLL_INTERRUPTIBLE : FOLL_NOWAIT) | (writes ? FOLL_WRITE : 0);
	struct mm_struct *mm = session->kvm->mm;
	int locked = 1;
	long r = -EINTR;

	if (!mmget_not_zero(mm))
		return -KVM_ENOENT;
	if (!waits && !mmap_read_trylock(mm)) {
		r = 0;
	} else if (!waits || !mmap_read_lock_killable(mm)) {
		r = writes ? pin_user_pages_remote(mm, hva, 1, flags, page, &locked) :
			     get_user_pages_remote(mm, hva, 1, flags, page, &locked);
		if (locked)
			mmap_read_unlock(mm);
	}
	/* Not mmput(): were it the last reference, the VMM would end here. */
	mmput_async(mm);

	/*
	 * As KVM's asynchronous page faults do it: whoever may wait brings it in.  Also when the
	 * caller is being killed, for the answer is its session's.
	 */
	if (!waits && (!r || r == -EINTR)) {
		if (hva != READ_ONCE(session->unavailable))
			session->missing = hva;
		return -KVM_ENOENT;
	}
	if (r == -EINTR || r == -ERESTARTSYS)
		return -EINTR;
	return r == 1 ? 0 : -KVM_ENOENT;
}

static void put_guest_page(struct page *page, bool writes, bool written)
{
	if (writes)
		unpin_user_pages_dirty_lock(&page, 1, written);
	else
		put_page(page);
}

/* 0, or -KVM_ENOENT for a page with a memory error, of which a read may be told so. */
static int copy(struct page *page, u64 gpa, u8 *out, const u8 *in, size_t len)
{
	u8 *at = kmap_local_page(page) + offset_in_page(gpa);
	unsigned long left = 0;

	if (in)
		memcpy(at, in, len);
	else
		left = copy_mc_to_kernel(out, at, len);
	kunmap_local(at);

	return left ? -KVM_ENOENT : 0;
}

/* Reads to out, or writes what is in; conn->lock is held. */
static int access(struct kvm_introspection *session, struct kvm_vcpu *vcpu, u64 gpa, u8 *out,
		  const u8 *in, size_t len)
{
	struct kvm *kvm = session->kvm;
	struct kvm_memory_slot *slot;
	unsigned long hva, again;
	struct page *page;
	bool done = false;
	int idx, r;

	do {
		idx = srcu_read_lock(&kvm->srcu);
		r = find_access(kvm, vcpu, gpa, in, &slot, &hva);
		srcu_read_unlock(&kvm->srcu, idx);
		if (!r)
			r = get_guest_page(session, hva, in, !vcpu, &page);
		/* The message is carried out another time, or never. */
		if (r == -EINTR)
			session->interrupted = true;
		if (r)
			return r == -EINTR ? -KVM_ENOENT : r;

		idx = srcu_read_lock(&kvm->srcu);
		r = find_access(kvm, vcpu, gpa, in, &slot, &again);
		done = r || again == hva;
		if (!r && done) {
			r = copy(page, gpa, out, in, len);
			if (in)
				record_dirty(slot, gpa);
		}
		srcu_read_unlock(&kvm->srcu, idx);
		put_guest_page(page, in, !r && done);
	} while (!done);

	return r;
}

/*
 * For a vCPU that is loaded while KVM_RUN is out: with vcpu->mutex, for which the VMM may wait,
 * nobody waits for the VMM's memory.  What is not there is in session->missing.
 */
int kvmi_read_physical(struct kvm_introspection *session, struct kvm_vcpu *vcpu, u64 gpa, u8 *out,
		       size_t len)
{
	return access(session, vcpu, gpa, out, NULL, len);
}

int kvmi_glue_read_physical(struct kvm_introspection *session, u64 gpa, u8 *out, size_t len)
{
	return access(session, NULL, gpa, out, NULL, len);
}

int kvmi_glue_write_physical(struct kvm_introspection *session, u64 gpa, const u8 *data,
			     size_t len)
{
	return access(session, NULL, gpa, NULL, data, len);
}

/*
 * With nothing held: what was missing.  1: the command can be carried out anew, which does
 * not wait for this page again if it cannot be had; -EINTR: the session ends.
 */
int kvmi_bring_in(struct kvm_introspection *session, unsigned long hva)
{
	struct page *page;
	int r = get_guest_page(session, hva, false, true, &page);

	if (r == -EINTR)
		return r;
	if (r)
		WRITE_ONCE(session->unavailable, hva);
	else
		put_page(page);
	return 1;
}
