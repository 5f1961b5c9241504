// SPDX-License-Identifier: GPL-2.0-only
/*
 * The receive thread of a session: VM commands are carried out here, vCPU
 * commands and replies to events are handed to their vCPU.  It never waits for
 * a vCPU that does not run.
 */
#include <linux/cgroup.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched/signal.h>

#include "introspection/session.h"

/* How long UNHOOK waits for a reader that somebody keeps. */
#define READER_PATIENCE	HZ

/* While the reader carries out a message the session cannot be detached. */
static struct kvm_vcpu_introspection *reader_vcpu(struct kvm_introspection *session,
						  struct kvm_vcpu *vcpu)
{
	return rcu_dereference_check(vcpu->arch.introspection.vi, lockdep_is_held(&session->conn->lock));
}

static struct kvm_vcpu_introspection *session_vcpu(struct kvm_introspection *session, u16 idx)
{
	struct kvm_vcpu *vcpu = kvm_get_vcpu(session->kvm, idx);

	return vcpu ? reader_vcpu(session, vcpu) : NULL;
}

static int answer(struct kvm_introspection *session, size_t bytes)
{
	bool owes_rest = false;

	/* Nothing but session_end() interrupts this thread. */
	return bytes ? kvmi_send(session, session->tx, bytes, &owes_rest) : 0;
}

static int handle(struct kvm_introspection *session, size_t bytes)
{
	const u8 *rx = session->conn->rx;
	struct kvm_vcpu_introspection *vi;
	size_t out = 0;
	u16 idx = 0;
	int r;

	switch (kvmi_vm_message(session->state, session, rx, bytes, session->tx, &out, &idx)) {
	case KVMI_ANSWERED:
		return answer(session, out);
	case KVMI_QUEUE:
		vi = session_vcpu(session, idx);
		r = vi ? kvmi_queue(vi, rx, bytes) : -KVM_EINVAL;
		if (r == -EPIPE)
			return r;
		if (r)
			return answer(session, kvmi_build_error_reply(rx, r, session->tx));
		kvmi_explore(KVMI_AT_KICK);
		kvmi_vcpu_kick(vi);
		return 0;
	default:
		return -EPIPE;
	}
}

static int carry_out(struct kvmi_connection *conn, size_t bytes)
{
	struct kvm_introspection *session;
	int r = -EPIPE;

	kvmi_explore(KVMI_AT_MESSAGE);
	mutex_lock(&conn->lock);
	session = conn->session;
	/* What still lies in the socket when the session is lost is not carried out. */
	if (session && !READ_ONCE(session->lost) && !READ_ONCE(session->closing))
		r = handle(session, bytes);
	mutex_unlock(&conn->lock);

	return r;
}

static void tell_loss(struct kvm_introspection *session)
{
	struct kvm_vcpu_introspection *vi;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	/* A PREUNHOOK that is on its way says first whether this is a loss. */
	mutex_lock(&session->tx_lock);
	WRITE_ONCE(session->lost, true);
	mutex_unlock(&session->tx_lock);

	kvm_for_each_vcpu(i, vcpu, session->kvm) {
		vi = reader_vcpu(session, vcpu);
		atomic_set(&vi->pauses, 0);
		kvmi_vcpu_kick(vi);
	}
}

static int reader(void *data)
{
	struct kvmi_connection *conn = data;
	size_t bytes;

	/*
	 * So that session_end() gets it out of a page fault that nobody serves.  A
	 * SIGKILL of a process's is ignored, as by any thread of the kernel's.
	 */
	allow_kernel_signal(SIGKILL);

	while (!READ_ONCE(conn->hung_up) && !kvmi_receive(conn, &bytes) &&
	       !carry_out(conn, bytes))
		cond_resched();

	/* First, for whoever sends has tx_lock, and comes to an end by this. */
	kernel_sock_shutdown(conn->sock, SHUT_RDWR);

	kvmi_explore(KVMI_AT_LOSS);
	mutex_lock(&conn->lock);
	if (conn->session)
		tell_loss(conn->session);
	mutex_unlock(&conn->lock);

	complete(&conn->reader_gone);
	kvmi_connection_put(conn);
	module_put_and_kthread_exit(0);
}

