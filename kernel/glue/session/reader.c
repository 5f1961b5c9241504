// SPDX-License-Identifier: GPL-2.0-only
/*
 * The thread that receives from a socket: VM commands are carried out here, vCPU
 * commands and replies to events are handed to their vCPU.  It never waits for
 * a vCPU that does not run.
 */
#include <linux/cgroup.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched/signal.h>

#include "introspection/session.h"
#include "introspection/session/socket.h"

/* How long UNHOOK waits for a reader that somebody keeps. */
#define READER_PATIENCE	HZ

static int reader(void *data)
{
	struct kvmi_socket *socket = data;
	struct kvmi_connection *conn = &socket->conn;
	size_t bytes;

	/*
	 * So that the end of the session gets it out of a page fault that nobody serves.  A
	 * SIGKILL of a process's is ignored, as by any thread of the kernel's.
	 */
	allow_kernel_signal(SIGKILL);

	while (!READ_ONCE(socket->hung_up) && !kvmi_socket_receive(socket, &bytes) &&
	       !kvmi_carry_out(conn, bytes))
		cond_resched();

	/* First, for whoever sends has tx_lock, and comes to an end by this. */
	kernel_sock_shutdown(socket->sock, SHUT_RDWR);

	kvmi_explore(KVMI_AT_LOSS);
	mutex_lock(&conn->lock);
	if (conn->session)
		kvmi_session_lose(conn->session);
	mutex_unlock(&conn->lock);

	complete(&socket->reader_gone);
	kvmi_connection_put(conn);
	module_put_and_kthread_exit(0);
}

int kvmi_reader_create(struct kvmi_connection *conn)
{
	struct kvmi_socket *socket = container_of(conn, struct kvmi_socket, conn);
	struct task_struct *task;

	task = kthread_create(reader, socket, "kvmi-recv");
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

	socket->reader = get_task_struct(task);
	kref_get(&conn->ref);
	__module_get(THIS_MODULE);

	return 0;
}

void kvmi_reader_start(struct kvmi_connection *conn)
{
	struct kvmi_socket *socket = container_of(conn, struct kvmi_socket, conn);

	socket->reader_started = true;
	wake_up_process(socket->reader);
}

/* The session has ended, or came to nothing.  The reader goes on its way out alone. */
void kvmi_reader_stop(struct kvmi_connection *conn)
{
	struct kvmi_socket *socket = container_of(conn, struct kvmi_socket, conn);

	if (!socket->reader)
		return;

	if (!socket->reader_started) {
		kthread_stop(socket->reader);
		kvmi_connection_put(conn);
		module_put(THIS_MODULE);
	}
}

/*
 * The session has ended.  The reader is on its way out, unless somebody keeps the
 * socket's lock.  Wait for it, though not for long, and not if the caller is killed.
 */
void kvmi_reader_await(struct kvmi_connection *conn)
{
	struct kvmi_socket *socket = container_of(conn, struct kvmi_socket, conn);

	if (wait_for_completion_killable_timeout(&socket->reader_gone, READER_PATIENCE) > 0)
		kthread_stop(socket->reader);
}
