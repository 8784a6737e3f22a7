/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole fleet as one text, a line a VM, kept ready: a change costs its own line, however many
 * VMs there are.
 */
#pragma once

#include <glib.h>

#include "vmfs/vm.h"

/* What a line depends on. */
#define LIST_CHANGES (EV_STATE | EV_IP | EV_SPEC | EV_NAME | EV_HOST)

void list_change(Vm *vm, unsigned changes);
/* Borrowed until the next call. */
const GString *list_text(void);
/* Its length in bytes, without moving a line: a watcher's nudge asks for it on every change. */
size_t list_size(void);
