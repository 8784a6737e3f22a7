/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors: a GError whose code is an errno and whose message is a sentence with context, outermost
 * first ("start web1: qemu: cannot open /x"). The errno goes to the caller of write(2), the
 * sentence to the VM's `error` file.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#define VMFS_ERROR (vmfs_error_quark())
GQuark vmfs_error_quark(void);

/* Set *err (which may be NULL) and return false, so that `return err_set(...)` reads well. */
bool err_set(GError **err, int code, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* A new error, owned by the caller. */
GError *err_new(int code, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* The errno of an error: its code if it is ours, else EIO. */
int err_code(const GError *err);

/* "EINVAL" for EINVAL; never NULL. */
const char *err_name(int code);
