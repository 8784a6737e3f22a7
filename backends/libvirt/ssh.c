/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A way to the guest's ssh server: a forward to its port 22 where QEMU itself is its network (made
 * when somebody first asks for one, if there is none), else its own address; from another host, if
 * libvirt gets there by ssh, by the same way. And the VM's own key in the guest, by its agent.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/libvirt/agent.h"
#include "backends/libvirt/call.h"
#include "backends/usernet.h"
#include "vmfs/err.h"
#include "vmfs/rights.h"

/* Somebody asks. */
struct LvSsh {
	LvVm *lv; /* NULL: the run is over */
	Ask *ask;
	SshKey *key; /* being made */
	char *address, *jump;
};

static ProcUser owner_of(const Vm *vm)
{
	return (ProcUser){ .uid = vm_uid(vm),
			   .gid = vm_gid(vm),
			   .change = vm_uid(vm) != geteuid() };
}

static void end(LvSsh *s, GError *take)
{
	Ask *a = s->ask;
	char *text = take ? NULL : ssh_config(s->lv->base.vm, s->address, s->jump);

	if (s->lv)
		s->lv->ssh = NULL;
	ssh_key_cancel(s->key);
	g_free(s->address);
	g_free(s->jump);
	g_free(s);
	if (take)
		ask_fail(a, take);
	else
		ask_answer(a, g_bytes_new_take(text, strlen(text)));
}

/* ---- the key in the guest ---- */

static bool work_authorize(LvCall *c, GError **err)
{
	json_t *args =
		json_pack("{s:s,s:[s]}", "username", c->list->pdata[0], "keys", c->list->pdata[1]);
	json_t *said = lv_agent_ask(c->dom, "guest-ssh-add-authorized-keys", args, err);

	json_decref(said);
	return said;
}

static void authorized(LvCall *c)
{
	LvSsh *s = c->arg;

	/* A guest that does not know how, or has no such user: it may have got the key otherwise.
	 */
	if (c->lv && c->id == c->lv->ssh_turn)
		c->lv->ssh_authorized = !c->error;
	if (s && !s->lv)
		end(s, err_new(EIO, "the VM ended before it answered"));
	else if (s)
		end(s, NULL);
}

/* For `s`, which is answered then, or for nobody. */
static void authorize(LvVm *lv, LvSsh *s)
{
	const Vm *vm = lv->base.vm;
	const char *user = vm_spec(vm)->ssh_user;
	LvCall *c = NULL;

	if (lv->ssh_key && vm->agent && (!lv->ssh_authorized || g_strcmp0(user, lv->ssh_user) != 0))
		c = lv_call_new(lv, work_authorize, authorized, NULL);
	if (!c) {
		if (s)
			end(s, NULL);
		return;
	}
	g_free(lv->ssh_user);
	lv->ssh_user = g_strdup(user);
	c->list = g_ptr_array_new_with_free_func(g_free);
	g_ptr_array_add(c->list, g_strdup(user));
	g_ptr_array_add(c->list, g_strdup(lv->ssh_key));
	c->guest = true;
	c->id = lv->ssh_turn;
	c->arg = s;
	lv_call_send(c);
}

/* ---- the way there ---- */

/* Where its host is, as seen from where ssh is to connect: from here, or from that host itself,
 * where ssh then has to jump to. Owned by the caller. */
static char *host_of(const LvHost *lh, char **jump)
{
	g_autofree char *text = lv_uri(lh->host);
	g_autoptr(GUri) uri = text ? g_uri_parse(text, G_URI_FLAGS_NONE, NULL) : NULL;
	const char *user = uri ? g_uri_get_userinfo(uri) : NULL;
	GString *out;

	if (!uri || lv_host_is_here(lh->host))
		return g_strdup("127.0.0.1");
	if (!strstr(g_uri_get_scheme(uri), "ssh"))
		return g_strdup(g_uri_get_host(uri));
	out = g_string_new(NULL);
	if (user)
		g_string_append_printf(out, "%s@", user);
	g_string_append(out, g_uri_get_host(uri));
	if (g_uri_get_port(uri) > 0)
		g_string_append_printf(out, ":%d", g_uri_get_port(uri));
	*jump = g_string_free(out, FALSE);
	return g_strdup("127.0.0.1");
}

