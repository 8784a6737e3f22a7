/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host's connection: opened, watched by keepalive, and opened again when it was lost, with
 * growing pauses. While the host is away its VMs are unknown, and whoever wants something of them
 * is told so at once.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <libxml/parser.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/libvirt/lv.h"
#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/networks.h"

#define THREADS		4
#define KEEPALIVE_S	3 /* without a sign of life, then it is asked */
#define KEEPALIVE_COUNT 2 /* so often */
#define FIRST_PAUSE_MS	1000
#define LAST_PAUSE_MS	60000

/* ---- libvirt's own thread ---- */

static void *run_events(void *arg)
{
	for (;;)
		if (virEventRunDefaultImpl() < 0)
			log_error("libvirt: %s", virGetLastErrorMessage());
	return arg;
}

bool lv_init(void)
{
	lv_init_errors();
	xmlInitParser();
	if (virInitialize() || virEventRegisterDefaultImpl())
		return false;
	g_thread_unref(g_thread_new("libvirt", run_events, NULL));
	return true;
}

/* ---- which ---- */

static bool has_socket(const char *dir)
{
	static const char *const names[] = { "libvirt-sock", "virtqemud-sock" };

	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autofree char *path = g_build_filename(dir, names[i], NULL);

		if (!access(path, F_OK))
			return true;
	}
	return false;
}

/* A session's daemon is started by whoever asks for it: only if the user has VMs there. */
static bool has_session(void)
{
	g_autofree char *run = g_build_filename(g_get_user_runtime_dir(), "libvirt", NULL);
	g_autofree char *conf = g_build_filename(g_get_user_config_dir(), "libvirt/qemu", NULL);
	const char *name;
	bool found = has_socket(run);
	GDir *d = found ? NULL : g_dir_open(conf, 0, NULL);

	while (d && !found && (name = g_dir_read_name(d)))
		found = g_str_has_suffix(name, ".xml");
	if (d)
		g_dir_close(d);
	return found;
}

char *lv_uri(const Host *host)
{
	if (host->uri)
		return *host->uri ? g_strdup(host->uri) : NULL;
	if (host->number != HOST_LOCAL)
		return NULL;
	if (has_socket("/run/libvirt"))
		return g_strdup("qemu:///system");
	return geteuid() && has_session() ? g_strdup("qemu:///session") : NULL;
}

LvHost *lv_host_at(const void *tag)
{
	const Host *host = host_by_number((uint32_t)((uintptr_t)tag >> 32));
	LvHost *lh = host ? host->link : NULL;

	return lh && lv_host_tag(lh) == tag ? lh : NULL;
}

bool lv_host_is_up(const Host *host)
{
	const LvHost *lh = host->link;

	return lh && lh->virt;
}

bool lv_host_need(const LvHost *lh, GError **err)
{
	if (lh && lh->virt)
		return true;
	return err_set(err, EHOSTDOWN, "host %s is away%s%s", lh ? lh->host->name : "?",
		       lh && lh->why ? ": " : "", lh && lh->why ? lh->why : "");
}

/* ---- opening ---- */

typedef struct Opening {
	void *tag;
	char *uri;
	virConnectPtr virt;
	char *version;
	virNodeInfo node;
	uint64_t free;
	GPtrArray *found;
	GPtrArray *networks; /* of NetworkInfo, or NULL */
	GError *error;
} Opening;

typedef struct Lost {
	void *tag;
	int reason;
} Lost;

static void lost(void *arg)
{
	static const char *const why[] = {
		[VIR_CONNECT_CLOSE_REASON_ERROR] = "the connection to libvirt broke",
		[VIR_CONNECT_CLOSE_REASON_EOF] = "libvirt closed the connection",
		[VIR_CONNECT_CLOSE_REASON_KEEPALIVE] = "libvirt does not answer",
		[VIR_CONNECT_CLOSE_REASON_CLIENT] = "the connection was closed",
	};
	g_autofree Lost *l = arg;
	LvHost *lh = lv_host_at(l->tag);
	int reason = CLAMP(l->reason, 0, (int)G_N_ELEMENTS(why) - 1);

	if (lh)
		lv_host_away(lh, g_strdup(why[reason]));
}

