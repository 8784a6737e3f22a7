/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/libvirt/call.h"

#include <errno.h>
#include <libvirt/virterror.h>

#include "vmfs/err.h"

#define DOUBT_MS       3000 /* that a job may take without a doubt */
#define PING_MS	       3000 /* that an answer to a ping may take */
#define MAX_PINGING    16   /* hosts at once */
#define MAX_SLOW       8    /* at once, of all hosts */
#define FIRST_NUDGE_MS 20   /* after the last call has begun */
#define LAST_NUDGE_MS  640
#define MAX_NUDGES     2  /* of a host, that are not answered */
#define MAX_NUDGING    8  /* at once, of all hosts */
#define MAX_GUESTS     32 /* that are waited for at once, of all hosts */

/* ---- does it answer? ---- */

/* libvirt's keepalive tells too, but is slow to as long as a call is under way. */
typedef struct Ping {
	void *tag;
	virConnectPtr virt;
	bool answered;
} Ping;

static void doubt(void *arg);

static Ping *ping_new(LvHost *lh)
{
	Ping *p = g_new0(Ping, 1);

	p->tag = lv_host_tag(lh);
	p->virt = lh->virt;
	(void)virConnectRef(p->virt);
	return p;
}

static void ping_job(void *arg)
{
	Ping *p = arg;
	unsigned long version;

	p->answered = !virConnectGetLibVersion(p->virt, &version);
	(void)virConnectClose(p->virt);
}

static void ponged(void *arg)
{
	g_autofree Ping *p = arg;
	LvHost *lh = lv_host_at(p->tag);

	if (!lh || !lh->pinged || !p->answered)
		return;
	lv_host_trust(lh);
	if (lh->outstanding)
		lh->doubt = timer_start(DOUBT_MS, doubt, lh);
}

static void silent(void *arg)
{
	LvHost *lh = arg;

	lh->doubt = NULL;
	lv_host_away(lh, g_strdup("libvirt does not answer"));
}

static void doubt(void *arg)
{
	static Pool *pool;
	LvHost *lh = arg;

	lh->doubt = NULL;
	if (!lh->virt || !lh->outstanding)
		return;
	if (!pool)
		pool = pool_new(MAX_PINGING);
	lh->pinged = true;
	lh->doubt = timer_start(PING_MS, silent, lh);
	pool_work(pool, ping_job, ponged, ping_new(lh));
}

/* ---- libvirt's client has to be woken ---- */

/*
 * The first of several calls on a connection reads the socket for all, and each that follows wakes
 * it, to be sent. In libvirt 9.0 that is lost where the first has not begun to wait yet: the call
 * is sent when something comes, which may be the end of a call that waits for a guest. One more
 * call wakes it again.
 */
static void nudged(void *arg)
{
	g_autofree Ping *p = arg;
	LvHost *lh = lv_host_at(p->tag);

	if (lh)
		lh->nudges--;
}

static void nudge(void *arg)
{
	static Pool *pool;
	LvHost *lh = arg;

	lh->nudge = NULL;
	if (!lh->virt || !lh->outstanding)
		return;
	lh->nudge_ms = MIN(2 * lh->nudge_ms, LAST_NUDGE_MS);
	lh->nudge = timer_start(lh->nudge_ms, nudge, lh);
	if (lh->nudges == MAX_NUDGES)
		return;
	if (!pool)
		pool = pool_new(MAX_NUDGING);
	lh->nudges++;
	pool_work(pool, ping_job, nudged, ping_new(lh));
}

void lv_host_trust(LvHost *lh)
{
	timer_stop(&lh->doubt);
	lh->pinged = false;
}

static void begin(LvHost *lh)
{
	lh->outstanding++;
	if (!lh->doubt)
		lh->doubt = timer_start(DOUBT_MS, doubt, lh);
	timer_stop(&lh->nudge);
	lh->nudge_ms = FIRST_NUDGE_MS;
	lh->nudge = timer_start(lh->nudge_ms, nudge, lh);
}

void lv_host_work(LvHost *lh, void (*work)(void *job), void (*done)(void *job), void *job)
{
	begin(lh);
	pool_work(lh->pool, work, done, job);
}

void lv_host_slow_work(LvHost *lh, void (*work)(void *job), void (*done)(void *job), void *job)
{
	static Pool *pool;

	if (!pool)
		pool = pool_new(MAX_SLOW);
	begin(lh);
	pool_work(pool, work, done, job);
}

void lv_host_guest_work(LvHost *lh, void (*work)(void *job), void (*done)(void *job), void *job)
{
	static Pool *pool;

	if (!pool)
		pool = pool_new(MAX_GUESTS);
	begin(lh);
	pool_work(pool, work, done, job);
}

void lv_host_worked(const void *tag)
{
	LvHost *lh = lv_host_at(tag);

	/* It answers: that is all there was to know. */
	if (!lh || --lh->outstanding)
		return;
	lv_host_trust(lh);
	timer_stop(&lh->nudge);
}

