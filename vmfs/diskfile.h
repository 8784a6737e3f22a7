/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a VM's disks: looked at before a hypervisor gets them, and made when they are
 * vmfs's own. For the pool, with the rights of the VM's owner (rights.h): all of it blocks.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmfs/spec.h"

/* One disk, as it is to be when the VM starts. Copies, owned by it. */
typedef struct DiskFile {
	char *key;    /* "disks.root": where sentences begin */
	char *path;   /* of the disk itself */
	char *record; /* beside an overlay: a link to `said`, as of when it was made; or NULL */
	char *said;   /* the spec's `image`; NULL: not an overlay */
	char *image;  /* the path that this stands for; NULL: for none any more */
	char *format; /* the spec's, or NULL */
	uint64_t size;
	bool own; /* private: made when it is missing */
	bool readonly;
	char *mount; /* nothing below it can be a disk */
	/* For VMs that are made from a snapshot; diskfile_new() leaves these unset. */
	char *origin; /* what begins the paths of what it may be based on; or NULL */
	char *base;   /* of the snapshot's disk, a qcow2, that it is to be based on; or NULL */
	bool anew;    /* what is there is worth nothing */
	/* Of a copy of what a snapshot has, which is to be put in the disk's place: what begins the
	 * paths of all VMs' files. Else NULL. */
	char *restored;

	/* Of diskfile_prepare(): it is there, but `qemu-img resize` is to give it its size. */
	bool resize;
} DiskFile;

/* Where a VM's data directory has (or would have) the disk: its own, or the file itself. */
char *diskfile_path(const char *data_dir, const SpecDisk *d);
/* The link beside it that says of which image it is, if it is of one. */
char *diskfile_record(const char *data_dir, const SpecDisk *d);
/* Of the disk itself: "qcow2" or "raw". Never found out by content, which the guest writes. */
const char *diskfile_format(const SpecDisk *d);

/* Looks up the image's name: loop thread. */
DiskFile *diskfile_new(const char *data_dir, const SpecDisk *d);
void diskfile_free(DiskFile *f);

/*
 * Make the disk if it is vmfs's own and missing; else see whether it can be used. Refused are what
 * is neither a file nor a device, what the thread may not read, what is damaged, and what others
 * write; the same for all that an image is based on.
 */
bool diskfile_prepare(DiskFile *f, GError **err);

/*
 * Make a file, mode 0600, that gets its name when fill() has written all of it, in place of what
 * has it now. On failure there is nothing new; `what` begins the sentence.
 */
typedef bool (*DiskFill)(int fd, const void *arg, GError **err);
bool diskfile_make(const char *path, const char *what, DiskFill fill, const void *arg,
		   GError **err);
