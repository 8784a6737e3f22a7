/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes on their way, in a file: what was put in and has not been taken out outlives the daemon,
 * however that ends. They come in numbered parts, so that it is known afterwards which part was the
 * last. Small and in memory (tmpfs): loop thread.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct Spool Spool;

/* One that is not there is made if `make`. NULL and err when it cannot be used. */
Spool *spool_open(const char *path, bool make, GError **err);
/* Its file stays. */
void spool_close(Spool *s);

/* Add part `number`, whole or not at all. */
bool spool_add(Spool *s, uint64_t number, const void *data, size_t len, GError **err);
/* The last part that was added; 0: none. */
uint64_t spool_last(const Spool *s);
/* A copy of all that is in it. */
GByteArray *spool_peek(const Spool *s);
/* Bytes taken out, each once; 0: there are none. */
size_t spool_take(Spool *s, char *buf, size_t size);
size_t spool_len(const Spool *s);
void spool_clear(Spool *s);
