// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the guest may do with its pages: the map that the tool writes and the MMU
 * obeys.
 *
 * The map holds, by view and gfn, the accesses that are denied, three bits a
 * page and sixteen pages a word; what nobody restricts is not in it.  It belongs
 * to the VM and not to a memory slot: a restriction outlives the slot, and where
 * a range may be mapped by a huge page is answered from the map itself.  The
 * reader and the end of a session write it, one at a time.  The MMU reads it
 * under mmu_lock or SRCU: a change is in the map before mmu_lock is taken to zap
 * what was mapped by the map as it was.
 */
#include <linux/completion.h>
#include <linux/memcontrol.h>
#include <linux/sched/mm.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "introspection/pages.h"
#include "introspection/session.h"
#include "mmu.h"
#include "mmu/spte.h"

#define GFNS_PER_WORD_SHIFT	4
#define GFNS_PER_WORD		(1 << GFNS_PER_WORD_SHIFT)
#define BITS_PER_GFN		3
#define VIEW_SHIFT		48

#define ACCESS_ALL	(KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X)

static_assert(ACCESS_ALL == BIT(BITS_PER_GFN) - 1);
static_assert(GFNS_PER_WORD * BITS_PER_GFN < BITS_PER_XA_VALUE);

void kvmi_access_init(struct kvm *kvm)
{
	xa_init_flags(&kvm->arch.introspection.denied, XA_FLAGS_ACCOUNT);
}

static unsigned long word_index(u16 view, gfn_t gfn)
{
	return (unsigned long)view << VIEW_SHIFT | gfn >> GFNS_PER_WORD_SHIFT;
}

static unsigned int word_shift(gfn_t gfn)
{
	return (gfn & (GFNS_PER_WORD - 1)) * BITS_PER_GFN;
}

static unsigned long load_word(struct kvm *kvm, u16 view, gfn_t gfn)
{
	void *word = xa_load(&kvm->arch.introspection.denied, word_index(view, gfn));

	return word ? xa_to_value(word) : 0;
}

/* What the map denies, as KVMI_PAGE_ACCESS_*. */
u8 kvmi_denied_access(struct kvm *kvm, u16 view, gfn_t gfn)
{
	return load_word(kvm, view, gfn) >> word_shift(gfn) & ACCESS_ALL;
}

/* Whether anything is denied in [start, end). */
static bool denies_any(struct kvm *kvm, u16 view, gfn_t start, gfn_t end)
{
	unsigned long index = word_index(view, start);

	return xa_find(&kvm->arch.introspection.denied, &index, word_index(view, end - 1),
		       XA_PRESENT);
}

int __kvm_introspection_max_level(struct kvm *kvm, gfn_t gfn, int level)
{
	for (; level > PG_LEVEL_4K; level--) {
		gfn_t start = gfn_round_for_level(gfn, level);

		if (!denies_any(kvm, KVMI_VIEW, start, start + KVM_PAGES_PER_HPAGE(level)))
			break;
	}
	return level;
}

/* The MMU's access bits for a page of a root of this role, for this vCPU. */
unsigned int __kvm_introspection_pte_access(struct kvm_vcpu *vcpu, union kvm_mmu_page_role role,
					    gfn_t gfn, unsigned int access)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	u8 denied;

	/*
	 * The tool watches the guest, not the guests in it, nor SMM.  A session that
	 * ends denies nothing: nobody would let anything through any more.
	 */
	if (role.guest_mode || role.smm || !vi || READ_ONCE(vi->session->closing))
		return access;

	denied = kvmi_denied_access(vcpu->kvm, KVMI_VIEW, gfn);
	if (role.stepping)
		denied &= ~kvmi_let_through_access(vcpu, gfn);

	if (denied & KVMI_PAGE_ACCESS_R)
		access &= ~ACC_USER_MASK;
	if (denied & KVMI_PAGE_ACCESS_W)
		access &= ~ACC_WRITE_MASK;
	if (denied & KVMI_PAGE_ACCESS_X)
		access &= ~ACC_EXEC_MASK;

	/* What lets one kind through may have to let reads through as well. */
	if (access && (!kvm_introspection_has_execute_only() || (access & ACC_WRITE_MASK)))
		access |= ACC_USER_MASK;
	return access;
}

