/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inotify for changes that nobody made through the mount. The kernel tells watchers only of what
 * goes through the VFS, so a helper touches the changed file through the mount: a process of its
 * own, because whoever touches waits for us to answer, and must not hold /dev/fuse open meanwhile.
 * Touches of one file are merged until they are sent; files that nobody ever looked up are not
 * touched at all.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/node.h"
#include "vmfs/vm.h"

/* Start the helper. While there is none (logged) watchers are told of nothing. */
void notify_start(const char *mountpoint);
void notify_stop(void);

/* For publish.c: do this to a name in a directory, through the mount. false: there is no helper. */
bool notify_order(char kind, const NodeRef *dir, const char *name, const char *other);
/* A request of this process (or thread) is the helper's. */
bool notify_is_helper(pid_t pid);

/* These things of a VM have changed, and can be read already. */
void notify_change(Vm *vm, unsigned changes);
/* The same of a smaller object, which `dir` is the directory of. */
void notify_object_change(const NodeRef *dir, unsigned changes);

/* The kernel holds it: somebody may be watching. */
bool notify_is_looked_up(const NodeRef *r);
/* The kernel holds count more (or fewer) references to an inode: who watches one, holds one. */
void notify_looked_up(uint64_t ino);
void notify_forgotten(uint64_t ino, uint64_t count);

/*
 * A command is being written to `state`: its inode is locked, and whoever touches it would wait
 * until the write is answered. Between these calls touches of it are put off. NULL: of the host.
 */
void notify_hold(Vm *vm);
void notify_release(Vm *vm);

/* `vmfs --notify-helper`: does what comes in on descriptor 3 until it is closed. */
int notify_helper_main(void);
