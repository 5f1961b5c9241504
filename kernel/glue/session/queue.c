// SPDX-License-Identifier: GPL-2.0-only
/*
 * What waits for a vCPU: commands and the reply to its event, in the order in
 * which the tool sent them.  The reader alone adds, the vCPU alone takes.
 */
#include <linux/memcontrol.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "introspection/session.h"

/*
 * The reader is a kernel thread: what it allocates would be charged to nobody.
 * (Nor are the answers that lie in the socket, which has a limit of its own; to
 * charge them would have somebody killed when even an error finds no room.)
 * A command that finds no memory is answered so, before anything is killed for
 * its sake; without the reply to an event the session could not go on.
 */
static struct kvmi_job *job_alloc(struct kvm_introspection *session, size_t bytes, bool is_reply)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | (is_reply ? 0 : __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
	struct mem_cgroup *old = set_active_memcg(session->memcg);
	struct kvmi_job *job;

	job = kmalloc(struct_size(job, msg, bytes), gfp);
	set_active_memcg(old);

	return job;
}

/* reader: 0; a negated KVM_E* to answer; -EPIPE: the connection is to be closed. */
int kvmi_queue(struct kvm_vcpu_introspection *vi, const u8 *msg, size_t bytes)
{
	bool is_reply = kvmi_is_event_reply(msg);
	size_t kept = is_reply ? min_t(size_t, bytes, KVMI_REPLY_KEPT_BYTES) : bytes;
	struct kvmi_job *job;
	int r = 0;

	/* Only the reader adds: what is admitted here stays so. */
	spin_lock(&vi->lock);
	if (is_reply)
		r = kvmi_reply_admits(vi->reply_count, vi->unanswered) ? 0 : -EPIPE;
	else if (!kvmi_queue_admits(vi->job_count, vi->job_bytes, bytes))
		r = -KVM_EBUSY;
	spin_unlock(&vi->lock);
	if (r)
		return r;

	job = job_alloc(vi->session, kept, is_reply);
	if (!job)
		return is_reply ? -EPIPE : -KVM_ENOMEM;
	job->is_reply = is_reply;
	job->bytes = bytes;
	job->kept = kept;
	memcpy(job->msg, msg, kept);

	kvmi_explore(KVMI_AT_QUEUE);
	spin_lock(&vi->lock);
	list_add_tail(&job->link, &vi->jobs);
	if (is_reply) {
		vi->reply_count++;
	} else {
		vi->job_count++;
		vi->job_bytes += bytes;
	}
	spin_unlock(&vi->lock);

	return 0;
}

/* vcpu: the caller frees it. */
struct kvmi_job *kvmi_dequeue(struct kvm_vcpu_introspection *vi)
{
	struct kvmi_job *job;

	spin_lock(&vi->lock);
	job = list_first_entry_or_null(&vi->jobs, struct kvmi_job, link);
	if (job) {
		list_del(&job->link);
		if (job->is_reply) {
			vi->reply_count--;
			vi->unanswered -= !!vi->unanswered;
		} else {
			vi->job_count--;
			vi->job_bytes -= job->bytes;
		}
	}
	spin_unlock(&vi->lock);

	return job;
}

/* vcpu: an event is about to be sent, or could not be sent after all. */
void kvmi_expect_reply(struct kvm_vcpu_introspection *vi, bool sent)
{
	spin_lock(&vi->lock);
	if (sent)
		vi->unanswered++;
	else
		vi->unanswered -= !!vi->unanswered;
	spin_unlock(&vi->lock);
}

void kvmi_drop_jobs(struct kvm_vcpu_introspection *vi)
{
	struct kvmi_job *job;

	while ((job = kvmi_dequeue(vi)))
		kfree(job);
}