/* Whether the CPU's way through the guest's page tables need not count as a write: with EPT. */
bool kvm_introspection_tells_walks(void)
{
	return shadow_user_mask == VMX_EPT_READABLE_MASK;
}

/* As KVMI_FEATURE_EXEC_ONLY; with NPT, and EPT without it, what is present can be read. */
bool kvm_introspection_has_execute_only(void)
{
	return !(shadow_present_mask & VMX_EPT_READABLE_MASK);
}

/* Shadow paging has the guest's own tables to think of; nor is the old direct MMU served. */
u8 kvmi_glue_access_bits(void)
{
	u8 bits = KVMI_FEATURE_READ_DENY | KVMI_FEATURE_WRITE_DENY | KVMI_FEATURE_EXEC_DENY;

	if (!tdp_enabled || !tdp_mmu_enabled)
		return 0;
	return kvm_introspection_has_execute_only() ? bits | KVMI_FEATURE_EXEC_ONLY : bits;
}

/* Neither in a slot of the VMM's nor left over from one. */
static bool is_nowhere(struct kvm *kvm, u16 view, gfn_t gfn)
{
	int idx = srcu_read_lock(&kvm->srcu);
	bool nowhere = !kvm_is_visible_gfn(kvm, gfn) && !kvmi_denied_access(kvm, view, gfn);

	srcu_read_unlock(&kvm->srcu, idx);
	return nowhere;
}

static int store_word(struct kvm_introspection *session, unsigned long index, unsigned long word)
{
	struct xarray *denied = &session->kvm->arch.introspection.denied;
	struct mem_cgroup *old;
	void *entry;

	if (!word) {
		xa_erase(denied, index);
		return 0;
	}

	old = set_active_memcg(session->memcg);
	entry = xa_store(denied, index, xa_mk_value(word), GFP_KERNEL | __GFP_RETRY_MAYFAIL);
	set_active_memcg(old);

	return xa_is_err(entry) ? -KVM_ENOMEM : 0;
}

/*
 * Zap what is mapped in the pages whose access has changed.  Where that leaves a
 * 2 MiB range free of restrictions all of it goes, for a huge page to come back.
 */
static void zap_changed(struct kvm_introspection *session)
{
	gfn_t start = session->changed_start, end = session->changed_end;
	const gfn_t huge = KVM_PAGES_PER_HPAGE(PG_LEVEL_2M);
	struct kvm *kvm = session->kvm;
	gfn_t first, last;
	int idx;

	session->changed_start = session->changed_end = 0;
	if (start == end)
		return;

	first = gfn_round_for_level(start, PG_LEVEL_2M);
	last = gfn_round_for_level(end - 1, PG_LEVEL_2M);
	if (!denies_any(kvm, KVMI_VIEW, first, first + huge))
		start = first;
	if (!denies_any(kvm, KVMI_VIEW, last, last + huge))
		end = last + huge;

	/* It looks into the slots, for what shadow pages of the guest's own guests map. */
	idx = srcu_read_lock(&kvm->srcu);
	kvm_zap_gfn_range(kvm, start, end);
	srcu_read_unlock(&kvm->srcu, idx);
}

/* A wait for all who read the map within SRCU, whose caller may leave earlier. */
struct kvmi_readers_wait {
	struct work_struct work;
	struct kvm *kvm;
	struct completion done;
};

static void wait_for_readers(struct work_struct *work)
{
	struct kvmi_readers_wait *wait = container_of(work, struct kvmi_readers_wait, work);

	synchronize_srcu_expedited(&wait->kvm->srcu);
	complete_all(&wait->done);
}

/* The wait that a signal has cut short, to its end; so that there is never more than one. */
void kvmi_finish_readers_wait(struct kvm_introspection *session)
{
	if (!session->readers_wait)
		return;
	flush_work(&session->readers_wait->work);
	kfree(session->readers_wait);
	session->readers_wait = NULL;
}

