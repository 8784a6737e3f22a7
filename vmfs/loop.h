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

/*
 * Run work(job) in the thread pool, then done(job) on the loop, which owns and frees job. work()
 * must touch nothing but job.
 */
void loop_work(void (*work)(void *job), void (*done)(void *job), void *job);
/* Some of that is still under way. */
bool loop_has_work(void);

/* Watch a descriptor; fn gets UV_READABLE, UV_WRITABLE (or a negative errno in `status`). */
typedef struct Watch Watch;
typedef void (*WatchFn)(void *arg, int status, int events);
Watch *watch_start(int fd, int events, WatchFn fn, void *arg);
void watch_events(Watch *w, int events);
/* Stop and clear; closes the descriptor too if close_fd. */
void watch_stop(Watch **w, bool close_fd);
