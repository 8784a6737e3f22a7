/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE session: requests from the kernel become calls of the node tables' rows. */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/node.h"

/* Mount, with options for fuse(8): a descriptor to give to fs_open_session(), or -1. */
int fs_mount(const char *mountpoint, const char *options, GError **err);

typedef struct FsOptions {
	int fd;			  /* of the mount; taken */
	const char *fuse_options; /* as for fs_mount() */
	void (*ended)(void *arg); /* unmounted from outside, or the connection failed */
	void *arg;
} FsOptions;

/* Take a mount over, with the open files of a former daemon. Requests wait until fs_serve(). */
bool fs_open_session(const FsOptions *options, GError **err);
/* Begin to answer, from the loop; first what a former daemon left. */
void fs_serve(void);
/* No more: what waits is left to a successor. */
void fs_hand_over(void);
/* These things of a VM have changed: the kernel is not to believe what it was told before. */
void fs_changed(Vm *vm, unsigned changes);
/* Objects have come or gone in this directory without a request. */
void fs_names_changed(const NodeRef *dir);
bool fs_is_serving(void);
/* Let go of everything; what still waits is answered with ENOTCONN, unless it was handed over. */
void fs_close_session(void);
