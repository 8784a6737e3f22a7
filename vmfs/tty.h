/* SPDX-License-Identifier: Apache-2.0 */
/* A real pty bridged to a VM's console, for programs that want a terminal: screen, picocom. */
#pragma once

#include "vmfs/vm.h"

/* Path of the terminal, made on first use; NULL when it cannot be made or nothing runs. */
const char *tty_path(Vm *vm);
void tty_close(Vm *vm);
