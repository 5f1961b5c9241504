// SPDX-License-Identifier: GPL-2.0-only
/*
 * A session from HOOK to UNHOOK, and every other way it can end.
 */
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

#include "introspection/lifecycle.h"
#include "introspection/session.h"

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

/* A session that lost its tool without UNHOOK or PREUNHOOK, by what HOOK asked for then. */
bool kvmi_crashes(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && !READ_ONCE(session->leaving) &&
	       (session->flags & KVM_INTROSPECTION_HOOK_CRASH_ON_LOSS);
}

bool kvmi_fails_closed(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && !READ_ONCE(session->leaving) &&
	       (session->flags & KVM_INTROSPECTION_HOOK_FAIL_CLOSED) && !kvmi_crashes(session);
}

/* Whether vCPUs wait for VM_RELEASE; of a tool that is lost, only if it was to fail closed. */
bool kvmi_is_stopped(struct kvm_introspection *session)
{
	return READ_ONCE(session->stopped) &&
	       (!READ_ONCE(session->lost) || kvmi_fails_closed(session));
}

bool kvmi_fails_open(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && !kvmi_crashes(session) && !kvmi_fails_closed(session);
}

/* patient: give the reader, if somebody keeps it, a while to end. */
static void session_free(struct kvm_introspection *session, bool patient)
{
	if (session->conn) {
		kvmi_reader_stop(session->conn, patient);
		kvmi_connection_put(session->conn);
	}
	mem_cgroup_put(session->memcg);
	kfree(session->state);
	kfree(session->rest);
	kfree(session->tx);
	kfree(session);
}

static struct kvm_introspection *session_alloc(struct kvm *kvm)
{
	struct kvm_introspection *session;

	session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);
	if (!session)
		return NULL;

	session->kvm = kvm;
	session->memcg = get_mem_cgroup_from_mm(current->mm);
	mutex_init(&session->tx_lock);
	session->tx = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	session->rest = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	session->state = kzalloc(kvmi_vm_state_bytes(), GFP_KERNEL_ACCOUNT);
	if (!session->tx || !session->rest || !session->state) {
		session_free(session, false);
		return NULL;
	}
	kvmi_vm_state_init(session->state);

	return session;
}

/* kvm->lock is held; also those that KVM does not count yet. */
#define for_each_created_vcpu(vcpu, kvm) \
	list_for_each_entry(vcpu, &(kvm)->arch.introspection.vcpus, arch.introspection.link)

/* kvm->lock is held. */
static void session_set(struct kvm *kvm, struct kvm_introspection *session)
{
	spin_lock(&kvm->arch.introspection.end_lock);
	kvm->arch.introspection.session = session;
	spin_unlock(&kvm->arch.introspection.end_lock);
}

