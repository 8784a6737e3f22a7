/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations: what a verb does to a VM, from the write that asked for it until it finished, exactly
 * once. An op has a deadline, may be a table of steps that are undone in reverse, and is waited for
 * by any number of waiters, whose leaving does not stop it.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Op Op;
typedef struct Vm Vm;

typedef enum VmState {
	VM_STOPPED,
	VM_STARTING,
	VM_RUNNING,
	VM_PAUSED,
	VM_STOPPING,
	VM_ASLEEP,
	VM_CRASHED,
	VM_UNKNOWN,
	VM_STATE_MAX,
} VmState;

typedef enum OpKind {
	OP_NONE,
	OP_START,
	OP_STOP,
	OP_KILL,
	OP_PAUSE,
	OP_RESUME,
	OP_REBOOT,
	OP_RESET,
	OP_SLEEP,
	OP_WAKE,
	OP_UNDEFINE,
	OP_UNMANAGE,
	OP_REDEFINE,
	OP_MIGRATE, /* op_arg(): char *, name of the host */
	OP_SNAPSHOT,
	OP_RESTORE,
	OP_ADOPT,
	OP_APPLY,
	OP_EXEC,
	OP_EXEC_SIGNAL,
	OP_MAX,
} OpKind;

/* One row a verb: what a backend can be asked to do to a VM. */
typedef struct Verb {
	const char *name;
	OpKind kind;
	unsigned from;	       /* mask of 1 << VmState it is legal in */
	VmState during, after; /* VM_STATE_MAX: unchanged */
	uint64_t deadline_ms;
	bool seconds;	  /* takes an optional number of seconds */
	const char *word; /* takes the name of one of these; NULL: does not */
	bool preempt;	  /* cancels the op that runs and goes first */
	bool silent;	  /* not a word for `state`: ordered by other files */
	const char *doc;
} Verb;

extern const Verb verbs[];		 /* ended by a row without a name */
const Verb *verb_find(const char *name); /* by its word for `state` */
const Verb *verb_of(OpKind kind);

/*
 * One step. run() calls op_next() or op_fail() once, at once or later. cancel() drops what run()
 * still waits for: no call for this step may come after it. undo() takes back what run() did (also
 * when the step failed or was cancelled half-way) and calls op_next(); NULL: nothing to undo.
 */
typedef struct Step {
	const char *name; /* shown in `status` while it runs */
	void (*run)(Op *op, void *ctx);
	void (*cancel)(Op *op, void *ctx);
	void (*undo)(Op *op, void *ctx);
} Step;

/* For backends: */

/* Run the steps (a static table ended by a row without a name). ctx is freed after the op's end. */
void op_steps(Op *op, const Step *steps, void *ctx, GDestroyNotify free_ctx);
void op_next(Op *op);
/* What a step waited for is there: op_fail() with a copy of `err`, or else op_next(). */
void op_answered(Op *op, const GError *err);
/* Instead of steps, a backend may finish the op itself; cancel (optional) is as in Step. */
void op_on_cancel(Op *op, void (*cancel)(Op *op, void *ctx), void *ctx);
void op_ok(Op *op);
void op_fail(Op *op, GError *take);

/* It is under way for good: what is left is waiting for the guest. The writer moves on to close(2).
 */
void op_accept(Op *op);
void op_progress(Op *op, unsigned percent);
/* It turns out to have as much to do as one of that kind: it has its time, from now on. */
void op_has_time_of(Op *op, OpKind kind);

Vm *op_vm(const Op *op);
uint32_t vm_serial(const Vm *vm);
OpKind op_kind(const Op *op);
uint64_t op_seconds_ms(const Op *op); /* the verb's argument or the spec's stop_timeout, in ms */
void *op_arg(const Op *op);	      /* what was ordered, as the verb's kind has it; or NULL */

/* For the core: */

/* Takes arg, which is freed with the op. */
Op *op_new(Vm *vm, const Verb *verb, uint64_t seconds_ms, void *arg, GDestroyNotify free_arg);
Op *op_ref(Op *op);
void op_unref(Op *op);
/* Give the op to its VM's backend; ended() is called once, before the waiters. */
void op_start(Op *op, void (*run)(void *bv, Op *op), void *bv, void (*ended)(Op *op));
/* Let no op take longer than this (plus its seconds); 0: as its verb says. */
void op_limit_deadlines(uint64_t ms);
/* End it early: with ECANCELED or ETIMEDOUT. */
void op_cancel(Op *op, GError *take);

const Verb *op_verb(const Op *op);
const char *op_step_name(const Op *op); /* or NULL */
int op_percent(const Op *op);		/* -1: not known */
bool op_done(const Op *op);
bool op_accepted(const Op *op);
const GError *op_error(const Op *op); /* of a done op; NULL: success */

typedef struct OpWaiter OpWaiter;
typedef void (*OpWaitFn)(Op *op, void *arg);
/* fn is called once, when the op has ended; or first when accepted, if `accept`. */
OpWaiter *op_wait(Op *op, bool accept, OpWaitFn fn, void *arg);
void op_unwait(Op *op, OpWaiter *w);

/* For a successor, which carries on what is under way (keep.h): */

/* What a successor can find its argument by, which is to be told before the op is kept. */
void op_set_word(Op *op, const char *word);
const char *op_word(const Op *op); /* or NULL */
/* In a successor, which has found it (borrowed). */
void op_set_arg(Op *op, void *arg);
/* Keep what is known of it now: before it begins, and when it has ended. */
void op_keep(Op *op);
uint64_t op_number(const Op *op); /* 0: not kept */
bool op_is_restored(const Op *op);
/* How many daemons have crashed while it was under way. */
unsigned op_crashes(const Op *op);
/* End an op that was not begun: NULL is success. */
void op_conclude(Op *op, GError *take, void (*ended)(Op *op));
/* Bring back the ops of a former daemon; begin() takes those that are under way. */
void op_restore(Vm *(*find)(uint32_t serial), void (*begin)(Vm *vm, Op *op));
/* One of these, by number or by the request that ordered it; borrowed, or NULL. */
Op *op_restored(uint64_t number);
Op *op_restored_by(uint64_t unique);
/* Nobody asks for them any more. */
void op_restore_done(void);
