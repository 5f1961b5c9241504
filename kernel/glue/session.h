/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A session: one VM, one connection, one tool.  The connection is a socket, with a
 * thread that receives from it (socket.c, reader.c), or the session's own descriptor
 * (descriptor.c).
 *
 * Locking, outermost first:
 *
 *	kvm->arch.introspection.lock		mutex: HOOK and OPEN, one at a time
 *	  conn->lock			mutex: a message from the tool is carried out
 *	  kvm->lock			publishing and detaching; vCPU creation
 *	    arch.introspection.end_lock	spinlock: kvm->arch.introspection.session, for who may not wait
 *	  connections_lock		spinlock: which sockets are in use
 *	  kvm->slots_lock		the end of a session takes restrictions off
 *	vcpu->mutex			a vCPU's event and its Rust state; by trylock under conn->lock
 *	  session->tx_lock		mutex: one writer; numbers events in the order of sending
 *	    vi->lock			spinlock: a vCPU's queue
 *	descriptor: write_lock, then conn->lock; read_lock; lock (spinlock) inside all
 *
 * tx_lock is also taken by PREUNHOOK and under conn->lock, as are kvm->srcu,
 * kvm->mmu_lock and the VMM's mmap_lock.
 * kvm->arch.apicv_update_lock is taken under arch.introspection.lock, conn->lock or
 * vcpu->mutex, and kvm->mmu_lock under it.
 * Nothing waits for a vCPU or for the tool with vi->lock held.  A vCPU waits for
 * the tool with nothing held but its own vcpu->mutex, outside SRCU, interruptibly,
 * on a reference to its vi.
 *
 * kvm->arch.introspection.session is set by HOOK and OPEN, and cleared by the end of
 * the session, both under arch.introspection.end_lock; vcpu->arch.introspection.vi is
 * written under kvm->lock.
 * vcpu->arch.introspection.vi is read under kvm->srcu; whoever keeps it beyond that
 * takes a reference.  Who carries out a message needs neither, with conn->lock held: a
 * session that ends takes that lock before the pointers go.  The session holds no
 * reference on the VM: it has ended before the VM is gone.  An ioctl that uses the
 * session, and not its vCPUs, takes a reference under end_lock.
 *
 * The end of a session is a work item (session.c), which waits for conn->lock and for
 * each vCPU; whoever wants the end tells so and, if it may wait, waits for the work, and
 * can be killed meanwhile.  The end of the VMM (the MMU notifier's release) waits for
 * nothing at all: all notifier users of the host share one SRCU.
 *
 * While it receives, the reader has nothing but its connection.  The socket has
 * locks of its own, and a process that shares it may hold them for as long as
 * it likes (it receives into memory whose fault nobody serves).  So the end of a
 * session does not depend on them: the reader is left with the connection, whose
 * last reference it drops when it gets loose, and with a reference on this module.
 * UNHOOK alone gives it a second to end, so that as a rule nothing is left.
 */
#ifndef KVMI_SESSION_H
#define KVMI_SESSION_H

#include <linux/completion.h>
#include <linux/kref.h>
#include <linux/kvm_host.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>
#include <linux/wait.h>

#include "introspection/explore.h"
#include "introspection/introspection.h"
#include "introspection/seam.h"
#include "kvmi.h"

#define KVMI_MAX_PENDING_PAUSES	1002	/* protocol.md, VM_PAUSE_VCPU */
/* The one view that there is. */
#define KVMI_VIEW		0
/*
 * Pages that one instruction is let through to.  The CPU may need all at once: what
 * it fetches, reads and writes, two pages each, and for each of these up to five
 * page tables.  An interrupt through gates and a task state segment comes to 14 such
 * pages, which is the most.  What touches more, a gather say, goes on where it was.
 */
#define KVMI_MAX_LET_THROUGH	128
/*
 * A vCPU that the tool holds for longer is told so by its clock (protocol.md, 7).  Far
 * below what a guest's watchdog takes for a lockup.
 */
#define KVMI_HELD_LONG_NS	(250 * NSEC_PER_MSEC)
/* Nothing of an event reply beyond this is ever looked at, nor kept. */
#define KVMI_REPLY_KEPT_BYTES	64

struct kvm_introspection;
struct kvmi_connection;
struct kvmi_readers_wait;

/* What differs between a socket (socket.c) and a descriptor (descriptor.c). */
struct kvmi_transport {
	/*
	 * Before tx_lock is taken: room for a message of so many bytes.  0; -EINTR; -EAGAIN,
	 * without wait; -EPIPE: the connection is closed.
	 */
	int (*reserve)(struct kvmi_connection *conn, size_t bytes, bool wait);
	void (*unreserve)(struct kvmi_connection *conn, size_t bytes);
	/*
	 * With tx_lock, and room.  0: the message is on its way whole; -EINTR: no byte of
	 * it; -EPIPE.  owes_rest: the caller comes back for what a signal has cut off.
	 */
	int (*send)(struct kvm_introspection *session, const u8 *msg, size_t bytes,
		    bool *owes_rest);
	int (*send_rest)(struct kvm_introspection *session);
	/* The answer in session->tx to the message that is carried out, with conn->lock. */
	int (*answer)(struct kvm_introspection *session, size_t bytes);
	/* No more messages in either direction; waits for nothing. */
	void (*hang_up)(struct kvmi_connection *conn);
	/* The session ends: whoever carries a message out gives up; waits for nothing. */
	void (*interrupt)(struct kvmi_connection *conn);
	/* The session has ended, or came to nothing; waits for nobody of the tool's. */
	void (*stop)(struct kvmi_connection *conn);
	/* By UNHOOK: wait for what may be left behind, though not for long. */
	void (*await)(struct kvmi_connection *conn);
	/* With the last reference. */
	void (*free)(struct kvmi_connection *conn);
};

/* May outlive the session and its VM. */
struct kvmi_connection {
	const struct kvmi_transport *transport;
	struct kref ref;		/* the session's, and the reader's or the descriptor's */
	struct mutex lock;
	struct kvm_introspection *session;	/* NULL once it has ended */
	struct completion ended;	/* nothing is left of the session */

	/* Who receives, one at a time: */
	u8 *rx;
	size_t rx_dirty;		/* bytes of rx that may be non-zero */
};

struct kvm_introspection {
	struct kvm *kvm;
	struct kref ref;		/* the VM's until it has ended; an ioctl that uses it */
	unsigned long number;		/* of the VM's sessions, this is the n-th */
	struct kvmi_connection *conn;
	u32 flags;			/* KVM_INTROSPECTION_HOOK_* */
	struct pid *owner;		/* the process that began it */
	u64 since;			/* ns of CLOCK_BOOTTIME */

	bool closing;			/* its end has begun: every wait ends */
	bool taken_over;		/* end_lock: what it denies is the next session's */
	bool lost;			/* the connection is no more */
	bool leaving;			/* PREUNHOOK was sent: what follows is no loss */
	bool stopped;			/* vCPUs wait for VM_RELEASE */

	/* outside.c */
	struct work_struct outside_work;
	spinlock_t worker_lock;
	struct task_struct *worker;	/* who is about it */
	unsigned long missing;		/* with conn->lock: address in the VMM that a command waits for */
	unsigned long unavailable;	/* one that it has waited for, and that cannot be had */

	struct mutex tx_lock;
	u32 last_event_seq;

	/* Who began it pays for what waits in the queues. */
	struct mem_cgroup *memcg;
	/* With conn->lock: */
	u8 *tx;
	bool interrupted;		/* a signal kept the message from being carried out */
	gfn_t changed_start;		/* pages whose access has changed and which are still mapped */
	gfn_t changed_end;
	bool denies_more;		/* something is denied that was not, and not in force yet */
	struct kvmi_readers_wait *readers_wait;	/* that a signal has cut short */

	struct kvmi_vm_state *state;
};

/* What the tool sent to a vCPU and the vCPU has not looked at yet. */
struct kvmi_job {
	struct list_head link;
	bool is_reply;
	size_t bytes;			/* the message's own length */
	size_t kept;			/* bytes of it in msg */
	u8 msg[];
};

/* Who makes an access for the guest, and so how it is made once it is let through. */
enum kvmi_accessor {
	KVMI_CPU,		/* the instruction is stepped (let_through.c) */
	KVMI_EMULATOR,		/* it is emulated anew (emulated.c) */
	KVMI_EXIT_HANDLER,	/* its exit is handled again: a hypervisor's own instruction */
};

/* An access that the tool lets through, once. */
struct kvmi_let_through {
	gfn_t gfn;
	u8 access;
	u8 walk;			/* for the CPU's walk, which cannot be told from the rest there */
};

/* An exception or interrupt that the vCPU is to take. */
struct kvmi_pending {
	bool pending;
	u8 vector;
	u32 error_code;
};

/* What of a vCPU the VMM can write, as it was. */
struct kvmi_snapshot {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvmi_pending exception, exception_vmexit, interrupt;
	int external_vector;
	u32 mp_state;
	u32 shadow;
	bool nmi_injected, nmi_masked;
	bool guest_mode, smm;
};

struct kvm_vcpu_introspection {
	struct kvm_vcpu *vcpu;
	struct kvm_introspection *session;
	struct kref ref;
	struct completion gone;
	struct list_head detached;
	wait_queue_head_t wq;

	spinlock_t lock;		/* the next five */
	struct list_head jobs;
	u32 job_count;
	size_t job_bytes;
	u32 reply_count;
	u32 unanswered;			/* events sent, less replies taken */

	atomic_t pauses;
	bool busy;			/* it serves the tool, or completes an exit by its reply */

	/* The vcpu context alone: */
	bool outside;			/* KVM_RUN is out, and somebody carries a command out */
	bool is_new;			/* created in this session: CREATE_VCPU is to come */
	u32 seq;			/* of the event that was sent last */
	u64 shown;			/* for other threads: SHOWN_* in serve.c */
	u64 held_since;			/* ns; 0: it is not held */
	bool vmm_writes;		/* before is valid: the VMM has written since */
	struct kvmi_snapshot before;
	bool owes_rest;			/* its message was cut short: see to the rest */
	size_t unsent;			/* bytes of a reply in tx that is still to be sent */
	size_t rx_dirty;
	u8 *rx, *tx;
	struct kvmi_let_through let_through[KVMI_MAX_LET_THROUGH];
	unsigned int let_through_count;
	unsigned long let_through_rip;	/* RIP of the instruction that they are about */
	gpa_t marked_entry;		/* of the guest's page tables, last seen accessed by that walk */
	unsigned long marked_rip;	/* for the instruction there */
	struct kvmi_occurrence told;	/* the last access that was told */
	enum kvmi_accessor told_of;	/* and who makes it */
	struct kvmi_vcpu_state *state;
};

/* Within kvm->srcu read side, or with kvm->lock. */
static inline struct kvm_vcpu_introspection *kvmi_vcpu(struct kvm_vcpu *vcpu)
{
	return srcu_dereference_check(vcpu->arch.introspection.vi, &vcpu->kvm->srcu,
				      lockdep_is_held(&vcpu->kvm->lock));
}

bool kvmi_minds_loss(struct kvm_introspection *session);
bool kvmi_fails_open(struct kvm_introspection *session);
bool kvmi_fails_closed(struct kvm_introspection *session);
bool kvmi_crashes(struct kvm_introspection *session);
bool kvmi_is_stopped(struct kvm_introspection *session);
int  kvmi_hook(struct kvm *kvm, const struct kvm_introspection_hook *hook);
int  kvmi_open(struct kvm *kvm, const struct kvm_introspection_open *open);
int  kvmi_unhook(struct kvm *kvm, bool force);
void kvmi_status(struct kvm *kvm, struct kvm_introspection_status *status);
struct kvm_introspection *kvmi_session_get(struct kvm *kvm);
void kvmi_session_put(struct kvm_introspection *session);
void kvmi_session_lose(struct kvm_introspection *session);

/* vcpu.c */
struct kvm_vcpu_introspection *kvmi_vcpu_alloc(struct kvm_introspection *session,
					       struct kvm_vcpu *vcpu);
void kvmi_vcpu_free(struct kvm_vcpu_introspection *vi);
void kvmi_vcpu_put(struct kvm_vcpu_introspection *vi);
void kvmi_vcpu_kick(struct kvm_vcpu_introspection *vi);
void kvmi_recalc_intercepts(struct kvm_vcpu *vcpu);
enum kvmi_site kvmi_site(struct kvm_vcpu *vcpu, const struct kvmi_occurrence *what);

int kvmi_handle_exit(struct kvm_vcpu *vcpu);

/* serve.c */
int kvmi_serve(struct kvm_vcpu_introspection *vi);
enum kvmi_verdict kvmi_run_job(struct kvm_vcpu_introspection *vi, struct kvmi_job *job, u8 *tx,
			       size_t *bytes);
bool kvmi_is_new(struct kvm_vcpu_introspection *vi);
void kvmi_tell_clock(struct kvm_vcpu_introspection *vi);
void kvmi_show(struct kvm_vcpu_introspection *vi);
void kvmi_run_state(struct kvm_vcpu_introspection *vi, struct kvmi_vcpu_run_state *out);

/* outside.c */
int kvmi_outside_init(void);
int kvmi_carry_out_outside(struct kvm_vcpu_introspection *vi, size_t *bytes);
void kvmi_outside_work(struct work_struct *work);
void kvmi_interrupt_outside(struct kvm_introspection *session);

/* memory.c */
int kvmi_bring_in(struct kvm_introspection *session, unsigned long hva);
int kvmi_read_physical(struct kvm_introspection *session, struct kvm_vcpu *vcpu, u64 gpa, u8 *out,
		       size_t len);

/* void.c */
void kvmi_settle_writes(struct kvm_vcpu_introspection *vi);

/* vcpu: whatever the VMM has written since KVM_RUN was in the last time; asked on each exit. */
static inline void kvmi_settle(struct kvm_vcpu_introspection *vi)
{
	if (vi->vmm_writes)
		kvmi_settle_writes(vi);
}

/* injection.c */
bool kvmi_injection_due(struct kvm_vcpu_introspection *vi);
bool kvmi_inject(struct kvm_vcpu_introspection *vi);

/* queue.c */
int kvmi_queue(struct kvm_vcpu_introspection *vi, const u8 *msg, size_t bytes);
struct kvmi_job *kvmi_dequeue(struct kvm_vcpu_introspection *vi);
void kvmi_drop_jobs(struct kvm_vcpu_introspection *vi);
void kvmi_expect_reply(struct kvm_vcpu_introspection *vi, bool sent);

/* connection.c */
int kvmi_connection_init(struct kvmi_connection *conn, const struct kvmi_transport *transport);
void kvmi_connection_get(struct kvmi_connection *conn);
void kvmi_connection_put(struct kvmi_connection *conn);
void kvmi_hang_up(struct kvmi_connection *conn);
void kvmi_break(struct kvm_introspection *session);
int kvmi_carry_out(struct kvmi_connection *conn, size_t bytes);
int kvmi_send(struct kvm_introspection *session, const u8 *msg, size_t bytes, bool *owes_rest);
int kvmi_send_reserved(struct kvm_introspection *session, const u8 *msg, size_t bytes);
struct kvm_vcpu_introspection *kvmi_session_vcpu(struct kvm_introspection *session, u16 idx);
int kvmi_send_event(struct kvm_vcpu_introspection *vi);
int kvmi_send_unhook(struct kvm_introspection *session);
int kvmi_send_rest(struct kvm_introspection *session);

/* socket.c, reader.c */
struct kvmi_connection *kvmi_socket_open(int fd);
int kvmi_reader_create(struct kvmi_connection *conn);
void kvmi_reader_start(struct kvmi_connection *conn);

/* descriptor.c */
struct kvmi_connection *kvmi_descriptor_create(struct file **file);
bool kvmi_is_descriptor(struct kvmi_connection *conn);

/* sites.c */
u8 kvmi_decoded_insn_len(struct kvm_vcpu *vcpu);

/* access.c */
u8 kvmi_denied_access(struct kvm *kvm, u16 view, gfn_t gfn);
void kvmi_access_init(struct kvm *kvm);
void kvmi_access_end(struct kvm *kvm);
void kvmi_access_inherit(struct kvm *kvm);
int kvmi_await_readers(struct kvm_introspection *session, bool killable);
void kvmi_finish_readers_wait(struct kvm_introspection *session);

/* let_through.c */
u8 kvmi_let_through_access(struct kvm_vcpu *vcpu, gfn_t gfn);
void kvmi_take_back(struct kvm_vcpu_introspection *vi);
bool kvmi_is_let_through(struct kvm_vcpu_introspection *vi, gfn_t gfn, u8 kind);
bool kvmi_tell_access(struct kvm_vcpu_introspection *vi, const struct kvmi_occurrence *pf,
		      enum kvmi_accessor accessor);
bool kvmi_has_let_through(struct kvm_vcpu_introspection *vi);
bool kvmi_wants_let_through(struct kvm_vcpu_introspection *vi);
int kvmi_complete_access(struct kvm_vcpu_introspection *vi, bool changed);
int kvmi_enter_let_through(struct kvm_vcpu_introspection *vi);
void kvmi_leave_let_through(struct kvm_vcpu *vcpu, struct kvm_vcpu_introspection *vi);

/* emulated.c */
bool kvmi_emulates_fetch(struct kvm_vcpu *vcpu);
int kvmi_emulate_anew(struct kvm_vcpu *vcpu, bool goes_on);
bool kvmi_is_half_way(struct kvm_vcpu *vcpu);
bool kvmi_half_way_waits(struct kvm_vcpu_introspection *vi);
void kvmi_forget_half_way(struct kvm_vcpu *vcpu);

/* step.c */
bool kvmi_wants_step(struct kvm_vcpu_introspection *vi);
bool kvmi_has_step(struct kvm_vcpu_introspection *vi);
bool kvmi_take_step(struct kvm_vcpu_introspection *vi);
void kvmi_block_irqs(struct kvm *kvm, bool blocks);
void kvmi_singlestep_changed(struct kvm_vcpu_introspection *vi, bool on);
int kvmi_step(struct kvm_vcpu_introspection *vi);
int kvmi_yield_before_step(struct kvm_vcpu *vcpu);

#endif
