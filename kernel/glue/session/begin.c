// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the ioctls HOOK, OPEN, UNHOOK, FREE and STATUS do: how a session begins, over
 * another one perhaps, and who may end it.
 */
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/wait_bit.h>

#include "introspection/session.h"
#include "introspection/session/life.h"

/* What denies nothing more lets everybody go. */
static void let_go(struct kvm *kvm)
{
	WRITE_ONCE(kvm->arch.introspection.stopped, false);
	/* Pairs with the barrier of whoever goes to sleep. */
	smp_mb();
	wake_up_var(&kvm->arch.introspection.stopped);
}

/* The session that was to be taken over is not, after all. */
static void give_up_taking_over(struct kvm *kvm)
{
	struct kvm_introspection *session;

	spin_lock(&kvm->arch.introspection.end_lock);
	session = kvm->arch.introspection.session;
	if (session)
		session->taken_over = false;
	spin_unlock(&kvm->arch.introspection.end_lock);
	/* It has ended already, and has left us what it denied. */
	if (!session)
		kvmi_lift_all(kvm);
	let_go(kvm);
}

/*
 * HOOK and OPEN: may a session begin?  0; 1: by taking over the one that there is, which
 * has failed closed; -EEXIST; -EINTR.
 */
static int may_begin(struct kvm *kvm, bool takes_over)
{
	struct kvm_introspection *session;
	bool closing, closed;

	for (;;) {
		session = kvmi_session_get(kvm);
		if (!session)
			return kvmi_await_end(kvm, READ_ONCE(kvm->arch.introspection.begun));
		closed = kvmi_fails_closed(session);
		closing = READ_ONCE(session->closing);
		kvmi_session_put(session);
		if (!closing)
			return closed && takes_over ? 1 : -EEXIST;
		/* Of a caller that was killed, or of a tool that is gone. */
		if (kvmi_await_end(kvm, READ_ONCE(kvm->arch.introspection.begun)))
			return -EINTR;
	}
}

/* With arch.introspection.lock.  The session is the VM's when this returns 0. */
static int begin(struct kvm *kvm, struct kvm_introspection *session, bool ends_stale)
{
	bool takes_over = ends_stale && session->stopped;
	int r = kvmi_outside_init();

	if (r)
		return r;

	/* Only now, when little can fail any more: what fails closed is to stay closed. */
	if (ends_stale) {
		if (takes_over)
			WRITE_ONCE(kvm->arch.introspection.stopped, true);
		r = kvmi_await_end(kvm, kvmi_tell_end(kvm, NULL, takes_over));
	}
	/* A VMM that is exiting would not tell us again. */
	if (!r && !mmget_not_zero(kvm->mm))
		r = -EIO;
	if (!r) {
		static_branch_enable(&kvm_introspection_hooked);
		r = kvmi_session_publish(kvm, session);
		/* Not mmput(): it could end the VMM here. */
		mmput_async(kvm->mm);
	}
	if (r) {
		if (takes_over)
			give_up_taking_over(kvm);
		return r;
	}

	if (session->stopped) {
		kvmi_stop_vcpus(kvm);
		/* One may be in the middle of an instruction that KVM carries out for it. */
		mutex_lock(&session->conn->lock);
		if (!takes_over && session->conn->session)
			kvmi_await_readers(session, true);
		mutex_unlock(&session->conn->lock);
	}
	if (takes_over) {
		kvmi_access_inherit(kvm);
		let_go(kvm);
	}
	return 0;
}

static int hook(struct kvm *kvm, const struct kvm_introspection_hook *hook)
{
	struct kvm_introspection *session;
	struct kvmi_connection *conn;
	int stale, r;

	stale = may_begin(kvm, true);
	if (stale < 0)
		return stale;
	session = kvmi_session_alloc(kvm, hook->flags);
	if (!session)
		return -ENOMEM;

	conn = kvmi_socket_open(hook->fd);
	if (IS_ERR(conn)) {
		r = PTR_ERR(conn);
		goto put;
	}
	session->conn = conn;
	r = kvmi_reader_create(conn);
	if (r)
		goto put;
	conn->session = session;
	r = begin(kvm, session, stale);
	if (!r)
		kvmi_reader_start(conn);
put:
	kvmi_session_put(session);
	return r;
}

int kvmi_hook(struct kvm *kvm, const struct kvm_introspection_hook *what)
{
	int r;

	if (what->flags & ~KVM_INTROSPECTION_HOOK_FLAGS)
		return -EINVAL;
	if (mutex_lock_killable(&kvm->arch.introspection.lock))
		return -EINTR;
	r = hook(kvm, what);
	mutex_unlock(&kvm->arch.introspection.lock);

	return r;
}

