/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Schedule exploration: the places where it matters who comes first.
 *
 * Built with KVMI_EXPLORE (`cargo xtask explore`), whoever passes such a place
 * is held there now and then, as a seed says, so that others come first who
 * else hardly ever would.  Every other build has nothing of it.
 */
#ifndef KVMI_EXPLORE_H
#define KVMI_EXPLORE_H

enum kvmi_place {
	KVMI_AT_WORK,		/* vcpu: has found its vi, holds no reference yet */
	KVMI_AT_SITE,		/* site: something happened, nothing is recorded yet */
	KVMI_AT_SERVE,		/* vcpu: between two steps of its service */
	KVMI_AT_JOB,		/* vcpu: has taken a message, has not carried it out */
	KVMI_AT_SEND,		/* vcpu: a reply is expected, its event is not sent yet */
	KVMI_AT_SENT,		/* vcpu: the event is out, its state does not say so yet */
	KVMI_AT_WAIT,		/* vcpu: is about to wait */
	KVMI_AT_COMPLETE,	/* vcpu: the reply is here, the exit not completed */
	KVMI_AT_MESSAGE,	/* reader: has a message, has not looked at it */
	KVMI_AT_QUEUE,		/* reader: has admitted a message, not queued it */
	KVMI_AT_KICK,		/* reader: has queued a message, not kicked the vCPU */
	KVMI_AT_LOSS,		/* reader: the connection is lost, nobody knows */
	KVMI_AT_PUBLISH,	/* ioctl: the session is there, no vCPU has it */
	KVMI_AT_END,		/* ioctl: everyone is told that the session ends */
	KVMI_AT_DETACH,		/* ioctl: no vCPU finds the session any more */
	KVMI_PLACES
};

#ifdef KVMI_EXPLORE
void kvmi_explore(enum kvmi_place place);
#else
static inline void kvmi_explore(enum kvmi_place place) {}
#endif

#endif
