// SPDX-License-Identifier: GPL-2.0-only
/*
 * A session from HOOK to UNHOOK: the ioctls, and every other way it can end.
 */
#include <linux/capability.h>
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "session.h"

static bool __read_mostly introspection;
module_param(introspection, bool, 0444);
MODULE_PARM_DESC(introspection, "Let virtual machines be introspected (default: off)");

/*
 * On from the first HOOK: from then on vcpu->introspection alone tells.  To
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

bool kvmi_fails_open(struct kvm_introspection *session)
{
	return READ_ONCE(session->lost) && !kvmi_crashes(session) && !kvmi_fails_closed(session);
}

static void session_free(struct kvm_introspection *session)
{
	if (session->conn) {
		kvmi_reader_stop(session->conn);
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
		session_free(session);
		return NULL;
	}
	kvmi_vm_state_init(session->state);

	return session;
}

/* Take the session off each vCPU and wait until none holds it. */
static void session_detach(struct kvm *kvm, struct kvm_introspection *session)
{
	struct kvm_vcpu_introspection *vi, *next;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	LIST_HEAD(detached);

	mutex_lock(&kvm->lock);
	kvm->introspection = NULL;
	kvm_for_each_vcpu(i, vcpu, kvm) {
		vi = kvmi_vcpu(vcpu);
		RCU_INIT_POINTER(vcpu->introspection, NULL);
		if (vi)
			list_add_tail(&vi->detached, &detached);
	}
	mutex_unlock(&kvm->lock);

	list_for_each_entry(vi, &detached, detached)
		wake_up_all(&vi->wq);
	wake_up_all(&kvm->introspection_memory.stepper_wq);

	kvmi_explore(KVMI_AT_DETACH);
	/* Without it a vCPU may take a reference on what is being freed: the race that `cargo xtask explore` plants. */
#ifndef KVMI_PLANTED_RACE
	synchronize_srcu_expedited(&kvm->srcu);
#endif

	list_for_each_entry_safe(vi, next, &detached, detached) {
		kvmi_vcpu_put(vi);
		wait_for_completion(&vi->gone);

		/* The vCPU can no longer change its mind about them. */
		if (kvmi_cleanup_enabled(session->state))
			WRITE_ONCE(vi->vcpu->introspection_intercepts, 0);
		WRITE_ONCE(vi->vcpu->introspection_singlestep, false);
		kvmi_vcpu_free(vi);
	}

	/*
	 * Once this is back, no vCPU enters the guest with an intercept of the session's.
	 * One in a guest of its own may keep that of CR0 till it is back from there, on
	 * SVM: it is of no consequence there, and recomputed with CR0 on the way.
	 */
	kvm_make_all_cpus_request(kvm, KVM_REQ_INTROSPECTION_INTERCEPTS);
}

/* Attach to each vCPU, now and, by kvm_introspection_vcpu_create(), from now on. */
static int session_publish(struct kvm *kvm, struct kvm_introspection *session)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r = 0;

	kvmi_explore(KVMI_AT_PUBLISH);
	mutex_lock(&kvm->lock);

	if (kvm_arch_has_private_mem(kvm) || kvm_x86_call(is_memory_encrypted)(kvm)) {
		r = -EOPNOTSUPP;
		goto out;
	}

	kvm->introspection = session;
	kvm_for_each_vcpu(i, vcpu, kvm) {
		r = kvm_introspection_vcpu_create(vcpu);
		if (r)
			break;
	}
out:
	mutex_unlock(&kvm->lock);
	if (r == -ENOMEM)
		session_detach(kvm, session);
	return r;
}

/* Every wait for the tool ends, the reader's page faults too. */
static void session_tell_end(struct kvm_introspection *session)
{
	WRITE_ONCE(session->closing, true);
	/* Before the reader can see the hang-up and call it a loss. */
	smp_wmb();
	kvmi_hang_up(session->conn);
	send_sig(SIGKILL, session->conn->reader, 1);
}

/*
 * Before introspection_lock is taken: its holder may itself be waiting for the
 * tool (PREUNHOOK).  kvm->lock keeps the session in existence.
 */
static void session_tell_end_early(struct kvm *kvm)
{
	mutex_lock(&kvm->lock);
	if (kvm->introspection)
		session_tell_end(kvm->introspection);
	mutex_unlock(&kvm->lock);
}

/*
 * The one way in which a session ends.  A killable caller that is killed
 * while the reader still works on a command leaves the session closing, for
 * the end of the VM to finish.
 */
static int session_end(struct kvm *kvm, struct kvm_introspection *session, bool killable)
{
	struct kvmi_connection *conn = session->conn;

	session_tell_end(session);
	kvmi_explore(KVMI_AT_END);

	if (!killable)
		mutex_lock(&conn->lock);
	else if (mutex_lock_killable(&conn->lock))
		return -EINTR;
	conn->session = NULL;
	mutex_unlock(&conn->lock);

	session_detach(kvm, session);
	kvmi_access_end(kvm);
	session_free(session);

	return 0;
}

