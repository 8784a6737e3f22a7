/* SPDX-License-Identifier: Apache-2.0 */
/* Looking for cloud-init's result (backends/cloudinit.h), through the agent. */
#include "backends/libvirt/agent.h"
#include "backends/libvirt/call.h"

static bool work_read(LvCall *c, GError **err)
{
	c->bytes = lv_agent_read(c->dom, CLOUDINIT_RESULT, CLOUDINIT_MAX, err);
	return !*err;
}

static void read_done(LvCall *c)
{
	LvVm *lv = c->lv;

	/* Of a run that has ended it tells nothing of this one. */
	if (!lv || lv->cloud_init_call != c)
		return;
	lv->cloud_init_call = NULL;
	cloudinit_answer(&lv->cloud_init, c->bytes ? (const char *)c->bytes->data : NULL,
			 c->bytes ? c->bytes->len : 0);
}

void lv_want_cloud_init(BackendVm *bv)
{
	LvVm *lv = lv_of(bv);
	LvCall *c;

	/* When the agent has come up, who waits asks again. */
	if (!bv->vm->agent || !lv_host_need(lv->host, NULL) || !cloudinit_want(&lv->cloud_init, bv))
		return;
	c = lv_call_new(lv, work_read, read_done, NULL);
	c->guest = true;
	lv->cloud_init_call = c;
	lv_call_send(c);
}

void lv_cloud_init_reset(LvVm *lv)
{
	lv->cloud_init_call = NULL;
	cloudinit_reset(&lv->cloud_init);
}
