/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of the qcow2 format as making a disk needs: a header is read without being trusted, and
 * an empty image or overlay is written. (QEMU's docs/interop/qcow2.txt; qemu-img would cost 5 ms.)
 * For the pool: these block. Pure but for the descriptor.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QCOW2_MAX_BACKING 1023 /* bytes of a backing file's name, as in the format */

typedef struct Qcow2 {
	uint64_t size;			     /* of the disk, in bytes */
	char backing[QCOW2_MAX_BACKING + 1]; /* "": none */
	char backing_format[16];	     /* "": not given, or longer than any that is known */
	/* The file ends before the last byte that its own reference counts tell of. */
	bool truncated;
} Qcow2;

/* The file begins as one does. */
bool qcow2_is(const void *head, size_t len);

/* EINVAL with why it is none, or a damaged one, or the errno of reading; without the file's name.
 */
bool qcow2_read(int fd, Qcow2 *ret, GError **err);

/*
 * Write one of `size` bytes (a multiple of 512) into an empty file: an overlay of backing, or
 * without anything in it (NULL). ENAMETOOLONG, EFBIG, or the errno of writing.
 */
bool qcow2_write(int fd, uint64_t size, const char *backing, const char *backing_format,
		 GError **err);
