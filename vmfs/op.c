/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations. An op is queued, running, undoing or done, and goes through these once and forwards
 * only. Its owner is the VM; backends and waiters see it while it lives. Loop thread only.
 */
#include "vmfs/op.h"

#include <errno.h>

#include <string.h>

#include "vmfs/err.h"
#include "vmfs/keep.h"
#include "vmfs/loop.h"
#include "vmfs/request.h"

#define UNDO_DEADLINE_MS 10000

typedef enum Phase { QUEUED, RUNNING, UNDOING, DONE } Phase;

struct OpWaiter {
	OpWaitFn fn;
	void *arg;
	bool accept;
};

struct Op {
	unsigned refs;
	Vm *vm; /* outlives the op: the VM keeps its op */
	const Verb *verb;
	uint64_t seconds_ms;
	Phase phase;
	bool accepted;
	bool abandoned; /* done without its undo, which holds a reference */
	int percent;
	GError *error;
	Timer *deadline;
	const Step *steps; /* NULL: a single step that the backend finishes itself */
	unsigned step;
	void *ctx, *arg;
	GDestroyNotify free_ctx, free_arg;
	void (*cancel)(Op *op, void *ctx);
	void (*ended)(Op *op);
	GPtrArray *waiters; /* of OpWaiter */
	uint64_t number;    /* in the memory file; 0: not kept */
	uint64_t unique;    /* of the request that ordered it */
	char *word;	    /* op_set_word(); NULL: none */
	bool restored;
	unsigned crashes;
};

static uint64_t deadline_limit_ms;

static void undo_step(Op *op);

Op *op_new(Vm *vm, const Verb *verb, uint64_t seconds_ms, void *arg, GDestroyNotify free_arg)
{
	Op *op = g_new0(Op, 1);

	op->refs = 1;
	op->vm = vm;
	op->verb = verb;
	op->seconds_ms = seconds_ms;
	op->arg = arg;
	op->free_arg = free_arg;
	op->percent = -1;
	op->waiters = g_ptr_array_new();
	return op;
}

Op *op_ref(Op *op)
{
	op->refs++;
	return op;
}

void op_unref(Op *op)
{
	if (!op || --op->refs)
		return;
	timer_stop(&op->deadline);
	if (op->number)
		keep_unset(KEEP_OP, op->number);
	if (op->free_ctx)
		op->free_ctx(op->ctx);
	if (op->free_arg)
		op->free_arg(op->arg);
	g_free(op->word);
	g_clear_error(&op->error);
	g_ptr_array_unref(op->waiters);
	g_free(op);
}

static void unref_later(void *op)
{
	op_unref(op);
}

static void call_waiters(Op *op, bool accept_only)
{
	unsigned i = 0;

	while (i < op->waiters->len) {
		OpWaiter *w = op->waiters->pdata[i];

		if (accept_only && !w->accept) {
			i++;
			continue;
		}
		g_ptr_array_remove_index(op->waiters, i);
		w->fn(op, w->arg);
		g_free(w);
	}
}

static void finish(Op *op)
{
	op->phase = DONE;
	timer_stop(&op->deadline);
	/* The step that finished us is still on the stack and may look at its ctx. */
	op_ref(op);
	loop_defer(unref_later, op);
	op->ended(op);
	call_waiters(op, false);
}

static void undo_expired(void *arg)
{
	Op *op = arg;

	op->deadline = NULL;
	/* The step may still call op_next() some day: the op stays allocated for it. */
	op_ref(op);
	op->abandoned = true;
	finish(op);
}

static void fail_with(Op *op, GError *take)
{
	op->error = take;
	if (!op->steps) {
		finish(op);
		return;
	}
	op->phase = UNDOING;
	timer_stop(&op->deadline);
	op->deadline = timer_start(UNDO_DEADLINE_MS, undo_expired, op);
	undo_step(op);
}

static void undo_step(Op *op)
{
	const Step *s = &op->steps[op->step];

	if (s->undo)
		s->undo(op, op->ctx);
	else
		op_next(op);
}

static void deadline_expired(void *arg)
{
	Op *op = arg;
	const char *step = op_step_name(op);

	op->deadline = NULL;
	op_cancel(op, step ? err_new(ETIMEDOUT, "'%s' did not finish in time; the step was undone",
				     step)
			   : err_new(ETIMEDOUT, "the hypervisor did not finish in time"));
}

