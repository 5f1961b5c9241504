// SPDX-License-Identifier: GPL-2.0-only
/*
 * A session from its first moment to its last, and every way in which it can end.
 */
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

#include "introspection/lifecycle.h"
#include "introspection/session.h"
#include "introspection/session/life.h"

static bool __read_mostly introspection;
module_param(introspection, bool, 0444);
MODULE_PARM_DESC(introspection, "Let virtual machines be introspected (default: off)");

/*
 * On from the first HOOK: from then on vcpu->arch.introspection.vi alone tells.  To
 * patch the kernel's text at each HOOK and UNHOOK would cost every CPU more
 * than the check does.
 */
DEFINE_STATIC_KEY_FALSE(kvm_introspection_hooked);
EXPORT_SYMBOL_GPL(kvm_introspection_hooked);

bool kvm_is_introspection_enabled(void)
{
	return introspection;
}

/* Whether the flags of HOOK say that vCPUs do not just go on when the tool is lost. */
bool kvmi_minds_loss(struct kvm_introspection *session)
{
	return !READ_ONCE(session->leaving) &&
	       (session->flags & (KVM_INTROSPECTION_HOOK_FAIL_CLOSED |
				  KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS));
}

/* A session that lost its tool without UNHOOK or PREUNHOOK, by what HOOK asked for then. */
bool kvmi_crashes(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && kvmi_minds_loss(session) &&
	       (session->flags & KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS);
}

bool kvmi_fails_closed(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && kvmi_minds_loss(session) && !kvmi_crashes(session);
}

/* Whether vCPUs wait for VM_RELEASE; of a tool that is lost, only if it was to fail closed. */
bool kvmi_is_stopped(struct kvm_introspection *session)
{
	return READ_ONCE(session->stopped) &&
	       (!READ_ONCE(session->lost) || kvmi_fails_closed(session));
}

bool kvmi_fails_open(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && !kvmi_minds_loss(session);
}

static void session_free(struct kref *ref)
{
	struct kvm_introspection *session = container_of(ref, struct kvm_introspection, ref);

	if (session->conn) {
		session->conn->transport->stop(session->conn);
		kvmi_connection_put(session->conn);
	}
	put_pid(session->owner);
	mem_cgroup_put(session->memcg);
	kfree(session->state);
	kfree(session->tx);
	kfree(session);
}

void kvmi_session_put(struct kvm_introspection *session)
{
	kref_put(&session->ref, session_free);
}

/* The session of the VM, or NULL.  Its vCPUs may go at any time, and the VM with them. */
struct kvm_introspection *kvmi_session_get(struct kvm *kvm)
{
	struct kvm_introspection *session;

	spin_lock(&kvm->arch.introspection.end_lock);
	session = kvm->arch.introspection.session;
	if (session)
		kref_get(&session->ref);
	spin_unlock(&kvm->arch.introspection.end_lock);

	return session;
}

struct kvm_introspection *kvmi_session_alloc(struct kvm *kvm, u32 flags)
{
	struct kvm_introspection *session;

	session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return NULL;

	session->kvm = kvm;
	kref_init(&session->ref);
	session->flags = flags & KVM_INTROSPECTION_HOOK_FLAGS;
	session->stopped = flags & KVM_INTROSPECTION_HOOK_STOPPED;
	session->owner = get_task_pid(current, PIDTYPE_TGID);
	session->since = ktime_get_boottime_ns();
	session->memcg = get_mem_cgroup_from_mm(current->mm);
	mutex_init(&session->tx_lock);
	INIT_WORK(&session->outside_work, kvmi_outside_work);
	spin_lock_init(&session->worker_lock);
	session->tx = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	session->state = kzalloc(kvmi_vm_state_bytes(), GFP_KERNEL_ACCOUNT);
	if (!session->tx || !session->state) {
		kvmi_session_put(session);
		return NULL;
	}
	kvmi_vm_state_init(session->state);

	return session;
}

/* kvm->lock is held; also those that KVM does not count yet. */
#define for_each_created_vcpu(vcpu, kvm) \
	list_for_each_entry(vcpu, &(kvm)->arch.introspection.vcpus, arch.introspection.link)

