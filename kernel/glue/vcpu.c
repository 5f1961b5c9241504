// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vCPU of a session: what its thread does in the run loop, between exits.
 *
 * An exit handler that has something for the tool records it (kvmi_site())
 * and returns without having changed anything.  The loop then sends it, waits
 * for the reply and, with the reply at hand, calls the same exit handler again:
 * the exit information outlives the wait, and no guest instruction runs in
 * between, so that nothing is seen twice.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "introspection/events.h"
#include "introspection/lifecycle.h"
#include "introspection/session.h"
#include "mmu.h"
#include "x86.h"

struct kvm_vcpu_introspection *kvmi_vcpu_alloc(struct kvm_introspection *session,
					       struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;

	vi = kzalloc(sizeof(*vi), GFP_KERNEL_ACCOUNT);
	if (!vi)
		return NULL;

	vi->vcpu = vcpu;
	vi->session = session;
	kref_init(&vi->ref);
	init_completion(&vi->gone);
	init_waitqueue_head(&vi->wq);
	spin_lock_init(&vi->lock);
	INIT_LIST_HEAD(&vi->jobs);
	vi->rx = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	vi->tx = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	vi->state = kzalloc(kvmi_vcpu_state_bytes(), GFP_KERNEL_ACCOUNT);
	if (!vi->rx || !vi->tx || !vi->state) {
		kvmi_vcpu_free(vi);
		return NULL;
	}
	vi->marked_entry = INVALID_GPA;
	kvmi_vcpu_state_init(vi->state);

	return vi;
}

void kvmi_vcpu_free(struct kvm_vcpu_introspection *vi)
{
	kvmi_drop_jobs(vi);
	kfree(vi->state);
	kfree(vi->rx);
	kfree(vi->tx);
	kfree(vi);
}

static void vcpu_gone(struct kref *ref)
{
	complete(&container_of(ref, struct kvm_vcpu_introspection, ref)->gone);
}

void kvmi_vcpu_put(struct kvm_vcpu_introspection *vi)
{
	kref_put(&vi->ref, vcpu_gone);
}

/* Have the vCPU come to its run loop: out of the guest, of HLT, of its wait for a reply. */
void kvmi_vcpu_kick(struct kvm_vcpu_introspection *vi)
{
	kvm_make_request(KVM_REQ_INTROSPECTION, vi->vcpu);
	kvm_make_request(KVM_REQ_UNBLOCK, vi->vcpu);
	wake_up_all(&vi->wq);
	kvm_vcpu_kick(vi->vcpu);
}

/* site: record what happened, or take the reply to it. */
enum kvmi_site kvmi_site(struct kvm_vcpu *vcpu, const struct kvmi_occurrence *what)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);
	enum kvmi_site site;

	if (!vi)
		return KVMI_SITE_PASS;
	/* A reply that is here counts, whatever becomes of the session. */
	if (kvmi_phase(vi->state) != KVMI_REPLY_HERE &&
	    (READ_ONCE(vi->session->closing) || kvmi_fails_open(vi->session)))
		return KVMI_SITE_PASS;

	kvmi_explore(KVMI_AT_SITE);
	site = kvmi_record(vi->session->state, vi->state, what);
	/* KVM does not go on to the next where it emulates many in a row. */
	if (site == KVMI_SITE_DEFER)
		kvm_make_request(KVM_REQ_EVENT, vcpu);
	return site;
}

/* The exit that was recorded, once more, with the reply at hand. */
int kvmi_handle_exit(struct kvm_vcpu *vcpu)
{
	/* A step may have left the vCPU without a root, which exit handlers rely on. */
	int r = kvm_mmu_reload(vcpu);

	return r ? r : kvm_x86_call(handle_exit)(vcpu, EXIT_FASTPATH_NONE);
}

/* What was recorded, with the reply at hand; changed: and other registers.  As an exit handler. */
static int replay_exit(struct kvm_vcpu_introspection *vi, bool changed)
{
	switch (kvmi_phase_event(vi->state)) {
	case KVMI_VCPU_EVENT_PF:
		return kvmi_complete_access(vi, changed);
	default:
		return kvmi_handle_exit(vi->vcpu);
	}
}

/* In SRCU again: the reply is here, let what was recorded happen. */
static int complete_exit(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	struct kvm_regs regs;
	unsigned long rip = kvm_rip_read(vcpu);
	bool pending = vcpu->arch.exception.pending;
	bool pending_vmexit = vcpu->arch.exception_vmexit.pending;
	bool changed = kvmi_take_registers(vi->state, (u8 *)&regs);
	int r = 1;

	if (changed) {
		unsigned long rflags = kvm_get_rflags(vcpu);

		__set_regs(vcpu, &regs);
		/*
		 * The interrupt shadow belongs to the instruction that was at RIP.  VM entry
		 * wants IF with blocking by STI, and a pending trap with TF.
		 */
		if (regs.rip != rip || ((regs.rflags ^ rflags) & (X86_EFLAGS_IF | X86_EFLAGS_TF)))
			kvm_x86_call(set_interrupt_shadow)(vcpu, 0);
		/* It is not the tool's to swallow an exception that is on its way. */
		vcpu->arch.exception.pending = pending;
		vcpu->arch.exception_vmexit.pending = pending_vmexit;
	}

	/*
	 * A tool that moved RIP has dealt with the instruction: to complete it
	 * would skip or fault on another one.
	 */
	if (kvm_rip_read(vcpu) != rip)
		kvmi_forget_half_way(vcpu);
	else if (kvmi_completes_exit(vi->state))
		r = replay_exit(vi, changed);
	kvmi_event_done(vi->state);

	return r;
}

