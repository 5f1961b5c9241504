// SPDX-License-Identifier: GPL-2.0-only
/*
 * The receive thread of a session: VM commands are carried out here, vCPU
 * commands and replies to events are handed to their vCPU.  It never waits for
 * a vCPU that does not run.
 */
#include <linux/sched/signal.h>

#include "session.h"

static struct kvm_vcpu_introspection *session_vcpu(struct kvm_introspection *session, u16 idx)
{
	struct kvm_vcpu *vcpu = kvm_get_vcpu(session->kvm, idx);

	return vcpu ? kvmi_vcpu(vcpu) : NULL;
}

static int answer(struct kvm_introspection *session, size_t bytes)
{
	bool owes_rest = false;

	/* Nothing but session_end() interrupts this thread. */
	return bytes ? kvmi_send(session, session->tx, bytes, &owes_rest) : 0;
}

static int handle(struct kvm_introspection *session, size_t bytes)
{
	struct kvm_vcpu_introspection *vi;
	size_t out = 0;
	u16 idx = 0;
	int r;

	switch (kvmi_vm_message(session->state, session, session->rx, bytes, session->tx, &out,
				&idx)) {
	case KVMI_ANSWERED:
		return answer(session, out);
	case KVMI_QUEUE:
		vi = session_vcpu(session, idx);
		r = vi ? kvmi_queue(vi, session->rx, bytes) : -KVM_EINVAL;
		if (r == -EPIPE)
			return r;
		if (r)
			return answer(session, kvmi_build_error_reply(session->rx, r, session->tx));
		kvmi_vcpu_kick(vi);
		return 0;
	default:
		return -EPIPE;
	}
}

int kvmi_reader(void *data)
{
	struct kvm_introspection *session = data;
	struct kvm_vcpu_introspection *vi;
	struct kvm_vcpu *vcpu;
	unsigned long i;
	size_t bytes;

	/* So that session_end() gets it out of a page fault that nobody serves. */
	allow_signal(SIGKILL);

	/* What still lies in the socket when the session is lost is not carried out. */
	while (!kvmi_receive(session, &bytes) && !READ_ONCE(session->lost) &&
	       !READ_ONCE(session->closing) && !handle(session, bytes))
		cond_resched();

	WRITE_ONCE(session->lost, true);
	kvmi_hang_up(session);

	kvm_for_each_vcpu(i, vcpu, session->kvm) {
		vi = kvmi_vcpu(vcpu);
		atomic_set(&vi->pauses, 0);
		kvmi_vcpu_kick(vi);
	}

	complete(&session->reader_done);
	return 0;
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
	struct kvm_vcpu_introspection *vi = session_vcpu(session, vcpu_idx);
	DECLARE_BITMAP(only, KVM_MAX_VCPUS);

	if (!vi)
		return -KVM_EINVAL;
	if (atomic_read(&vi->pauses) > KVMI_MAX_PENDING_PAUSES)
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

/* Neither single-step nor page access is there yet. */
u8 kvmi_glue_access_bits(void)
{
	return 0;
}

u8 kvmi_glue_singlestep(void)
{
	return 0;
}
