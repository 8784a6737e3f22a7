/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A question lives until its backend has answered it, however late, and holds a reference to the VM
 * for so long; those who wait for it leave when they have waited long enough. So a VMM that does
 * not answer has one question of each kind before it, however many readers come.
 */
#include "vmfs/ask.h"

#include <errno.h>

#include "vmfs/err.h"
#include "vmfs/loop.h"
#include "vmfs/vm.h"

#define WAIT_MS	  5000
#define RECENT_MS 100

struct Ask {
	Vm *vm; /* a reference */
	AskKind kind;
	char *text; /* NULL: shared by all who ask */
	bool stale; /* the run that it is about is over */
	GQueue waiters;
};

struct AskWaiter {
	Ask *ask;
	AskWaiter **self; /* the owner's variable */
	AskFn fn;
	void *arg;
	Timer *timer;
};

/* What a VM keeps of the questions that anyone may share. */
typedef struct Shared {
	Ask *pending;
	GBytes *recent;
	off_t size;
	Timer *forget;
} Shared;

typedef struct Asked {
	Shared kinds[ASK_MAX];
} Asked;

const char *ask_name(AskKind kind)
{
	static const char *const names[ASK_MAX] = {
		[ASK_NONE] = "nothing", [ASK_SCREEN] = "screen",   [ASK_STATS] = "stats",
		[ASK_KEYS] = "keys",	[ASK_MONITOR] = "monitor", [ASK_SSH] = "ssh",
	};

	return names[kind];
}

static Shared *shared(Vm *vm, AskKind kind)
{
	if (!vm->asked)
		vm->asked = g_new0(Asked, 1);
	return &vm->asked->kinds[kind];
}

off_t ask_size(const Vm *vm, AskKind kind)
{
	return vm->asked ? vm->asked->kinds[kind].size : 0;
}

static void drop_recent(Shared *s)
{
	timer_stop(&s->forget);
	g_clear_pointer(&s->recent, g_bytes_unref);
}

static void recent_over(void *arg)
{
	Shared *s = arg;

	s->forget = NULL;
	drop_recent(s);
}

void ask_forget(Vm *vm)
{
	for (unsigned i = 0; vm->asked && i < ASK_MAX; i++) {
		Shared *s = &vm->asked->kinds[i];

		drop_recent(s);
		s->size = 0;
		if (s->pending)
			s->pending->stale = true;
		s->pending = NULL;
	}
}

static void keep_answer(Ask *a, GBytes *answer)
{
	Shared *s;

	if (a->text || a->stale)
		return;
	s = shared(a->vm, a->kind);
	s->pending = NULL;
	drop_recent(s);
	if (!answer)
		return;
	s->size = (off_t)g_bytes_get_size(answer);
	s->recent = g_bytes_ref(answer);
	s->forget = timer_start(RECENT_MS, recent_over, s);
}

/* Its owner must not find it any more when it is told. */
static void tell(AskWaiter *w, GBytes *answer, const GError *e)
{
	AskFn fn = w->fn;
	void *arg = w->arg;

	*w->self = NULL;
	timer_stop(&w->timer);
	g_free(w);
	fn(arg, answer, e);
}

static void end(Ask *a, GBytes *answer, const GError *e)
{
	AskWaiter *w;

	keep_answer(a, answer);
	while ((w = g_queue_pop_head(&a->waiters)))
		tell(w, answer, e);
	vm_unref(a->vm);
	g_free(a->text);
	g_free(a);
}

const char *ask_text(const Ask *a)
{
	return a->text ? a->text : "";
}

void ask_answer(Ask *a, GBytes *take)
{
	end(a, take, NULL);
	g_bytes_unref(take);
}

void ask_fail(Ask *a, GError *take)
{
	end(a, NULL, take);
	g_error_free(take);
}

void ask_leave(AskWaiter **wp)
{
	AskWaiter *w = *wp;

	if (!w)
		return;
	*wp = NULL;
	g_queue_remove(&w->ask->waiters, w);
	timer_stop(&w->timer);
	g_free(w);
}

static void waited_long(void *arg)
{
	AskWaiter *w = arg;
	g_autoptr(GError) e =
		err_new(ETIMEDOUT, "the hypervisor did not answer within %d s", WAIT_MS / 1000);

	w->timer = NULL;
	g_queue_remove(&w->ask->waiters, w);
	tell(w, NULL, e);
}

static GError *refusal(const Vm *vm, AskKind kind)
{
	if (vm->removed)
		return err_new(ENODEV, "the VM has been removed");
	if (vm->pushed == VM_UNKNOWN)
		return err_new(EHOSTDOWN, "the hypervisor does not answer; try again when it is "
					  "back");
	if (vm->pushed != VM_RUNNING && vm->pushed != VM_PAUSED)
		return err_new(ESRCH, "it is %s; 'start' it first", vm_state_name(vm->state));
	if (!vm->bv->be->cls->ask[kind])
		return err_new(EOPNOTSUPP, "backend '%s' has no %s", vm->bv->be->cls->name,
			       ask_name(kind));
	return NULL;
}

static Ask *ask_new(Vm *vm, AskKind kind, const char *text)
{
	Ask *a = g_new0(Ask, 1);

	a->vm = vm_ref(vm);
	a->kind = kind;
	a->text = g_strdup(text);
	return a;
}

void ask_backend(Vm *vm, AskKind kind, const char *text, AskFn fn, void *arg, AskWaiter **ret)
{
	g_autoptr(GError) e = refusal(vm, kind);
	Shared *s = shared(vm, kind);
	g_autoptr(GBytes) recent = !e && !text && s->recent ? g_bytes_ref(s->recent) : NULL;
	Ask *joined = text ? NULL : s->pending, *a;
	AskWaiter *w;

	*ret = NULL;
	if (e || recent) {
		fn(arg, recent, e);
		return;
	}
	a = joined ? joined : ask_new(vm, kind, text);
	if (!text)
		s->pending = a;
	w = *ret = g_new0(AskWaiter, 1);
	*w = (AskWaiter){ .ask = a, .self = ret, .fn = fn, .arg = arg };
	w->timer = timer_start(WAIT_MS, waited_long, w);
	g_queue_push_tail(&a->waiters, w);
	if (!joined)
		vm->bv->be->cls->ask[kind](vm->bv, a);
}
