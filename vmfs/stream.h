/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A byte stream that any number of readers follow, each at its own absolute position. The last
 * `limit` bytes are kept: a reader that falls further behind than that loses the oldest, and
 * nobody waits for it.
 */
#pragma once

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Stream Stream;

Stream *stream_new(size_t limit);
void stream_free(Stream *s);
/* Of an empty stream: what is appended first has this position. */
void stream_begin(Stream *s, uint64_t pos);
/* Wakes the queue. */
void stream_append(Stream *s, const char *data, size_t len);
uint64_t stream_start(const Stream *s); /* position of the oldest byte kept */
uint64_t stream_end(const Stream *s);
/* Copy up to size bytes from *pos on, and advance it (over what is lost as well). */
size_t stream_read(const Stream *s, uint64_t *pos, char *buf, size_t size);
GQueue *stream_queue(Stream *s); /* of WaitEntry */
