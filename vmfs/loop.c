/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one libuv loop, in the few shapes the daemon uses. libuv wants every handle to live until its
 * close callback, so each is embedded in an object that is freed there and nowhere else. Nothing
 * here wakes the loop unless there is something to do. Loop thread only, work functions excepted.
 */
#include "vmfs/loop.h"

#include <unistd.h>

typedef struct Deferred {
	void (*fn)(void *arg);
	void *arg;
} Deferred;

struct Timer {
	uv_timer_t uv;
	void (*fn)(void *arg);
	void *arg;
};

struct Watch {
	uv_poll_t uv;
	WatchFn fn;
	void *arg;
	int fd;
	int failed; /* negative errno: epoll would not have the descriptor */
	bool inited, stopped;
};

typedef struct Work {
	uv_work_t uv;
	void (*work)(void *job);
	void (*done)(void *job);
	void *job;
} Work;

struct Pool {
	GThreadPool *threads;
};

static struct {
	uv_loop_t *uv;
	uv_idle_t idle; /* active only while there is something in the queue */
	GArray *queue;	/* of Deferred */
	unsigned works; /* under way */
	uv_async_t posted_async;
	GMutex posted_lock;
	GArray *posted; /* of Deferred; under the lock */
} loop;

/* What a deferred function defers runs in the next turn, so that I/O is never kept out. */
static void run_deferred(uv_idle_t *idle)
{
	g_autoptr(GArray) now = loop.queue;

	loop.queue = g_array_new(FALSE, FALSE, sizeof(Deferred));
	for (guint i = 0; i < now->len; i++) {
		const Deferred d = g_array_index(now, Deferred, i);
		d.fn(d.arg);
	}
	if (!loop.queue->len)
		uv_idle_stop(idle);
}

static void run_posted(uv_async_t *async)
{
	g_autoptr(GArray) now = NULL;

	(void)async;
	g_mutex_lock(&loop.posted_lock);
	now = loop.posted;
	loop.posted = g_array_new(FALSE, FALSE, sizeof(Deferred));
	g_mutex_unlock(&loop.posted_lock);
	for (guint i = 0; i < now->len; i++) {
		const Deferred d = g_array_index(now, Deferred, i);
		d.fn(d.arg);
	}
}

void loop_init(void)
{
	if (loop.uv)
		return;
	loop.uv = uv_default_loop();
	if (!loop.uv)
		g_error("cannot make the event loop");
	uv_idle_init(loop.uv, &loop.idle);
	loop.queue = g_array_new(FALSE, FALSE, sizeof(Deferred));
	loop.posted = g_array_new(FALSE, FALSE, sizeof(Deferred));
	if (uv_async_init(loop.uv, &loop.posted_async, run_posted))
		g_error("cannot make the event loop");
	/* It waits for others, and is no reason for the loop to go on. */
	uv_unref((uv_handle_t *)&loop.posted_async);
}

uv_loop_t *loop_get(void)
{
	return loop.uv;
}

void loop_defer(void (*fn)(void *arg), void *arg)
{
	const Deferred d = { fn, arg };

	g_array_append_val(loop.queue, d);
	uv_idle_start(&loop.idle, run_deferred); /* no-op when it is active */
}

void loop_post(void (*fn)(void *arg), void *arg)
{
	const Deferred d = { fn, arg };

	g_mutex_lock(&loop.posted_lock);
	g_array_append_val(loop.posted, d);
	g_mutex_unlock(&loop.posted_lock);
	(void)uv_async_send(&loop.posted_async);
}

static void timer_closed(uv_handle_t *h)
{
	g_free(h->data);
}

static void timer_fired(uv_timer_t *uv)
{
	Timer *t = uv->data;

	/* fn may well start the next timer in the same variable. */
	uv_close((uv_handle_t *)uv, timer_closed);
	t->fn(t->arg);
}

