/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is written to `state`: a verb, or a noun that the VM is to be. One write is one command;
 * it is judged against the verb table here and then given to the VM's backend as an op.
 */
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "vmfs/clone.h"
#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/exec.h"
#include "vmfs/log.h"
#include "vmfs/registry.h"
#include "vmfs/snapshot.h"
#include "vmfs/store.h"
#include "vmfs/vm.h"

#define MAX_COMMAND 4096
#define MAX_SECONDS 86400
#define MAX_CRASHES 2 /* of daemons, after which an op is not begun anew */

typedef struct Command {
	const Verb *verb;
	VmState noun; /* VM_STATE_MAX: none */
	bool has_seconds;
	char *word; /* the verb's argument */
	uint64_t seconds_ms;
} Command;

static char *verb_names(void)
{
	GString *s = g_string_new(NULL);

	for (const Verb *v = verbs; v->name; v++)
		if (!v->silent)
			g_string_append_printf(s, "%s%s", v == verbs ? "" : ", ", v->name);
	g_string_append(s, ", or running, stopped, paused, asleep");
	return g_string_free(s, FALSE);
}

static bool parse_seconds(const char *word, Command *c, GError **err)
{
	char *end;
	double v = g_ascii_strtod(word, &end);

	if (*end || end == word || !isdigit((unsigned char)word[0]) ||
	    !(v >= 0 && v <= MAX_SECONDS))
		return err_set(err, EINVAL, "'%s' is not a number of seconds from 0 to %d", word,
			       MAX_SECONDS);
	c->has_seconds = true;
	c->seconds_ms = (uint64_t)(v * 1000);
	return true;
}

static bool parse_words(char **words, Command *c, GError **err)
{
	unsigned n = g_strv_length(words);

	c->verb = verb_find(words[0]);
	c->noun = c->verb ? VM_STATE_MAX : vm_state_find(words[0]);
	if (!c->verb && c->noun != VM_RUNNING && c->noun != VM_STOPPED && c->noun != VM_PAUSED &&
	    c->noun != VM_ASLEEP) {
		g_autofree char *names = verb_names();

		return err_set(err, EINVAL, "unknown command '%.40s'; write one of: %s", words[0],
			       names);
	}
	if (n == 2 && c->verb && c->verb->seconds)
		return parse_seconds(words[1], c, err);
	if (n == 2 && c->verb && c->verb->word) {
		c->word = g_strdup(words[1]);
		return true;
	}
	if (c->verb && c->verb->word)
		return err_set(err, EINVAL, "'%s' takes the name of a snapshot", words[0]);
	if (n > 1)
		return err_set(err, EINVAL, "'%s' takes %s", words[0],
			       c->verb && c->verb->seconds ? "one number of seconds"
							   : "no argument");
	return true;
}

static bool parse(const char *text, size_t len, Command *c, GError **err)
{
	g_autofree char *line = NULL;
	g_auto(GStrv) raw = NULL;
	g_autoptr(GPtrArray) words = g_ptr_array_new();

	if (len > MAX_COMMAND)
		return err_set(err, EFBIG, "a command has at most %d bytes", MAX_COMMAND);
	while (len && isspace((unsigned char)text[len - 1]))
		len--;
	while (len && isspace((unsigned char)*text))
		text++, len--;
	if (!len)
		return err_set(err, EINVAL, "the command is empty");
	for (size_t i = 0; i < len; i++) {
		if (text[i] == '\n')
			return err_set(err, EINVAL,
				       "two commands in one write; write them one by one");
		if (text[i] != '\t' && (text[i] < ' ' || text[i] > '~'))
			return err_set(err, EINVAL, "a command is plain text; byte %zu is 0x%02x",
				       i, (unsigned char)text[i]);
	}
	line = g_strndup(text, len);
	raw = g_strsplit_set(line, " \t", -1);
	for (unsigned i = 0; raw[i]; i++)
		if (*raw[i])
			g_ptr_array_add(words, raw[i]);
	g_ptr_array_add(words, NULL);
	return parse_words((char **)words->pdata, c, err);
}

/* The verb that makes a noun true; NULL with done set when it is so, or *join when it is on its
 * way. */
static const Verb *verb_for_noun(Vm *vm, VmState noun, Op **join, bool *done)
{
	*done = false;
	if (vm->op && !op_done(vm->op) && op_verb(vm->op)->after == noun) {
		*join = vm->op;
		*done = true;
		return NULL;
	}
	if (vm->state == noun) {
		*done = true;
		return NULL;
	}
	switch (noun) {
	case VM_RUNNING:
		return verb_of(vm->state == VM_PAUSED	? OP_RESUME
			       : vm->state == VM_ASLEEP ? OP_WAKE
							: OP_START);
	case VM_PAUSED:
		return verb_of(OP_PAUSE);
	case VM_STOPPED:
		if (vm->state == VM_CRASHED) {
			/* Nothing runs: it is stopped as soon as the crash is taken note of. */
			vm_push_state(vm, VM_STOPPED, "acknowledged");
			*done = true;
			return NULL;
		}
		return verb_of(OP_STOP);
	case VM_ASLEEP:
		return verb_of(OP_SLEEP);
	case VM_STARTING:
	case VM_STOPPING:
	case VM_CRASHED:
	case VM_UNKNOWN:
	case VM_STATE_MAX:
		break;
	}
	return NULL;
}

