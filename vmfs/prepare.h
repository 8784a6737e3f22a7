/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that a start makes: private disks, the seed for cloud-init, a copy of firmware's
 * variables. All of it is done in the pool with the owner's rights, and by `qemu-img resize` where
 * a disk grows. A file gets its name when it is complete. Loop thread, but for the work.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/diskfile.h"
#include "vmfs/proc.h"
#include "vmfs/seed.h"

typedef void (*PrepareFn)(void *arg, const GError *err);

/* What is to be made: copies, which outlive a start that gave up. Filled in by who orders it. */
typedef struct Prepare Prepare;
struct Prepare {
	ProcUser user;
	bool lookup;	  /* of `user`, only uid and gid are set */
	GPtrArray *files; /* of DiskFile */
	GPtrArray *nodes; /* of char *: the keys of devices, each before the path of its node */
	GPtrArray *reads; /* likewise: files that must be readable */
	char *seed_path;  /* NULL: whatever it is, it stays */
	Seed *seed;	  /* NULL: there is to be none */
	char *copy_from, *copy_to; /* made if it is missing; NULL: nothing is */
	GError *error;		   /* it is known to be in vain */

	/* prepare.c */
	Prepare **slot; /* NULL: its owner is no more */
	gint cancelled; /* atomic */
	PrepareFn done; /* NULL: nobody waits any more */
	void *arg;
	guint next; /* file to be resized */
	char *img;  /* qemu-img */
	ProcRun *run;
	/* Waits for this one, which nobody waits for any more but which is still in the pool. */
	Prepare *then;
};

Prepare *prepare_new(void);
/*
 * Takes p. *slot is where its owner keeps what is under way: one at a time. done is called once on
 * the loop, unless it is cancelled.
 */
void prepare_begin(Prepare *p, Prepare **slot, PrepareFn done, void *arg);
void prepare_cancel(Prepare **slot);
/* The same, and the slot itself goes. */
void prepare_forget(Prepare **slot);
