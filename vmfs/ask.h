/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions to the hypervisor about a VM that runs: what is not pushed because nobody may ever want
 * to know, and is found out when a file is read. Whoever asks waits, for a bounded time; those who
 * ask the same at the same time share one answer. Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct Ask Ask;
typedef struct Vm Vm;

typedef enum AskKind {
	ASK_NONE,
	ASK_SCREEN,  /* a PNG of what the display shows */
	ASK_STATS,   /* "KEY VALUE" lines of counters, by the names that vmfs(5) has */
	ASK_KEYS,    /* press the keys of ask_text(); an empty answer */
	ASK_MONITOR, /* give the line of ask_text() to the VMM's monitor; what it says to that */
	ASK_SSH, /* what `ssh -F` reads (ssh_config()), key and all; empty: nothing leads there */
	ASK_MAX,
} AskKind;

/* "screen", "stats"... */
const char *ask_name(AskKind kind);

/* For backends: each question is answered once, at once or later. */

const char *ask_text(const Ask *a); /* "" when the kind has none */
void ask_answer(Ask *a, GBytes *take);
void ask_fail(Ask *a, GError *take);

/* For the core: */

typedef struct AskWaiter AskWaiter;
/* Exactly one of answer and err is set; both are borrowed. */
typedef void (*AskFn)(void *arg, GBytes *answer, const GError *err);

/*
 * Ask. fn is called once, perhaps from within; until then *w is set, and must stay where it is.
 * ESRCH when the VM does not run, EHOSTDOWN when its state is unknown, ETIMEDOUT after some
 * seconds. Without a text (NULL), an answer that is younger than a tenth of a second will do.
 */
void ask_backend(Vm *vm, AskKind kind, const char *text, AskFn fn, void *arg, AskWaiter **w);
/* Stop waiting: fn is not called. Clears *w, which may be NULL. */
void ask_leave(AskWaiter **w);
/* Bytes of the latest answer of this run of the VM; 0: none yet. */
off_t ask_size(const Vm *vm, AskKind kind);
/* The run is over: its answers say nothing any more. */
void ask_forget(Vm *vm);
