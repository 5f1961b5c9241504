// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vCPU that is not in KVM_RUN: its commands are carried out by whoever brings them, with
 * vcpu->mutex and the vCPU loaded, as an ioctl of the VMM's would be.
 *
 * Nobody waits for that mutex.  Who brings a command and finds the mutex taken leaves the
 * command in the queue: in KVM_RUN the run loop takes it (vcpu.c), and who lets the mutex
 * go looks for what was left (kvm_arch_vcpu_unlocked()) and has a work item do it.  One at
 * a time, with conn->lock, so that answers keep the order of the commands.
 *
 * The VMM may wait for that mutex, deaf to signals.  So nobody waits with it: what of the guest's
 * memory is not there is brought in by the work item, with nothing held, and the command is
 * carried out anew.
 *
 * The reply to an event is taken, too.  What stands behind it waits for KVM_RUN: it is to find
 * done what KVM does for that reply.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "introspection/lifecycle.h"
#include "introspection/session.h"

/* Of its own, for it may wait for tools that do not read; from the first session on. */
static struct workqueue_struct *outside_wq;
static DEFINE_MUTEX(outside_wq_lock);

int kvmi_outside_init(void)
{
	int r;

	if (mutex_lock_killable(&outside_wq_lock))
		return -EINTR;
	if (!outside_wq)
		outside_wq = alloc_workqueue("kvmi", WQ_UNBOUND, 0);
	r = outside_wq ? 0 : -ENOMEM;
	mutex_unlock(&outside_wq_lock);

	return r;
}

void kvm_introspection_exit(void)
{
	if (outside_wq)
		destroy_workqueue(outside_wq);
}

/* The next one to be carried out, which stays in the queue; or NULL. */
static struct kvmi_job *next_job(struct kvm_vcpu_introspection *vi)
{
	struct kvmi_job *job;

	spin_lock(&vi->lock);
	job = list_first_entry_or_null(&vi->jobs, struct kvmi_job, link);
	spin_unlock(&vi->lock);

	return job;
}

static bool has_work(struct kvm_vcpu_introspection *vi)
{
	return READ_ONCE(vi->unsent) || READ_ONCE(vi->owes_rest) || next_job(vi);
}

/*
 * With vcpu->mutex and conn->lock.  1: something was carried out, and its answer, of *bytes,
 * is in session->tx; 0: there was nothing; -EAGAIN: session->missing is to be brought in first;
 * -EPIPE.
 */
static int carry_out_loaded(struct kvm_vcpu_introspection *vi, size_t *bytes)
{
	struct kvm_introspection *session = vi->session;
	enum kvmi_verdict verdict;
	struct kvmi_job *job;
	int idx;

	/* What the VMM has written by now comes before what the tool says now. */
	idx = srcu_read_lock(&session->kvm->srcu);
	kvmi_settle(vi);
	srcu_read_unlock(&session->kvm->srcu, idx);

	/* Nothing but the rest of a message that a signal has cut short. */
	if (vi->owes_rest) {
		vi->owes_rest = false;
		return 1;
	}
	/* An answer that a signal has kept from being sent. */
	if (vi->unsent) {
		memcpy(session->tx, vi->tx, vi->unsent);
		*bytes = vi->unsent;
		vi->unsent = 0;
		return 1;
	}
	if (kvmi_phase(vi->state) == KVMI_REPLY_HERE)
		return 0;
	job = next_job(vi);
	if (!job)
		return 0;

	session->missing = 0;
	vi->outside = true;
	verdict = kvmi_run_job(vi, job, session->tx, bytes);
	vi->outside = false;
	if (session->missing) {
		*bytes = 0;
		return -EAGAIN;
	}
	session->unavailable = 0;
	kfree(kvmi_dequeue(vi));

	return verdict == KVMI_CLOSE ? -EPIPE : 1;
}

/* conn->lock is held.  As carry_out_loaded(); 0 also when KVM_RUN, or an ioctl, has the vCPU. */
static int carry_out(struct kvm_vcpu_introspection *vi, size_t *bytes)
{
	struct kvm_vcpu *vcpu = vi->vcpu;
	int r;

	*bytes = 0;
	/* Pairs with the barrier of kvm_arch_vcpu_unlocked(). */
	smp_mb();
	if (!mutex_trylock(&vcpu->mutex))
		return 0;
	vcpu_load(vcpu);
	r = carry_out_loaded(vi, bytes);
	vcpu_put(vcpu);
	mutex_unlock(&vcpu->mutex);

	return r;
}