static void allow(struct kvm_introspection *session, const struct kvm_introspection_open *open)
{
	int id;

	if (!(open->flags & KVM_INTROSPECTION_OPEN_MASKED)) {
		kvmi_allow_command(session->state, 1, -1);
		kvmi_allow_event(session->state, 1, -1);
		return;
	}
	/* What this kernel does not have is refused there. */
	for (id = 0; id < ARRAY_SIZE(open->commands) * 64; id++) {
		if (open->commands[id / 64] & BIT_ULL(id % 64))
			kvmi_allow_command(session->state, 1, id);
		if (open->events[id / 64] & BIT_ULL(id % 64))
			kvmi_allow_event(session->state, 1, id);
	}
}

/* A new session; *file is its descriptor. */
static int open_session(struct kvm *kvm, const struct kvm_introspection_open *open,
			struct file **file)
{
	struct kvm_introspection *session;
	struct kvmi_connection *conn;
	int stale, r;

	stale = may_begin(kvm, open->flags & KVM_INTROSPECTION_OPEN_TAKE_OVER);
	if (stale < 0)
		return stale;
	session = kvmi_session_alloc(kvm, open->flags);
	if (!session)
		return -ENOMEM;
	allow(session, open);

	conn = kvmi_descriptor_create(file);
	if (IS_ERR(conn)) {
		r = PTR_ERR(conn);
		goto put;
	}
	session->conn = conn;
	conn->session = session;
	r = begin(kvm, session, stale);
	if (r) {
		/* The file has a reference on the connection. */
		conn->session = NULL;
		fput(*file);
	}
put:
	kvmi_session_put(session);
	return r;
}

static bool is_valid(const struct kvm_introspection_open *open)
{
	return !(open->flags & ~KVM_INTROSPECTION_OPEN_FLAGS) && !open->pad &&
	       (open->flags & KVM_INTROSPECTION_OPEN_MASKED ||
		(!memchr_inv(open->commands, 0, sizeof(open->commands)) &&
		 !memchr_inv(open->events, 0, sizeof(open->events))));
}

/* The new descriptor, or an error. */
int kvmi_open(struct kvm *kvm, const struct kvm_introspection_open *open)
{
	struct file *file;
	int fd, r;

	if (!is_valid(open))
		return -EINVAL;
	if (mutex_lock_killable(&kvm->arch.introspection.lock))
		return -EINTR;
	fd = get_unused_fd_flags(O_CLOEXEC);
	r = fd < 0 ? fd : open_session(kvm, open, &file);
	mutex_unlock(&kvm->arch.introspection.lock);

	if (fd < 0)
		return r;
	if (r) {
		put_unused_fd(fd);
		return r;
	}
	fd_install(fd, file);
	return fd;
}

/* Not one that is dead and has not been waited for. */
static bool is_alive(struct pid *process)
{
	struct task_struct *task;
	bool alive;

	rcu_read_lock();
	task = pid_task(process, PIDTYPE_TGID);
	alive = task && atomic_read(&task->signal->live);
	rcu_read_unlock();

	return alive;
}

/* The VMM, who began the session, and anybody when there is no tool any more. */
static bool may_unhook(struct kvm *kvm, struct kvm_introspection *session)
{
	return current->mm == kvm->mm || task_tgid(current) == session->owner ||
	       READ_ONCE(session->lost) || !is_alive(session->owner);
}

/* UNHOOK; force: FREE. */
int kvmi_unhook(struct kvm *kvm, bool force)
{
	struct kvm_introspection *session = kvmi_session_get(kvm);
	struct kvmi_connection *conn;
	int r;

	/* One that has just ended may not be gone to its last byte. */
	if (!session)
		return kvmi_await_end(kvm, READ_ONCE(kvm->arch.introspection.begun));
	conn = session->conn;
	kvmi_connection_get(conn);
	r = force || may_unhook(kvm, session) ? 0 : -EPERM;
	kvmi_session_put(session);

	if (!r)
		r = kvmi_await_end(kvm, kvmi_tell_end(kvm, conn, false));
	if (!r)
		conn->transport->await(conn);
	kvmi_connection_put(conn);

	return r;
}

void kvmi_status(struct kvm *kvm, struct kvm_introspection_status *status)
{
	struct kvm_introspection *session = kvmi_session_get(kvm);

	memset(status, 0, sizeof(*status));
	if (!session)
		return;

	status->state = KVM_INTROSPECTION_STATUS_HOOKED;
	if (READ_ONCE(session->lost))
		status->state |= KVM_INTROSPECTION_STATUS_LOST;
	if (READ_ONCE(session->closing))
		status->state |= KVM_INTROSPECTION_STATUS_ENDING;
	if (kvmi_is_descriptor(session->conn))
		status->state |= KVM_INTROSPECTION_STATUS_DESCRIPTOR;
	if (kvmi_is_stopped(session))
		status->state |= KVM_INTROSPECTION_STATUS_STOPPED;
	status->flags = session->flags;
	status->since_ns = session->since;
	if (is_alive(session->owner))
		status->pid = pid_vnr(session->owner);
	kvmi_session_put(session);
}
