/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest of a saved machine: its files with their checksums, as sha256sum(1) has them. */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmfs/digest.h"

#define SAVEDIR_MANIFEST     "manifest"
#define SAVEDIR_MAX_FILES    100
#define SAVEDIR_MAX_NAME     100
#define SAVEDIR_MAX_MANIFEST (64u << 10) /* bytes */

typedef struct SavedFile {
	char *name;
	uint64_t size; /* UINT64_MAX: not told */
	char sha256[DIGEST_HEX + 1];
} SavedFile;

/* Counted: g_rc_box. */
typedef struct Manifest {
	GPtrArray *files; /* of SavedFile */
	GPtrArray *facts; /* "key value" strings */
} Manifest;

Manifest *manifest_new(void);
/* EBADMSG: it is none; ENOTSUP: of another version. */
Manifest *manifest_parse(const char *text, size_t len, GError **err);
GBytes *manifest_text(const Manifest *m);
void manifest_unref(Manifest *m);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Manifest, manifest_unref)
SavedFile *manifest_add(Manifest *m, const char *name);
/* NULL: there is none of that name. */
SavedFile *manifest_file(const Manifest *m, const char *name);
const char *manifest_fact(const Manifest *m, const char *key);

/* A name that a file in such a directory may have. */
bool savedir_is_name(const char *name);
