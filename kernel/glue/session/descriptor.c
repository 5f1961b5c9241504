// SPDX-License-Identifier: GPL-2.0-only
/*
 * A connection that is the session's own descriptor: its holder's write(2) carries
 * messages out, its read(2) takes what the kernel has to say from a ring.
 *
 * Whoever sends reserves room first and waits for that with nothing held, so that a
 * message always leaves whole, and nobody waits with tx_lock.  A write reserves the
 * room for the answer before it carries the message out.
 */
#include <linux/anon_inodes.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "introspection/session.h"
#include "introspection/session/life.h"

#define RING_BYTES	(256 * 1024)	/* protocol.md 2.4; a power of two */

static_assert(!(RING_BYTES & (RING_BYTES - 1)));

struct kvmi_descriptor {
	struct kvmi_connection conn;
	struct mutex write_lock;	/* one message is received and carried out at a time */
	struct mutex read_lock;		/* one reader copies at a time */
	wait_queue_head_t readers;	/* for a message, or the end */
	wait_queue_head_t senders;	/* for room, or the end */

	spinlock_t lock;		/* the rest, but for what lies in the ring */
	bool over;			/* nothing is added any more */
	u32 head, tail;			/* of the ring; they count on, modulo 2^32 */
	u32 reserved;
	struct task_struct *writer;	/* who carries a message out */
	u32 answered;			/* bytes of the answer to it; with write_lock */
	u8 *ring;
};

static struct kvmi_descriptor *to_descriptor(struct kvmi_connection *conn)
{
	return container_of(conn, struct kvmi_descriptor, conn);
}

/* True when it got the room, or when there is no use in waiting. */
static bool try_reserve(struct kvmi_descriptor *d, u32 bytes)
{
	bool done;

	spin_lock(&d->lock);
	done = d->over || RING_BYTES - (d->head - d->tail) - d->reserved >= bytes;
	if (done && !d->over)
		d->reserved += bytes;
	spin_unlock(&d->lock);

	return done;
}

static int descriptor_reserve(struct kvmi_connection *conn, size_t bytes, bool wait)
{
	struct kvmi_descriptor *d = to_descriptor(conn);

	if (!wait && !try_reserve(d, bytes))
		return -EAGAIN;
	if (wait && wait_event_interruptible(d->senders, try_reserve(d, bytes)))
		return -EINTR;
	/* What was reserved before the end came is of no matter any more. */
	return READ_ONCE(d->over) ? -EPIPE : 0;
}

static void descriptor_unreserve(struct kvmi_connection *conn, size_t bytes)
{
	struct kvmi_descriptor *d = to_descriptor(conn);

	spin_lock(&d->lock);
	d->reserved -= bytes;
	spin_unlock(&d->lock);
	wake_up_all(&d->senders);
}

/* The next bytes of the ring: with tx_lock and a reservation nobody else writes there. */
static void ring_write(struct kvmi_descriptor *d, const u8 *data, u32 bytes)
{
	u32 at = d->head & (RING_BYTES - 1);
	u32 first = min_t(u32, bytes, RING_BYTES - at);

	memcpy(d->ring + at, data, first);
	memcpy(d->ring, data + first, bytes - first);
}

static int descriptor_send(struct kvm_introspection *session, const u8 *msg, size_t bytes,
			   bool *owes_rest)
{
	struct kvmi_descriptor *d = to_descriptor(session->conn);
	bool over;

	ring_write(d, msg, bytes);
	spin_lock(&d->lock);
	over = d->over;
	if (!over) {
		d->head += bytes;
		d->reserved -= bytes;
	}
	spin_unlock(&d->lock);
	if (over)
		return -EPIPE;

	wake_up_interruptible_poll(&d->readers, EPOLLIN | EPOLLRDNORM);
	return 0;
}

/* A message leaves whole. */
static int descriptor_send_rest(struct kvm_introspection *session)
{
	return 0;
}

