/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wait queues: parked readers and poll handles sleep on what they wait for and look again each time
 * it is woken. An entry is embedded in its owner and is in at most one queue.
 */
#pragma once

#include <glib.h>
#include <stddef.h>

typedef struct WaitEntry {
	GList link; /* data: the entry itself; in no queue when NULL */
	GQueue *queue;
	/* Look again. May remove this entry or add others, and nothing else of the queue. */
	void (*wake)(struct WaitEntry *e);
} WaitEntry;

/* What an entry is embedded in. */
#define WAIT_OWNER(entry, type, member) ((type *)(void *)((char *)(entry)-offsetof(type, member)))

static inline void waitq_add(GQueue *q, WaitEntry *e)
{
	e->link.data = e;
	e->queue = q;
	g_queue_push_tail_link(q, &e->link);
}

static inline void waitq_remove(WaitEntry *e)
{
	if (!e->queue)
		return;
	g_queue_unlink(e->queue, &e->link);
	e->queue = NULL;
}

/* Wake those that were in the queue when this was called, each once. */
static inline void waitq_wake(GQueue *q)
{
	unsigned n = q->length;

	while (n-- && q->head) {
		WaitEntry *e = q->head->data;

		/* To the tail first: whoever is woken may leave, the others keep their order. */
		g_queue_unlink(q, &e->link);
		g_queue_push_tail_link(q, &e->link);
		e->wake(e);
	}
}
