/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <libvirt/virterror.h>

#include "backends/libvirt/lv.h"
#include "vmfs/err.h"

static const struct {
	int code, errnum;
} codes[] = {
	{ VIR_ERR_NO_DOMAIN, ENOENT },
	{ VIR_ERR_NO_NETWORK, ENOENT },
	{ VIR_ERR_NO_STORAGE_VOL, ENOENT },
	{ VIR_ERR_NO_DOMAIN_SNAPSHOT, ENOENT },
	{ VIR_ERR_DOM_EXIST, EEXIST },
	{ VIR_ERR_NETWORK_EXIST, EEXIST },
	{ VIR_ERR_NO_MEMORY, ENOMEM },
	{ VIR_ERR_NO_SUPPORT, EOPNOTSUPP },
	{ VIR_ERR_OPERATION_UNSUPPORTED, EOPNOTSUPP },
	{ VIR_ERR_ARGUMENT_UNSUPPORTED, EOPNOTSUPP },
	{ VIR_ERR_CONFIG_UNSUPPORTED, EOPNOTSUPP },
	{ VIR_ERR_NO_KERNEL, ENOENT },
	{ VIR_ERR_INVALID_ARG, EINVAL },
	{ VIR_ERR_XML_ERROR, EINVAL },
	{ VIR_ERR_XML_DETAIL, EINVAL },
	{ VIR_ERR_XML_INVALID_SCHEMA, EINVAL },
	{ VIR_ERR_OS_TYPE, EINVAL },
	{ VIR_ERR_OPERATION_DENIED, EACCES },
	{ VIR_ERR_ACCESS_DENIED, EACCES },
	{ VIR_ERR_AUTH_FAILED, EACCES },
	{ VIR_ERR_AUTH_CANCELLED, EACCES },
	{ VIR_ERR_AUTH_UNAVAILABLE, EACCES },
	{ VIR_ERR_OPERATION_INVALID, EBUSY },
	{ VIR_ERR_SNAPSHOT_REVERT_RISKY, EBUSY },
	{ VIR_ERR_OPERATION_ABORTED, ECANCELED },
	{ VIR_ERR_OPERATION_TIMEOUT, ETIMEDOUT },
	{ VIR_ERR_AGENT_UNRESPONSIVE, ETIMEDOUT },
	{ VIR_ERR_RESOURCE_BUSY, EBUSY },
	{ VIR_ERR_NO_CONNECT, EHOSTDOWN },
	{ VIR_ERR_INVALID_CONN, EHOSTDOWN },
	{ VIR_ERR_RPC, EHOSTDOWN },
};

static int errno_of(const virError *e)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(codes); i++)
		if (codes[i].code == e->code)
			return codes[i].errnum;
	/* A connection that has been closed, whatever the code. */
	if (e->domain == VIR_FROM_RPC || e->domain == VIR_FROM_REMOTE)
		return EHOSTDOWN;
	return EIO;
}

void lv_error(GError **err, const char *what)
{
	const virError *e = virGetLastError();
	/* It may quote what a guest has said. */
	g_autofree char *why = e && e->message ? g_utf8_make_valid(e->message, -1) : NULL;

	(void)err_set(err, e ? errno_of(e) : EIO, "%s: %s", what,
		      why ? why : "libvirt does not say why");
}

static void say_nothing(void *arg, virErrorPtr error)
{
	(void)arg;
	(void)error;
}

void lv_init_errors(void)
{
	virSetErrorFunc(NULL, say_nothing);
}
