/* SPDX-License-Identifier: Apache-2.0 */
/* All VMs: by name, by serial, in the order they were made; and the root directory's attributes. */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmfs/vm.h"

typedef struct RegistryConfig {
	uint32_t first_id, last_id; /* range of Vm.id */
} RegistryConfig;

/* Load what is stored. Blocks; at start only. */
void registry_load(const RegistryConfig *config);
/* Adopt the VMs that were live; fn is called when all are known, or when a time is up. */
void registry_adopt(void (*fn)(void *arg), void *arg);
/* Let go of everything; what runs goes on. */
void registry_close(void);

/* A name [A-Za-z0-9][A-Za-z0-9._-]{0,62}; 0 or an errno. */
int registry_check_name(const char *name);
Vm *registry_find(const char *name);
Vm *registry_by_serial(uint32_t serial);
/* The VM with the next higher serial; NULL at the end. */
Vm *registry_after(uint32_t serial);
unsigned registry_count(void);
/* All, by ascending serial; borrowed. */
const GPtrArray *registry_all(void);

/* Owner and mode of the root directory. */
const HostAttr *registry_root(void);
void registry_set_root(const HostAttr *attr);

/* err: 0 or an errno. */
typedef void (*RegistryDone)(void *arg, int err);
/* Make a VM. Errors known at once (EEXIST, EINVAL, ENAMETOOLONG, ENOSPC) are returned; else 0. */
int registry_make(const char *name, mode_t mode, const Caller *who, RegistryDone fn, void *arg);
/* Destroy one. EBUSY (with a sentence in `error`) while it is live. */
int registry_remove(Vm *vm, RegistryDone fn, void *arg);
/* Destroy one of which nobody has asked that now, if it can be then; shown to watchers. */
void registry_retire(Vm *vm);
int registry_rename(Vm *vm, const char *name, RegistryDone fn, void *arg);
/* Store changed attributes. */
void registry_save_meta(Vm *vm, RegistryDone fn, void *arg);

/*
 * VMs that are found in the books of a hypervisor. They come and go there; here that shows, and is
 * told to watchers. A name that is taken or could not be one is changed; what it was changed to
 * stays.
 */
/* NULL: there are too many. */
Vm *registry_appear(const VmHome *home);
/* When its operation, if it has one, has ended. */
void registry_vanish(Vm *vm);
/* It has been given this name there. */
void registry_follow_name(Vm *vm, const char *name);
