// SPDX-License-Identifier: GPL-2.0-only
/*
 * The socket: whole messages in both directions.
 *
 * A message leaves whole or the session ends.  A signal that interrupts a
 * sender before the first byte makes it try again later; one that interrupts
 * it in the middle leaves the rest in session->rest, which whoever sends next
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

static LIST_HEAD(connections);
static DEFINE_SPINLOCK(connections_lock);

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
static bool connection_add(struct kvmi_connection *conn)
{
	struct kvmi_connection *other;
	bool unique = true;

	spin_lock(&connections_lock);
	list_for_each_entry(other, &connections, link)
		unique &= other->sock != conn->sock;
	if (unique)
		list_add(&conn->link, &connections);
	spin_unlock(&connections_lock);

	return unique;
}

static void connection_free(struct kref *ref)
{
	struct kvmi_connection *conn = container_of(ref, struct kvmi_connection, ref);

	spin_lock(&connections_lock);
	list_del(&conn->link);
	spin_unlock(&connections_lock);

	if (conn->sock)
		sockfd_put(conn->sock);
	kfree(conn->rx);
	kfree(conn);
}

void kvmi_connection_get(struct kvmi_connection *conn)
{
	kref_get(&conn->ref);
}

void kvmi_connection_put(struct kvmi_connection *conn)
{
	kref_put(&conn->ref, connection_free);
}

/* -ENOMEM, -EINVAL (P16), -EBUSY: the socket is another session's. */
struct kvmi_connection *kvmi_connection_open(int fd)
{
	struct kvmi_connection *conn;
	int r = -ENOMEM;

	conn = kzalloc(sizeof(*conn), GFP_KERNEL_ACCOUNT);
	if (!conn)
		return ERR_PTR(r);
	kref_init(&conn->ref);
	mutex_init(&conn->lock);
	init_completion(&conn->reader_gone);
	INIT_LIST_HEAD(&conn->link);

	conn->rx = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);
	if (!conn->rx)
		goto put;

	conn->sock = sockfd_lookup(fd, &r);
	if (!conn->sock || !is_acceptable(conn->sock)) {
		r = -EINVAL;
		goto put;
	}
	if (!connection_add(conn)) {
		r = -EBUSY;
		goto put;
	}

	return conn;
put:
	kvmi_connection_put(conn);
	return ERR_PTR(r);
}

/*
 * No more messages in either direction.  A unix socket is shut down at once.
 * For a vsock that takes the socket's own lock, so it is left to the reader,
 * which does it on its way out.
 */
void kvmi_hang_up(struct kvmi_connection *conn)
{
	WRITE_ONCE(conn->hung_up, true);
	if (conn->sock->sk->sk_family == AF_UNIX)
		kernel_sock_shutdown(conn->sock, SHUT_RDWR);
	else
		send_sig(SIGKILL, conn->reader, 1);
}