/* Take the session off each vCPU and wait until none holds it. */
static void session_detach(struct kvm *kvm, struct kvm_introspection *session)
{
	struct kvm_vcpu_introspection *vi, *next;
	struct kvm_vcpu *vcpu;
	LIST_HEAD(detached);

	mutex_lock(&kvm->lock);
	session_set(kvm, NULL);
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

	list_for_each_entry_safe(vi, next, &detached, detached) {
		kvmi_vcpu_put(vi);
		wait_for_completion(&vi->gone);
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
static int session_publish(struct kvm *kvm, struct kvm_introspection *session)
{
	struct kvm_vcpu *vcpu;
	int r = 0;

	kvmi_explore(KVMI_AT_PUBLISH);
	mutex_lock(&kvm->lock);

	if (kvm_arch_has_private_mem(kvm) || kvm_x86_call(is_memory_encrypted)(kvm)) {
		r = -EOPNOTSUPP;
		goto out;
	}

	session_set(kvm, session);
	for_each_created_vcpu(vcpu, kvm) {
		r = attach(session, vcpu);
		if (r)
			break;
	}
out:
	mutex_unlock(&kvm->lock);
	if (r == -ENOMEM) {
		/* A vCPU that has it may be waiting for VM_RELEASE. */
		WRITE_ONCE(session->closing, true);
		session_detach(kvm, session);
	}
	return r;
}

/*
 * Every wait for the tool ends, the reader's page faults too.  Itself waits for
 * nothing, whoever holds which mutex: PREUNHOOK waits for the tool with
 * arch.introspection.lock held, and the end of the VMM may not wait at all.
 */
void kvmi_session_tell_end(struct kvm *kvm, bool leave_to_work)
{
	struct kvmi_connection *conn = NULL;
	struct task_struct *reader = NULL;

	spin_lock(&kvm->arch.introspection.end_lock);
	if (kvm->arch.introspection.session) {
		WRITE_ONCE(kvm->arch.introspection.session->closing, true);
		conn = kvm->arch.introspection.session->conn;
		kvmi_connection_get(conn);
		reader = get_task_struct(conn->reader);
		/* Here, so that the end of the VM, which comes later, can cancel it. */
		if (leave_to_work)
			queue_work(system_unbound_wq, &kvm->arch.introspection.end_work);
	}
	spin_unlock(&kvm->arch.introspection.end_lock);
	if (!conn)
		return;

	/* closing is there before the reader can see the hang-up and call it a loss. */
	smp_wmb();
	kvmi_hang_up(conn);
	send_sig(SIGKILL, reader, 1);
	put_task_struct(reader);
	kvmi_connection_put(conn);
}

/* No vCPU is watched: nothing is denied any more, and nobody steps. */
static void lift_all(struct kvm *kvm)
{
	kvmi_access_end(kvm);
	kvmi_block_irqs(kvm, false);
}

/* Who ends a session, and so how long it may take. */
enum session_ender {
	ENDED_BY_IOCTL,		/* killable, and patient with a reader that somebody keeps */
	ENDED_BY_NEXT,		/* the same; what it denies is the next session's */
	ENDED_WITH_VM,		/* neither */
};

/*
 * The one way in which a session ends; arch.introspection.lock is held.  An ioctl whose
 * caller is killed while the reader still works on a command leaves the session
 * closing, for the end of the VM to finish.
 */
static int session_end(struct kvm *kvm, struct kvm_introspection *session,
		       enum session_ender ender)
{
	struct kvmi_connection *conn = session->conn;

	kvmi_session_tell_end(kvm, false);
	kvmi_explore(KVMI_AT_END);

	if (ender == ENDED_WITH_VM)
		mutex_lock(&conn->lock);
	else if (mutex_lock_killable(&conn->lock))
		return -EINTR;
	conn->session = NULL;
	mutex_unlock(&conn->lock);

	session_detach(kvm, session);
	if (ender != ENDED_BY_NEXT)
		lift_all(kvm);
	session_free(session, ender != ENDED_WITH_VM);

	return 0;
}

/* Each vCPU comes to its run loop before it executes another instruction of the guest. */
static void stop_vcpus(struct kvm *kvm)
{
	kvm_make_all_cpus_request(kvm, KVM_REQ_INTROSPECTION);
	kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE);
}

/*
 * From one session to the next no vCPU goes on, and what is denied stays so: before the
 * first one ends, each vCPU waits in its run loop or will come there next.
 */
static void between_sessions(struct kvm *kvm, bool stopped)
{
	WRITE_ONCE(kvm->arch.introspection.stopped, stopped);
	if (stopped) {
		stop_vcpus(kvm);
		synchronize_srcu_expedited(&kvm->srcu);
	} else {
		/* Pairs with the barrier of whoever goes to sleep. */
		smp_mb();
		wake_up_var(&kvm->arch.introspection.stopped);
	}
}

/* HOOK; arch.introspection.lock is held. */
int kvmi_hook(struct kvm *kvm, const struct kvm_introspection_hook *hook)
{
	struct kvm_introspection *stale = kvm->arch.introspection.session;
	struct kvm_introspection *session;
	bool takes_over = false;
	int r;

	if (hook->flags & ~KVM_INTROSPECTION_HOOK_FLAGS)
		return -EINVAL;
	/* vCPUs that a vanished tool left stopped wait for exactly this. */
	if (stale && (!kvmi_fails_closed(stale) || READ_ONCE(stale->closing)))
		return -EEXIST;

	session = session_alloc(kvm);
	if (!session)
		return -ENOMEM;
	session->flags = hook->flags;
	session->stopped = hook->flags & KVM_INTROSPECTION_HOOK_STOPPED;

	session->conn = kvmi_connection_open(hook->fd);
	if (IS_ERR(session->conn)) {
		r = PTR_ERR(session->conn);
		session->conn = NULL;
		goto free;
	}

	r = kvmi_reader_create(session);
	if (r)
		goto free;

	/* Only now, when little can fail any more: what fails closed is to stay closed. */
	if (stale) {
		takes_over = session->stopped;
		if (takes_over)
			between_sessions(kvm, true);
		r = session_end(kvm, stale, takes_over ? ENDED_BY_NEXT : ENDED_BY_IOCTL);
		if (r)
			goto let_go;
	}

	/* A VMM that is exiting would not tell us again. */
	if (!mmget_not_zero(kvm->mm)) {
		r = -EIO;
		goto drop_access;
	}
	static_branch_enable(&kvm_introspection_hooked);
	r = session_publish(kvm, session);
	/* Not mmput(): it could end the VMM here, which takes arch.introspection.lock. */
	mmput_async(kvm->mm);
	if (r)
		goto drop_access;
	if (session->stopped)
		stop_vcpus(kvm);
	if (takes_over) {
		kvmi_access_inherit(kvm);
		between_sessions(kvm, false);
	}
	kvmi_reader_start(session->conn);

	return 0;
drop_access:
	if (takes_over)
		lift_all(kvm);
let_go:
	if (takes_over)
		between_sessions(kvm, false);
free:
	session_free(session, false);
	return r;
}

/* UNHOOK; arch.introspection.lock is held. */
int kvmi_unhook(struct kvm *kvm)
{
	struct kvm_introspection *session = kvm->arch.introspection.session;

	return session ? session_end(kvm, session, ENDED_BY_IOCTL) : 0;
}

static void end_with_vm(struct kvm *kvm)
{
	kvmi_session_tell_end(kvm, false);
	mutex_lock(&kvm->arch.introspection.lock);
	if (kvm->arch.introspection.session)
		session_end(kvm, kvm->arch.introspection.session, ENDED_WITH_VM);
	mutex_unlock(&kvm->arch.introspection.lock);
}

static void end_work(struct work_struct *work)
{
	end_with_vm(container_of(work, struct kvm, arch.introspection.end_work));
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
	end_with_vm(kvm);
	cancel_work_sync(&kvm->arch.introspection.end_work);
}

/*
 * kvm->mm is being torn down: the VM is dead, though its file may be open elsewhere.
 * Called by the MMU notifier's release, behind which others of the host wait.
 */
void kvm_introspection_vmm_exit(struct kvm *kvm)
{
	kvmi_session_tell_end(kvm, true);
}

/* Userspace cannot reach the vCPU yet; it may be there before KVM counts it. */
int kvm_introspection_vcpu_create(struct kvm_vcpu *vcpu)
{
	struct kvm_arch_introspection *of_vm = &vcpu->kvm->arch.introspection;
	int r = 0;

	mutex_lock(&vcpu->kvm->lock);
	if (of_vm->session)
		r = attach(of_vm->session, vcpu);
	if (of_vm->session && !r)
		kvmi_vcpu(vcpu)->is_new = true;
	if (!r)
		list_add_tail(&vcpu->arch.introspection.link, &of_vm->vcpus);
	mutex_unlock(&vcpu->kvm->lock);

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
