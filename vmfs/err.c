/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: the errno as a GError's code. Any thread; no state. */
#include "vmfs/err.h"

#include <errno.h>
#include <string.h>

// clang-format off
G_DEFINE_QUARK(vmfs-error-quark, vmfs_error)
// clang-format on

static GError *error_valist(int code, const char *fmt, va_list ap) G_GNUC_PRINTF(2, 0);

static GError *error_valist(int code, const char *fmt, va_list ap)
{
	return g_error_new_valist(VMFS_ERROR, code, fmt, ap);
}

bool err_set(GError **err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return false;
	va_start(ap, fmt);
	g_propagate_error(err, error_valist(code, fmt, ap));
	va_end(ap);
	return false;
}

GError *err_new(int code, const char *fmt, ...)
{
	va_list ap;
	GError *error;

	va_start(ap, fmt);
	error = error_valist(code, fmt, ap);
	va_end(ap);
	return error;
}

int err_code(const GError *err)
{
	/* A code of 0 or less would be success, or a lie, to the caller of write(2). */
	return err && err->domain == VMFS_ERROR && err->code > 0 ? err->code : EIO;
}

const char *err_name(int code)
{
	const char *name = strerrorname_np(code);

	return name ? name : "EIO";
}