void op_limit_deadlines(uint64_t ms)
{
	deadline_limit_ms = ms;
}

static void set_deadline(Op *op, uint64_t ms)
{
	if (deadline_limit_ms && ms > deadline_limit_ms)
		ms = deadline_limit_ms;
	timer_stop(&op->deadline);
	op->deadline = timer_start(ms + op->seconds_ms, deadline_expired, op);
}

void op_start(Op *op, void (*run)(void *bv, Op *op), void *bv, void (*ended)(Op *op))
{
	op->phase = RUNNING;
	op->ended = ended;
	set_deadline(op, op->verb->deadline_ms);
	run(bv, op);
}

void op_has_time_of(Op *op, OpKind kind)
{
	set_deadline(op, verb_of(kind)->deadline_ms);
}

void op_steps(Op *op, const Step *steps, void *ctx, GDestroyNotify free_ctx)
{
	op->steps = steps;
	op->ctx = ctx;
	op->free_ctx = free_ctx;
	steps[0].run(op, ctx);
}

void op_on_cancel(Op *op, void (*cancel)(Op *op, void *ctx), void *ctx)
{
	op->cancel = cancel;
	op->ctx = ctx;
}

void op_next(Op *op)
{
	if (op->phase == UNDOING) {
		if (op->step == 0) {
			finish(op);
		} else {
			op->step--;
			undo_step(op);
		}
	} else if (op->phase == RUNNING) {
		op->step++;
		if (!op->steps[op->step].name)
			finish(op);
		else
			op->steps[op->step].run(op, op->ctx);
	} else if (op->abandoned) {
		op->abandoned = false;
		loop_defer(unref_later, op);
	}
}

void op_ok(Op *op)
{
	if (op->phase == RUNNING)
		finish(op);
}

void op_fail(Op *op, GError *take)
{
	if (op->phase == RUNNING) {
		fail_with(op, take);
		return;
	}
	g_error_free(take);
	if (op->phase == UNDOING)
		op_next(op);
}

void op_answered(Op *op, const GError *err)
{
	if (err)
		op_fail(op, g_error_copy(err));
	else
		op_next(op);
}

void op_cancel(Op *op, GError *take)
{
	if (op->phase != RUNNING) {
		g_error_free(take);
		return;
	}
	if (op->steps && op->steps[op->step].cancel)
		op->steps[op->step].cancel(op, op->ctx);
	else if (!op->steps && op->cancel)
		op->cancel(op, op->ctx);
	fail_with(op, take);
}

void op_accept(Op *op)
{
	if (op->phase != RUNNING || op->accepted)
		return;
	op->accepted = true;
	call_waiters(op, true);
}

void op_progress(Op *op, unsigned percent)
{
	op->percent = (int)MIN(percent, 100);
}

Vm *op_vm(const Op *op)
{
	return op->vm;
}

OpKind op_kind(const Op *op)
{
	return op->verb->kind;
}

uint64_t op_seconds_ms(const Op *op)
{
	return op->seconds_ms;
}

void *op_arg(const Op *op)
{
	return op->arg;
}

const Verb *op_verb(const Op *op)
{
	return op->verb;
}

const char *op_step_name(const Op *op)
{
	return op->steps && op->phase != DONE ? op->steps[op->step].name : NULL;
}

int op_percent(const Op *op)
{
	return op->percent;
}

bool op_done(const Op *op)
{
	return op->phase == DONE;
}

bool op_accepted(const Op *op)
{
	return op->accepted;
}

const GError *op_error(const Op *op)
{
	return op->error;
}

OpWaiter *op_wait(Op *op, bool accept, OpWaitFn fn, void *arg)
{
	OpWaiter *w = g_new0(OpWaiter, 1);

	w->fn = fn;
	w->arg = arg;
	w->accept = accept;
	g_ptr_array_add(op->waiters, w);
	return w;
}

void op_unwait(Op *op, OpWaiter *w)
{
	if (g_ptr_array_remove(op->waiters, w))
		g_free(w);
}

/* ---- for a successor ---- */

#define UNDER_WAY (-1)

