/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests on their way, so that a successor of this daemon answers each exactly once. A request is
 * received into the memory file (keep.h); one that waits is kept there as the kernel sent it, and
 * the successor handles it anew; what it has set going is kept beside it. An answer is kept before
 * the kernel gets it, together with what it changed: after a crash it is given again, not made
 * again. So neither needs anything of the kernel but that it waits.
 */
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* Serve a mount through fd. In a successor the handshake with the kernel is repeated. */
void request_init(struct fuse_session *session, int fd);
/* Handle one request, from keep_slot(). */
void request_handle(void);
/* Handle those that a former daemon left. */
void request_resume(void);
/* Answer nothing more: what waits is the successor's. */
void request_mute(void);

/* For handlers, of the request that they were called for: */

uint64_t request_unique(void); /* 0: none */
/* The request as the kernel sent it: a struct of <linux/fuse.h> behind the header. */
const void *request_body(void);
/*
 * It is about to change something outside of this process's memory, or waits for the operation of
 * this number (0: none). Until it is answered its successor can ask for that.
 */
void request_begin(uint64_t op);
/* Whether it had begun when the former daemon died; *op (may be NULL) as above. */
bool request_begun(uint64_t *op);

extern const struct fuse_custom_io request_io;
