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
#include <linux/bitfield.h>
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

/* One queued message.  0, -EINTR (its reply waits in tx), -EPIPE. */
static int run_job(struct kvm_vcpu_introspection *vi, struct kvmi_job *job)
{
	enum kvmi_verdict verdict;
	size_t out = 0;
	int r;

	/* The core reads what a short request lacks as zeroes. */
	if (job->kept < vi->rx_dirty)
		memset(vi->rx + job->kept, 0, vi->rx_dirty - job->kept);
	memcpy(vi->rx, job->msg, job->kept);
	vi->rx_dirty = job->kept;

	verdict = kvmi_vcpu_message(vi->session->state, vi->state, vi, vi->rx, job->bytes,
				    vi->tx, &out);
	if (verdict == KVMI_CLOSE) {
		kvmi_hang_up(vi->session->conn);
		WRITE_ONCE(vi->session->lost, true);
		return -EPIPE;
	}
	if (!out)
		return 0;

	r = kvmi_send(vi->session, vi->tx, out, &vi->owes_rest);
	if (r == -EINTR)
		vi->unsent = out;
	return r;
}

/* What an interrupted KVM_RUN left half-done comes first.  0, -EINTR, -EPIPE. */
static int send_leftovers(struct kvm_vcpu_introspection *vi)
{
	int r = 0;

	if (vi->unsent) {
		r = kvmi_send(vi->session, vi->tx, vi->unsent, &vi->owes_rest);
		if (r != -EINTR)
			vi->unsent = 0;
	}
	if (!r && vi->owes_rest) {
		r = kvmi_send_rest(vi->session);
		if (r != -EINTR)
			vi->owes_rest = false;
	}
	return r;
}

/* The tool is gone: end the vCPU's part as HOOK asked. */
static void handle_disconnect(struct kvm_vcpu_introspection *vi)
{
	/* The connection also ends when UNHOOK ends it, which is no loss; it says so first. */
	smp_rmb();
	if (READ_ONCE(vi->session->closing))
		return;

	kvmi_drop_jobs(vi);
	atomic_set(&vi->pauses, 0);
	vi->unsent = 0;
	vi->owes_rest = false;

	if (kvmi_crashes(vi->session))
		kvmi_crash(vi->state);
	else if (kvmi_fails_open(vi->session))
		kvmi_event_fail_open(vi->state);
}

static bool wait_is_over(struct kvm_vcpu_introspection *vi)
{
	return READ_ONCE(vi->session->closing) || !list_empty_careful(&vi->jobs) ||
	       (READ_ONCE(vi->session->lost) && !kvmi_fails_closed(vi->session));
}

/* The tool is gone, and all that it has sent before has been carried out. */
static bool has_lost_tool(struct kvm_vcpu_introspection *vi)
{
	/* What it has sent is in the queue before the loss is told. */
	return smp_load_acquire(&vi->session->lost) && list_empty_careful(&vi->jobs);
}

static int wait_for_tool(struct kvm_vcpu_introspection *vi)
{
	if (!vi->held_since)
		vi->held_since = ktime_get_ns();
	kvmi_explore(KVMI_AT_WAIT);
	return wait_event_interruptible(vi->wq, wait_is_over(vi)) ? -EINTR : 0;
}

/* The guest goes on: after a long hold as after a VMM's KVM_KVMCLOCK_CTRL. */
static void tell_clock(struct kvm_vcpu_introspection *vi)
{
	struct kvm_vcpu *vcpu = vi->vcpu;

	if (!vi->held_since)
		return;
	if (ktime_get_ns() - vi->held_since > KVMI_HELD_LONG_NS && vcpu->arch.pv_time.active) {
		vcpu->arch.pvclock_set_guest_stopped_request = true;
		kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
	}
	vi->held_since = 0;
}

