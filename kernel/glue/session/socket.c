// SPDX-License-Identifier: GPL-2.0-only
/*
 * A connection that is a socket: whole messages in both directions.
 *
 * A message leaves whole or the session ends.  A signal that interrupts a
 * sender before the first byte makes it try again later; one that interrupts
 * it in the middle leaves the rest in socket->rest, which whoever sends next
 * sends first, and for which the interrupted vCPU comes back (owes_rest).
 */
#include <linux/list.h>
#include <linux/net.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uio.h>
#include <net/sock.h>

#include "introspection/session.h"
#include "introspection/session/socket.h"

static LIST_HEAD(sockets);
static DEFINE_SPINLOCK(sockets_lock);

static struct kvmi_socket *to_socket(struct kvmi_connection *conn)
{
	return container_of(conn, struct kvmi_socket, conn);
}

/* P16: a connected stream, unix or vsock. */
static bool is_acceptable(struct socket *sock)
{
	return sock->type == SOCK_STREAM && READ_ONCE(sock->state) == SS_CONNECTED &&
	       (sock->sk->sk_family == AF_UNIX || sock->sk->sk_family == AF_VSOCK);
}

/*
 * A socket serves one connection: the tool could not tell two VMs apart, and
 * one process that holds a socket's lock could keep any number of readers.
 */
static bool socket_add(struct kvmi_socket *socket)
{
	struct kvmi_socket *other;
	bool unique = true;

	spin_lock(&sockets_lock);
	list_for_each_entry(other, &sockets, link)
		unique &= other->sock != socket->sock;
	if (unique)
		list_add(&socket->link, &sockets);
	spin_unlock(&sockets_lock);

	return unique;
}

static void socket_free(struct kvmi_connection *conn)
{
	struct kvmi_socket *socket = to_socket(conn);

	spin_lock(&sockets_lock);
	list_del(&socket->link);
	spin_unlock(&sockets_lock);

	if (socket->reader)
		put_task_struct(socket->reader);
	if (socket->sock)
		sockfd_put(socket->sock);
	kfree(socket->rest);
	kfree(socket);
}

/*
 * No more messages in either direction.  A unix socket is shut down at once.
 * For a vsock that takes the socket's own lock, so it is left to the reader,
 * which does it on its way out.
 */
static void socket_hang_up(struct kvmi_connection *conn)
{
	struct kvmi_socket *socket = to_socket(conn);

	WRITE_ONCE(socket->hung_up, true);
	if (socket->sock->sk->sk_family == AF_UNIX)
		kernel_sock_shutdown(socket->sock, SHUT_RDWR);
	else
		send_sig(SIGKILL, socket->reader, 1);
}

/* Out of a page fault that nobody serves, too. */
static void socket_interrupt(struct kvmi_connection *conn)
{
	send_sig(SIGKILL, to_socket(conn)->reader, 1);
}

/* The socket itself makes senders wait. */
static int socket_reserve(struct kvmi_connection *conn, size_t bytes, bool wait)
{
	return 0;
}

static void socket_unreserve(struct kvmi_connection *conn, size_t bytes)
{
}

/* The connection cannot go on; the reader, who notices, wakes the vCPUs. */
static int broken(struct kvm_introspection *session)
{
	WRITE_ONCE(session->lost, true);
	socket_hang_up(session->conn);
	return -EPIPE;
}

/*
 * Whoever owns the socket may have given it a time-out (SO_SNDTIMEO,
 * SO_RCVTIMEO), of nothing at all even: it is not ours, and is no reason to spin.
 */
static void not_our_timeout(void)
{
	schedule_timeout_interruptible(1);
}

/* Bytes sent (at least one), -EINTR, or -EPIPE: the session is lost. */
static int send_some(struct kvm_introspection *session, const u8 *data, size_t bytes)
{
	int r;

	for (;;) {
		struct msghdr msg = { .msg_flags = MSG_NOSIGNAL };
		struct kvec vec = { .iov_base = (void *)data, .iov_len = bytes };

		r = kernel_sendmsg(to_socket(session->conn)->sock, &msg, &vec, 1, bytes);
		if (r != -EAGAIN || signal_pending(current))
			break;
		not_our_timeout();
	}

	if (r > 0)
		return r;
	if (r == -EINTR || r == -ERESTARTSYS || r == -EAGAIN)
		return -EINTR;
	return broken(session);
}

