/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state directory: plain files, each replaced as a whole. Writes go through one thread in the
 * order they were asked for, so a slow disk delays the answer to whoever asked, and nobody else.
 *
 *	<state>/format, lock, next, root
 *	<state>/vms/SERIAL/{meta,spec.yaml,spec.yaml.rej,error,started.yaml}	the daemon's
 *	<state>/vms/SERIAL/data/					the VM owner's
 *
 * `meta` makes a VM: a directory where it is missing or empty is what an unfinished mkdir or rmdir
 * left.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* err: 0 or an errno. Called on the loop, when what was asked is safe on the disk. */
typedef void (*StoreDone)(void *arg, int err);

/* Make both directories, and lock them for as long as the descriptors are open. EBUSY when another
 * vmfs has them. */
bool store_lock(const char *state_dir, const char *runtime_dir, int ret_fds[2], GError **err);
/* Start the thread, on directories that are locked. ENOTSUP when the format is a newer one. */
bool store_open(const char *state_dir, const char *runtime_dir, GError **err);
/* Finish all writes and stop. */
void store_close(void);
const char *store_dir(void);
/* Path below the state directory; owned by the caller. */
char *store_path(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

/* All take a path below the state directory. fn may be NULL: failures are then logged. */

/* Replace a file; durable says that it must survive a power cut. Takes a reference to data. */
void store_put(const char *path, GBytes *data, bool durable, StoreDone fn, void *arg);
void store_remove(const char *path, StoreDone fn, void *arg);
/*
 * vms/SERIAL with its data directory, and meta in it. Outlives the daemon at once, and a power cut
 * once something durable is put after it, or half a second has passed.
 */
void store_make_vm(uint32_t serial, uid_t uid, gid_t gid, GBytes *meta, StoreDone fn, void *arg);
void store_remove_vm(uint32_t serial, StoreDone fn, void *arg);
/* Give data/ and all in it to another owner. */
void store_chown_vm(uint32_t serial, uid_t uid, gid_t gid, StoreDone fn, void *arg);

/* Something is being written: whoever asked for it waits. */
bool store_busy(void);
/* Call fn when all that was asked for so far is done: at once when nothing is. */
void store_barrier(StoreDone fn, void *arg);

/*
 * What a restarted daemon must know of a VMM that runs: <run>/SERIAL.run, gone with a reboot as the
 * VMM is. Written at once by the caller, for the runtime directory is in memory as a rule.
 */
void store_put_run(uint32_t serial, GBytes *data);
void store_remove_run(uint32_t serial);

/* At start only: these block. */

/* The serials of the VMs, ascending, of uint32_t; what is left of unfinished ones is removed. */
GArray *store_list(void);
/* A file's bytes; NULL when there is none, or (logged) when it cannot be read. At most `max` bytes.
 */
GBytes *store_get(const char *path, size_t max);

GBytes *store_get_run(uint32_t serial, size_t max);

/* A serial that was never given out before. */
uint32_t store_next_serial(void);