static int await(struct kvmi_readers_wait *wait, bool killable)
{
	return killable ? wait_for_completion_killable(&wait->done) :
			  wait_for_completion_interruptible(&wait->done);
}

/*
 * Until no vCPU is any more where it was within SRCU; one may stand in a page fault of the
 * host.  0, or -EINTR: not all are through; killable: because the caller was killed.
 */
int kvmi_await_readers(struct kvm_introspection *session, bool killable)
{
	struct kvmi_readers_wait *wait;

	if (session->readers_wait && await(session->readers_wait, killable))
		return -EINTR;
	kvmi_finish_readers_wait(session);

	wait = kmalloc(sizeof(*wait), GFP_KERNEL_ACCOUNT);
	if (!wait) {
		synchronize_srcu_expedited(&session->kvm->srcu);
		return 0;
	}
	INIT_WORK(&wait->work, wait_for_readers);
	init_completion(&wait->done);
	wait->kvm = session->kvm;
	session->readers_wait = wait;
	queue_work(system_unbound_wq, &wait->work);

	if (await(wait, killable))
		return -EINTR;
	kvmi_finish_readers_wait(session);
	return 0;
}

/* All entries of a message are in the map. */
void kvmi_glue_page_access_set(struct kvm_introspection *session)
{
	zap_changed(session);

	if (!session->denies_more)
		return;
	/*
	 * A vCPU may have looked at the map before, and be about to access memory for its
	 * guest.  If a signal comes, the message is carried out another time, and waits then.
	 */
	if (kvmi_await_readers(session, false))
		session->interrupted = true;
	else
		session->denies_more = false;
}

int kvmi_glue_set_page_access(struct kvm_introspection *session, u16 view, u64 gfn, u8 access)
{
	struct kvm *kvm = session->kvm;
	unsigned long old, new;
	int r;

	if (is_nowhere(kvm, view, gfn))
		return -KVM_EINVAL;

	old = load_word(kvm, view, gfn);
	new = old & ~((unsigned long)ACCESS_ALL << word_shift(gfn));
	new |= (unsigned long)(ACCESS_ALL & ~access) << word_shift(gfn);
	if (new == old)
		return 0;

	WRITE_ONCE(kvm->arch.introspection.restricts, true);
	kvmi_block_irqs(kvm, true);
	r = store_word(session, word_index(view, gfn), new);
	if (r)
		return r;

	session->denies_more |= new & ~old;
	if (gfn != session->changed_end)
		zap_changed(session);
	if (session->changed_start == session->changed_end)
		session->changed_start = gfn;
	session->changed_end = gfn + 1;

	return 0;
}

int kvmi_glue_page_access(struct kvm_introspection *session, u16 view, u64 gfn, u8 *access)
{
	if (is_nowhere(session->kvm, view, gfn))
		return -KVM_EINVAL;

	*access = ACCESS_ALL & ~kvmi_denied_access(session->kvm, view, gfn);
	return 0;
}

static void zap_all(struct kvm *kvm)
{
	mutex_lock(&kvm->slots_lock);
	kvm_mmu_zap_all_fast(kvm);
	mutex_unlock(&kvm->slots_lock);
}

/* A session has taken the map over; what was mapped while there was none is to go. */
void kvmi_access_inherit(struct kvm *kvm)
{
	if (kvm->arch.introspection.restricts)
		zap_all(kvm);
}

/* The session has ended: nothing is denied any more, and no page table of its making stays. */
void kvmi_access_end(struct kvm *kvm)
{
	struct xarray *denied = &kvm->arch.introspection.denied;
	unsigned long index;
	void *word;

	if (!kvm->arch.introspection.restricts)
		return;

	xa_for_each(denied, index, word) {
		xa_erase(denied, index);
		cond_resched();
	}

	zap_all(kvm);
	kvm->arch.introspection.restricts = false;
}
