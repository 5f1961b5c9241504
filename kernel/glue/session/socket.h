/* SPDX-License-Identifier: GPL-2.0-only */
/* A connection that is a socket (socket.c), and the thread that receives from it (reader.c). */
#ifndef KVMI_SESSION_SOCKET_H
#define KVMI_SESSION_SOCKET_H

#include <linux/completion.h>
#include <linux/net.h>

#include "introspection/session.h"

struct kvmi_socket {
	struct kvmi_connection conn;
	struct list_head link;		/* sockets_lock */
	struct socket *sock;
	struct task_struct *reader;	/* a reference of the connection's */
	bool reader_started;
	bool hung_up;			/* for a reader that takes no signals yet */
	struct completion reader_gone;

	/* tx_lock: */
	size_t rest_off, rest_len;	/* of a message that was cut short, in rest */
	u8 *rest;
};

int kvmi_socket_receive(struct kvmi_socket *socket, size_t *bytes);
void kvmi_reader_stop(struct kvmi_connection *conn);
void kvmi_reader_await(struct kvmi_connection *conn);

#endif
