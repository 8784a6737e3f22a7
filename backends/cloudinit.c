/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/cloudinit.h"

#include <jansson.h>

#define FIRST_DELAY_MS 500
#define LAST_DELAY_MS  10000
#define MAX_TRIES      400 /* about an hour */

bool cloudinit_want(CloudInit *c, BackendVm *bv)
{
	c->bv = bv;
	if (c->asked || c->timer || c->tries >= MAX_TRIES)
		return false;
	c->asked = true;
	c->tries++;
	return true;
}

static void ask_again(void *arg)
{
	CloudInit *c = arg;

	c->timer = NULL;
	/* Who still waits asks for it. */
	backend_cloud_init(c->bv, NULL);
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

void cloudinit_answer(CloudInit *c, const char *text, size_t len)
{
	const uint64_t ms = FIRST_DELAY_MS + (uint64_t)c->tries * FIRST_DELAY_MS / 2;
	const char *word = text ? result_in(text, len) : NULL;

	c->asked = false;
	if (word)
		backend_cloud_init(c->bv, word);
	else
		c->timer = timer_start(MIN(ms, LAST_DELAY_MS), ask_again, c);
}

void cloudinit_reset(CloudInit *c)
{
	timer_stop(&c->timer);
	*c = (CloudInit){ 0 };
}
