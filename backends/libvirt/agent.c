/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/libvirt/agent.h"

#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>

#include "backends/libvirt/lv.h"
#include "vmfs/err.h"

#define TIMEOUT_S 5

/* An answer that is too long for libvirt's wire is no reason to believe that it is cut. */
static void no_answer(virDomainPtr dom, GError **err)
{
	const bool cut = virGetLastErrorCode() != VIR_ERR_RPC;
	g_autoptr(GError) e = NULL;

	lv_error(&e, "the guest's agent");
	if (cut || virConnectIsAlive(virDomainGetConnect(dom)) <= 0)
		g_propagate_error(err, g_steal_pointer(&e));
	else
		(void)err_set(err, EPROTO, "%s", e->message);
}

json_t *lv_agent_ask(virDomainPtr dom, const char *command, json_t *args_take, GError **err)
{
	json_t *msg = json_pack("{s:s,s:o*}", "execute", command, "arguments", args_take), *said;
	json_t *result = NULL;
	char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
	char *out = text ? virDomainQemuAgentCommand(dom, text, TIMEOUT_S, 0) : NULL;

	if (!text)
		(void)err_set(err, EINVAL, "%s: its arguments are not JSON", command);
	else if (!out)
		no_answer(dom, err);
	json_decref(msg);
	free(text);
	if (!out)
		return NULL;
	said = json_loads(out, 0, NULL);
	result = json_incref(json_object_get(said, "return"));
	json_decref(said);
	free(out);
	if (!result)
		(void)err_set(err, EIO, "the guest's agent does not answer %s", command);
	return result;
}

/* ---- files of the guest ---- */

/* That it cannot be opened is all that is to be known. */
static bool open_file(virDomainPtr dom, const char *path, const char *mode, json_int_t *ret,
		      GError **err)
{
	g_autoptr(GError) e = NULL;
	json_t *handle = lv_agent_ask(dom, "guest-file-open",
				      json_pack("{s:s,s:s}", "path", path, "mode", mode), &e);
	const bool ok = json_is_integer(handle);

	*ret = json_integer_value(handle);
	json_decref(handle);
	if (e && err_code(e) != EIO)
		g_propagate_error(err, g_steal_pointer(&e));
	return ok;
}

static bool close_file(virDomainPtr dom, json_int_t handle, GError **err)
{
	json_t *done =
		lv_agent_ask(dom, "guest-file-close", json_pack("{s:I}", "handle", handle), err);
	const bool ok = done != NULL;

	json_decref(done);
	return ok;
}

GByteArray *lv_agent_read(virDomainPtr dom, const char *path, size_t max, GError **err)
{
	json_int_t handle;
	json_t *part;
	const char *text;
	GByteArray *bytes = NULL;
	g_autofree guchar *data = NULL;
	gsize len = 0;

	if (!open_file(dom, path, "r", &handle, err))
		return NULL;
	part = lv_agent_ask(dom, "guest-file-read",
			    json_pack("{s:I,s:I}", "handle", handle, "count", (json_int_t)max),
			    err);
	text = json_string_value(json_object_get(part, "buf-b64"));
	if (text)
		data = g_base64_decode(text, &len);
	json_decref(part);
	if (!part || !close_file(dom, handle, err))
		return NULL;
	bytes = g_byte_array_new();
	g_byte_array_append(bytes, data, (guint)MIN(len, max));
	return bytes;
}

bool lv_agent_write(virDomainPtr dom, const char *path, const char *text, GError **err)
{
	g_autofree char *data = g_base64_encode((const guchar *)text, strlen(text));
	json_int_t handle;
	json_t *done;

	/* This mode neither makes a file nor waits for a FIFO's reader. */
	if (!open_file(dom, path, "r+", &handle, err))
		return false;
	done = lv_agent_ask(dom, "guest-file-write",
			    json_pack("{s:I,s:s}", "handle", handle, "buf-b64", data), err);
	json_decref(done);
	return done && close_file(dom, handle, err);
}
