// SPDX-License-Identifier: GPL-2.0-only
/*
 * A connection of either kind: a message from the tool is carried out, and what the
 * tool is to get is sent, whole and in an order.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "introspection/session.h"

static_assert(KVMI_UNHOOK_EVENT_BYTES ==
	      sizeof(struct kvmi_msg_hdr) + sizeof(struct kvmi_event_hdr));

int kvmi_connection_init(struct kvmi_connection *conn, const struct kvmi_transport *transport)
{
	conn->transport = transport;
	kref_init(&conn->ref);
	mutex_init(&conn->lock);
	init_completion(&conn->ended);
	conn->rx = kzalloc(KVMI_BUFFER_BYTES, GFP_KERNEL_ACCOUNT);

	return conn->rx ? 0 : -ENOMEM;
}

static void connection_free(struct kref *ref)
{
	struct kvmi_connection *conn = container_of(ref, struct kvmi_connection, ref);

	kfree(conn->rx);
	conn->transport->free(conn);
}

void kvmi_connection_get(struct kvmi_connection *conn)
{
	kref_get(&conn->ref);
}

void kvmi_connection_put(struct kvmi_connection *conn)
{
	kref_put(&conn->ref, connection_free);
}

void kvmi_hang_up(struct kvmi_connection *conn)
{
	conn->transport->hang_up(conn);
}

/* vcpu: what the tool said closes the connection. */
void kvmi_break(struct kvm_introspection *session)
{
	kvmi_hang_up(session->conn);
	/* The thread that receives from a socket comes to its end by that, and tells. */
	if (kvmi_is_descriptor(session->conn))
		kvmi_session_lose(session);
	else
		WRITE_ONCE(session->lost, true);
}

/* While a message is carried out the session cannot be detached. */
struct kvm_vcpu_introspection *kvmi_session_vcpu(struct kvm_introspection *session, u16 idx)
{
	struct kvm_vcpu *vcpu = kvm_get_vcpu(session->kvm, idx);

	return vcpu ? rcu_dereference_check(vcpu->arch.introspection.vi,
					    lockdep_is_held(&session->conn->lock)) : NULL;
}

static int answer(struct kvm_introspection *session, size_t bytes)
{
	return bytes ? session->conn->transport->answer(session, bytes) : 0;
}

/* conn->lock is held.  0; -EINTR: it is as if the message had not come; -EPIPE. */
static int handle(struct kvm_introspection *session, size_t bytes)
{
	const u8 *rx = session->conn->rx;
	struct kvm_vcpu_introspection *vi;
	size_t out = 0;
	u16 idx = 0;
	int r;

	session->interrupted = false;
	switch (kvmi_vm_message(session->state, session, rx, bytes, session->tx, &out, &idx)) {
	case KVMI_ANSWERED:
		return session->interrupted ? -EINTR : answer(session, out);
	case KVMI_QUEUE:
		vi = kvmi_session_vcpu(session, idx);
		r = vi ? kvmi_queue(vi, rx, bytes) : -KVM_EINVAL;
		if (r == -EPIPE)
			return r;
		if (r)
			return answer(session, kvmi_build_error_reply(rx, r, session->tx));
		kvmi_explore(KVMI_AT_KICK);
		r = kvmi_carry_out_outside(vi, &out);
		if (r > 0)
			return answer(session, out);
		if (!r)
			kvmi_vcpu_kick(vi);
		return r;
	default:
		return -EPIPE;
	}
}

/* The message in conn->rx, of so many bytes, with zeroes behind it.  As handle(). */
int kvmi_carry_out(struct kvmi_connection *conn, size_t bytes)
{
	struct kvm_introspection *session;
	int r = -EPIPE;

	kvmi_explore(KVMI_AT_MESSAGE);
	if (mutex_lock_interruptible(&conn->lock))
		return -EINTR;
	session = conn->session;
	/* What still lies in the socket when the session is lost is not carried out. */
	if (session && !READ_ONCE(session->lost) && !READ_ONCE(session->closing))
		r = handle(session, bytes);
	mutex_unlock(&conn->lock);

	return r;
}

/* With tx_lock, and room for it. */
static int send_locked(struct kvm_introspection *session, const u8 *msg, size_t bytes,
		       bool *owes_rest)
{
	if (READ_ONCE(session->lost))
		return -EPIPE;
	return session->conn->transport->send(session, msg, bytes, owes_rest);
}

/* Room, then tx_lock.  0, -EINTR, -EAGAIN without wait, -EPIPE. */
static int begin_send(struct kvm_introspection *session, size_t bytes, bool wait)
{
	struct kvmi_connection *conn = session->conn;
	int r = conn->transport->reserve(conn, bytes, wait);

	if (r)
		return r;
	if (mutex_lock_interruptible(&session->tx_lock)) {
		conn->transport->unreserve(conn, bytes);
		return -EINTR;
	}
	return 0;
}

