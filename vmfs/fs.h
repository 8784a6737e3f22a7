/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE session: requests from the kernel become calls of the node tables' rows. */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/node.h"

typedef struct FsOptions {
	const char *mountpoint;
	const char *fuse_options; /* for fuse(8): "allow_other,default_permissions" */
	void (*ended)(void *arg); /* unmounted from outside, or the connection failed */
	void *arg;
} FsOptions;

/* Mount. Requests wait in the kernel until fs_serve(). */
bool fs_mount(const FsOptions *options, GError **err);
/* Begin to answer, from the loop. */
void fs_serve(void);
/* These things of a VM have changed: the kernel is not to believe what it was told before. */
void fs_changed(Vm *vm, unsigned changes);
/* Objects have come or gone in this directory without a request. */
void fs_names_changed(const NodeRef *dir);
bool fs_is_serving(void);
/* Unmount and let go of everything. */
void fs_unmount(void);
