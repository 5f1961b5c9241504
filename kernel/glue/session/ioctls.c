// SPDX-License-Identifier: GPL-2.0-only
/*
 * The five ioctls: who may call them, with what, one at a time.
 */
#include <linux/capability.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>

#include "introspection/lifecycle.h"
#include "introspection/session.h"

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

static bool is_introspection_ioctl(unsigned int ioctl)
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
int kvm_arch_vm_foreign_ioctl(struct kvm *kvm, unsigned int ioctl, unsigned long argp)
{
	union {
		struct kvm_introspection_hook hook;
		struct kvm_introspection_feature feature;
	} arg = {};
	int r;

	if (!is_introspection_ioctl(ioctl))
		return -ENOTTY;
	if (!kvm_is_introspection_enabled())
		return -EPERM;
	if (current->mm != kvm->mm && !capable(CAP_SYS_PTRACE))
		return -EPERM;
	if (copy_from_user(&arg, (void __user *)argp, _IOC_SIZE(ioctl)))
		return -EFAULT;
	/* A VM that is broken can still be let go. */
	if (ioctl == KVM_INTROSPECTION_UNHOOK)
		kvmi_session_tell_end(kvm, false);
	else if (kvm->vm_dead)
		return -EIO;
	if (mutex_lock_killable(&kvm->arch.introspection.lock))
		return -EINTR;

	switch (ioctl) {
	case KVM_INTROSPECTION_HOOK:
		r = kvmi_hook(kvm, &arg.hook);
		break;
	case KVM_INTROSPECTION_UNHOOK:
		r = kvmi_unhook(kvm);
		break;
	case KVM_INTROSPECTION_COMMAND:
		r = ioctl_allow(kvm->arch.introspection.session, &arg.feature, kvmi_check_command_feature,
				kvmi_allow_command);
		break;
	case KVM_INTROSPECTION_EVENT:
		r = ioctl_allow(kvm->arch.introspection.session, &arg.feature, kvmi_check_event_feature,
				kvmi_allow_event);
		break;
	case KVM_INTROSPECTION_PREUNHOOK:
		r = ioctl_preunhook(kvm->arch.introspection.session);
		break;
	default:
		r = -ENOTTY;
	}

	mutex_unlock(&kvm->arch.introspection.lock);
	return r;
}