static int socket_send_rest(struct kvm_introspection *session)
{
	struct kvmi_socket *socket = to_socket(session->conn);
	int r;

	while (socket->rest_len) {
		r = send_some(session, socket->rest + socket->rest_off, socket->rest_len);
		if (r < 0)
			return r;
		socket->rest_off += r;
		socket->rest_len -= r;
	}
	return 0;
}

static int socket_send(struct kvm_introspection *session, const u8 *msg, size_t bytes,
		       bool *owes_rest)
{
	struct kvmi_socket *socket = to_socket(session->conn);
	int r;

	r = socket_send_rest(session);
	if (r)
		return r;
	r = send_some(session, msg, bytes);
	if (r < 0)
		return r;
	if (r == bytes)
		return 0;

	socket->rest_off = 0;
	socket->rest_len = bytes - r;
	memcpy(socket->rest, msg + r, bytes - r);
	r = socket_send_rest(session);
	if (r != -EINTR)
		return r;
	*owes_rest = true;
	return 0;
}

/* Nothing but the end of the session interrupts the reader. */
static int socket_answer(struct kvm_introspection *session, size_t bytes)
{
	bool owes_rest = false;

	return kvmi_send(session, session->tx, bytes, &owes_rest);
}

static const struct kvmi_transport socket_transport = {
	.reserve = socket_reserve,
	.unreserve = socket_unreserve,
	.send = socket_send,
	.send_rest = socket_send_rest,
	.answer = socket_answer,
	.hang_up = socket_hang_up,
	.interrupt = socket_interrupt,
	.stop = kvmi_reader_stop,
	.await = kvmi_reader_await,
	.free = socket_free,
};

/* -ENOMEM, -EINVAL (P16), -EBUSY: the socket is another session's. */
struct kvmi_connection *kvmi_socket_open(int fd)
{
	struct kvmi_socket *socket;
	int r;

	socket = kzalloc(sizeof(*socket), GFP_KERNEL_ACCOUNT);
	if (!socket)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&socket->link);
	init_completion(&socket->reader_gone);

	r = kvmi_connection_init(&socket->conn, &socket_transport);
	if (r)
		goto put;
	r = -ENOMEM;
	socket->rest = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	if (!socket->rest)
		goto put;
	socket->sock = sockfd_lookup(fd, &r);
	if (!socket->sock || !is_acceptable(socket->sock)) {
		r = -EINVAL;
		goto put;
	}
	if (!socket_add(socket)) {
		r = -EBUSY;
		goto put;
	}

	return &socket->conn;
put:
	kvmi_connection_put(&socket->conn);
	return ERR_PTR(r);
}

static int receive_exactly(struct kvmi_socket *socket, u8 *data, size_t bytes)
{
	while (bytes) {
		struct msghdr msg = {};
		struct kvec vec = { .iov_base = data, .iov_len = bytes };
		int r;

		r = kernel_recvmsg(socket->sock, &msg, &vec, 1, bytes, 0);
		if (r == -EAGAIN && !signal_pending(current)) {
			not_our_timeout();
			continue;
		}
		/* A signal to the reader is kvmi_tell_end()'s. */
		if (r <= 0)
			return -EPIPE;
		data += r;
		bytes -= r;
	}
	return 0;
}

/* reader: one message into conn->rx, zeroes behind it. */
int kvmi_socket_receive(struct kvmi_socket *socket, size_t *bytes)
{
	const size_t header = sizeof(struct kvmi_msg_hdr);
	struct kvmi_connection *conn = &socket->conn;
	size_t payload;

	memset(conn->rx, 0, conn->rx_dirty);
	conn->rx_dirty = KVMI_BUFFER_BYTES;

	if (receive_exactly(socket, conn->rx, header) ||
	    !kvmi_header_ok(conn->rx, &payload) ||
	    receive_exactly(socket, conn->rx + header, payload))
		return -EPIPE;

	*bytes = header + payload;
	conn->rx_dirty = *bytes;
	return 0;
}
