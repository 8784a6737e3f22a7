/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of the `events` streams: TIME NAME KEY VALUE... */
#pragma once

#include "vmfs/vm.h"

/* The stream of all VMs; NULL until first read. */
Stream *events_all(void);
/* Bring back what a former daemon had for its readers; NULL: of all VMs. At start. */
void events_restore(Vm *vm);
/* A line for each changed thing, into the VM's own stream and the common one. */
void events_emit(Vm *vm, unsigned changes);
/* A line of another kind: `created`, `removed`, `renamed NEWNAME`. */
void events_emit_word(Vm *vm, const char *word, const char *value);
/* What a new reader is told first. */
void events_present(Vm *vm, GString *out);
/* 2026-11-21T08:40:29.123456Z */
void events_time(GString *out, int64_t us);
