/* SPDX-License-Identifier: Apache-2.0 */
/* What QEMU and its programs print when something fails. Pure. */
#pragma once

/* The errno that fits what QEMU or qemu-img said; EIO when nothing does. */
int qemu_errno(const char *text);
/*
 * The last line of what QEMU or qemu-img printed that is not a warning, in the words of the spec:
 * "disks.root: Could not open ...". NULL when there is none.
 */
char *qemu_sentence(const char *text);