/*
 * conn->lock is held, and a command was queued.  As carry_out(), if it is the only one; with
 * others before it, the work item or the run loop has it.
 */
int kvmi_carry_out_outside(struct kvm_vcpu_introspection *vi, size_t *bytes)
{
	bool is_first;
	int r = 0;

	*bytes = 0;
	spin_lock(&vi->lock);
	is_first = list_is_singular(&vi->jobs);
	spin_unlock(&vi->lock);
	if (is_first && !READ_ONCE(vi->unsent) && !READ_ONCE(vi->owes_rest))
		r = carry_out(vi, bytes);
	if (r != -EAGAIN)
		return r;

	/* It stays in the queue. */
	queue_work(outside_wq, &vi->session->outside_work);
	return 1;
}

/* With conn->lock: of the first vCPU that has something. */
static int carry_out_any(struct kvm_introspection *session, size_t *bytes)
{
	struct kvm_vcpu_introspection *vi;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r;

	kvm_for_each_vcpu(i, vcpu, session->kvm) {
		vi = kvmi_session_vcpu(session, i);
		if (!vi || !has_work(vi))
			continue;
		r = carry_out(vi, bytes);
		if (r)
			return r;
	}
	return 0;
}

/* Room is reserved.  As carry_out(); what was sent of it to *sent, what is missing to *missing. */
static int carry_out_and_send(struct kvm_introspection *session, size_t *sent,
			      unsigned long *missing)
{
	struct kvmi_connection *conn = session->conn;
	size_t bytes;
	int r = 0;

	*sent = 0;
	mutex_lock(&conn->lock);
	if (conn->session == session && !READ_ONCE(session->lost) && !READ_ONCE(session->closing))
		r = carry_out_any(session, &bytes);
	if (r > 0) {
		r = bytes ? kvmi_send_reserved(session, session->tx, bytes) :
			    kvmi_send_rest(session);
		if (!r) {
			*sent = bytes;
			r = 1;
		}
	}
	*missing = session->missing;
	mutex_unlock(&conn->lock);

	return r;
}

/* The end of the session interrupts what it waits for, as a signal would. */
static void set_worker(struct kvm_introspection *session, struct task_struct *task)
{
	spin_lock(&session->worker_lock);
	session->worker = task;
	spin_unlock(&session->worker_lock);
}

void kvmi_interrupt_outside(struct kvm_introspection *session)
{
	spin_lock(&session->worker_lock);
	if (session->worker) {
		set_tsk_thread_flag(session->worker, TIF_NOTIFY_SIGNAL);
		wake_up_process(session->worker);
	}
	spin_unlock(&session->worker_lock);
}

void kvmi_outside_work(struct work_struct *work)
{
	struct kvm_introspection *session =
		container_of(work, struct kvm_introspection, outside_work);
	struct kvmi_connection *conn = session->conn;
	unsigned long missing;
	size_t sent;
	int r;

	set_worker(session, current);
	do {
		/* With nothing held: a tool that does not read is to be able to write. */
		r = READ_ONCE(session->closing) ? -EPIPE :
		    conn->transport->reserve(conn, KVMI_BUFFER_BYTES, true);
		if (r)
			break;
		r = carry_out_and_send(session, &sent, &missing);
		conn->transport->unreserve(conn, KVMI_BUFFER_BYTES - sent);
		if (r == -EAGAIN)
			r = kvmi_bring_in(session, missing);
		if (r == -EPIPE)
			kvmi_break(session);
		cond_resched();
	} while (r > 0);
	set_worker(session, NULL);
	clear_notify_signal();
}

/* Whoever had the vCPU has let go of vcpu->mutex. */
void kvm_arch_vcpu_unlocked(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;
	int idx;

	if (!kvm_is_introspected(vcpu))
		return;

	idx = srcu_read_lock(&vcpu->kvm->srcu);
	/* Pairs with the barrier of carry_out(): either we see the command, or it gets the mutex. */
	smp_mb();
	vi = kvmi_vcpu(vcpu);
	if (vi && has_work(vi))
		queue_work(outside_wq, &vi->session->outside_work);
	srcu_read_unlock(&vcpu->kvm->srcu, idx);
}