typedef struct KeptOp {
	uint32_t size; /* of this struct: its word, and the sentence of its error follow */
	uint32_t serial;
	uint32_t kind, crashes;
	uint64_t seconds_ms;
	uint64_t unique;
	int32_t code; /* UNDER_WAY, 0 or an errno */
	uint32_t word_len;
} KeptOp;

static GHashTable *restored; /* by number; NULL: none */

void op_keep(Op *op)
{
	KeptOp k = { .size = sizeof k,
		     .serial = vm_serial(op->vm),
		     .kind = op->verb->kind,
		     .crashes = op->crashes,
		     .seconds_ms = op->seconds_ms,
		     .code = op->phase != DONE ? UNDER_WAY
			     : op->error       ? err_code(op->error)
					       : 0,
		     .word_len = op->word ? (uint32_t)strlen(op->word) : 0 };

	/* What is ordered with another argument is the business of whoever knows that. */
	if ((op->arg && !op->word) || !keep_head())
		return;
	if (!op->number) {
		op->number = ++keep_head()->begun;
		op->unique = request_unique();
	}
	k.unique = op->unique;
	keep_set(KEEP_OP, op->number, &k, sizeof k);
	if (op->word)
		keep_append(KEEP_OP, op->number, op->word, k.word_len);
	if (op->error)
		keep_append(KEEP_OP, op->number, op->error->message, strlen(op->error->message));
	/* Before it is begun. */
	if (k.code == UNDER_WAY)
		keep_commit();
}

void op_set_word(Op *op, const char *word)
{
	op->word = g_strdup(word);
}

const char *op_word(const Op *op)
{
	return op->word;
}

void op_set_arg(Op *op, void *arg)
{
	op->arg = arg;
}

uint64_t op_number(const Op *op)
{
	return op->number;
}

bool op_is_restored(const Op *op)
{
	return op->restored;
}

unsigned op_crashes(const Op *op)
{
	return op->crashes;
}

void op_conclude(Op *op, GError *take, void (*ended)(Op *op))
{
	op->ended = ended;
	op->error = take;
	finish(op);
}

typedef struct Restore {
	Vm *(*find)(uint32_t serial);
	void (*begin)(Vm *vm, Op *op);
} Restore;

static Restore restoring;

static void restore_one(uint64_t number, GBytes *value)
{
	gsize len, text;
	const char *data = g_bytes_get_data(value, &len);
	const Verb *verb;
	KeptOp k;
	Vm *vm;
	Op *op;

	keep_copy(&k, sizeof k, value);
	vm = restoring.find(k.serial);
	verb = k.kind > OP_NONE && k.kind < OP_MAX ? verb_of((OpKind)k.kind) : NULL;
	if (!vm || !verb) {
		keep_unset(KEEP_OP, number);
		return;
	}
	op = op_new(vm, verb, k.seconds_ms, NULL, NULL);
	op->number = number;
	op->unique = k.unique;
	op->restored = true;
	op->crashes = k.crashes + (keep_head()->crashed ? 1 : 0);
	text = MIN(k.size, len);
	if (k.word_len && k.word_len <= len - text)
		op->word = g_strndup(data + text, k.word_len);
	text += MIN(k.word_len, len - text);
	g_hash_table_insert(restored, &op->number, op);
	if (k.code == UNDER_WAY) {
		op_keep(op);
		restoring.begin(vm, op_ref(op));
		return;
	}
	op->phase = DONE;
	if (k.code)
		op->error = err_new(k.code, "%.*s", (int)(len - text), data + text);
}

static void unref(void *op)
{
	op_unref(op);
}

void op_restore(Vm *(*find)(uint32_t serial), void (*begin)(Vm *vm, Op *op))
{
	restoring = (Restore){ find, begin };
	restored = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, unref);
	keep_each(KEEP_OP, restore_one);
}

Op *op_restored(uint64_t number)
{
	return restored ? g_hash_table_lookup(restored, &number) : NULL;
}

Op *op_restored_by(uint64_t unique)
{
	GHashTableIter it;
	gpointer op;

	if (!restored || !unique)
		return NULL;
	g_hash_table_iter_init(&it, restored);
	while (g_hash_table_iter_next(&it, NULL, &op))
		if (((Op *)op)->unique == unique)
			return op;
	return NULL;
}

void op_restore_done(void)
{
	g_clear_pointer(&restored, g_hash_table_unref);
}
