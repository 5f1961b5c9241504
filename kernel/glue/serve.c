// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a vCPU does for its tool between two exits, outside SRCU: carries commands out,
 * sends its event, waits for the reply, or for VM_RELEASE.
 */
#include <linux/bitfield.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "introspection/session.h"
#include "x86.h"

/* vcpu: one queued message; its answer, of *bytes, to tx. */
enum kvmi_verdict kvmi_run_job(struct kvm_vcpu_introspection *vi, struct kvmi_job *job, u8 *tx,
			       size_t *bytes)
{
	*bytes = 0;
	/* The core reads what a short request lacks as zeroes. */
	if (job->kept < vi->rx_dirty)
		memset(vi->rx + job->kept, 0, vi->rx_dirty - job->kept);
	memcpy(vi->rx, job->msg, job->kept);
	vi->rx_dirty = job->kept;

	return kvmi_vcpu_message(vi->session->state, vi->state, vi, vi->rx, job->bytes, tx, bytes);
}

/* One queued message.  0, -EINTR (its reply waits in tx), -EPIPE. */
static int run_job(struct kvm_vcpu_introspection *vi, struct kvmi_job *job)
{
	size_t out;
	int r;

	if (kvmi_run_job(vi, job, vi->tx, &out) == KVMI_CLOSE) {
		kvmi_break(vi->session);
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
void kvmi_tell_clock(struct kvm_vcpu_introspection *vi)
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

/* The VMM has created it while the VM is hooked, and it is about to run: an AP has had its SIPI. */
bool kvmi_is_new(struct kvm_vcpu_introspection *vi)
{
	u32 mp_state = vi->vcpu->arch.mp_state;

	return vi->is_new && mp_state != KVM_MP_STATE_UNINITIALIZED &&
	       mp_state != KVM_MP_STATE_INIT_RECEIVED;
}

/* Such a vCPU: true when the tool is to be told. */
static bool take_creation(struct kvm_vcpu_introspection *vi)
{
	static const struct kvmi_occurrence created = { .event = KVMI_VCPU_EVENT_CREATE_VCPU };

	if (!kvmi_is_new(vi))
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

/* The session ends: what the tool has said before counts, up to the reply that is awaited. */
static void take_what_was_sent(struct kvm_vcpu_introspection *vi)
{
	struct kvmi_job *job;

	while (kvmi_phase(vi->state) != KVMI_REPLY_HERE && (job = kvmi_dequeue(vi))) {
		run_job(vi, job);
		kfree(job);
	}
}

/*
 * Outside SRCU, with a reference on vi: everything that can block.  1: the
 * vCPU may go on, with KVMI_REPLY_HERE by completing its exit; 0: it crashed;
 * -EINTR: a signal.
 */
int kvmi_serve(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;
	struct kvmi_job *job;
	bool half_way;
	int r;

	for (;;) {
		kvmi_explore(KVMI_AT_SERVE);
		kvmi_show(vi);
		if (READ_ONCE(session->closing)) {
			take_what_was_sent(vi);
			return 1;
		}
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
			r = READ_ONCE(session->lost) ? -EPIPE : kvmi_send_event(vi);
			/* Until it is said what becomes of the event. */
			if (r == -EPIPE)
				r = wait_for_tool(vi);
			break;
		case KVMI_SENT:
			r = wait_for_tool(vi);
			break;
		case KVMI_IDLE:
			half_way = kvmi_is_half_way(vi->vcpu);
			/* The tool wants its event no more. */
			if (half_way && !kvmi_is_stopped(session))
				return 1;
			if (take_creation(vi) || (!half_way && kvmi_take_step(vi)))
				continue;
			if (!READ_ONCE(session->lost) &&
			    ((!half_way && kvmi_inject(vi)) || take_pause(vi)))
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