/* The room is reserved by the write. */
static int descriptor_answer(struct kvm_introspection *session, size_t bytes)
{
	struct kvmi_descriptor *d = to_descriptor(session->conn);
	int r = -EPIPE;

	/* Nobody who has it waits for anything. */
	mutex_lock(&session->tx_lock);
	if (!READ_ONCE(session->lost))
		r = descriptor_send(session, session->tx, bytes, NULL);
	mutex_unlock(&session->tx_lock);
	if (!r)
		d->answered = bytes;

	return r;
}

static void descriptor_hang_up(struct kvmi_connection *conn)
{
	struct kvmi_descriptor *d = to_descriptor(conn);

	spin_lock(&d->lock);
	d->over = true;
	spin_unlock(&d->lock);
	wake_up_all(&d->senders);
	wake_up_poll(&d->readers, EPOLLIN | EPOLLRDNORM | EPOLLHUP);
}

/*
 * As task_work_add() with TWA_SIGNAL does: its waits end as for a signal, and what it
 * was called for is begun anew.
 */
static void descriptor_interrupt(struct kvmi_connection *conn)
{
	struct kvmi_descriptor *d = to_descriptor(conn);

	spin_lock(&d->lock);
	if (d->writer) {
		set_tsk_thread_flag(d->writer, TIF_NOTIFY_SIGNAL);
		wake_up_process(d->writer);
	}
	spin_unlock(&d->lock);
}

static void descriptor_stop(struct kvmi_connection *conn)
{
}

static void descriptor_free(struct kvmi_connection *conn)
{
	struct kvmi_descriptor *d = to_descriptor(conn);

	kvfree(d->ring);
	kfree(d);
}

static const struct kvmi_transport descriptor_transport = {
	.reserve = descriptor_reserve,
	.unreserve = descriptor_unreserve,
	.send = descriptor_send,
	.send_rest = descriptor_send_rest,
	.answer = descriptor_answer,
	.hang_up = descriptor_hang_up,
	.interrupt = descriptor_interrupt,
	.stop = descriptor_stop,
	.await = descriptor_stop,
	.free = descriptor_free,
};

bool kvmi_is_descriptor(struct kvmi_connection *conn)
{
	return conn->transport == &descriptor_transport;
}

/* The message is one that closes the connection; so the tool is lost. */
static void refuse(struct kvmi_descriptor *d)
{
	mutex_lock(&d->conn.lock);
	if (d->conn.session && !READ_ONCE(d->conn.session->closing))
		kvmi_session_lose(d->conn.session);
	mutex_unlock(&d->conn.lock);
	descriptor_hang_up(&d->conn);
}

/* One message from buf into conn->rx, zeroes behind it.  Its bytes, or an error. */
static ssize_t receive(struct kvmi_descriptor *d, const char __user *buf, size_t count)
{
	const size_t header = sizeof(struct kvmi_msg_hdr);
	struct kvmi_connection *conn = &d->conn;
	size_t payload;

	memset(conn->rx, 0, conn->rx_dirty);
	conn->rx_dirty = KVMI_BUFFER_BYTES;

	if (copy_from_user(conn->rx, buf, header))
		return -EFAULT;
	if (!kvmi_header_ok(conn->rx, &payload))
		return -EPIPE;
	if (payload > count - header)
		return -EINVAL;
	if (copy_from_user(conn->rx + header, buf + header, payload))
		return -EFAULT;

	conn->rx_dirty = header + payload;
	return header + payload;
}

static void set_writer(struct kvmi_descriptor *d, struct task_struct *task)
{
	spin_lock(&d->lock);
	d->writer = task;
	spin_unlock(&d->lock);
}

