/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The links in disks/, nics/ and shares/ come and go with spec.yaml, and watchers of these
 * directories are told. Loop thread only.
 */
#pragma once

#include <stdbool.h>

#include "vmfs/vm.h"

/* The document in force was `before` until now. */
void attach_spec_changed(Vm *vm, const Spec *before);

/* Not all links are shown yet as the document has them; vm->waiters are woken when they are. */
bool attach_is_late(const Vm *vm);
