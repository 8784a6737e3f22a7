/* SPDX-License-Identifier: Apache-2.0 */
/* What a simulated guest does with a command: echo, cat, yes, sleep, true, false and exit. */
#pragma once

#include "backends/backend.h"

extern const ExecClass sim_exec;

/* op[OP_EXEC] and op[OP_EXEC_SIGNAL] */
void sim_exec_op(BackendVm *bv, Op *op);