/* write_lock is held, and room for an answer is reserved. */
static ssize_t write_message(struct kvmi_descriptor *d, const char __user *buf, size_t count)
{
	ssize_t bytes = receive(d, buf, count);
	int r;

	if (bytes == -EPIPE)
		refuse(d);
	if (bytes < 0)
		return bytes;

	/* Whoever ends the session from now on finds us; who has before is seen there. */
	set_writer(d, current);
	r = READ_ONCE(d->over) ? -EPIPE : kvmi_carry_out(&d->conn, bytes);
	set_writer(d, NULL);
	if (r == -EPIPE)
		refuse(d);

	return r ? r : bytes;
}

static ssize_t write_one(struct kvmi_descriptor *d, const char __user *buf, size_t count, bool wait)
{
	ssize_t r;

	if (READ_ONCE(d->over))
		return -EPIPE;
	if (count < sizeof(struct kvmi_msg_hdr))
		return -EINVAL;
	/* One writer alone has room for an answer, so that many leave some for events. */
	if (mutex_lock_interruptible(&d->write_lock))
		return -ERESTARTSYS;
	r = descriptor_reserve(&d->conn, KVMI_BUFFER_BYTES, wait);
	if (!r) {
		d->answered = 0;
		r = write_message(d, buf, count);
		descriptor_unreserve(&d->conn, KVMI_BUFFER_BYTES - d->answered);
	}
	mutex_unlock(&d->write_lock);

	return r == -EINTR ? -ERESTARTSYS : r;
}

static ssize_t descriptor_write(struct file *file, const char __user *buf, size_t count,
				loff_t *pos)
{
	struct kvmi_descriptor *d = file->private_data;
	size_t done = 0;
	ssize_t r;

	do {
		r = write_one(d, buf + done, count - done, !done && !(file->f_flags & O_NONBLOCK));
		if (r < 0)
			break;
		done += r;
		cond_resched();
	} while (done < count && !signal_pending(current));

	return done ? done : r;
}

static bool is_readable(struct kvmi_descriptor *d)
{
	/* Nothing is added once it is over. */
	return smp_load_acquire(&d->over) || READ_ONCE(d->head) != READ_ONCE(d->tail);
}

/* Bytes of the ring from at on, to buf. */
static int ring_read(struct kvmi_descriptor *d, u32 at, char __user *buf, u32 bytes)
{
	u32 first;

	at &= RING_BYTES - 1;
	first = min_t(u32, bytes, RING_BYTES - at);

	return copy_to_user(buf, d->ring + at, first) ||
	       copy_to_user(buf + first, d->ring, bytes - first) ? -EFAULT : 0;
}

/* What the kernel wrote: a message's length, header included. */
static u32 message_bytes(struct kvmi_descriptor *d, u32 at)
{
	struct kvmi_msg_hdr hdr;
	u8 *bytes = (u8 *)&hdr;
	int i;

	for (i = 0; i < sizeof(hdr); i++)
		bytes[i] = d->ring[(at + i) & (RING_BYTES - 1)];

	return sizeof(hdr) + hdr.size;
}

/* read_lock is held.  -EAGAIN: another has taken what there was. */
static ssize_t read_messages(struct kvmi_descriptor *d, char __user *buf, size_t count)
{
	size_t done = 0;
	u32 head, tail;
	bool over;
	int r = 0;

	spin_lock(&d->lock);
	over = d->over;
	head = d->head;
	tail = d->tail;
	spin_unlock(&d->lock);
	if (head == tail)
		return over ? 0 : -EAGAIN;

	while (tail != head) {
		u32 bytes = message_bytes(d, tail);

		r = bytes > count - done ? -EMSGSIZE : ring_read(d, tail, buf + done, bytes);
		if (r)
			break;
		tail += bytes;
		done += bytes;
	}
	if (!done)
		return r;

	spin_lock(&d->lock);
	d->tail = tail;
	spin_unlock(&d->lock);
	wake_up_all(&d->senders);

	return done;
}

