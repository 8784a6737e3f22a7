/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `vmfs --upgrade`: orders the keeper (keeper.h) to start the program anew, and waits to be told
 * how that went. They speak through a socket in the runtime directory: the order is the mountpoint,
 * the answer one byte, the exit status, and a sentence.
 */
#pragma once

#include <stdbool.h>

#include "vmfs/options.h"

/* The command: its exit status. */
int upgrade_main(const Options *options);

/* For the keeper: a socket on which orders come, or -1; made by upgrade_listen(), and its end. */
int upgrade_listen(const char *runtime_dir);
void upgrade_unlisten(const char *runtime_dir, int listener);
/* A connection on which an order is to come, or -1. Its owner may be trusted. */
int upgrade_accept(int listener);
/* Whether what has come is an order for this mountpoint. */
bool upgrade_read(int peer, const char *mountpoint);
/* Answer, and close the connection. */
void upgrade_answer(int *peer, int status, const char *text);