/* What was not sent needs no room. */
static void end_send(struct kvm_introspection *session, size_t bytes, int r)
{
	mutex_unlock(&session->tx_lock);
	if (r)
		session->conn->transport->unreserve(session->conn, bytes);
}

/* 0: it is on its way whole; -EINTR: no byte of it; -EPIPE. */
int kvmi_send(struct kvm_introspection *session, const u8 *msg, size_t bytes, bool *owes_rest)
{
	int r = begin_send(session, bytes, true);

	if (r)
		return r;
	r = send_locked(session, msg, bytes, owes_rest);
	end_send(session, bytes, r);

	return r;
}

/* The same with room for it reserved; who interrupts a sender in the middle ends the session. */
int kvmi_send_reserved(struct kvm_introspection *session, const u8 *msg, size_t bytes)
{
	bool owes_rest = false;
	int r;

	if (mutex_lock_interruptible(&session->tx_lock))
		return -EINTR;
	r = send_locked(session, msg, bytes, &owes_rest);
	mutex_unlock(&session->tx_lock);

	return r;
}

int kvmi_send_rest(struct kvm_introspection *session)
{
	int r;

	if (mutex_lock_interruptible(&session->tx_lock))
		return -EINTR;
	r = session->conn->transport->send_rest(session);
	mutex_unlock(&session->tx_lock);

	return r;
}

static void set_seq(u8 *msg, u32 seq)
{
	((struct kvmi_msg_hdr *)msg)->seq = seq;
}

/* vcpu: the recorded event.  Numbered with tx_lock, so that numbers and order on the wire agree. */
int kvmi_send_event(struct kvm_vcpu_introspection *vi)
{
	struct kvm_introspection *session = vi->session;
	size_t bytes = kvmi_build_event(vi->state, vi, 0, vi->tx);
	int r = begin_send(session, bytes, true);
	u32 seq;

	if (r)
		return r;

	seq = session->last_event_seq + 1;
	set_seq(vi->tx, seq);
	/* Before the tool can have read it. */
	kvmi_expect_reply(vi, true);
	kvmi_explore(KVMI_AT_SEND);
	r = send_locked(session, vi->tx, bytes, &vi->owes_rest);
	if (r) {
		kvmi_expect_reply(vi, false);
	} else {
		kvmi_explore(KVMI_AT_SENT);
		session->last_event_seq = seq;
		vi->seq = seq;
		kvmi_event_sent(vi->state, seq);
	}
	end_send(session, bytes, r);

	return r;
}

/* ioctl: 0, -ENOENT when it could not be sent, -EINTR. */
int kvmi_send_unhook(struct kvm_introspection *session)
{
	u8 msg[KVMI_UNHOOK_EVENT_BYTES];
	bool owes_rest = false;
	int r;

	/* The VMM does not wait for a tool that does not read. */
	r = begin_send(session, sizeof(msg), false);
	if (r)
		return r == -EINTR ? r : -ENOENT;

	kvmi_build_unhook_event(session->last_event_seq + 1, msg);
	r = send_locked(session, msg, sizeof(msg), &owes_rest);
	if (!r) {
		/*
		 * The tool may close as soon as it has read this: that is no loss any
		 * more.  Who would call it one asks for tx_lock first.
		 */
		WRITE_ONCE(session->leaving, true);
		session->last_event_seq++;
		/* Should a signal come in between, the next sender sends the rest. */
		if (owes_rest)
			session->conn->transport->send_rest(session);
	}
	end_send(session, sizeof(msg), r);

	return r == -EPIPE ? -ENOENT : r;
}

void kvmi_glue_vcpu_state(struct kvm_introspection *session, u16 vcpu_idx,
			  struct kvmi_vcpu_run_state *out)
{
	struct kvm_vcpu_introspection *vi = kvmi_session_vcpu(session, vcpu_idx);

	if (vi)
		kvmi_run_state(vi, out);
}

void kvmi_glue_release(struct kvm_introspection *session)
{
	struct kvm_vcpu_introspection *vi;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	WRITE_ONCE(session->stopped, false);
	kvm_for_each_vcpu(i, vcpu, session->kvm) {
		/* One that is created while the session ends has none. */
		vi = kvmi_session_vcpu(session, i);
		if (vi)
			kvmi_vcpu_kick(vi);
	}
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
	struct kvm_vcpu_introspection *vi = kvmi_session_vcpu(session, vcpu_idx);
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
