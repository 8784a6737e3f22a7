/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper: the small process that a user starts. It mounts, and holds what must outlive a crash:
 * the mount's descriptor, the memory file (keep.h) and the locks. The daemon that serves the mount
 * is its child, the same program with `--served`; when it dies another takes over, and programs
 * that wait in the mount never know. The keeper itself touches neither the mount nor the store, and
 * sleeps.
 */
#pragma once

#include "vmfs/options.h"

/* The daemon's descriptors. */
enum {
	KEEPER_FUSE = 3,
	KEEPER_MEMORY,
	KEEPER_SOCKET, /* of bytes that are messages, below; closed when the keeper has died */
	KEEPER_LOCKS,
	KEEPER_FDS_END = KEEPER_LOCKS + 2,
};

typedef enum KeeperMessage {
	KEEPER_READY = 'R',	/* from the daemon: it serves */
	KEEPER_STOP = 'S',	/* to it: end; the mount goes */
	KEEPER_HAND_OVER = 'H', /* to it: end; a successor goes on */
} KeeperMessage;

/* Mount and keep; returns the exit status. argv is what the user typed. */
int keeper_run(Options *options, char **argv);
