/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of exec/ on libvirt: a look at a command in the guest, which is made in the pool. */
#pragma once

#include <jansson.h>

#include "backends/libvirt/call.h"

#define LV_EXEC_PART                                                                               \
	(128u << 10) /* bytes of output at once: more than a FIFO of the guest holds               \
		      */

typedef struct LvJob LvJob;

/* One direction of output. */
typedef struct LvLookOut {
	bool wanted;	   /* there is room for more */
	uint64_t taken;	   /* parts up to this are kept here */
	bool ack;	   /* and the guest is to be told so */
	uint64_t number;   /* of what has come; 0: nothing has */
	GByteArray *bytes; /* NULL: nothing */
} LvLookOut;

/* What is to be done in the guest, and what was found there. */
typedef struct LvExecLook {
	LvJob *job;    /* for the loop; NULL: nobody asks any more */
	char *dir;     /* the job's directory in the guest's /run */
	char *command; /* to be started; NULL: it is */
	json_int_t pid;
	bool eof, end, quit;
	GByteArray *input; /* to be written to it; or NULL */
	uint64_t number;   /* of that */
	json_int_t writer; /* who writes the last such; 0: nobody */
	bool ended;	   /* it is known to have */
	LvLookOut out[2];

	bool gone;    /* it does go */
	bool written; /* the input has been taken */
	bool eof_said, end_said;
	json_t *status; /* of the answer to guest-exec-status; NULL: not asked */
} LvExecLook;

void lv_exec_look_free(LvExecLook *l);
/* As LvCall.work; LvCall.arg is a LvExecLook. */
bool lv_exec_work(LvCall *c, GError **err);