/* ---- calls ---- */

static void run(void *job)
{
	LvCall *c = job;

	c->dom = virDomainLookupByUUIDString(c->virt, c->key);
	if (!c->dom && !(c->absent && virGetLastErrorCode() == VIR_ERR_NO_DOMAIN)) {
		lv_error(&c->error, "libvirt cannot find it");
	} else if (c->work(c, &c->error) && c->dom && !c->guest) {
		(void)lv_state_now(c->dom, &c->state);
	}
	if (c->dom)
		virDomainFree(c->dom);
	/* Here: if it was the last reference this talks to the host. */
	if (c->other)
		(void)virConnectClose(c->other);
	(void)virConnectClose(c->virt);
}

static void send_next(LvVm *lv);

/* A start of what libvirt may not know yet, or the like. */
static bool defines(const LvCall *c)
{
	return c->absent && c->spec;
}

bool lv_is_being_defined(const LvVm *lv)
{
	for (unsigned i = 0; i < lv->calls->len; i++)
		if (defines(lv->calls->pdata[i]))
			return true;
	return false;
}

static void overtake_looks(const LvCall *c)
{
	LvHost *lh = lv_host_at(c->tag);

	if (lh && defines(c) && c->lv && (c->lv->xml || !c->error))
		lv_look(lh, c->key);
	else if (lh && c->state.state != VM_STATE_MAX)
		(void)lv_overtake(lh, c->key);
}

static void finished(void *job)
{
	LvCall *c = job;

	lv_host_worked(c->tag);
	if (c->caps.known && lv_host_at(c->tag))
		lv_host_at(c->tag)->caps = c->caps;
	if (c->lv)
		g_ptr_array_remove_fast(c->lv->calls, c);
	if (c->lv && c->lv->guest_call == c)
		send_next(c->lv);
	overtake_looks(c);
	c->done(c);
	vm_unref(c->vm);
	spec_unref(c->spec);
	spec_unref(c->have);
	g_free(c->name);
	g_free(c->snapshot);
	g_free(c->xml);
	g_free(c->dir);
	if (c->list)
		g_ptr_array_unref(c->list);
	if (c->bytes)
		g_byte_array_unref(c->bytes);
	g_clear_error(&c->error);
	g_free(c);
}

LvCall *lv_call_new(LvVm *lv, bool (*work)(LvCall *c, GError **err), void (*done)(LvCall *c),
		    GError **err)
{
	LvCall *c;

	if (!lv_host_need(lv->host, err))
		return NULL;
	c = g_new0(LvCall, 1);
	c->vm = vm_ref(lv->base.vm);
	c->lv = lv;
	c->tag = lv_host_tag(lv->host);
	c->work = work;
	c->done = done;
	c->caps = lv->host->caps;
	c->state.state = VM_STATE_MAX;
	g_strlcpy(c->key, lv->base.vm->home.key, sizeof c->key);
	return c;
}

static void send_now(LvCall *c)
{
	c->virt = c->lv->host->virt;
	(void)virConnectRef(c->virt);
	g_ptr_array_add(c->lv->calls, c);
	if (c->guest)
		lv_host_guest_work(c->lv->host, run, finished, c);
	else if (c->slow)
		lv_host_slow_work(c->lv->host, run, finished, c);
	else
		lv_host_work(c->lv->host, run, finished, c);
}

/* It never went out, so the host does not owe an answer. */
static void unsent(void *job)
{
	LvCall *c = job;

	c->tag = NULL;
	finished(c);
}

static void send_next(LvVm *lv)
{
	LvCall *c = lv->guest_call = g_queue_pop_head(&lv->guest_calls);

	if (!c)
		return;
	if (lv_host_need(lv->host, &c->error)) {
		c->tag = lv_host_tag(lv->host);
		send_now(c);
	} else {
		loop_defer(unsent, c);
	}
}

void lv_call_send(LvCall *c)
{
	LvVm *lv = c->lv;

	if (c->guest && lv->guest_call) {
		g_queue_push_tail(&lv->guest_calls, c);
		return;
	}
	if (c->guest)
		lv->guest_call = c;
	send_now(c);
}

bool lv_call_alive(const LvCall *c)
{
	return c->lv && lv_host_at(c->tag);
}

void lv_call_forget(LvVm *lv)
{
	for (unsigned i = 0; i < lv->calls->len; i++) {
		LvCall *c = lv->calls->pdata[i];

		c->lv = NULL;
		c->op = NULL;
	}
	g_ptr_array_set_size(lv->calls, 0);
	for (LvCall *c; (c = g_queue_pop_head(&lv->guest_calls));) {
		c->lv = NULL;
		c->op = NULL;
		(void)err_set(&c->error, ECANCELED, "its VM is no more");
		loop_defer(unsent, c);
	}
}