/* A vCPU that the VMM has created while the VM is hooked: true when the tool is to be told. */
static bool take_creation(struct kvm_vcpu_introspection *vi)
{
	static const struct kvmi_occurrence created = { .event = KVMI_VCPU_EVENT_CREATE_VCPU };

	if (!vi->is_new)
		return false;
	vi->is_new = false;
	return !READ_ONCE(vi->session->lost) && kvmi_record(vi->session->state, vi->state, &created) == KVMI_SITE_DEFER;
}

static bool stop_is_over(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;

	return READ_ONCE(session->closing) || !kvmi_is_stopped(session) ||
	       !list_empty_careful(&vi->jobs) ||
	       (!READ_ONCE(session->lost) && atomic_read(&vi->pauses));
}

/* Until VM_RELEASE, or a command or the end of the session, comes; or -EINTR. */
static int wait_for_release(struct kvm_vcpu_introspection *vi)
{
	if (!vi->held_since)
		vi->held_since = ktime_get_ns();
	return wait_event_interruptible(vi->wq, stop_is_over(vi)) ? -EINTR : 0;
}

/* What vi->shown holds: the phase, the event's id, its seq. */
#define SHOWN_PHASE	GENMASK_ULL(7, 0)
#define SHOWN_EVENT	GENMASK_ULL(23, 8)
#define SHOWN_SEQ	GENMASK_ULL(63, 32)

void kvmi_show(struct kvm_vcpu_introspection *vi)
{
	WRITE_ONCE(vi->shown, FIELD_PREP(SHOWN_PHASE, kvmi_phase(vi->state)) |
			      FIELD_PREP(SHOWN_EVENT, kvmi_phase_event(vi->state)) |
			      FIELD_PREP(SHOWN_SEQ, vi->seq));
}

/* reader: what the vCPU is doing at this moment. */
void kvmi_run_state(struct kvm_vcpu_introspection *vi, struct kvmi_vcpu_run_state *out)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	u32 mp_state = READ_ONCE(vcpu->arch.mp_state);
	u64 shown = READ_ONCE(vi->shown);

	*out = (struct kvmi_vcpu_run_state) { .in_run = READ_ONCE(vcpu->wants_to_run) };
	switch (FIELD_GET(SHOWN_PHASE, shown)) {
	case KVMI_CRASHED:
		out->state = KVMI_VCPU_CRASHED;
		return;
	case KVMI_SENT:
		out->state = KVMI_VCPU_HELD;
		out->event = FIELD_GET(SHOWN_EVENT, shown);
		out->seq = FIELD_GET(SHOWN_SEQ, shown);
		return;
	}

	if (mp_state == KVM_MP_STATE_UNINITIALIZED || mp_state == KVM_MP_STATE_INIT_RECEIVED)
		out->state = KVMI_VCPU_UNINITIALISED;
	else if (kvmi_is_stopped(vi->session))
		out->state = KVMI_VCPU_STOPPED;
	else if (mp_state == KVM_MP_STATE_HALTED)
		out->state = KVMI_VCPU_HALTED;
	else
		out->state = out->in_run ? KVMI_VCPU_RUNS : KVMI_VCPU_OUT;
}

static bool take_pause(struct kvm_vcpu_introspection *vi)
{
	static const struct kvmi_occurrence pause = { .event = KVMI_VCPU_EVENT_PAUSE };

	while (atomic_add_unless(&vi->pauses, -1, 0)) {
		if (kvmi_record(vi->session->state, vi->state, &pause) == KVMI_SITE_DEFER)
			return true;
	}
	return false;
}

/*
 * Outside SRCU, with a reference on vi: everything that can block.  1: the
 * vCPU may go on, with KVMI_REPLY_HERE by completing its exit; 0: it crashed;
 * -EINTR: a signal.
 */
