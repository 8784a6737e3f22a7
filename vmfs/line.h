/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of a unix stream socket. Bytes or whole lines come in, bytes go out; what the peer says
 * is bounded: a line over the limit ends the connection.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct Line Line;

typedef struct LineOps {
	/* One line without its end (LF or CRLF), NUL-terminated, writable; only when max_line != 0.
	 */
	void (*line)(void *arg, char *line, size_t len);
	/* Raw bytes; only when max_line == 0. */
	void (*data)(void *arg, const char *data, size_t len);
	/* Room for more output again after line_queued() was not 0. Optional. */
	void (*drained)(void *arg);
	/* The connection is over (or was never made). Called once; not after line_free(). */
	void (*closed)(void *arg, const GError *err);
} LineOps;

/*
 * Connect to the socket at path, which must belong to the owner of its directory; failures come
 * through closed(), never from within this call.
 * max_line in bytes, 0 for a raw stream.
 */
Line *line_connect(const char *path, size_t max_line, const LineOps *ops, void *arg);

/* Queue bytes (copied). Silently dropped once the connection is over. */
void line_send(Line *l, const void *data, size_t len);
/* The same, with a descriptor (SCM_RIGHTS) that is taken and closed. */
void line_send_fd(Line *l, const void *data, size_t len, int fd);
/* Bytes queued and not yet taken by the kernel. */
size_t line_queued(const Line *l);
/* Close; no callback comes after this. Accepts NULL. */
void line_free(Line *l);
