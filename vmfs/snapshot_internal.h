/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of snapshot.c (taken, kept, dropped), import.c (filled through the mount) and booked.c (in
 * the books of a hypervisor).
 */
#pragma once

#include "vmfs/loop.h"
#include "vmfs/savedir.h"
#include "vmfs/snapshot.h"

struct Snapshot {
	Vm *vm; /* which outlives it */
	uint32_t number;
	char *name, *dir;
	SnapshotState state, next; /* next: as stored, or on its way there */
	GPtrArray *files;	   /* names; number - 1 is the index */
	int64_t made;
	pid_t maker; /* of the mkdir; 0: it was before the daemon started */
	Op *op;	     /* a reference, while it is taken */
	Timer *grace;
	bool import; /* what is taken is to be dropped, and files to come */
	GPtrArray *creates;
	unsigned writers;
	SaveJob *job;
	bool has_memory;
	bool booked;	  /* in the hypervisor's books (booked.c): without a directory */
	char *spec, *xml; /* of such a one; or NULL */
	SnapshotDone dropped;
	void *dropped_arg;
};

/* A file to be made once what was taken is gone. */
typedef struct Create {
	char *name;
	SnapshotDone done;
	void *arg;
} Create;

/* It is to be in that state, and is once that is safe on the disk. */
void snapshot_store_state(Snapshot *s, SnapshotState state);
void snapshot_set_state(Snapshot *s, SnapshotState state);
/* Look at what its directory holds. Blocks for that. */
void snapshot_list_files(Snapshot *s);
void snapshot_begin_drop(Snapshot *s);
/* Write the error down; its errno. */
int snapshot_fail(Vm *vm, const char *verb, GError *take);

/* READY, and it is safe on the disk that it is there; TAKING, until somebody says how that ended.
 */
Snapshot *snapshot_add(Vm *vm, const char *name, SnapshotState state);
void snapshot_remove(Snapshot *s);
/* Which there are is to be found by a later daemon. */
void snapshot_store_all(Vm *vm);
bool snapshot_is_name(const char *name);
/* The op ends with it, or with nothing. */
void snapshot_follow(Snapshot *s, Op *op);

/* booked.c */
int booked_drop(Snapshot *s, SnapshotDone done, void *arg);

/* import.c */

/* As SaveDone, once what was taken is gone: an empty directory, to be filled. */
void import_begin(void *arg, const Manifest *m, const GError *err);
/* Answer whoever waits to make a file: make it, or fail with that errno. */
void import_answer(Snapshot *s, int err);
/* All of it may be there. */
void import_look(Snapshot *s);
/* Bytes there are, of those there will be. */
unsigned import_percent(const Snapshot *s);
