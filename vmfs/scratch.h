/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scratch files: what editors write beside spec.yaml on their way to replacing it. They live in
 * memory, few and small, and mean nothing until one is renamed to spec.yaml. They are a VM's, or,
 * with NULL for that, the host's; those of a directory in it have its path in their names.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vmfs/vm.h"

#define SCRATCH_MAX_FILES 16
#define SCRATCH_MAX_SIZE  (1u << 20)
#define SCRATCH_MAX_NAME  255

typedef struct Scratch {
	uint32_t serial; /* of its VM; 0: the host's */
	uint32_t number; /* 24 bits, in the inode number */
	char *name;
	mode_t mode;
	uid_t uid;
	gid_t gid;
	int64_t changed; /* microseconds since 1970 */
	GByteArray *data;
} Scratch;

/* ENOSPC when there are too many. */
Scratch *scratch_new(Vm *vm, const char *name, mode_t mode, uid_t uid, gid_t gid, int *err);
Scratch *scratch_find(const Vm *vm, const char *name);
Scratch *scratch_by_number(const Vm *vm, uint32_t number);
/* The one with the next higher number, for listing; NULL at the end. */
Scratch *scratch_after(const Vm *vm, uint32_t number);
void scratch_remove(Vm *vm, Scratch *f);
/* Replaces a file of that name. */
void scratch_rename(Vm *vm, Scratch *f, const char *name);
void scratch_free_all(Vm *vm);
/* Those of the host's whose names begin so. */
void scratch_free_below(const char *prefix);

/* 0 or an errno. */
int scratch_write(Scratch *f, const char *data, size_t len, uint64_t offset);
int scratch_truncate(Scratch *f, uint64_t size);

/*
 * spec.yaml, by its inode number, was moved away by an editor that is about to bring another: it is
 * not there for a moment, and is back after that whatever happens.
 */
void scratch_away(uint64_t ino);
/* Another is being written. */
void scratch_here(uint64_t ino);
bool scratch_is_away(uint64_t ino);

/* Its owner or mode has changed. */
void scratch_keep(const Scratch *f);
/* Bring back those of a former daemon. At start. */
void scratch_restore(void);
