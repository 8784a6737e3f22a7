/* SPDX-License-Identifier: Apache-2.0 */
/* A start whose memory comes from a file: for wake.c and clone.c. */
#pragma once

#include "backends/qemu/save.h"
#include "backends/qemu/start.h"

typedef struct QemuClone QemuClone; /* clone.c */

struct QemuWake {
	char *dir;
	char *machine, *slots;
	char *ram;  /* file that memory is mapped from, the rest being in `memory`; or NULL */
	Spec *spec; /* of a snapshot */
	GPtrArray *copies; /* paths of its disks, and of copies of them */
	int memory;	   /* the file; -1: none, or given to QEMU */
	int64_t slept_s;
	SaveJob *verify;
	QemuStream *stream;
	SavedNote *note;
	bool verified, loaded;
	GError *bad;	    /* what the checksums say; tells more than: */
	GError *load_error; /* what QEMU says */
	bool waiting;	    /* the step waits for both */
	bool ran;	    /* the vCPUs were told to */
	bool restore;	    /* of a snapshot, which is kept */
	QemuClone *clone;   /* its first start, from a snapshot of another VM; or NULL */
};

/* What the manifest in w->dir says of the machine. */
bool wake_read_machine(QemuWake *w, GError **err);
/* The same, and open the memory that is beside it. */
bool wake_open_memory(QemuWake *w, GError **err);
/* A QemuStreamFn; arg is the Start. */
void wake_loaded(void *arg, const GError *err);
/* Steps. */
void wake_load_run(Op *op, void *ctx);
void wake_run_run(Op *op, void *ctx);

/* clone.c */
void qemu_clone_args(const QemuClone *c, QemuArgs *args);
void qemu_clone_forget(QemuClone *c);
/* The vCPUs run. False: it has booted, as any other. */
bool qemu_clone_running(const Start *s);
