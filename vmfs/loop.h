/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one libuv loop. All of vmfs's state is owned by the thread that runs it; only work functions
 * given to loop_work() run elsewhere, on copies.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

typedef struct Timer Timer;

void loop_init(void);
uv_loop_t *loop_get(void);

/* Call fn once after `ms` milliseconds. The timer is gone before fn is called. */
Timer *timer_start(uint64_t ms, void (*fn)(void *arg), void *arg);
/* Stop *t if it is set, and clear it. A timer whose fn has been called must be cleared by fn. */
void timer_stop(Timer **t);

/* Call fn from the loop, after the current handler has returned. */
void loop_defer(void (*fn)(void *arg), void *arg);
/* The same, from any thread: the only function here that is for all of them. */
void loop_post(void (*fn)(void *arg), void *arg);

/*
 * Run work(job) in the thread pool, then done(job) on the loop, which owns and frees job. work()
 * must touch nothing but job.
 */
void loop_work(void (*work)(void *job), void (*done)(void *job), void *job);
/* Some of that is still under way, or of pool_work()'s. */
bool loop_has_work(void);

/*
 * Threads of their own, at most so many at once, for what may block for long: it must not keep
 * others out of the common pool.
 */
typedef struct Pool Pool;
Pool *pool_new(unsigned threads);
/* As loop_work(). */
void pool_work(Pool *p, void (*work)(void *job), void (*done)(void *job), void *job);
/* What it was given is still done. */
void pool_free(Pool *p);

/* Watch a descriptor; fn gets UV_READABLE, UV_WRITABLE (or a negative errno in `status`). */
typedef struct Watch Watch;
typedef void (*WatchFn)(void *arg, int status, int events);
Watch *watch_start(int fd, int events, WatchFn fn, void *arg);
void watch_events(Watch *w, int events);
/* Stop and clear; closes the descriptor too if close_fd. */
void watch_stop(Watch **w, bool close_fd);