/* In libvirt's thread. */
static void on_close(virConnectPtr virt, int reason, void *tag)
{
	Lost *l = g_new0(Lost, 1);

	(void)virt;
	l->tag = tag;
	l->reason = reason;
	loop_post(lost, l);
}

static char *version_of(virConnectPtr virt)
{
	unsigned long lib = 0, hv = 0;
	const char *type = virConnectGetType(virt);

	(void)virConnectGetLibVersion(virt, &lib);
	(void)virConnectGetVersion(virt, &hv);
	return g_strdup_printf("libvirt %lu.%lu.%lu, %s %lu.%lu.%lu", lib / 1000000,
			       lib / 1000 % 1000, lib % 1000, type ? type : "?", hv / 1000000,
			       hv / 1000 % 1000, hv % 1000);
}

/* In the pool. */
static void open_job(void *arg)
{
	static virConnectAuth nobody_to_ask = { 0 };
	Opening *o = arg;

	o->virt = virConnectOpenAuth(o->uri, &nobody_to_ask, 0);
	if (!o->virt) {
		lv_error(&o->error, "cannot connect to libvirt");
		return;
	}
	/* Not all drivers have these; those without a wire do not need them. */
	(void)virConnectSetKeepAlive(o->virt, KEEPALIVE_S, KEEPALIVE_COUNT);
	(void)virConnectRegisterCloseCallback(o->virt, on_close, o->tag, NULL);
	o->version = version_of(o->virt);
	(void)virNodeGetInfo(o->virt, &o->node);
	o->free = virNodeGetFreeMemory(o->virt);
	/* Events first: what happens while the list is made is not to be missed. */
	lv_net_events(o->virt, o->tag);
	if (lv_events_begin(o->virt, o->tag, &o->error))
		o->found = lv_list(o->virt, &o->error);
	if (!o->error)
		o->networks = lv_net_list(o->virt);
}

/* It says good-bye, and waits for the answer. */
static void close_job(void *arg)
{
	(void)virConnectClose(arg);
}

static void closed(void *arg)
{
	(void)arg;
}

void lv_close_work(void (*work)(void *job), void (*done)(void *job), void *job)
{
	static Pool *pool;

	if (!pool)
		pool = pool_new(THREADS);
	pool_work(pool, work, done, job);
}

static void close_later(virConnectPtr virt_take)
{
	if (virt_take)
		lv_close_work(close_job, closed, virt_take);
}

static void retry(void *arg);

static void opened(void *arg)
{
	Opening *o = arg;
	LvHost *lh = lv_host_at(o->tag);

	if (lh) {
		lh->opening = false;
		g_free(lh->version);
		lh->version = g_steal_pointer(&o->version);
		lh->cpus = o->node.cpus;
		lh->memory = (uint64_t)o->node.memory << 10;
		lh->free = o->free;
	}
	if (lh && !o->error) {
		lh->virt = g_steal_pointer(&o->virt);
		lh->caps = (LvCaps){ 0 };
		lh->tries = 0;
		g_clear_pointer(&lh->why, g_free);
		log_info("host %s: connected to %s", lh->host->name, o->uri);
		if (o->networks)
			networks_update(lh->host, o->networks);
		lv_discovered(lh, g_steal_pointer(&o->found));
		/* What was heard meanwhile may be younger than that. */
		lv_net_look(lh);
		host_changed(lh->host);
	} else if (lh) {
		lv_host_away(lh, g_strdup(o->error->message));
	}
	close_later(o->virt);
	if (o->networks)
		g_ptr_array_unref(o->networks);
	if (o->found)
		g_ptr_array_unref(o->found);
	g_clear_error(&o->error);
	g_free(o->version);
	g_free(o->uri);
	g_free(o);
}

static void try(LvHost *lh)
{
	Opening *o = g_new0(Opening, 1);

	lh->attempt++;
	lh->opening = true;
	o->tag = lv_host_tag(lh);
	o->uri = lv_uri(lh->host);
	pool_work(lh->pool, open_job, opened, o);
}

static void retry(void *arg)
{
	LvHost *lh = arg;

	lh->retry = NULL;
	try(lh);
}