/* The connection cannot go on; the reader, who notices, wakes the vCPUs. */
static int broken(struct kvm_introspection *session)
{
	WRITE_ONCE(session->lost, true);
	kvmi_hang_up(session->conn);
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

		r = kernel_sendmsg(session->conn->sock, &msg, &vec, 1, bytes);
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

static int send_rest_locked(struct kvm_introspection *session)
{
	int r;

	while (session->rest_len) {
		r = send_some(session, session->rest + session->rest_off, session->rest_len);
		if (r < 0)
			return r;
		session->rest_off += r;
		session->rest_len -= r;
	}
	return 0;
}

/* 0: the message is on its way whole; -EINTR: no byte of it; -EPIPE. */
static int send_locked(struct kvm_introspection *session, const u8 *msg, size_t bytes,
		       bool *owes_rest)
{
	int r;

	if (READ_ONCE(session->lost))
		return -EPIPE;
	r = send_rest_locked(session);
	if (r)
		return r;
	r = send_some(session, msg, bytes);
	if (r < 0)
		return r;
	if (r == bytes)
		return 0;

	session->rest_off = 0;
	session->rest_len = bytes - r;
	memcpy(session->rest, msg + r, bytes - r);
	r = send_rest_locked(session);
	if (r != -EINTR)
		return r;
	*owes_rest = true;
	return 0;
}

int kvmi_send(struct kvm_introspection *session, const u8 *msg, size_t bytes, bool *owes_rest)
{
	int r;

	if (mutex_lock_interruptible(&session->tx_lock))
		return -EINTR;
	r = send_locked(session, msg, bytes, owes_rest);
	mutex_unlock(&session->tx_lock);

	return r;
}

int kvmi_send_rest(struct kvm_introspection *session)
{
	int r;

	if (mutex_lock_interruptible(&session->tx_lock))
		return -EINTR;
	r = send_rest_locked(session);
	mutex_unlock(&session->tx_lock);

	return r;
}

/* vcpu: the recorded event.  Numbered here, so that numbers and order on the wire agree. */
int kvmi_send_event(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;
	u32 seq;
	int r;

	if (mutex_lock_interruptible(&session->tx_lock))
		return -EINTR;

	seq = session->last_event_seq + 1;
	/* Before the tool can have read it. */
	kvmi_expect_reply(vi, true);
	kvmi_explore(KVMI_AT_SEND);
	r = send_locked(session, vi->tx, kvmi_build_event(vi->state, vi, seq, vi->tx),
			&vi->owes_rest);
	if (r) {
		kvmi_expect_reply(vi, false);
	} else {
		kvmi_explore(KVMI_AT_SENT);
		session->last_event_seq = seq;
		vi->seq = seq;
		kvmi_event_sent(vi->state, seq);
	}
	mutex_unlock(&session->tx_lock);

	return r;
}

/* ioctl: 0, -ENOENT when it could not be sent, -EINTR. */
int kvmi_send_unhook(struct kvm_introspection *session)
{
	size_t bytes;
	u32 seq;
	int r;

	if (mutex_lock_interruptible(&session->tx_lock))
		return -EINTR;

	seq = session->last_event_seq + 1;
	r = send_rest_locked(session);
	if (!r) {
		/* Nothing is left in rest: a buffer that tx_lock protects. */
		bytes = kvmi_build_unhook_event(seq, session->rest);
		r = send_some(session, session->rest, bytes);
	}
	if (r > 0) {
		/*
		 * The tool may close as soon as it has read this: that is no
		 * loss any more.  The reader, who would call it one, asks for
		 * tx_lock first.
		 */
		WRITE_ONCE(session->leaving, true);
		session->last_event_seq = seq;
		session->rest_off = r;
		session->rest_len = bytes - r;
		/* Should a signal come in between, the next sender sends the rest. */
		r = send_rest_locked(session);
		r = r == -EINTR ? 0 : r;
	}
	mutex_unlock(&session->tx_lock);

	return r == -EPIPE ? -ENOENT : r;
}

static int receive_exactly(struct kvmi_connection *conn, u8 *data, size_t bytes)
{
	while (bytes) {
		struct msghdr msg = {};
		struct kvec vec = { .iov_base = data, .iov_len = bytes };
		int r;

		r = kernel_recvmsg(conn->sock, &msg, &vec, 1, bytes, 0);
		if (r == -EAGAIN && !signal_pending(current)) {
			not_our_timeout();
			continue;
		}
		/* A signal to the reader is session_end()'s. */
		if (r <= 0)
			return -EPIPE;
		data += r;
		bytes -= r;
	}
	return 0;
}

/* reader: one message into conn->rx, zeroes behind it. */
int kvmi_receive(struct kvmi_connection *conn, size_t *bytes)
{
	const size_t header = sizeof(struct kvmi_msg_hdr);
	size_t payload;

	memset(conn->rx, 0, conn->rx_dirty);
	conn->rx_dirty = KVMI_BUFFER_BYTES;

	if (receive_exactly(conn, conn->rx, header) ||
	    !kvmi_header_ok(conn->rx, &payload) ||
	    receive_exactly(conn, conn->rx + header, payload))
		return -EPIPE;

	*bytes = header + payload;
	conn->rx_dirty = *bytes;
	return 0;
}
