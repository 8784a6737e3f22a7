/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The directory of a saved machine: memory, disks, the spec it ran with, and a manifest of them
 * with checksums, in the format of sha256sum(1). It is in the data directory of a VM, whose owner
 * may put anything there: links are not followed, and nothing in it is believed before its
 * checksums are.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmfs/manifest.h"
#include "vmfs/spec.h"

#define SAVEDIR_MEMORY "memory"
#define SAVEDIR_SPEC   "spec.yaml"

#define SAVEDIR_MAX_SPEC (256u << 10) /* bytes */

/* An open directory, -1 and err. What it holds belongs to the user given. */
int savedir_make(const char *path, uid_t uid, gid_t gid, GError **err);
int savedir_open(const char *path, GError **err);

/* A new file; one that is there (for reading). -1 and err; the descriptor is the caller's. */
int savedir_create(int dir, const char *name, uid_t uid, gid_t gid, GError **err);
int savedir_open_file(int dir, const char *name, bool write, GError **err);
bool savedir_put(int dir, const char *name, GBytes *data, uid_t uid, gid_t gid, GError **err);
/* At most max bytes. */
GBytes *savedir_get(int dir, const char *name, size_t max, GError **err);

/*
 * The spec in it, which is small. The manifest must name the backend `backend`: EINVAL when it does
 * not.
 */
Spec *savedir_spec(const char *path, const char *backend, GError **err);
/* A fact of the manifest; NULL when there is none. Owned by the caller. */
char *savedir_fact(const char *path, const char *key);

/* Blocks for as long as the file system needs for large files: pool only. */
void savedir_remove(const char *path);

/*
 * What takes long. done is called once, later, unless cancelled first, with err or the manifest;
 * both are borrowed.
 */
typedef struct SaveJob SaveJob;
typedef void (*SaveDone)(void *arg, const Manifest *m, const GError *err);

/*
 * Make the manifest of all files that are in it, and see to it that all of it is safe on the disk.
 * Its memory may still be being written, and is read meanwhile: done is not called with success
 * before savedir_written().
 */
SaveJob *savedir_seal(const char *path, uid_t uid, gid_t gid, SaveDone done, void *arg);
/* All files are there. facts are "key value" strings for the manifest, copied. */
void savedir_written(SaveJob *job, const GPtrArray *facts);
/* EBADMSG when a file is missing or is not what the manifest says. */
SaveJob *savedir_verify(const char *path, SaveDone done, void *arg);
/* Give a directory its final name once all of it is safe on the disk. The manifest has no sums. */
SaveJob *savedir_publish(const char *path, const char *to, SaveDone done, void *arg);
/* savedir_remove(); err is always NULL, and so is the manifest. */
SaveJob *savedir_drop(const char *path, SaveDone done, void *arg);
/*
 * Copy files, sparse ones sparsely, and by reference where the file system can. pairs are paths,
 * from and to in turn; a link is not followed, and what is at `to` is replaced when all of them are
 * copied. The manifest is NULL.
 */
SaveJob *savedir_copy(const GPtrArray *pairs, uid_t uid, gid_t gid, SaveDone done, void *arg);
/* Clears *job, which may be NULL. The work ends soon, and nobody is told. */
void savedir_cancel(SaveJob **job);