/* Asked on each exit: nothing is called that cannot be the case. */
static bool has_work(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;

	return !list_empty_careful(&vi->jobs) || atomic_read(&vi->pauses) || vi->unsent ||
	       vi->owes_rest ||
	       (!kvmi_is_quiet(vi->state) &&
		(kvmi_phase(vi->state) != KVMI_IDLE || kvmi_injection_due(vi))) ||
	       (vi->is_new && kvmi_is_new(vi)) ||
	       (READ_ONCE(session->stopped) && kvmi_is_stopped(session)) ||
	       (READ_ONCE(session->lost) && kvmi_crashes(session)) ||
	       (vi->let_through_count && kvmi_wants_let_through(vi)) ||
	       (vi->vcpu->arch.introspection.singlestep && (kvmi_wants_step(vi) || kvmi_has_step(vi)));
}

/* One session has ended and the next, which takes it over, is not there yet. */
static int wait_for_session(struct kvm_vcpu *vcpu)
{
	bool *stopped = &vcpu->kvm->arch.introspection.stopped;
	int r;

	kvm_vcpu_srcu_read_unlock(vcpu);
	r = wait_var_event_interruptible(stopped, !READ_ONCE(*stopped));
	kvm_vcpu_srcu_read_lock(vcpu);
	return r ? -EINTR : 1;
}

void kvmi_recalc_intercepts(struct kvm_vcpu *vcpu)
{
	bool knows_msrs = kvm_introspection_knows_msrs(vcpu);

	/* VMX looks at some of them there; in a nested guest, when that is over. */
	if (knows_msrs)
		vcpu->arch.introspection.recalc_msrs = true;
	kvm_x86_call(recalc_introspection_intercepts)(vcpu);

	/* What the tool watches is looked at wherever userspace's filter is. */
	if (knows_msrs)
		kvm_x86_call(msr_filter_changed)(vcpu);
}

/* Until they are taken, KVM enters the guest with neither of them. */
static void check_requests(struct kvm_vcpu *vcpu)
{
	kvm_check_request(KVM_REQ_INTROSPECTION, vcpu);
	if (kvm_check_request(KVM_REQ_INTROSPECTION_INTERCEPTS, vcpu))
		kvmi_recalc_intercepts(vcpu);
}

int __kvm_introspection_work(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;
	bool is_current;
	int r = 1;

	while (r > 0) {
		/* What it asks for is looked at from here on. */
		check_requests(vcpu);
		/* Looked up anew each time: it may have gone while SRCU was not held. */
		vi = kvmi_vcpu(vcpu);
		/* Whatever it was about to do, the next session is to see it. */
		if (READ_ONCE(vcpu->kvm->arch.introspection.stopped)) {
			r = wait_for_session(vcpu);
			continue;
		}
		if (vi)
			kvmi_settle(vi);
		if (unlikely(vcpu->arch.complete_userspace_io) &&
		    kvmi_is_half_way(vcpu) && !kvmi_half_way_waits(vi)) {
			r = signal_pending(current) ? -EINTR : kvmi_emulate_anew(vcpu, true);
			continue;
		}
		if (!vi || !has_work(vi) ||
		    (READ_ONCE(vi->session->closing) && list_empty_careful(&vi->jobs)))
			return 1;

		kvmi_explore(KVMI_AT_WORK);
		kref_get(&vi->ref);
		WRITE_ONCE(vi->busy, true);
		kvm_vcpu_srcu_read_unlock(vcpu);
		r = kvmi_serve(vi);
		kvm_vcpu_srcu_read_lock(vcpu);
		/* Messages and the state that they move were in the L1 data cache. */
		vcpu->arch.l1tf_flush_l1d = true;
		if (!r)
			vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
		if (r > 0)
			kvmi_tell_clock(vi);
		kvmi_explore(KVMI_AT_COMPLETE);
		is_current = r > 0 && vi == kvmi_vcpu(vcpu);
		if (is_current && kvmi_phase(vi->state) == KVMI_REPLY_HERE)
			r = complete_exit(vi);
		else if (is_current && !kvmi_is_half_way(vcpu) &&
			 (kvmi_wants_let_through(vi) || kvmi_wants_step(vi)))
			r = kvmi_step(vi);
		WRITE_ONCE(vi->busy, false);
		/* Pairs with the barrier of await_replies(). */
		smp_mb();
		if (READ_ONCE(vi->session->closing))
			wake_up_all(&vi->wq);
		kvmi_vcpu_put(vi);

		if (vcpu->arch.introspection.stepping) {
			r = kvmi_yield_before_step(vcpu);
			/* On -EINTR it has been said already how KVM_RUN ends. */
			if (r <= 0 || vcpu->arch.introspection.stepping)
				return r;
		}
	}

	if (r == -EINTR) {
		vcpu->run->exit_reason = KVM_EXIT_INTR;
		++vcpu->stat.signal_exits;
	}
	return r;
}
