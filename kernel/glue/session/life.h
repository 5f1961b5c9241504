/* SPDX-License-Identifier: GPL-2.0-only */
/* A session's life (session.c), for its beginning (begin.c) and the close of its descriptor. */
#ifndef KVMI_SESSION_LIFE_H
#define KVMI_SESSION_LIFE_H

#include "introspection/session.h"

struct kvm_introspection *kvmi_session_alloc(struct kvm *kvm, u32 flags);
int kvmi_session_publish(struct kvm *kvm, struct kvm_introspection *session);
void kvmi_lift_all(struct kvm *kvm);
void kvmi_stop_vcpus(struct kvm *kvm);
unsigned long kvmi_tell_end(struct kvm *kvm, struct kvmi_connection *conn, bool taken_over);
int kvmi_await_end(struct kvm *kvm, unsigned long number);

#endif