static ssize_t descriptor_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct kvmi_descriptor *d = file->private_data;
	ssize_t r;

	do {
		if (!is_readable(d) && file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(d->readers, is_readable(d)) ||
		    mutex_lock_interruptible(&d->read_lock))
			return -ERESTARTSYS;
		r = read_messages(d, buf, count);
		mutex_unlock(&d->read_lock);
	} while (r == -EAGAIN);

	return r;
}

static __poll_t descriptor_poll(struct file *file, poll_table *wait)
{
	struct kvmi_descriptor *d = file->private_data;
	__poll_t mask = 0;

	poll_wait(file, &d->readers, wait);
	poll_wait(file, &d->senders, wait);

	if (is_readable(d))
		mask |= EPOLLIN | EPOLLRDNORM;
	spin_lock(&d->lock);
	if (d->over)
		mask |= EPOLLHUP;
	else if (RING_BYTES - (d->head - d->tail) - d->reserved >= KVMI_BUFFER_BYTES)
		mask |= EPOLLOUT | EPOLLWRNORM;
	spin_unlock(&d->lock);

	return mask;
}

/* The session ends with its descriptor, or has lost its tool, as its flags say. */
static void close_session(struct kvmi_descriptor *d)
{
	struct kvmi_connection *conn = &d->conn;
	struct kvm_introspection *session;
	bool ends = false;

	descriptor_hang_up(conn);
	descriptor_interrupt(conn);

	mutex_lock(&conn->lock);
	session = conn->session;
	if (session) {
		if (!READ_ONCE(session->closing) && kvmi_minds_loss(session))
			kvmi_session_lose(session);
		ends = !kvmi_fails_closed(session) && !kvmi_crashes(session);
		if (ends)
			kvmi_tell_end(session->kvm, conn, false);
	}
	mutex_unlock(&conn->lock);

	/*
	 * A process that is killed waits for nobody, nor does a thread of the kernel's,
	 * which closes files of others behind this one.
	 */
	if (ends && !(current->flags & (PF_EXITING | PF_KTHREAD)))
		wait_for_completion_killable(&conn->ended);
}

static long descriptor_ioctl(struct file *file, unsigned int ioctl, unsigned long arg)
{
	if (ioctl != KVM_INTROSPECTION_HANG_UP)
		return -ENOTTY;

	close_session(file->private_data);
	return 0;
}

static int descriptor_release(struct inode *inode, struct file *file)
{
	struct kvmi_descriptor *d = file->private_data;

	close_session(d);
	kvmi_connection_put(&d->conn);

	return 0;
}

static const struct file_operations descriptor_fops = {
	.owner = THIS_MODULE,
	.read = descriptor_read,
	.write = descriptor_write,
	.poll = descriptor_poll,
	.unlocked_ioctl = descriptor_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = descriptor_release,
};

/* A connection without a session yet, and its file, which has a reference of its own. */
struct kvmi_connection *kvmi_descriptor_create(struct file **file)
{
	struct kvmi_descriptor *d;
	int r;

	d = kzalloc(sizeof(*d), GFP_KERNEL_ACCOUNT);
	if (!d)
		return ERR_PTR(-ENOMEM);
	mutex_init(&d->write_lock);
	mutex_init(&d->read_lock);
	init_waitqueue_head(&d->readers);
	init_waitqueue_head(&d->senders);
	spin_lock_init(&d->lock);

	r = kvmi_connection_init(&d->conn, &descriptor_transport);
	if (r)
		goto put;
	r = -ENOMEM;
	d->ring = kvmalloc(RING_BYTES, GFP_KERNEL_ACCOUNT);
	if (!d->ring)
		goto put;

	*file = anon_inode_getfile("kvmi-session", &descriptor_fops, d, O_RDWR | O_CLOEXEC);
	if (IS_ERR(*file)) {
		r = PTR_ERR(*file);
		goto put;
	}
	kvmi_connection_get(&d->conn);

	return &d->conn;
put:
	kvmi_connection_put(&d->conn);
	return ERR_PTR(r);
}