/* Its first one that ssh_config can have. */
static char *guest_address(const Vm *vm)
{
	for (unsigned i = 0; vm->ips && vm->ips[i]; i++)
		if (strchr(vm->ips[i], '.'))
			return g_strdup_printf("%s:%d", vm->ips[i], SSH_PORT);
	return NULL;
}

static void way_found(LvCall *c)
{
	LvSsh *s = c->arg;
	LvVm *lv = s->lv;
	g_autofree char *there = NULL;

	lv_ports_report(c);
	if (!lv || !lv->host || c->error) {
		end(s, c->error ? g_steal_pointer(&c->error)
				: err_new(EIO, "the VM ended before it answered"));
		return;
	}
	there = host_of(lv->host, &s->jump);
	s->address = c->list ? usernet_ssh(c->list, there) : guest_address(lv->base.vm);
	if (!s->address && c->list)
		end(s, err_new(EIO, "QEMU could not forward a port of its host to the guest's port "
				    "22"));
	else if (!s->address)
		end(s, err_new(EHOSTUNREACH, "the guest has no address yet: see wait/ip"));
	else if (!s->jump && !lv_host_is_here(lv->host->host) &&
		 g_str_has_prefix(s->address, "127."))
		end(s, err_new(EOPNOTSUPP,
			       "the way there is %s of host %s, which cannot be reached from here: "
			       "give it an address of that host, like `ports: [\"0.0.0.0:0:22\"]`",
			       s->address, lv->host->host->name));
	else
		authorize(lv, s);
}

static void key_made(void *arg, const char *public_key, const GError *err)
{
	LvSsh *s = arg;
	LvVm *lv = s->lv;
	GError *e = NULL;
	LvCall *c;

	s->key = NULL;
	if (err) {
		end(s, g_error_copy(err));
		return;
	}
	g_free(lv->ssh_key);
	lv->ssh_key = g_strdup(public_key);
	c = access(vm_run_dir(lv->base.vm), F_OK) && !vm_make_run_dir(lv->base.vm, &e)
		    ? NULL
		    : lv_call_new(lv, lv_ports_ssh, way_found, &e);
	if (!c) {
		end(s, e);
		return;
	}
	c->arg = s;
	c->spec = spec_ref(lv->base.spec);
	lv_call_send(c);
}

void lv_ask_ssh(BackendVm *bv, Ask *a)
{
	LvVm *lv = lv_of(bv);
	const ProcUser owner = owner_of(bv->vm);
	GError *e = NULL;

	if (!lv_host_need(lv->host, &e)) {
		ask_fail(a, e);
		return;
	}
	if (!bv->spec->nics->len) {
		ask_answer(a, g_bytes_new_static("", 0)); /* nothing leads there */
		return;
	}
	lv->ssh = g_new0(LvSsh, 1);
	lv->ssh->lv = lv;
	lv->ssh->ask = a;
	lv->ssh->key = ssh_key(bv->vm, &owner, key_made, lv->ssh);
}

/* ---- what becomes of it ---- */

void lv_ssh_agent(LvVm *lv, bool up)
{
	/* It may be another guest's by now. */
	lv->ssh_turn++;
	lv->ssh_authorized = false;
	if (up)
		authorize(lv, NULL);
}

void lv_ssh_reset(LvVm *lv)
{
	const ProcUser owner = owner_of(lv->base.vm);
	g_autofree char *path = ssh_known_hosts(lv->base.vm);
	int before;

	/* One that lives in memory has new keys of its own now, and not ours. */
	lv->ssh_turn++;
	lv->ssh_authorized = false;
	if (rights_take(&owner, &before))
		(void)unlink(path);
	rights_drop(&owner, before);
}

void lv_ssh_forget(LvVm *lv)
{
	LvSsh *s = lv->ssh;

	lv->ssh_turn++;
	lv->ssh_authorized = false;
	g_clear_pointer(&lv->ssh_key, g_free);
	g_clear_pointer(&lv->ssh_user, g_free);
	if (!s)
		return;
	if (s->key) {
		end(s, err_new(EIO, "the VM ended before it answered"));
	} else {
		s->lv = NULL; /* its call ends it */
		lv->ssh = NULL;
	}
}