static bool check_state(const Vm *vm, const Verb *v, GError **err)
{
	const char *state = vm_state_name(vm->state);

	if (vm->gone)
		return err_set(err, ENOENT, "it is no more at its hypervisor");
	if (vm->op && !op_done(vm->op) && !(v->preempt && !vm->next_op))
		return err_set(err, EBUSY,
			       "'%s' is under way; wait until it has ended, or write 'kill'",
			       op_verb(vm->op)->name);
	if (v->from & (1u << vm->state))
		return true;
	if (vm->state == VM_UNKNOWN)
		return err_set(err, EHOSTDOWN,
			       "the hypervisor does not answer, so its state is unknown; try again "
			       "when it is back, or write 'kill'");
	if (v->after == vm->state)
		return err_set(err, EALREADY, "it is %s already", state);
	if (vm->state == VM_ASLEEP)
		return err_set(err, v->kind == OP_START ? EBUSY : ESRCH,
			       "it is asleep; 'wake' lets it go on, 'kill' gives up its memory");
	if (v->kind == OP_WAKE)
		return err_set(err, vm->state == VM_RUNNING ? EALREADY : EBUSY,
			       "it is %s, not asleep", state);
	if (v->kind == OP_START)
		return err_set(err, EALREADY, "it is %s; it has been started already", state);
	if (!vm_is_live(vm))
		return err_set(err, ESRCH, "it is %s; 'start' it first", state);
	return err_set(err, EBUSY, "not possible while it is %s", state);
}

static bool check_start(Vm *vm, GError **err)
{
	BackendVm *bv;

	if (vm->rejected)
		return err_set(err, EBADMSG,
			       "the last document written to spec.yaml was refused and is kept in "
			       "spec.yaml.rej; write a good one, or remove spec.yaml.rej to start "
			       "with the old one");
	bv = vm_backend(vm, err);
	return bv && bv->be->cls->check(bv->be, vm->spec, err);
}

static void run_op(void *bv, Op *op)
{
	BackendVm *b = bv;

	/* A kill that waited for what it cancelled may find its work done. */
	if (op_kind(op) == OP_KILL && b->vm->pushed == VM_STOPPED) {
		op_ok(op);
		return;
	}
	b->be->cls->op[op_kind(op)](b, op);
}

static void op_ended(Op *op)
{
	Vm *vm = op_vm(op);
	const char *verb = op_verb(op)->name;
	const GError *e = op_error(op);

	vm_ref(vm);
	vm->op = NULL;
	op_keep(op);
	if (op_kind(op) == OP_RESTORE && !e)
		clone_begun(vm);
	else if (e)
		clone_failed(vm);
	if (e)
		log_info("%s: %s: %s", vm->name, verb, e->message);
	/* One change that was made says nothing of those before it. */
	if (e || op_kind(op) != OP_APPLY)
		vm_set_error(vm, verb, e);
	vm_refresh_state(vm);
	vm_changed(vm, EV_OPERATION);
	vm_save_run(vm);
	vm_apply_ended(vm, op);
	op_unref(op);
	vm_run_next(vm);
	vm_unref(vm);
}

static void begin(Vm *vm, Op *op)
{
	log_debug("%s: %s", vm->name, op_verb(op)->name);
	vm->op = op;
	vm_refresh_state(vm);
	vm_changed(vm, EV_OPERATION);
	vm_save_run(vm);
	op_keep(op);
	op_start(op, run_op, vm->bv, op_ended);
}

/* Is the order a good one now? */
static bool check_order(Vm *vm, const Verb *v, GError **err)
{
	BackendVm *bv;

	if (!check_state(vm, v, err) || (v->kind == OP_START && !check_start(vm, err)))
		return false;
	bv = vm_backend(vm, err);
	if (!bv)
		return false;
	if ((v->kind == OP_SLEEP || v->kind == OP_SNAPSHOT) && !exec_make_way(vm, err))
		return false;
	if (v->kind == OP_SNAPSHOT && clone_is_pending(vm))
		return err_set(
			err, EBUSY,
			"it has not been started yet, and is no more than %s; 'start' it first",
			vm->spec->from);
	if (!bv->be->cls->op[v->kind])
		return err_set(err, EOPNOTSUPP, "backend '%s' cannot %s a VM", bv->be->cls->name,
			       v->name);
	return true;
}

/* Its hypervisor has gone on by itself meanwhile, up to where it is to let the guest go. */
static bool is_half_started(const Vm *vm, const Verb *v)
{
	return vm->home.be && vm->bv && vm->pushed == VM_PAUSED &&
	       (v->kind == OP_START || v->kind == OP_WAKE || v->kind == OP_SNAPSHOT);
}

