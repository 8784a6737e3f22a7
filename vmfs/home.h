/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done to a VM that a hypervisor has in its books has to be done there first. Whoever waits
 * for that holds a lock of the kernel's, so it is given up after a second (ETIMEDOUT). A VM that
 * is in no books is done at once.
 */
#pragma once

#include "vmfs/vm.h"

void home_define(Vm *vm, Spec *spec, BackendDone fn, void *arg);
void home_rename(Vm *vm, const char *name, BackendDone fn, void *arg);
void home_undefine(Vm *vm, BackendDone fn, void *arg);
