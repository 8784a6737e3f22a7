/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs: one row each. */
#include <string.h>

#include "vmfs/op.h"

#define S(x) (1u << VM_##x)

// clang-format off
const Verb verbs[] = {
	/*  name      kind       legal in                     during       after          deadline */
	{ "start",  OP_START,  S(STOPPED) | S(CRASHED),     VM_STARTING, VM_RUNNING,    60000,
	  .doc = "boot it; done when its vCPUs run" },
	{ "stop",   OP_STOP,   S(RUNNING) | S(PAUSED),      VM_STOPPING, VM_STOPPED,    20000,
	  .seconds = true,
	  .doc = "ask the guest to power off, and force it after SECONDS (default: stop_timeout); done when the VMM is gone" },
	{ "kill",   OP_KILL,   S(RUNNING) | S(PAUSED) | S(STARTING) | S(STOPPING) | S(UNKNOWN) | S(ASLEEP),
							    VM_STOPPING, VM_STOPPED,    10000,
	  .preempt = true,
	  .doc = "end the VMM at once; cancels whatever else is under way; of one that is asleep, give up its memory" },
	{ "pause",  OP_PAUSE,  S(RUNNING),                  VM_STATE_MAX, VM_PAUSED,    10000,
	  .doc = "stop the vCPUs, keep the memory" },
	{ "resume", OP_RESUME, S(PAUSED),                   VM_STATE_MAX, VM_RUNNING,   10000,
	  .doc = "let the vCPUs of a paused VM go on" },
	{ "reboot", OP_REBOOT, S(RUNNING),                  VM_STATE_MAX, VM_STATE_MAX, 120000,
	  .doc = "ask the guest to restart; done when it has reset" },
	{ "reset",  OP_RESET,  S(RUNNING) | S(PAUSED),      VM_STATE_MAX, VM_STATE_MAX, 10000,
	  .doc = "press the reset button" },
	{ "sleep",  OP_SLEEP,  S(RUNNING) | S(PAUSED),      VM_STOPPING, VM_ASLEEP,     600000,
	  .doc = "memory and devices to disk, then end the VMM; it outlives a restart of the host" },
	{ "wake",   OP_WAKE,   S(ASLEEP),                   VM_STARTING, VM_RUNNING,    600000,
	  .doc = "go on where 'sleep' was; done when the vCPUs run" },
	{ "restore", OP_RESTORE, S(RUNNING) | S(PAUSED) | S(STOPPED) | S(CRASHED),
							    VM_STATE_MAX, VM_STATE_MAX, 600000,
	  .word = "SNAPSHOT",
	  .doc = "go back to a snapshot: its memory, devices and disks; stopped, if it was taken of a stopped VM" },
	{ "snapshot", OP_SNAPSHOT, S(RUNNING) | S(STOPPED) | S(CRASHED), VM_STATE_MAX, VM_STATE_MAX, 600000,
	  .silent = true, .doc = "take a snapshot" },
	{ "undefine", OP_UNDEFINE, S(STOPPED) | S(CRASHED) | S(ASLEEP), VM_STATE_MAX, VM_STATE_MAX, 10000,
	  .doc = "libvirt: let it forget the machine; one that vmfs did not make is gone then, its disks are not" },
	{ "unmanage", OP_UNMANAGE, ~S(UNKNOWN),             VM_STATE_MAX, VM_STATE_MAX, 10000,
	  .doc = "libvirt: take the machine for one that vmfs did not make, so that rmdir does not undefine it" },
	{ "redefine", OP_REDEFINE, ~S(UNKNOWN),             VM_STATE_MAX, VM_STATE_MAX, 10000,
	  .silent = true, .doc = "let libvirt take another XML for it" },
	{ "migrate", OP_MIGRATE, S(RUNNING) | S(PAUSED) | S(STOPPED) | S(CRASHED),
							    VM_STATE_MAX, VM_STATE_MAX, 86400000,
	  .silent = true, .doc = "move it to another host" },
	{ "apply",  OP_APPLY,  S(RUNNING) | S(PAUSED),      VM_STATE_MAX, VM_STATE_MAX, 15000,
	  .silent = true, .doc = "change what runs to what spec.yaml says" },
	{ "exec",   OP_EXEC,   S(RUNNING),                  VM_STATE_MAX, VM_STATE_MAX, 20000,
	  .silent = true, .doc = "start a command in the guest" },
	{ "exec-signal", OP_EXEC_SIGNAL, S(RUNNING),        VM_STATE_MAX, VM_STATE_MAX, 10000,
	  .silent = true, .doc = "signal a command in the guest" },
	{ 0 },
};
// clang-format on

const Verb *verb_find(const char *name)
{
	for (const Verb *v = verbs; v->name; v++)
		if (!v->silent && !strcmp(v->name, name))
			return v;
	return NULL;
}

const Verb *verb_of(OpKind kind)
{
	for (const Verb *v = verbs; v->name; v++)
		if (v->kind == kind)
			return v;
	return NULL;
}
