/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The snapshots of a VM: directories in its data directory (savedir.h), which the backend fills,
 * or which somebody fills through the mount: an import. A snapshot is ready from when its manifest
 * holds; nothing is made of one that is not. Or, with a backend that keeps them itself, those in
 * its books. Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmfs/vm.h"

#define SNAPSHOT_MAX 256 /* of a VM */

typedef enum SnapshotState {
	SNAPSHOT_TAKING,
	SNAPSHOT_READY,
	SNAPSHOT_IMPORTING,
	SNAPSHOT_DAMAGED,
	SNAPSHOT_DROPPING, /* not shown any more */
} SnapshotState;

/* How it ended: 0 or an errno. */
typedef void (*SnapshotDone)(void *arg, int err);

Vm *snapshot_vm(const Snapshot *s);
const char *snapshot_state_name(SnapshotState state);
SnapshotState snapshot_state(const Snapshot *s);

/* NULL: there is none. */
Snapshot *snapshot_find(const Vm *vm, const char *name);
Snapshot *snapshot_by_number(const Vm *vm, uint32_t number);
/* The one with the next higher number. */
Snapshot *snapshot_after(const Vm *vm, uint32_t number);

/* Its files have numbers from 1 on, for as long as it exists. */
const char *snapshot_file(const Snapshot *s, uint32_t number);
uint32_t snapshot_find_file(const Snapshot *s, const char *name); /* 0: none */
uint32_t snapshot_file_after(const Snapshot *s, uint32_t number); /* 0: none */
/* Of one in the hypervisor's books: what it holds, as a spec and in its words; else NULL. */
const char *snapshot_spec(const Snapshot *s);
const char *snapshot_xml(const Snapshot *s);
/* See whether the books have others by now: before done, if that is answered within a second. */
void snapshot_look(Vm *vm, SnapshotDone done, void *arg);
/* A descriptor; -1 and errno. For writing only while it is imported. */
int snapshot_open(const Snapshot *s, uint32_t file, bool write);

/*
 * Take one. An errno that is known at once is returned, with its sentence in `error`; else done is
 * called when the guest's moment is fixed, or it has taken long.
 */
int snapshot_take(Vm *vm, const char *name, pid_t maker, SnapshotDone done, void *arg);
int snapshot_drop(Snapshot *s, SnapshotDone done, void *arg);
/*
 * A new file. tar(1) makes the directory, which takes a snapshot, and then files in it: that is an
 * import, and what was taken is given up.
 */
int snapshot_create(Snapshot *s, const char *name, pid_t maker, SnapshotDone done, void *arg);
/* A file has been opened for writing; written to or closed. */
void snapshot_opened(Snapshot *s);
void snapshot_wrote(Snapshot *s, int err);
void snapshot_closed(Snapshot *s);

/* The ready one of this name, for 'restore'. NULL and err. */
Snapshot *snapshot_ready(const Vm *vm, const char *name, GError **err);

/* "s1 ready s2 taking", '-' for none; and lines for `status`. */
void snapshot_list(const Vm *vm, GString *out);
void snapshot_status(const Vm *vm, GString *out);
bool snapshot_any_unsettled(const Vm *vm);

/* At start: what the store has. And the end of the VM in memory. */
void snapshot_load(Vm *vm);
/* That the former daemon was taking one: ECANCELED. */
GError *snapshot_unfinished(const char *name);
/* The one that the op of a former daemon takes, if the hypervisor goes on with that by itself. */
Snapshot *snapshot_carry_on(const Vm *vm, const char *name, Op *op, GError **err);
void snapshot_free_all(Vm *vm);
