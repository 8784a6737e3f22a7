/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether cloud-init is done, which it writes into a file of the guest that its agent can read. It
 * tells nobody, so the file is looked for again and again; but only while somebody waits, ever less
 * often, and not for ever. For all backends that have the agent. Loop thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "backends/backend.h"
#include "vmfs/loop.h"

#define CLOUDINIT_RESULT "/run/cloud-init/result.json"
#define CLOUDINIT_MAX	 65536 /* bytes of it */

typedef struct CloudInit {
	BackendVm *bv;
	Timer *timer;
	unsigned tries;
	bool asked; /* it is being looked for */
} CloudInit;

/* Somebody waits. true: it is to be looked for now, and cloudinit_answer() to be called. */
bool cloudinit_want(CloudInit *c, BackendVm *bv);
/* What it says; NULL: it is not there, or cannot be read. */
void cloudinit_answer(CloudInit *c, const char *text, size_t len);
/* Another run: an answer that is under way is not to come. */
void cloudinit_reset(CloudInit *c);
