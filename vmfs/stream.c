/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/stream.h"

#include <string.h>

#include "vmfs/waitq.h"

#define FIRST_SIZE 1024u

struct Stream {
	size_t limit, size; /* size: allocated so far, grows up to limit */
	uint64_t end;	    /* all bytes ever appended */
	size_t used;
	char *ring; /* byte at position p is ring[p % size] */
	GQueue queue;
};

Stream *stream_new(size_t limit)
{
	Stream *s = g_new0(Stream, 1);

	s->limit = limit;
	g_queue_init(&s->queue);
	return s;
}

void stream_free(Stream *s)
{
	if (!s)
		return;
	g_free(s->ring);
	g_free(s);
}

void stream_begin(Stream *s, uint64_t pos)
{
	if (!s->used)
		s->end = pos;
}

uint64_t stream_start(const Stream *s)
{
	return s->end - s->used;
}

uint64_t stream_end(const Stream *s)
{
	return s->end;
}

GQueue *stream_queue(Stream *s)
{
	return &s->queue;
}

static void copy_in(Stream *s, uint64_t pos, const char *data, size_t len)
{
	size_t at = pos % s->size, first = MIN(len, s->size - at);

	memcpy(s->ring + at, data, first);
	memcpy(s->ring, data + first, len - first);
}

static void grow(Stream *s, size_t need)
{
	size_t size = s->size ? s->size : FIRST_SIZE;
	g_autofree char *old = NULL;
	uint64_t pos = stream_start(s);

	while (size < need && size < s->limit)
		size *= 2;
	size = MIN(size, s->limit);
	if (size <= s->size)
		return;
	old = g_malloc(s->used + 1);
	stream_read(s, &pos, old, s->used);
	g_free(s->ring);
	s->ring = g_malloc(size);
	s->size = size;
	if (s->used)
		copy_in(s, s->end - s->used, old, s->used);
}

void stream_append(Stream *s, const char *data, size_t len)
{
	if (!len)
		return;
	if (len > s->limit) {
		s->end += len - s->limit;
		data += len - s->limit;
		len = s->limit;
	}
	grow(s, s->used + len);
	copy_in(s, s->end, data, len);
	s->end += len;
	s->used = MIN(s->used + len, s->size);
	waitq_wake(&s->queue);
}

size_t stream_read(const Stream *s, uint64_t *pos, char *buf, size_t size)
{
	size_t at, first, n;

	/* A position from before a restart may lie ahead of us as well. */
	if (*pos < stream_start(s) || *pos > s->end)
		*pos = stream_start(s);
	n = MIN(size, s->end - *pos);
	if (!n)
		return 0;
	at = *pos % s->size;
	first = MIN(n, s->size - at);
	memcpy(buf, s->ring + at, first);
	memcpy(buf + first, s->ring, n - first);
	*pos += n;
	return n;
}
