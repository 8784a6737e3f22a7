/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/libvirt/call.h"

#include <libvirt/virterror.h>

#include "vmfs/err.h"

static void run(void *job)
{
	LvCall *c = job;
	c->dom = virDomainLookupByUUIDString(c->virt, c->key);
	if (!c->dom && !(c->absent && virGetLastErrorCode() == VIR_ERR_NO_DOMAIN)) {
		lv_error(&c->error, "libvirt cannot find it");
	} else if (c->work(c, &c->error) && c->dom) {
		(void)lv_state_now(c->dom, &c->state);
	}
	if (c->dom)
		virDomainFree(c->dom);
	/* Here: if it was the last reference this talks to the host. */
	(void)virConnectClose(c->virt);
}

static void finished(void *job)
{
	LvCall *c = job;

	if (c->lv)
		g_ptr_array_remove_fast(c->lv->calls, c);
	c->done(c);
	vm_unref(c->vm);
	spec_unref(c->spec);
	spec_unref(c->have);
	g_free(c->name);
	g_free(c->xml);
	if (c->list)
		g_ptr_array_unref(c->list);
	if (c->bytes)
		g_byte_array_unref(c->bytes);
	g_clear_error(&c->error);
	g_free(c);
}

LvCall *lv_call_new(LvVm *lv, bool (*work)(LvCall *c, GError **err), void (*done)(LvCall *c),
		    GError **err)
{
	LvCall *c;

	if (!lv_host_need(lv->host, err))
		return NULL;
	c = g_new0(LvCall, 1);
	c->vm = vm_ref(lv->base.vm);
	c->lv = lv;
	c->tag = lv_host_tag(lv->host);
	c->work = work;
	c->done = done;
	c->state.state = VM_STATE_MAX;
	g_strlcpy(c->key, lv->base.vm->home.key, sizeof c->key);
	return c;
}

void lv_call_send(LvCall *c)
{
	c->virt = c->lv->host->virt;
	(void)virConnectRef(c->virt);
	g_ptr_array_add(c->lv->calls, c);
	pool_work(c->lv->host->pool, run, finished, c);
}

bool lv_call_alive(const LvCall *c)
{
	return c->lv && lv_host_at(c->tag);
}

void lv_call_forget(LvVm *lv)
{
	for (unsigned i = 0; i < lv->calls->len; i++) {
		LvCall *c = lv->calls->pdata[i];

		c->lv = NULL;
		c->op = NULL;
	}
	g_ptr_array_set_size(lv->calls, 0);
}
