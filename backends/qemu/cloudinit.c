/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether cloud-init is done, which it writes into a file of the guest that the agent can read. It
 * tells nobody, so the file is looked for again and again; but only while somebody waits, ever less
 * often, and not for ever. Loop thread only.
 */
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

#define RESULT		 "/run/cloud-init/result.json"
#define MAX_RESULT	 65536 /* bytes of it */
#define AGENT_TIMEOUT_MS 5000
#define FIRST_DELAY_MS	 500
#define LAST_DELAY_MS	 10000
#define MAX_TRIES	 400 /* about an hour */

static void ask_again(void *arg)
{
	QemuVm *q = arg;

	q->cloud_init.timer = NULL;
	/* Who still waits asks for it. */
	backend_cloud_init(&q->base, NULL);
}

static void not_yet(QemuVm *q)
{
	QemuCloudInit *c = &q->cloud_init;
	uint64_t ms = FIRST_DELAY_MS + (uint64_t)c->tries * FIRST_DELAY_MS / 2;

	c->asked = false;
	c->timer = timer_start(MIN(ms, LAST_DELAY_MS), ask_again, q);
}

/* "done" or "error"; NULL when the text is not what cloud-init writes. */
static const char *result_in(const char *text, size_t len)
{
	json_t *file = json_loadb(text, len, 0, NULL);
	const json_t *v1 = json_object_get(file, "v1");
	const json_t *errors = json_object_get(v1, "errors");
	const char *result = NULL;

	if (json_is_object(v1))
		result = json_array_size(errors) ? "error" : "done";
	json_decref(file);
	return result;
}

static void file_read(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const char *text = json_string_value(json_object_get(result, "buf-b64"));
	gsize len = 0;
	g_autofree guchar *bytes = text ? g_base64_decode(text, &len) : NULL;
	const char *word = bytes ? result_in((const char *)bytes, len) : NULL;

	if (!word) {
		not_yet(q);
		return;
	}
	q->cloud_init.asked = false;
	backend_cloud_init(&q->base, word);
}

static void file_opened(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	json_t *read, *close;

	if (!json_is_integer(result)) {
		not_yet(q);
		return;
	}
	read = json_object();
	json_object_set_new(read, "handle", json_integer(json_integer_value(result)));
	close = json_copy(read);
	json_object_set_new(read, "count", json_integer(MAX_RESULT));
	agent_request(q->agent, "guest-file-read", read, false, AGENT_TIMEOUT_MS, file_read, q);
	agent_request(q->agent, "guest-file-close", close, false, AGENT_TIMEOUT_MS, NULL, NULL);
}

void qemu_want_cloud_init(BackendVm *bv)
{
	QemuVm *q = qemu_of(bv);
	QemuCloudInit *c = &q->cloud_init;
	json_t *args;

	/* When the agent has come up, who waits asks again. */
	if (c->asked || c->timer || c->tries >= MAX_TRIES || !q->agent || !agent_is_open(q->agent))
		return;
	c->asked = true;
	c->tries++;
	args = json_object();
	json_object_set_new(args, "path", json_string(RESULT));
	json_object_set_new(args, "mode", json_string("r"));
	agent_request(q->agent, "guest-file-open", args, false, AGENT_TIMEOUT_MS, file_opened, q);
}

void qemu_cloud_init_reset(QemuVm *q)
{
	timer_stop(&q->cloud_init.timer);
	q->cloud_init = (QemuCloudInit){ 0 };
}