static int ioctl_hook(struct kvm *kvm, const struct kvm_introspection_hook *hook)
{
	struct kvm_introspection *stale = kvm->introspection;
	struct kvm_introspection *session;
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
		r = session_end(kvm, stale, true);
		if (r)
			goto free;
	}

	/* A VMM that is exiting would not tell us again. */
	if (!mmget_not_zero(kvm->mm)) {
		r = -EIO;
		goto free;
	}
	static_branch_enable(&kvm_introspection_hooked);
	r = session_publish(kvm, session);
	/* Not mmput(): it could end the VMM here, which takes introspection_lock. */
	mmput_async(kvm->mm);
	if (r)
		goto free;
	kvmi_reader_start(session->conn);

	return 0;
free:
	session_free(session);
	return r;
}

static int ioctl_preunhook(struct kvm_introspection *session)
{
	if (!session)
		return -EFAULT;
	if (READ_ONCE(session->lost) || !kvmi_unhook_event_enabled(session->state))
		return -ENOENT;

	return kvmi_send_unhook(session);
}

static int ioctl_allow(struct kvm_introspection *session,
		       const struct kvm_introspection_feature *feature,
		       int (*check)(u32 allow, s32 id),
		       int (*set)(struct kvmi_vm_state *state, u32 allow, s32 id))
{
	int r;

	r = check(feature->allow, feature->id);
	if (r)
		return r;
	if (!session)
		return -EFAULT;

	return set(session->state, feature->allow, feature->id);
}

bool kvm_is_introspection_ioctl(unsigned int ioctl)
{
	switch (ioctl) {
	case KVM_INTROSPECTION_HOOK:
	case KVM_INTROSPECTION_UNHOOK:
	case KVM_INTROSPECTION_COMMAND:
	case KVM_INTROSPECTION_EVENT:
	case KVM_INTROSPECTION_PREUNHOOK:
		return true;
	default:
		return false;
	}
}

/* The caller is the VMM, or may trace any process: the VMM among them. */
long kvm_vm_ioctl_introspection(struct kvm *kvm, unsigned int ioctl, void __user *argp)
{
	union {
		struct kvm_introspection_hook hook;
		struct kvm_introspection_feature feature;
	} arg = {};
	int r;

	if (!introspection)
		return -EPERM;
	if (current->mm != kvm->mm && !capable(CAP_SYS_PTRACE))
		return -EPERM;
	if (copy_from_user(&arg, argp, _IOC_SIZE(ioctl)))
		return -EFAULT;
	/* A VM that is broken can still be let go. */
	if (ioctl == KVM_INTROSPECTION_UNHOOK)
		session_tell_end_early(kvm);
	else if (kvm->vm_dead)
		return -EIO;
	if (mutex_lock_killable(&kvm->introspection_lock))
		return -EINTR;

	switch (ioctl) {
	case KVM_INTROSPECTION_HOOK:
		r = ioctl_hook(kvm, &arg.hook);
		break;
	case KVM_INTROSPECTION_UNHOOK:
		r = kvm->introspection ? session_end(kvm, kvm->introspection, true) : 0;
		break;
	case KVM_INTROSPECTION_COMMAND:
		r = ioctl_allow(kvm->introspection, &arg.feature, kvmi_check_command_feature,
				kvmi_allow_command);
		break;
	case KVM_INTROSPECTION_EVENT:
		r = ioctl_allow(kvm->introspection, &arg.feature, kvmi_check_event_feature,
				kvmi_allow_event);
		break;
	case KVM_INTROSPECTION_PREUNHOOK:
		r = ioctl_preunhook(kvm->introspection);
		break;
	default:
		r = -ENOTTY;
	}

	mutex_unlock(&kvm->introspection_lock);
	return r;
}

void kvm_introspection_vm_destroy(struct kvm *kvm)
{
	kvm_introspection_vmm_exit(kvm);
}

/* kvm->mm is being torn down: the VM is dead, though its file may be open elsewhere. */
void kvm_introspection_vmm_exit(struct kvm *kvm)
{
	if (!introspection)
		return;

	session_tell_end_early(kvm);
	mutex_lock(&kvm->introspection_lock);
	if (kvm->introspection)
		session_end(kvm, kvm->introspection, false);
	mutex_unlock(&kvm->introspection_lock);
}

/* kvm->lock is held and userspace cannot reach the vCPU yet. */
int kvm_introspection_vcpu_create(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi;

	if (!vcpu->kvm->introspection)
		return 0;

	vi = kvmi_vcpu_alloc(vcpu->kvm->introspection, vcpu);
	if (!vi)
		return -ENOMEM;
	rcu_assign_pointer(vcpu->introspection, vi);

	return 0;
}

/* The creation failed after all: kvm->lock is still held, nobody has seen the vCPU. */
void kvm_introspection_vcpu_destroy(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_introspection *vi = kvmi_vcpu(vcpu);

	RCU_INIT_POINTER(vcpu->introspection, NULL);
	if (vi)
		kvmi_vcpu_free(vi);
}
