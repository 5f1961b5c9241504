// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ioctls on the VM's descriptor: who may call them, and with what.
 */
#include <linux/capability.h>
#include <linux/uaccess.h>

#include "introspection/lifecycle.h"
#include "introspection/session.h"

static int ioctl_preunhook(struct kvm *kvm)
{
	struct kvm_introspection *session = kvmi_session_get(kvm);
	int r = -ENOENT;

	if (!session)
		return -EFAULT;
	if (!READ_ONCE(session->lost) && kvmi_unhook_event_enabled(session->state))
		r = kvmi_send_unhook(session);
	kvmi_session_put(session);

	return r;
}

static int ioctl_allow(struct kvm *kvm, const struct kvm_introspection_feature *feature,
		       int (*check)(u32 allow, s32 id),
		       int (*set)(struct kvmi_vm_state *state, u32 allow, s32 id))
{
	struct kvm_introspection *session;
	int r;

	r = check(feature->allow, feature->id);
	if (r)
		return r;
	session = kvmi_session_get(kvm);
	if (!session)
		return -EFAULT;
	r = set(session->state, feature->allow, feature->id);
	kvmi_session_put(session);

	return r;
}

static int ioctl_status(struct kvm *kvm, void __user *to)
{
	struct kvm_introspection_status status;

	kvmi_status(kvm, &status);
	return copy_to_user(to, &status, sizeof(status)) ? -EFAULT : 0;
}

static bool is_introspection_ioctl(unsigned int ioctl)
{
	switch (ioctl) {
	case KVM_INTROSPECTION_HOOK:
	case KVM_INTROSPECTION_UNHOOK:
	case KVM_INTROSPECTION_COMMAND:
	case KVM_INTROSPECTION_EVENT:
	case KVM_INTROSPECTION_PREUNHOOK:
	case KVM_INTROSPECTION_OPEN:
	case KVM_INTROSPECTION_STATUS:
	case KVM_INTROSPECTION_FREE:
		return true;
	default:
		return false;
	}
}

/* A VM that is broken can still be let go. */
static bool works_on_dead_vm(unsigned int ioctl)
{
	return ioctl == KVM_INTROSPECTION_UNHOOK || ioctl == KVM_INTROSPECTION_FREE ||
	       ioctl == KVM_INTROSPECTION_STATUS;
}

/* The caller is the VMM, or may trace any process: the VMM among them. */
int kvm_arch_vm_foreign_ioctl(struct kvm *kvm, unsigned int ioctl, unsigned long argp)
{
	union {
		struct kvm_introspection_hook hook;
		struct kvm_introspection_feature feature;
		struct kvm_introspection_open open;
	} arg = {};

	if (!is_introspection_ioctl(ioctl))
		return -ENOTTY;
	if (!kvm_is_introspection_enabled())
		return -EPERM;
	if (current->mm != kvm->mm && !capable(CAP_SYS_PTRACE))
		return -EPERM;
	if (_IOC_DIR(ioctl) & _IOC_WRITE &&
	    copy_from_user(&arg, (void __user *)argp, _IOC_SIZE(ioctl)))
		return -EFAULT;
	if (kvm->vm_dead && !works_on_dead_vm(ioctl))
		return -EIO;

	switch (ioctl) {
	case KVM_INTROSPECTION_HOOK:
		return kvmi_hook(kvm, &arg.hook);
	case KVM_INTROSPECTION_OPEN:
		return kvmi_open(kvm, &arg.open);
	case KVM_INTROSPECTION_UNHOOK:
		return kvmi_unhook(kvm, false);
	case KVM_INTROSPECTION_FREE:
		return kvmi_unhook(kvm, true);
	case KVM_INTROSPECTION_STATUS:
		return ioctl_status(kvm, (void __user *)argp);
	case KVM_INTROSPECTION_COMMAND:
		return ioctl_allow(kvm, &arg.feature, kvmi_check_command_feature, kvmi_allow_command);
	case KVM_INTROSPECTION_EVENT:
		return ioctl_allow(kvm, &arg.feature, kvmi_check_event_feature, kvmi_allow_event);
	default:
		return ioctl_preunhook(kvm);
	}
}