/* The VM has a reference from now on.  Sessions of a VM are numbered as they begin, from 1. */
static void session_set(struct kvm *kvm, struct kvm_introspection *session)
{
	kref_get(&session->ref);
	spin_lock(&kvm->arch.introspection.end_lock);
	session->number = ++kvm->arch.introspection.begun;
	kvm->arch.introspection.session = session;
	spin_unlock(&kvm->arch.introspection.end_lock);
}

/* The connection is no more: each vCPU does as the flags of HOOK say. */
void kvmi_session_lose(struct kvm_introspection *session)
{
	struct kvm_vcpu_introspection *vi;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int idx;

	/* A PREUNHOOK that is on its way says first whether this is a loss. */
	mutex_lock(&session->tx_lock);
	WRITE_ONCE(session->lost, true);
	mutex_unlock(&session->tx_lock);

	idx = srcu_read_lock(&session->kvm->srcu);
	kvm_for_each_vcpu(i, vcpu, session->kvm) {
		vi = kvmi_vcpu(vcpu);
		if (!vi || vi->session != session)
			continue;
		atomic_set(&vi->pauses, 0);
		kvmi_vcpu_kick(vi);
	}
	srcu_read_unlock(&session->kvm->srcu, idx);
}

/* Take the session off each vCPU and wait until none holds it. */
static void session_detach(struct kvm *kvm, struct kvm_introspection *session)
{
	struct kvm_vcpu_introspection *vi, *next;
	struct kvm_vcpu *vcpu;
	LIST_HEAD(detached);

	mutex_lock(&kvm->lock);
	for_each_created_vcpu(vcpu, kvm) {
		vi = kvmi_vcpu(vcpu);
		RCU_INIT_POINTER(vcpu->arch.introspection.vi, NULL);
		if (vi)
			list_add_tail(&vi->detached, &detached);
	}
	mutex_unlock(&kvm->lock);

	list_for_each_entry(vi, &detached, detached)
		wake_up_all(&vi->wq);

	kvmi_explore(KVMI_AT_DETACH);
	/* Without it a vCPU may take a reference on what is being freed: the race that `cargo xtask explore` plants. */
#ifndef KVMI_PLANTED_RACE
	synchronize_srcu_expedited(&kvm->srcu);
#endif

	/* Nobody finds the session any more who could begin it anew. */
	cancel_work_sync(&session->outside_work);

	list_for_each_entry_safe(vi, next, &detached, detached) {
		kvmi_vcpu_put(vi);
		wait_for_completion_state(&vi->gone, TASK_IDLE);
		kvmi_vcpu_free(vi);
	}

	/*
	 * The vCPUs can no longer change their minds about them.  One that was there above
	 * may be gone by now, if its creation has failed.
	 */
	mutex_lock(&kvm->lock);
	for_each_created_vcpu(vcpu, kvm) {
		if (kvmi_cleanup_enabled(session->state))
			WRITE_ONCE(vcpu->arch.introspection.intercepts, 0);
		WRITE_ONCE(vcpu->arch.introspection.singlestep, false);
	}
	mutex_unlock(&kvm->lock);

	/*
	 * Once this is back, no vCPU enters the guest with an intercept of the session's.
	 * One in a guest of its own may keep that of CR0 till it is back from there, on
	 * SVM: it is of no consequence there, and recomputed with CR0 on the way.
	 */
	kvm_make_all_cpus_request(kvm, KVM_REQ_INTROSPECTION_INTERCEPTS);
}

/* kvm->lock is held. */
static int attach(struct kvm_introspection *session, struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu_alloc(session, vcpu);

	if (!vi)
		return -ENOMEM;
	rcu_assign_pointer(vcpu->arch.introspection.vi, vi);
	return 0;
}

/* Attach to each vCPU, now and, by kvm_introspection_vcpu_create(), from now on. */
int kvmi_session_publish(struct kvm *kvm, struct kvm_introspection *session)
{
	struct kvm_vcpu *vcpu;
	int r = 0;

	kvmi_explore(KVMI_AT_PUBLISH);
	mutex_lock(&kvm->lock);

	if (kvm_arch_has_private_mem(kvm) || kvm_x86_call(is_memory_encrypted)(kvm)) {
		r = -EOPNOTSUPP;
		goto out;
	}

	for_each_created_vcpu(vcpu, kvm) {
		r = attach(session, vcpu);
		if (r)
			break;
	}
	if (!r)
		session_set(kvm, session);
out:
	mutex_unlock(&kvm->lock);
	if (r == -ENOMEM) {
		/* A vCPU that has it may be waiting for VM_RELEASE. */
		WRITE_ONCE(session->closing, true);
		session_detach(kvm, session);
	}
	return r;
}

