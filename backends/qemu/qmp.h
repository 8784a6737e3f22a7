/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QMP client. Commands may be sent at any time after qmp_connect(), even before the greeting:
 * QEMU takes them in order, and a start then costs no round trip. Every command gets exactly one
 * answer, if only that of its time-out, unless it is cancelled.
 */
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmfs/qemutext.h"

#define QMP_MAX_LINE   (1u << 20)
#define QMP_TIMEOUT_MS 10000
#define QMP_GRACE_MS   200
#define QMP_MAX_HEARD  500 /* messages a second */

typedef struct Qmp Qmp;
typedef struct QmpSlot QmpSlot;

typedef struct QmpOps {
	/* Greeting and capabilities are through. */
	void (*ready)(void *arg);
	void (*event)(void *arg, const char *name, const json_t *data); /* data may be NULL */
	/* It is over. Called once, after all commands got this error; not after qmp_free(). */
	void (*closed)(void *arg, const GError *err);
} QmpOps;

/*
 * `result` is what `return` held, or NULL with err set: the errno that fits and a sentence that
 * begins with the command's name. Both are borrowed.
 */
typedef void (*QmpFn)(void *arg, const json_t *result, const GError *err);

/*
 * Failures come through closed(). QEMU must have greeted us and be ready within timeout_ms (0: it
 * may take its time).
 */
Qmp *qmp_connect(const char *path, uint64_t timeout_ms, const QmpOps *ops, void *arg);
/* Not connected to anything: for qmp_feed(). */
Qmp *qmp_new(const QmpOps *ops, void *arg);
void qmp_free(Qmp *q);

/* False once the connection is over, which the answers to what was asked are told before closed().
 */
bool qmp_is_alive(const Qmp *q);

/*
 * A process that is killed closes its sockets before its end can be seen: so the end of a
 * connection is told QMP_GRACE_MS late, and what fails by it fails when it is known whether QEMU
 * lives. Or now, by the one who knows.
 */
void qmp_settle(Qmp *q);

/* `args` is taken, and may be NULL. The slot is gone once fn was called; fn may be NULL. */
QmpSlot *qmp_execute(Qmp *q, const char *command, json_t *args, QmpFn fn, void *arg);
/* With a descriptor for commands such as getfd, which is taken and closed; -1: none. */
QmpSlot *qmp_execute_fd(Qmp *q, const char *command, json_t *args, int fd, QmpFn fn, void *arg);
/* Stop waiting for the answer: fn is not called. Clears *slot, which may be NULL already. */
void qmp_cancel(QmpSlot **slot);

/* Take one line from the peer; writable, NUL-terminated. */
void qmp_feed(Qmp *q, char *line, size_t len);
