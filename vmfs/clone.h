/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `from` in a spec: a new VM that begins, at its first start, as a snapshot of another one. Its own
 * disks are then based on those of the snapshot, which must stay for as long as it does. Loop
 * thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/vm.h"

/* "VM/snapshots/NAME", or EINVAL; *ret is {VM, NAME}, to be freed with g_strfreev(). Pure. */
bool clone_parse(const char *from, char ***ret, GError **err);

/*
 * Judge the `from` of a document, with the rights of who writes it, and give *text the keys that it
 * leaves to the snapshot's own spec.yaml; *spec is that of the new text then. Both are counted.
 * What cannot be, or not any more, is refused with nothing changed.
 */
bool clone_document(Vm *vm, const Caller *who, GBytes **text, Spec **spec, GError **err);

/* It names a snapshot, and has not run yet: its next start is to begin there. */
bool clone_is_pending(const Vm *vm);
/* It has a machine of its own now: `from` is history. Stored when it was not known before. */
void clone_begun(Vm *vm);
/* A start came to nothing. */
void clone_failed(Vm *vm);

/* A VM that cannot do without this snapshot (number 0: without any of that VM); NULL: none. */
const Vm *clone_user(const Vm *origin, uint32_t number);