/*
 * Carry on what a former daemon began. It may be done already; else it is begun anew, unless doing
 * it twice would be another thing than once.
 */
static void resume(Vm *vm, Op *op)
{
	const Verb *v = op_verb(op);
	const char *word = op_word(op);
	GError *e = NULL;

	if (v->after != VM_STATE_MAX && vm->pushed == v->after) {
		vm->op = op;
		op_conclude(op, NULL, op_ended);
		return;
	}
	if (op_crashes(op) >= MAX_CRASHES)
		(void)err_set(&e, EIO,
			      "'%s' was under way each of the %u times that vmfs crashed; it is "
			      "not tried again",
			      v->name, op_crashes(op));
	else if (word)
		op_set_arg(op, v->kind == OP_RESTORE ? snapshot_ready(vm, word, &e)
						     : snapshot_carry_on(vm, word, op, &e));
	else if (v->after == VM_STATE_MAX)
		(void)err_set(&e, ECANCELED,
			      "'%s' was under way when vmfs was restarted; it is not known whether "
			      "it was done",
			      v->name);
	if (!e && (is_half_started(vm, v) || check_order(vm, v, &e))) {
		begin(vm, op);
		return;
	}
	vm->op = op;
	op_conclude(op, e, op_ended);
}

void vm_run_next(Vm *vm)
{
	Op *op = vm->next_op;

	if (!op && !vm->op && vm->gone && !vm->removed)
		registry_vanish(vm);
	if (!op || vm->op)
		return;
	vm->next_op = NULL;
	if (op_is_restored(op))
		resume(vm, op);
	else
		begin(vm, op);
}

/* Takes arg, and *ret is borrowed: as vm_order(). */
static bool start_verb(Vm *vm, const Verb *v, uint64_t seconds_ms, void *arg,
		       GDestroyNotify free_arg, Op **ret, GError **err)
{
	/* Two who want the same thing at once: both are told when it is done. */
	bool joins = v->preempt && vm->op && !op_done(vm->op) && op_kind(vm->op) == v->kind;
	Op *op;

	if (joins || !check_order(vm, v, err)) {
		if (free_arg)
			free_arg(arg);
		*ret = joins ? vm->op : NULL;
		return joins;
	}
	if (v->kind == OP_WAKE)
		vm->exit_status = -1;
	if (v->kind == OP_START) {
		g_autofree char *path = g_strdup_printf("vms/%u/started.yaml", vm->serial);

		store_remove(path, NULL, NULL);
		exec_forget_all(vm);
		vm->exit_status = -1;
	}
	op = op_new(vm, v, v->seconds ? seconds_ms : 0, arg, free_arg);
	if (v->kind == OP_SNAPSHOT || v->kind == OP_RESTORE)
		op_set_word(op, snapshot_name(arg));
	*ret = op;
	if (!vm->op) {
		begin(vm, op);
		return true;
	}
	vm->next_op = op;
	op_keep(op);
	op_cancel(vm->op, err_new(ECANCELED, "it was cancelled by '%s'", v->name));
	return true;
}

bool vm_order(Vm *vm, OpKind kind, void *arg, GDestroyNotify free_arg, Op **op, GError **err)
{
	return start_verb(vm, verb_of(kind), 0, arg, free_arg, op, err);
}

static bool is_stop(const Command *c)
{
	return c->noun == VM_STOPPED ||
	       (c->verb && (c->verb->kind == OP_STOP || c->verb->kind == OP_KILL));
}

bool vm_command(Vm *vm, const char *text, size_t len, Op **op, GError **err)
{
	Command c = { 0 };
	GError *e = NULL;
	bool done = false, ok;
	void *arg = NULL;
	uint64_t ms;

	*op = NULL;
	ok = parse(text, len, &c, &e);
	/* It is down, and now it stays so. */
	if (ok && lifetime_is_waiting(vm) && is_stop(&c)) {
		lifetime_cancel(vm);
		vm_push_state(vm, VM_STOPPED, "acknowledged");
		done = true;
	}
	if (ok && !c.verb && !done)
		c.verb = verb_for_noun(vm, c.noun, op, &done);
	g_assert(!ok || done || c.verb);
	if (ok && !done && c.verb->kind == OP_RESTORE) {
		arg = snapshot_ready(vm, c.word, &e);
		ok = arg != NULL;
	}
	if (ok && !done) {
		ms = c.has_seconds ? c.seconds_ms : vm->spec->stop_timeout_ms;
		ok = start_verb(vm, c.verb, ms, arg, NULL, op, &e);
		if (ok && c.verb->kind == OP_START)
			lifetime_started(vm);
	}
	g_free(c.word);
	if (*op)
		op_ref(*op);
	else if (ok)
		vm_set_error(vm, NULL, NULL);
	if (ok)
		return true;
	vm_set_error(vm, c.verb ? c.verb->name : "state", e);
	g_propagate_error(err, e);
	return false;
}
