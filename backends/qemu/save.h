/* SPDX-License-Identifier: Apache-2.0 */
/* Memory and devices of a VM as a stream of bytes, and the operations made of that. */
#pragma once

#include "backends/qemu/qemu.h"
#include "vmfs/savedir.h"

typedef struct QemuStream QemuStream;
typedef void (*QemuStreamFn)(void *arg, const GError *err);

/*
 * Set QEMU up for it, before anything waits. The guest is to be paused while it is saved. With
 * ignore_shared, memory that is mapped from a file is no part of it.
 */
QmpSlot *qemu_stream_prepare(QemuVm *q, bool ignore_shared, QmpFn fn, void *arg);
/* done is called once unless it is forgotten first. fd is taken; op (or NULL) gets the progress. */
QemuStream *qemu_stream_out(QemuVm *q, Op *op, int fd, QemuStreamFn done, void *arg);
QemuStream *qemu_stream_in(QemuVm *q, Op *op, int fd, QemuStreamFn done, void *arg);
/* Clears *s, which may be NULL. QEMU goes on with it. */
void qemu_stream_forget(QemuStream **s);
/* Have QEMU stop it; done (whatever err says) is called when it has. */
void qemu_stream_abort(QemuVm *q, QemuStreamFn done, void *arg);
/*
 * The machine type by which a later QEMU makes the same devices, as a fact for a manifest:
 * "machine pc-q35-7.2".
 */
QmpSlot *qemu_ask_machine(QemuVm *q, QmpFn fn, void *arg);
void qemu_add_machine_fact(GPtrArray *facts, const json_t *result);
/* Where its devices are: "slots disk-root=0,...". The later one must have them there too. */
void qemu_add_slots_fact(GPtrArray *facts, const QemuVm *q);
/* MIGRATION has come. */
void qemu_stream_event(QemuVm *q, const char *status);

/* snapshot.c */

#define QEMU_COPY_PREFIX "copy-" /* of jobs, and of the nodes to which they copy disks */

void qemu_snapshot(BackendVm *bv, Op *op);
void qemu_snapshot_abandon(QemuVm *q);
void qemu_snapshot_cancel_copy(QemuVm *q, const char *job);
/* The vCPUs go on. */
void qemu_snapshot_resumed(QemuVm *q);
/* A block job has come to "concluded", "completed" (error or NULL) or "null": gone. */
void qemu_snapshot_job(QemuVm *q, const char *id, const char *status, const char *error);
/*
 * Paths for savedir_copy(): the VM's own disks into that directory, or back: then beside them, with
 * QEMU_RESTORED after their names.
 */
#define QEMU_RESTORED ".restored"
GPtrArray *qemu_snapshot_pairs(QemuVm *q, const Spec *spec, const char *dir, bool back);
/* Name of the file that holds a disk in a snapshot; owned by the caller. */
char *qemu_snapshot_disk(const SpecDisk *d);

/* clone.c: the file that a private disk of a VM that begins as a snapshot is to be based on; NULL:
 * none. Owned by the caller. */
char *qemu_clone_base(const QemuVm *q, const SpecDisk *d);

/* wake.c */
void qemu_restore(BackendVm *bv, Op *op);

/* sleep.c */
void qemu_sleep(BackendVm *bv, Op *op);
void qemu_sleep_abandon(QemuVm *q);
/* The directory of what it sleeps in; owned by the caller. */
char *qemu_sleep_dir(QemuVm *q);
/* It goes, and then fn (or NULL) is called; not twice at a time, for the next sleep makes it again.
 */
void qemu_sleep_drop(QemuVm *q, void (*fn)(QemuVm *q));
