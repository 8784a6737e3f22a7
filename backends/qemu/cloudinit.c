/* SPDX-License-Identifier: Apache-2.0 */
/* Looking for cloud-init's result (backends/cloudinit.h), through the agent. Loop thread only. */
#include "backends/qemu/qemu.h"

#define AGENT_TIMEOUT_MS 5000

static void file_read(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const char *text = json_string_value(json_object_get(result, "buf-b64"));
	gsize len = 0;
	g_autofree guchar *bytes = text ? g_base64_decode(text, &len) : NULL;

	cloudinit_answer(&q->cloud_init, (const char *)bytes, len);
}

static void file_opened(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	json_t *read, *close;

	if (!json_is_integer(result)) {
		cloudinit_answer(&q->cloud_init, NULL, 0);
		return;
	}
	read = json_object();
	json_object_set_new(read, "handle", json_integer(json_integer_value(result)));
	close = json_copy(read);
	json_object_set_new(read, "count", json_integer(CLOUDINIT_MAX));
	agent_request(q->agent, "guest-file-read", read, false, AGENT_TIMEOUT_MS, file_read, q);
	agent_request(q->agent, "guest-file-close", close, false, AGENT_TIMEOUT_MS, NULL, NULL);
}

void qemu_want_cloud_init(BackendVm *bv)
{
	QemuVm *q = qemu_of(bv);
	json_t *args;

	/* When the agent has come up, who waits asks again. */
	if (!q->agent || !agent_is_open(q->agent) || !cloudinit_want(&q->cloud_init, bv))
		return;
	args = json_object();
	json_object_set_new(args, "path", json_string(CLOUDINIT_RESULT));
	json_object_set_new(args, "mode", json_string("r"));
	agent_request(q->agent, "guest-file-open", args, false, AGENT_TIMEOUT_MS, file_opened, q);
}
