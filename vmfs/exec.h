/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands in the guest: the jobs in a VM's exec/. A job runs one command line, and belongs to the
 * run in which it was made. Its streams are pipes: each byte is read once, and a command whose
 * output nobody reads waits, with what fits between it and us. Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backends/backend.h"

#define EXEC_MAX_JOBS	 8	     /* of a VM, those that have ended included */
#define EXEC_MAX_COMMAND (32u << 10) /* bytes */
#define EXEC_MAX_INPUT	 (64u << 10) /* bytes of stdin that can be written before the command is */
#define EXEC_MAX_SIGNAL	 64

typedef enum ExecPhase { EXEC_NEW, EXEC_STARTING, EXEC_RUNNING, EXEC_ENDED } ExecPhase;

typedef struct Exec Exec; /* what a VM keeps of them */

struct ExecJob {
	Vm *vm; /* whose job it is */
	uint32_t number;
	char *name;
	char *links[EXEC_STREAMS]; /* what the symlinks to its streams say */
	ExecPhase phase;
	char *command; /* NULL: none yet */
	char *end;     /* "exit 0", "signal 9", "lost agent"; NULL: it has not ended */
	bool silent;   /* whoever could tell of its end does not answer */

	GByteArray *input; /* stdin, as long as nobody takes it */
	unsigned writers;
	bool input_closed; /* by its last writer */
	bool input_ended;  /* and the guest is told */

	Op *op; /* that starts or signals it */
	int signal;
	void *run; /* the backend's own */
};

/* The VM has a backend that can run commands. */
bool exec_is_possible(Vm *vm);

ExecJob *exec_find(const Vm *vm, const char *name);
ExecJob *exec_by_number(const Vm *vm, uint32_t number);
ExecJob *exec_after(const Vm *vm, uint32_t number);
/* NULL with err set, which is in the VM's `error` then. */
ExecJob *exec_make(Vm *vm, const char *name, GError **err);
/* EBUSY while it runs. */
bool exec_remove(ExecJob *job, GError **err);
/* Run that command line, which is of one write. As Node.store. */
bool exec_run(ExecJob *job, const char *text, size_t len, Op **op, GError **err);
/* What is written to its status: "signal 9". */
bool exec_order(ExecJob *job, const char *text, size_t len, Op **op, GError **err);
/* "new", "running", or how it ended. */
const char *exec_status(const ExecJob *job);

/* As of StreamClass; job NULL: it has been removed. */
ssize_t exec_read(ExecJob *job, ExecStream which, char *buf, size_t size);
bool exec_ready(ExecJob *job, ExecStream which);
ssize_t exec_write(ExecJob *job, const char *data, size_t len);
void exec_open_input(ExecJob *job);
void exec_close_input(ExecJob *job);
/* Of those that wait for any stream of the VM's jobs. */
GQueue *exec_queue(Vm *vm);

/*
 * What runs is to be written down, and must have no more in it than a start gives it: take away
 * what jobs that have ended still have outside. EBUSY while one runs.
 */
bool exec_make_way(Vm *vm, GError **err);
/* The run has ended, and with it what runs in it; `why` is one word. */
void exec_end_all(Vm *vm, const char *why);
/* Forget all jobs, whatever becomes of them: another run begins, or the VM goes from memory. */
void exec_forget_all(Vm *vm);
/* Nobody refers to the VM any more. */
void exec_free(Vm *vm);

void exec_save(const Vm *vm, GKeyFile *run);
/* Take up the jobs that exec_save() wrote down; `live`: the run goes on. */
void exec_adopt(Vm *vm, GKeyFile *run, bool live);
