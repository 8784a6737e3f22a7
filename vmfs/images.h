/* SPDX-License-Identifier: Apache-2.0 */
/*
 * .vmfs/images: names of base images, symbolic links that users make. What a name stands for is
 * looked at when it is used, with the rights of whoever uses it. Loop thread only.
 */
#pragma once

#include "vmfs/node.h"

/* Load what is stored. Blocks; at start only. */
void images_load(void);
void images_close(void);
/* The absolute path that a name stands for; NULL when there is none. Borrowed. */
const char *images_target(const char *name);
/*
 * A base image must not be written while overlays are made of it: EBUSY when a disk of this spec is
 * the base of another VM's disk, or the other way round. By path; what programs have open is not
 * known here.
 */
bool images_check_writers(const Vm *vm, const Spec *spec, GError **err);

extern const Dir images_dir;
const HostAttr *images_attr(const NodeRef *r);
void images_set_attr(const NodeRef *r, const HostAttr *attr, NodeDone done, void *arg);
