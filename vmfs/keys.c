/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/keys.h"

#include <errno.h>
#include <string.h>

#include "vmfs/err.h"

#define MAX_TEXT     4096
#define MAX_WORDS    64
#define MAX_TOGETHER 8

/* Not a word for `state`, and not the VM's one operation: it may go on beside that. */
static const Verb keys_verb = {
	.name = "keys",
	.during = VM_STATE_MAX,
	.after = VM_STATE_MAX,
	.deadline_ms = 10000,
};

typedef struct Press {
	Vm *vm; /* a reference */
	Op *op; /* freed by its end */
	char *keys;
	AskWaiter *waiter;
} Press;

static void press_free(void *arg)
{
	Press *p = arg;

	ask_leave(&p->waiter);
	vm_unref(p->vm);
	g_free(p->keys);
	g_free(p);
}

static void pressed(void *arg, GBytes *answer, const GError *e)
{
	Press *p = arg;

	(void)answer;
	if (e)
		op_fail(p->op, g_error_copy(e));
	else
		op_ok(p->op);
}

static void cancel(Op *op, void *ctx)
{
	Press *p = ctx;

	(void)op;
	ask_leave(&p->waiter);
}

static void run(void *ctx, Op *op)
{
	Press *p = ctx;

	op_on_cancel(op, cancel, p);
	ask_backend(p->vm, ASK_KEYS, p->keys, pressed, p, &p->waiter);
}

static void ended(Op *op)
{
	vm_set_error(op_vm(op), "keys", op_error(op));
	op_unref(op);
}

/* One press: names, with '-' between those that are held together. */
static bool check_word(const char *word, GError **err)
{
	g_auto(GStrv) names = g_strsplit(word, "-", -1);

	for (unsigned i = 0; names[i]; i++)
		if (!*names[i] ||
		    names[i][strspn(names[i], "abcdefghijklmnopqrstuvwxyz0123456789_")])
			return err_set(err, EINVAL,
				       "'%.40s' is not a key: write names like ret, f1 or "
				       "ctrl-alt-delete, with blanks between those that are "
				       "pressed one after the other",
				       word);
	if (g_strv_length(names) > MAX_TOGETHER)
		return err_set(err, EINVAL, "'%.40s...' are more than %d keys at once", word,
			       MAX_TOGETHER);
	return true;
}

/* The words with one blank between them; NULL and err when they are none. */
static char *parse(const char *data, size_t len, GError **err)
{
	g_autofree char *text = g_strndup(data, MIN(len, MAX_TEXT));
	g_auto(GStrv) raw = g_strsplit_set(text, " \t\n", -1);
	g_autoptr(GPtrArray) words = g_ptr_array_new();

	if (len > MAX_TEXT) {
		(void)err_set(err, EFBIG, "one write has at most %d bytes of keys", MAX_TEXT);
		return NULL;
	}
	for (unsigned i = 0; raw[i]; i++) {
		if (!*raw[i])
			continue;
		if (!check_word(raw[i], err))
			return NULL;
		g_ptr_array_add(words, raw[i]);
	}
	if (!words->len || words->len > MAX_WORDS || strlen(text) != len) {
		(void)err_set(err, EINVAL, "write the names of 1 to %d keys, as plain text",
			      MAX_WORDS);
		return NULL;
	}
	g_ptr_array_add(words, NULL);
	return g_strjoinv(" ", (char **)words->pdata);
}

bool keys_store(const NodeRef *r, const char *data, size_t len, Op **ret, GError **err)
{
	GError *e = NULL;
	char *keys = parse(data, len, &e);
	Press *p;

	*ret = NULL;
	/* They would be lost: nobody in there looks. */
	if (keys && r->vm->pushed == VM_PAUSED)
		(void)err_set(&e, EBUSY, "it is paused; 'resume' it first");
	if (e) {
		vm_set_error(r->vm, "keys", e);
		g_propagate_error(err, e);
		g_free(keys);
		return false;
	}
	p = g_new0(Press, 1);
	p->vm = vm_ref(r->vm);
	p->keys = keys;
	p->op = op_new(r->vm, &keys_verb, 0, p, press_free);
	*ret = op_ref(p->op);
	op_start(p->op, run, p, ended);
	return true;
}