Timer *timer_start(uint64_t ms, void (*fn)(void *arg), void *arg)
{
	Timer *t = g_new0(Timer, 1);

	t->fn = fn;
	t->arg = arg;
	t->uv.data = t;
	uv_timer_init(loop.uv, &t->uv);
	/* libuv counts from the start of this turn, which a long handler may have left behind. */
	uv_update_time(loop.uv);
	uv_timer_start(&t->uv, timer_fired, ms, 0);
	return t;
}

void timer_stop(Timer **t)
{
	if (!*t)
		return;
	uv_close((uv_handle_t *)&(*t)->uv, timer_closed);
	*t = NULL;
}

static void work_run(uv_work_t *uv)
{
	Work *w = uv->data;

	w->work(w->job);
}

static void work_done(uv_work_t *uv, int status)
{
	Work *w = uv->data;

	loop.works--;
	w->done(w->job);
	g_free(w);
}

void loop_work(void (*work)(void *job), void (*done)(void *job), void *job)
{
	Work *w = g_new0(Work, 1);

	w->work = work;
	w->done = done;
	w->job = job;
	w->uv.data = w;
	loop.works++;
	uv_queue_work(loop.uv, &w->uv, work_run, work_done);
}

bool loop_has_work(void)
{
	return loop.works;
}

static void pool_done(void *arg)
{
	Work *w = arg;

	loop.works--;
	w->done(w->job);
	g_free(w);
}

static void pool_run(void *data, void *unused)
{
	Work *w = data;

	(void)unused;
	w->work(w->job);
	loop_post(pool_done, w);
}

Pool *pool_new(unsigned threads)
{
	Pool *p = g_new0(Pool, 1);

	/* Not exclusive: GLib keeps few idle threads, and lets them go after a while. */
	p->threads = g_thread_pool_new(pool_run, NULL, (gint)threads, FALSE, NULL);
	return p;
}

void pool_work(Pool *p, void (*work)(void *job), void (*done)(void *job), void *job)
{
	Work *w = g_new0(Work, 1);

	w->work = work;
	w->done = done;
	w->job = job;
	loop.works++;
	(void)g_thread_pool_push(p->threads, w, NULL);
}

void pool_free(Pool *p)
{
	g_thread_pool_free(p->threads, FALSE, FALSE);
	g_free(p);
}

static void watch_closed(uv_handle_t *h)
{
	g_free(h->data);
}

static void watch_ready(uv_poll_t *uv, int status, int events)
{
	Watch *w = uv->data;

	w->fn(w->arg, status, events);
}

static void watch_failed(void *arg)
{
	Watch *w = arg;

	if (w->stopped) {
		g_free(w);
		return;
	}
	const int status = w->failed;
	w->failed = 0;
	w->fn(w->arg, status, 0);
}

/* A descriptor that cannot be watched is reported like one that broke, so callers have one path. */
Watch *watch_start(int fd, int events, WatchFn fn, void *arg)
{
	Watch *w = g_new0(Watch, 1);

	w->fn = fn;
	w->arg = arg;
	w->fd = fd;
	w->uv.data = w;
	w->failed = uv_poll_init(loop.uv, &w->uv, fd);
	w->inited = !w->failed;
	if (w->failed)
		loop_defer(watch_failed, w);
	else
		watch_events(w, events);
	return w;
}

void watch_events(Watch *w, int events)
{
	if (!w->inited)
		return;
	if (events)
		uv_poll_start(&w->uv, events, watch_ready);
	else
		uv_poll_stop(&w->uv);
}

void watch_stop(Watch **wp, bool close_fd)
{
	Watch *w = *wp;

	if (!w)
		return;
	*wp = NULL;
	/* uv_close() takes it out of epoll at once, so closing right after is safe. */
	if (w->inited)
		uv_close((uv_handle_t *)&w->uv, watch_closed);
	if (close_fd)
		close(w->fd);
	if (w->inited)
		return;
	w->stopped = true;
	if (!w->failed) /* watch_failed() has run and will not free it */
		g_free(w);
}