/* No vCPU is watched: nothing is denied any more, and nobody steps. */
void kvmi_lift_all(struct kvm *kvm)
{
	kvmi_access_end(kvm);
	kvmi_block_irqs(kvm, false);
}

/* Each vCPU comes to its run loop before it executes another instruction of the guest. */
void kvmi_stop_vcpus(struct kvm *kvm)
{
	kvm_make_all_cpus_request(kvm, KVM_REQ_INTROSPECTION);
	kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE);
}

/* The session of this connection, or whichever there is, and not yet at its end. */
static struct kvm_introspection *session_of(struct kvm *kvm, struct kvmi_connection *conn)
{
	struct kvm_introspection *session = kvm->arch.introspection.session;

	lockdep_assert_held(&kvm->arch.introspection.end_lock);
	return session && (!conn || session->conn == conn) ? session : NULL;
}

/*
 * Every wait for the tool ends, page faults of whoever carries out a message too, and the
 * rest is left to end_work().  Itself waits for nothing, whoever holds which mutex.
 * conn: not if it is another's session by now.  The number of the session whose end there
 * is to wait for.
 */
unsigned long kvmi_tell_end(struct kvm *kvm, struct kvmi_connection *conn, bool taken_over)
{
	struct kvm_introspection *session;
	unsigned long number;

	spin_lock(&kvm->arch.introspection.end_lock);
	number = kvm->arch.introspection.begun;
	session = session_of(kvm, conn);
	if (session) {
		kref_get(&session->ref);
		if (taken_over)
			session->taken_over = true;
		/* Once, and here, so that the end of the VM, which comes later, finds it. */
		if (!session->closing) {
			WRITE_ONCE(session->closing, true);
			queue_work(system_unbound_wq, &kvm->arch.introspection.end_work);
		}
	} else if (kvm->arch.introspection.session) {
		/* Ours has ended before that one began. */
		number--;
	}
	spin_unlock(&kvm->arch.introspection.end_lock);
	if (!session)
		return number;

	/* closing is there before anybody can see the hang-up and call it a loss. */
	smp_wmb();
	kvmi_hang_up(session->conn);
	session->conn->transport->interrupt(session->conn);
	kvmi_interrupt_outside(session);
	kvmi_session_put(session);

	return number;
}

/* Until the session of this number has ended, with nothing left of it; or -EINTR. */
int kvmi_await_end(struct kvm *kvm, unsigned long number)
{
	unsigned long *ended = &kvm->arch.introspection.ended;

	return wait_var_event_killable(ended, READ_ONCE(*ended) >= number) ? -EINTR : 0;
}

/*
 * The tool says nothing any more.  A vCPU that waits for it takes what is there, and
 * completes its exit if that is the reply.
 */
static void await_replies(struct kvm *kvm, struct kvm_introspection *session, bool wakes)
{
	struct kvm_vcpu_introspection *vi;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		/* Of a vCPU that is counted, nobody but the end of the session takes it off. */
		vi = rcu_dereference_protected(vcpu->arch.introspection.vi, true);
		if (!vi || vi->session != session)
			continue;
		if (wakes)
			wake_up_all(&vi->wq);
		else
			wait_event_idle(vi->wq, !READ_ONCE(vi->busy));
	}
}

/* The VM is free for the next session, if that takes over what this one denies. */
static bool hand_over(struct kvm *kvm, struct kvm_introspection *session)
{
	bool taken_over;

	spin_lock(&kvm->arch.introspection.end_lock);
	taken_over = session->taken_over;
	if (taken_over)
		kvm->arch.introspection.session = NULL;
	spin_unlock(&kvm->arch.introspection.end_lock);

	return taken_over;
}