static void show_all(LvHost *lh, LvState s)
{
	GHashTableIter it;
	gpointer lv;

	g_hash_table_iter_init(&it, lh->domains);
	while (g_hash_table_iter_next(&it, NULL, &lv)) {
		lv_console_end(lv);
		lv_show(lv, s);
		lv_op_away(lv);
	}
}

void lv_host_away(LvHost *lh, char *why)
{
	uint64_t pause = FIRST_PAUSE_MS;

	log_warning("host %s is away: %s", lh->host->name, why);
	g_free(lh->why);
	lh->why = why;
	lh->attempt++; /* what the old connection still says is of no interest */
	close_later(g_steal_pointer(&lh->virt));
	lv_host_trust(lh);
	lh->outstanding = lh->nudges = 0;
	timer_stop(&lh->nudge);
	lv_look_no_more(lh);
	lv_net_away(lh);
	show_all(lh, (LvState){ VM_UNKNOWN, "host-away" });
	lv_move_away(lh);
	host_changed(lh->host);
	host_answered(lh->host);
	for (unsigned i = 0; i < lh->tries && pause < LAST_PAUSE_MS; i++)
		pause *= 2;
	lh->tries++;
	timer_stop(&lh->retry);
	lh->retry = timer_start(MIN(pause, LAST_PAUSE_MS), retry, lh);
}

void lv_host_open(Host *host)
{
	LvHost *lh = g_new0(LvHost, 1);
	const GPtrArray *vms = registry_all();

	lh->host = host;
	lh->pool = pool_new(THREADS);
	lh->domains = g_hash_table_new(g_str_hash, g_str_equal);
	lh->looks = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	host->link = lh;
	for (unsigned i = 0; i < vms->len; i++) {
		Vm *vm = vms->pdata[i];
		const bool known = vm->bv;
		LvVm *lv;

		if (vm->home.be != host->be || g_strcmp0(vm->home.host, host->name))
			continue;
		lv = lv_bind(vm);
		if (!known)
			vm_load_started(vm);
		lv_show(lv, (LvState){ VM_UNKNOWN, "host-away" });
	}
	g_autofree char *uri = lv_uri(host);
	if (uri)
		try(lh);
	else
		host_answered(host);
}

void lv_host_close(Host *host)
{
	LvHost *lh = host->link;
	g_autoptr(GPtrArray) foreign = g_ptr_array_new();
	GHashTableIter it;
	gpointer value;

	lv_move_away(lh);
	g_hash_table_iter_init(&it, lh->domains);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		LvVm *lv = value;

		lv_console_end(lv);
		lv->host = NULL;
		lv_show(lv, (LvState){ VM_UNKNOWN, "host-away" });
		lv_op_away(lv);
		if (lv->base.vm->home.foreign)
			g_ptr_array_add(foreign, lv->base.vm);
	}
	for (unsigned i = 0; i < foreign->len; i++)
		registry_vanish(foreign->pdata[i]);
	host->link = NULL;
	timer_stop(&lh->retry);
	timer_stop(&lh->nudge);
	lv_host_trust(lh);
	lv_look_no_more(lh);
	lv_net_away(lh);
	close_later(lh->virt);
	pool_free(lh->pool);
	g_hash_table_unref(lh->domains);
	g_hash_table_unref(lh->looks);
	g_free(lh->why);
	g_free(lh->version);
	g_free(lh);
}

void lv_host_status(const Host *host, GString *out)
{
	const LvHost *lh = host->link;
	g_autofree char *uri = lv_uri(host);

	if (!uri)
		return;
	g_string_append_printf(out, "connection %s\nuri %s\n",
			       lh->virt	     ? "up"
			       : lh->opening ? "connecting"
					     : "away",
			       uri);
	if (lh->virt && lh->version)
		g_string_append_printf(out, "version %s\n", lh->version);
	if (!lh->virt && lh->why)
		g_string_append_printf(out, "why %s\n", lh->why);
}

void lv_host_node(const Host *host, GString *out)
{
	const LvHost *lh = host->link;

	if (!lh->virt)
		return;
	g_string_append_printf(
		out, "cpus %u\nmemory %" G_GUINT64_FORMAT "\nfree %" G_GUINT64_FORMAT "\n",
		lh->cpus, lh->memory, lh->free);
	if (lh->version)
		g_string_append_printf(out, "version %s\n", lh->version);
}
