/* SPDX-License-Identifier: Apache-2.0 */
/* A start under way, and the steps that a cold start and a wake have in common. */
#pragma once

#include "backends/qemu/qemu.h"

#define QEMU_N_SOCKETS 2

typedef struct Lookup Lookup;
typedef struct QemuWake QemuWake;

typedef struct Start {
	QemuVm *q; /* NULL: the VM went from memory */
	Op *op;
	Lookup *lookup;	    /* in the pool */
	struct SshKey *key; /* being made, for the seed */
	int fds[QEMU_N_SOCKETS];
	ProcStart *spawning;
	QmpSlot *kvm, *ports, *cont;
	Timer *dying;
	GError *lost;	/* why the monitor broke off */
	QemuWake *wake; /* wake.c; NULL: a cold start */
} Start;

/* Begin an op with these steps. */
void start_begin(BackendVm *bv, Op *op, const Step *steps, QemuWake *wake);

void start_prepare_run(Op *op, void *ctx);
void start_prepare_cancel(Op *op, void *ctx);
void start_prepare_undo(Op *op, void *ctx);
void start_disks_run(Op *op, void *ctx);
void start_disks_cancel(Op *op, void *ctx);
void start_shares_run(Op *op, void *ctx);
void start_shares_cancel(Op *op, void *ctx);
void start_shares_undo(Op *op, void *ctx);
void start_spawn_run(Op *op, void *ctx);
void start_spawn_cancel(Op *op, void *ctx);
void start_spawn_undo(Op *op, void *ctx);
/* Connect to all that QEMU has, and ask what is to be told of it. */
void start_connect(Start *s);
/* To the monitor only. */
void start_connect_monitor(Start *s);
void start_monitor_run(Op *op, void *ctx);
void start_cont(Start *s);
void start_drop(Start *s);
void start_monitor_cancel(Op *op, void *ctx);
void start_monitor_undo(Op *op, void *ctx);

/* clone.c: the first start of a VM that begins as a snapshot */
void qemu_clone(BackendVm *bv, Op *op);
/* The VM goes from memory. */
void qemu_clone_abandon(QemuVm *q);
/*
 * What the command line of that first start will need, for a dry run; *ret is NULL when it is as
 * that of any other. False and err: its snapshot cannot be used.
 */
bool qemu_clone_plan(QemuVm *q, QemuWake **ret, GError **err);

/* wake.c */

/* What the command line needs. */
void qemu_wake_args(const QemuWake *w, QemuArgs *args);
const char *qemu_wake_slots(const QemuWake *w); /* NULL: not known */
/* Its vCPUs run. */
void qemu_wake_running(Start *s);
/* QEMU ended, or its monitor did, for this reason. */
void qemu_wake_fail(Start *s, GError *take);
/* What it is when it could not be started. */
QemuEnd qemu_wake_end(const Start *s);
void qemu_wake_drop(QemuWake *w);
void qemu_wake_free(QemuWake *w);