/*
 * The one way in which a session ends, in a work item: it may have to wait for a vCPU that
 * stands in a page fault of the host, or for a tool that is about to give up a message.
 * From one session to the next that takes it over no vCPU goes on: before the first one
 * ends, each vCPU waits in its run loop or will come there next.
 */
static void end_work(struct work_struct *work)
{
	struct kvm *kvm = container_of(work, struct kvm, arch.introspection.end_work);
	struct kvm_introspection *session = kvmi_session_get(kvm);
	struct kvmi_connection *conn;
	unsigned long number;

	if (!session)
		return;
	if (!READ_ONCE(session->closing)) {
		kvmi_session_put(session);
		return;
	}
	kvmi_explore(KVMI_AT_END);
	number = session->number;
	conn = session->conn;
	kvmi_connection_get(conn);

	mutex_lock(&conn->lock);
	conn->session = NULL;
	mutex_unlock(&conn->lock);
	kvmi_finish_readers_wait(session);

	if (READ_ONCE(kvm->arch.introspection.stopped)) {
		kvmi_stop_vcpus(kvm);
		synchronize_srcu_expedited(&kvm->srcu);
	}
	/* All of them first: one may stand in a page fault of the host. */
	await_replies(kvm, session, true);
	await_replies(kvm, session, false);
	session_detach(kvm, session);
	if (!hand_over(kvm, session)) {
		kvmi_lift_all(kvm);
		spin_lock(&kvm->arch.introspection.end_lock);
		kvm->arch.introspection.session = NULL;
		spin_unlock(&kvm->arch.introspection.end_lock);
	}
	/* The VM's reference, and the one from above. */
	kvmi_session_put(session);
	kvmi_session_put(session);
	complete_all(&conn->ended);
	kvmi_connection_put(conn);

	WRITE_ONCE(kvm->arch.introspection.ended, number);
	/* Pairs with the barrier of whoever goes to sleep. */
	smp_mb();
	wake_up_var(&kvm->arch.introspection.ended);
}

void kvm_introspection_vm_init(struct kvm *kvm)
{
	mutex_init(&kvm->arch.introspection.lock);
	spin_lock_init(&kvm->arch.introspection.end_lock);
	INIT_WORK(&kvm->arch.introspection.end_work, end_work);
	INIT_LIST_HEAD(&kvm->arch.introspection.vcpus);
	kvmi_access_init(kvm);
}

/* No file of the VM is open any more: nobody can hook it again. */
void kvm_introspection_vm_destroy(struct kvm *kvm)
{
	kvmi_tell_end(kvm, NULL, false);
	flush_work(&kvm->arch.introspection.end_work);
}

/*
 * kvm->mm is being torn down: the VM is dead, though its file may be open elsewhere.
 * Called by the MMU notifier's release, behind which others of the host wait.
 */
void kvm_introspection_vmm_exit(struct kvm *kvm)
{
	kvmi_tell_end(kvm, NULL, false);
}

/* Userspace cannot reach the vCPU yet; it may be there before KVM counts it. */
int kvm_introspection_vcpu_create(struct kvm_vcpu *vcpu)
{
	struct kvm_arch_introspection *of_vm = &vcpu->kvm->arch.introspection;
	struct kvm_introspection *session;
	int r = 0;

	mutex_lock(&vcpu->kvm->lock);
	session = kvmi_session_get(vcpu->kvm);
	/* One that ends has been taken off the vCPUs, or will be, under this lock. */
	if (session && !READ_ONCE(session->closing)) {
		r = attach(session, vcpu);
		if (!r)
			kvmi_vcpu(vcpu)->is_new = true;
	}
	if (!r)
		list_add_tail(&vcpu->arch.introspection.link, &of_vm->vcpus);
	mutex_unlock(&vcpu->kvm->lock);
	if (session)
		kvmi_session_put(session);

	return r;
}

/* With the VM, after its session, or because the creation failed after all. */
void kvm_introspection_vcpu_destroy(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;

	mutex_lock(&vcpu->kvm->lock);
	vi = kvmi_vcpu(vcpu);
	RCU_INIT_POINTER(vcpu->arch.introspection.vi, NULL);
	list_del(&vcpu->arch.introspection.link);
	mutex_unlock(&vcpu->kvm->lock);
	if (vi)
		kvmi_vcpu_free(vi);
}
