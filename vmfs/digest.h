/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The SHA-256 of a file, also of one that is being written: it is read as it grows, so that little
 * is left to read when it is complete. Blocks: pool only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define DIGEST_HEX 64 /* characters of one as text */

typedef struct Digest Digest;

/* Asked now and then; false, with err set, ends it. */
typedef bool (*DigestGoOn)(void *arg, GError **err);

/* Of the file behind fd, which stays the caller's, from where it stands on. */
Digest *digest_new(int fd, DigestGoOn go_on, void *arg);
void digest_free(Digest *d);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Digest, digest_free)

/*
 * Read what there is and what is added, until `stop` can be read from. What goes wrong is found
 * again by digest_end().
 */
void digest_follow(Digest *d, int stop);
/* Read up to the present end. The text, ended by a NUL, and the bytes it is of. */
bool digest_end(Digest *d, char sha256[DIGEST_HEX + 1], uint64_t *size, GError **err);