static int serve(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;
	struct kvmi_job *job;
	int r;

	for (;;) {
		kvmi_explore(KVMI_AT_SERVE);
		kvmi_show(vi);
		if (READ_ONCE(session->closing))
			return 1;
		if (has_lost_tool(vi))
			handle_disconnect(vi);
		if (signal_pending(current))
			return -EINTR;
		cond_resched();

		/* What was sent after the reply finds done what KVM has to do for it. */
		if (kvmi_phase(vi->state) == KVMI_REPLY_HERE)
			return 1;

		if (!has_lost_tool(vi)) {
			r = send_leftovers(vi);
			job = r ? NULL : kvmi_dequeue(vi);
			if (job) {
				kvmi_explore(KVMI_AT_JOB);
				r = run_job(vi, job);
				kfree(job);
				if (!r)
					continue;
			}
			if (r == -EPIPE)
				continue;
			if (r)
				return r;
		}

		switch (kvmi_phase(vi->state)) {
		case KVMI_CRASHED:
			return 0;
		case KVMI_RECORDED:
			r = READ_ONCE(session->lost) ? wait_for_tool(vi) : kvmi_send_event(vi);
			break;
		case KVMI_SENT:
			r = wait_for_tool(vi);
			break;
		case KVMI_IDLE:
			/* The tool wants its event no more. */
			if (kvmi_is_half_way(vi->vcpu))
				return 1;
			if (take_creation(vi) || kvmi_take_step(vi))
				continue;
			if (!READ_ONCE(session->lost) && (kvmi_inject(vi) || take_pause(vi)))
				continue;
			if (!kvmi_is_stopped(session))
				return 1;
			r = wait_for_release(vi);
			break;
		default:
			return 1;
		}
		if (r == -EINTR)
			return r;
	}
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

/* Asked on each exit: what calls nothing comes first. */
static bool has_work(struct kvm_vcpu_introspection *vi)
{
	return !list_empty_careful(&vi->jobs) || atomic_read(&vi->pauses) || vi->unsent ||
	       vi->owes_rest || kvmi_phase(vi->state) != KVMI_IDLE || kvmi_injection_due(vi) ||
	       vi->is_new || kvmi_is_stopped(vi->session) ||
	       (READ_ONCE(vi->session->lost) && kvmi_crashes(vi->session)) ||
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

int __kvm_introspection_work(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;
	bool is_current;
	int r = 1;

	while (r > 0) {
		/* Looked up anew each time: it may have gone while SRCU was not held. */
		vi = kvmi_vcpu(vcpu);
		/* Whatever it was about to do, the next session is to see it. */
		if (READ_ONCE(vcpu->kvm->arch.introspection.stopped)) {
			r = wait_for_session(vcpu);
			continue;
		}
		if (vi)
			kvmi_settle(vi);
		if (kvmi_is_half_way(vcpu) && !kvmi_half_way_waits(vi)) {
			r = kvmi_emulate_anew(vcpu, true);
			continue;
		}
		if (!vi || READ_ONCE(vi->session->closing) || !has_work(vi))
			return 1;

		kvmi_explore(KVMI_AT_WORK);
		kref_get(&vi->ref);
		kvm_vcpu_srcu_read_unlock(vcpu);
		r = serve(vi);
		kvm_vcpu_srcu_read_lock(vcpu);
		/* Messages and the state that they move were in the L1 data cache. */
		vcpu->arch.l1tf_flush_l1d = true;
		if (!r)
			vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
		if (r > 0)
			tell_clock(vi);
		kvmi_explore(KVMI_AT_COMPLETE);
		is_current = r > 0 && vi == kvmi_vcpu(vcpu);
		if (is_current && kvmi_phase(vi->state) == KVMI_REPLY_HERE)
			r = complete_exit(vi);
		else if (is_current && !kvmi_is_half_way(vcpu) &&
			 (kvmi_wants_let_through(vi) || kvmi_wants_step(vi)))
			r = kvmi_step(vi);
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

void kvm_introspection_recalc_intercepts(struct kvm_vcpu *vcpu)
{
	kvm_x86_call(recalc_introspection_intercepts)(vcpu);

	/* What the tool watches is looked at wherever userspace's filter is. */
	if (kvm_introspection_knows_msrs(vcpu))
		kvm_x86_call(msr_filter_changed)(vcpu);
}
