// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest memory as the VMM mapped it, read and written by the reader.
 */
#include <linux/kthread.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

#include "introspection/session.h"

/* Within SRCU: the slot of gpa and its address in the VMM, or -KVM_ENOENT. */
static int find_page(struct kvm *kvm, u64 gpa, struct kvm_memory_slot **slot, unsigned long *hva)
{
	*slot = gfn_to_memslot(kvm, gpa_to_gfn(gpa));
	/* KVM's own slots (APIC access page, TSS, identity map) are not guest memory. */
	if (!kvm_is_visible_memslot(*slot))
		return -KVM_ENOENT;

	*hva = __gfn_to_hva_memslot(*slot, gpa_to_gfn(gpa)) + offset_in_page(gpa);
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

/*
 * The VMM's memory, for as long as it takes.  Not mmput(): were it the last
 * reference, the session would end here, in its own reader.
 */
static bool mm_enter(struct kvm *kvm)
{
	if (!mmget_not_zero(kvm->mm))
		return false;
	kthread_use_mm(kvm->mm);
	return true;
}

static void mm_leave(struct kvm *kvm)
{
	kthread_unuse_mm(kvm->mm);
	mmput_async(kvm->mm);
}

int kvmi_glue_read_physical(struct kvm_introspection *session, u64 gpa, u8 *out, size_t len)
{
	struct kvm *kvm = session->kvm;
	struct kvm_memory_slot *slot;
	unsigned long hva;
	int idx, r;

	if (!mm_enter(kvm))
		return -KVM_ENOENT;
	idx = srcu_read_lock(&kvm->srcu);
	r = find_page(kvm, gpa, &slot, &hva);
	if (!r && copy_from_user(out, (void __user *)hva, len))
		r = -KVM_ENOENT;
	srcu_read_unlock(&kvm->srcu, idx);
	mm_leave(kvm);

	return r;
}

int kvmi_glue_write_physical(struct kvm_introspection *session, u64 gpa, const u8 *data,
			     size_t len)
{
	struct kvm *kvm = session->kvm;
	struct kvm_memory_slot *slot;
	unsigned long hva;
	int idx, r;

	if (!mm_enter(kvm))
		return -KVM_ENOENT;
	idx = srcu_read_lock(&kvm->srcu);
	r = find_page(kvm, gpa, &slot, &hva);
	if (!r && (slot->flags & KVM_MEM_READONLY))
		r = -KVM_EPERM;
	else if (!r && !dirty_is_recordable(slot))
		r = -KVM_EOPNOTSUPP;
	if (!r) {
		/* What arrived of a copy that failed half-way is dirty too. */
		if (copy_to_user((void __user *)hva, data, len))
			r = -KVM_ENOENT;
		record_dirty(slot, gpa);
	}
	srcu_read_unlock(&kvm->srcu, idx);
	mm_leave(kvm);

	return r;
}