int kvmi_reader_create(struct kvm_introspection *session)
{
	struct kvmi_connection *conn = session->conn;
	struct task_struct *task;

	task = kthread_create(reader, conn, "kvmi-recv");
	if (IS_ERR(task))
		return -ENOMEM;

	/*
	 * Its CPU time is the caller's, as far as cgroups let a kernel thread be moved:
	 * those of version 2 have no call for it.  Memory is charged by session->memcg.
	 */
	if (cgroup_attach_task_all(current, task)) {
		kthread_stop(task);
		return -ENOMEM;
	}

	conn->session = session;
	conn->reader = get_task_struct(task);
	kref_get(&conn->ref);
	__module_get(THIS_MODULE);

	return 0;
}

void kvmi_reader_start(struct kvmi_connection *conn)
{
	conn->reader_started = true;
	wake_up_process(conn->reader);
}

/*
 * The session has ended.  The reader is on its way out, unless somebody keeps the
 * socket's lock.  patient: wait for it, though not for long, and not if the caller
 * is killed.  It goes on alone in any case.
 */
void kvmi_reader_stop(struct kvmi_connection *conn, bool patient)
{
	if (!conn->reader)
		return;

	if (!conn->reader_started) {
		kthread_stop(conn->reader);
		kvmi_connection_put(conn);
		module_put(THIS_MODULE);
	} else if (patient &&
		   wait_for_completion_killable_timeout(&conn->reader_gone,
							READER_PATIENCE) > 0) {
		kthread_stop(conn->reader);
	}
	put_task_struct(conn->reader);
}

void kvmi_glue_vcpu_state(struct kvm_introspection *session, u16 vcpu_idx,
			  struct kvmi_vcpu_run_state *out)
{
	struct kvm_vcpu_introspection *vi = session_vcpu(session, vcpu_idx);

	if (vi)
		kvmi_run_state(vi, out);
}

void kvmi_glue_release(struct kvm_introspection *session)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	WRITE_ONCE(session->stopped, false);
	kvm_for_each_vcpu(i, vcpu, session->kvm)
		kvmi_vcpu_kick(reader_vcpu(session, vcpu));
}

u32 kvmi_glue_vcpu_count(struct kvm_introspection *session)
{
	return atomic_read(&session->kvm->online_vcpus);
}

/* An AP before INIT-SIPI has nothing to show. */
int kvmi_glue_vcpu_ready(struct kvm_introspection *session, u16 vcpu_idx)
{
	struct kvm_vcpu *vcpu = kvm_get_vcpu(session->kvm, vcpu_idx);

	if (!vcpu)
		return -KVM_EINVAL;
	if (READ_ONCE(vcpu->arch.mp_state) == KVM_MP_STATE_UNINITIALIZED)
		return -KVM_EAGAIN;
	return 0;
}

int kvmi_glue_pause_vcpu(struct kvm_introspection *session, u16 vcpu_idx, bool wait)
{
	struct kvm_vcpu_introspection *vi = session_vcpu(session, vcpu_idx);
	DECLARE_BITMAP(only, KVM_MAX_VCPUS);

	if (!vi)
		return -KVM_EINVAL;
	if (atomic_read(&vi->pauses) >= KVMI_MAX_PENDING_PAUSES)
		return -KVM_EBUSY;

	atomic_inc(&vi->pauses);
	kvmi_vcpu_kick(vi);
	if (wait) {
		bitmap_zero(only, KVM_MAX_VCPUS);
		__set_bit(vcpu_idx, only);
		kvm_make_vcpus_request_mask(session->kvm, KVM_REQ_OUTSIDE_GUEST_MODE, only);
	}
	return 0;
}
