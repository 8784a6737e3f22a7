/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the sim backend. */
#pragma once

#include "backends/backend.h"
#include "vmfs/loop.h"

typedef enum FaultKind { FAULT_NONE, FAULT_FAIL, FAULT_HANG, FAULT_SLOW } FaultKind;

typedef struct Fault {
	FaultKind kind;
	int code;    /* FAULT_FAIL */
	uint64_t ms; /* FAULT_SLOW */
} Fault;

typedef struct SimVm {
	BackendVm base;
	VmState truth; /* what the simulated machine does, whether or not we can reach it */
	bool lost, ignore_stop, refuse_eject, agent;
	Fault faults[OP_MAX], ask_faults[ASK_MAX];
	GQueue asks;	/* of SimAsk: not answered yet */
	unsigned asked; /* how often it was asked for its counters */
	Op *op;		/* the one that waits on the timer */
	Timer *timer, *boot;
	char *memory;	/* what the guest was told to remember; or NULL */
	bool disk_full; /* nothing can be saved */
	void *saving;	/* of saved.c */
} SimVm;

static inline SimVm *sim_from(BackendVm *bv)
{
	return (SimVm *)bv;
}

void sim_tell(SimVm *s, VmState truth, const char *reason);
void sim_gone(SimVm *s, VmState truth, const char *reason, int exit_status);
/* A guest whose boot was long ago. */
void sim_booted(SimVm *s);
void sim_boot(SimVm *s);

/* saved.c: memory on the disk */
void sim_sleep(SimVm *s, Op *op);
void sim_wake(SimVm *s, Op *op);
void sim_snapshot(SimVm *s, Op *op);
void sim_restore(SimVm *s, Op *op);
/* The first start of a VM that begins as a snapshot. */
void sim_clone(SimVm *s, Op *op);
/* Give up what it sleeps in, and end the op. */
void sim_kill_memory(SimVm *s, Op *op);
void sim_saved_abandon(SimVm *s);
