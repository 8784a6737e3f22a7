/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/networks.h"

#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/event.h"
#include "vmfs/fs.h"
#include "vmfs/hosts.h"
#include "vmfs/keep.h"
#include "vmfs/log.h"
#include "vmfs/notify.h"
#include "vmfs/publish.h"
#include "vmfs/request.h"
#include "vmfs/scratch.h"
#include "vmfs/specval.h"

#define NUMBERS	     0xffffffu /* what fits into an inode number */
#define MAX_NETWORKS 1024      /* of one host */
#define MAX_ERROR    1024      /* bytes of a sentence */

static GPtrArray *networks; /* of Network, by ascending number */

/* ---- which there are ---- */

char *network_label(const char *host, const char *name)
{
	return strcmp(host, "local") ? g_strconcat(name, "@", host, NULL) : g_strdup(name);
}

Network *network_after(uint32_t number)
{
	for (unsigned i = 0; networks && i < networks->len; i++) {
		Network *n = networks->pdata[i];

		if (n->number > number && !n->hidden)
			return n;
	}
	return NULL;
}

Network *network_by_number(uint32_t number)
{
	Network *n = number ? network_after(number - 1) : NULL;

	return n && n->number == number ? n : NULL;
}

Network *network_find(const char *label)
{
	for (Network *n = network_after(0); n; n = network_after(n->number))
		if (!strcmp(n->label, label))
			return n;
	return NULL;
}

const char *network_state(const Network *n)
{
	if (!n->host->link || !n->host->be->cls->host_is_up(n->host))
		return "unknown";
	return n->active ? "active" : "inactive";
}

static NodeRef parent_dir(void)
{
	NodeRef r = { 0 };

	for (const Node *row = host_rows[0].dir->rows; row->name; row++)
		if (row->dir == &networks_dir)
			r.node = row;
	return r;
}

char *network_scratch(uint32_t number, const char *name)
{
	return g_strdup_printf("networks/%u/%s", number, name);
}

static void network_free(Network *n)
{
	g_autofree char *scratch = network_scratch(n->number, "");

	scratch_free_below(scratch);
	g_free(n->key);
	g_free(n->name);
	g_free(n->label);
	g_free(n->text);
	g_free(n->error);
	g_free(n);
}

static void changed(const Network *n, unsigned changes)
{
	const NodeRef dir = { .node = networks_dir.child, .sub = n->number };

	vm_all_changed(changes);
	notify_object_change(&dir, changes);
}

static int compare(const void *a, const void *b)
{
	const Network *x = *(Network *const *)a, *y = *(Network *const *)b;

	return x->number < y->number ? -1 : x->number > y->number;
}

/* The same after a restart, and whatever else comes and goes. */
static uint32_t number_for(const Network *n)
{
	g_autofree char *what = g_strconcat(n->host->name, "/", n->key, "/", n->name, NULL);
	uint32_t number = g_str_hash(what) & NUMBERS;
	bool taken = true;

	while (taken) {
		taken = !number;
		for (unsigned i = 0; i < networks->len; i++)
			taken |= ((Network *)networks->pdata[i])->number == number;
		if (taken)
			number = (number + 1) & NUMBERS;
	}
	return number;
}

/* With number 0, it is given one. */
static Network *add(Host *host, const char *key, const char *name, uint32_t number)
{
	Network *n = g_new0(Network, 1);

	if (!networks)
		networks = g_ptr_array_new();
	n->host = host;
	n->key = g_strdup(key);
	n->name = g_strdup(name);
	n->label = network_label(host->name, n->name);
	n->number = number ? number : number_for(n);
	g_ptr_array_add(networks, n);
	g_ptr_array_sort(networks, compare);
	return n;
}

/* Of the host's, whether they are shown or not. */
static Network *find_key(const Host *host, const char *key, const char *name)
{
	for (unsigned i = 0; networks && i < networks->len; i++) {
		Network *n = networks->pdata[i];

		if (n->host == host && !strcmp(n->key, key) && !strcmp(n->name, name))
			return n;
	}
	return NULL;
}

/* ---- coming and going ---- */

static Network *by_any_number(uint32_t number)
{
	for (unsigned i = 0; networks && i < networks->len; i++)
		if (((Network *)networks->pdata[i])->number == number)
			return networks->pdata[i];
	return NULL;
}

static bool appear(void *arg)
{
	Network *n = by_any_number(GPOINTER_TO_UINT(arg));
	const bool comes = n && n->hidden;

	if (comes)
		n->hidden = false;
	return comes;
}

static void drop(Network *n)
{
	keep_unset(KEEP_NETWORK, n->number);
	g_ptr_array_remove(networks, n);
	network_free(n);
}

static bool vanish(void *arg)
{
	Network *n = by_any_number(GPOINTER_TO_UINT(arg));
	const bool goes = n && n->gone;

	if (goes)
		drop(n);
	return goes;
}

static void begin_to_vanish(Network *n)
{
	const NodeRef dir = parent_dir();
	g_autofree char *label = g_strdup(n->label);

	if (n->gone)
		return;
	n->gone = true;
	if (n->hidden)
		drop(n);
	else
		publish(PUBLISH_RMDIR, &dir, label, NULL, vanish, GUINT_TO_POINTER(n->number));
}

static void begin_to_appear(Network *n)
{
	const NodeRef dir = parent_dir();
	g_autofree char *label = g_strdup(n->label);

	n->hidden = true;
	publish(PUBLISH_MKDIR, &dir, label, NULL, appear, GUINT_TO_POINTER(n->number));
}

/* Its host may be away when a successor comes. */
static void keep(const Network *n)
{
	g_autofree char *value = g_strjoin("\n", n->host->name, n->key, n->name,
					   n->active ? "1" : "0", n->text, NULL);

	keep_set(KEEP_NETWORK, n->number, value, strlen(value));
}

static void take(Network *n, const NetworkInfo *info)
{
	g_autofree char *text = netspec_text(info->spec);
	const unsigned changes = (n->active != info->active ? EV_NETWORK : 0) |
				 (g_strcmp0(n->text, text) ? EV_NETWORK_SPEC : 0);

	n->active = info->active;
	g_free(n->text);
	n->text = g_steal_pointer(&text);
	if (changes) {
		keep(n);
		changed(n, changes);
	}
}

void network_info_free(void *arg)
{
	NetworkInfo *info = arg;

	g_free(info->key);
	netspec_free(info->spec);
	g_free(info);
}

static bool is_in(const GPtrArray *infos, const Network *n)
{
	for (unsigned i = 0; i < infos->len; i++) {
		const NetworkInfo *info = infos->pdata[i];

		if (!strcmp(info->key, n->key) && !strcmp(info->spec->name, n->name))
			return true;
	}
	return false;
}

void networks_update(Host *host, const GPtrArray *infos)
{
	g_autoptr(GPtrArray) going = g_ptr_array_new();

	for (unsigned i = 0; networks && i < networks->len; i++) {
		Network *n = networks->pdata[i];

		if (n->host == host && !is_in(infos, n))
			g_ptr_array_add(going, n);
	}
	for (unsigned i = 0; i < going->len; i++)
		begin_to_vanish(going->pdata[i]);
	for (unsigned i = 0; i < MIN(infos->len, MAX_NETWORKS); i++) {
		const NetworkInfo *info = infos->pdata[i];
		Network *n = find_key(host, info->key, info->spec->name);
		const bool is_new = !n;

		/* What a spec could not name is left to virsh. */
		if (!specval_is_network(info->spec->name))
			continue;
		if (is_new)
			n = add(host, info->key, info->spec->name, 0);
		n->gone = false;
		take(n, info);
		if (is_new)
			begin_to_appear(n);
	}
}

static void restore(uint64_t number, GBytes *value)
{
	gsize len;
	const char *data = g_bytes_get_data(value, &len);
	g_autofree char *text = g_strndup(data ? data : "", len);
	g_auto(GStrv) part = g_strsplit(text, "\n", 5);
	Host *host = g_strv_length(part) == 5 ? host_find(part[0]) : NULL;
	Network *n;

	if (!host || !host->be) {
		keep_unset(KEEP_NETWORK, number);
		return;
	}
	n = add(host, part[1], part[2], (uint32_t)number);
	n->active = !strcmp(part[3], "1");
	n->text = g_strdup(part[4]);
}

void networks_restore(void)
{
	keep_each(KEEP_NETWORK, restore);
}

void networks_close(Host *host)
{
	g_autoptr(GPtrArray) none = g_ptr_array_new();

	networks_update(host, none);
	/* The host goes now, whoever is still to be told. */
	for (unsigned i = 0; networks && i < networks->len;) {
		Network *n = networks->pdata[i];

		if (n->host == host)
			drop(n);
		else
			i++;
	}
}

void networks_host_changed(const Host *host)
{
	for (unsigned i = 0; networks && i < networks->len; i++) {
		const Network *n = networks->pdata[i];

		if (n->host == host)
			changed(n, EV_NETWORK);
	}
}

/* ---- orders ---- */

typedef struct Order {
	char *label;
	bool makes; /* and its end shows the network to whoever made it */
	NetworkOrder what;
	NodeDone done;
	void *arg;
} Order;

/* The network has been told what went wrong, if it is there. */
static int fail(const char *label, const char *what, const GError *e)
{
	Network *n = network_find(label);

	log_warning("network %s: %s: %s", label, what, e->message);
	if (n) {
		GString *line = g_string_new(NULL);

		events_time(line, vm_now());
		g_string_append_printf(line, " %s %s: %.*s", what, err_name(err_code(e)), MAX_ERROR,
				       e->message);
		g_free(n->error);
		n->error = g_strdelimit(g_string_free(line, FALSE), "\n", ' ');
		changed(n, EV_NETWORK_ERROR);
	}
	return err_code(e);
}

static void succeed(const char *label)
{
	Network *n = network_find(label);

	if (n && n->error) {
		g_clear_pointer(&n->error, g_free);
		changed(n, EV_NETWORK_ERROR);
	}
}

/* Whoever did it needs not be told through the mount. */
static void show_at_once(const Order *o)
{
	const NodeRef dir = parent_dir();

	for (unsigned i = 0; networks && i < networks->len; i++) {
		Network *n = networks->pdata[i];

		if (strcmp(n->label, o->label))
			continue;
		if (o->makes && n->hidden) {
			publish_withdraw(PUBLISH_MKDIR, &dir, n->label);
			n->hidden = false;
		}
		if (o->what == NETWORK_UNDEFINE && n->gone) {
			publish_withdraw(PUBLISH_RMDIR, &dir, n->label);
			drop(n);
			return;
		}
	}
}

static void ordered(void *arg, const GError *e)
{
	static const char *const words[] = {
		[NETWORK_DEFINE] = "spec.yaml",
		[NETWORK_START] = "start",
		[NETWORK_STOP] = "stop",
		[NETWORK_UNDEFINE] = "rmdir",
	};
	Order *o = arg;
	int err = 0;

	if (e) {
		err = fail(o->label, o->makes ? "mkdir" : words[o->what], e);
	} else {
		show_at_once(o);
		succeed(o->label);
	}
	o->done(o->arg, err);
	g_free(o->label);
	g_free(o);
}

static int give(Host *host, const char *label, NetworkOrder what, const char *key,
		NetSpec *spec_take, NodeDone done, void *arg)
{
	Order *o;

	if (!host->be || !host->be->cls->network_order) {
		netspec_free(spec_take);
		return EOPNOTSUPP;
	}
	o = g_new0(Order, 1);
	*o = (Order){ g_strdup(label), !key, what, done, arg };
	request_begin(0);
	host->be->cls->network_order(host, what, key, spec_take, ordered, o);
	return 0;
}

int network_make(const char *label, NodeDone done, void *arg)
{
	const char *at = strchr(label, '@');
	g_autofree char *name = at ? g_strndup(label, (size_t)(at - label)) : g_strdup(label);
	Host *host = host_find(at ? at + 1 : "local");

	if (strlen(name) > SPECVAL_MAX_NETWORK)
		return ENAMETOOLONG;
	/* `user` is what needs no network, and local ones are called by their own name. */
	if (!specval_is_network(name) || !strcmp(name, "user") || (at && !strcmp(at + 1, "local")))
		return EINVAL;
	if (!host)
		return ENOENT;
	if (network_find(label))
		return EEXIST;
	return give(host, label, NETWORK_DEFINE, NULL, netspec_new(name), done, arg);
}

int network_remove(Network *n, NodeDone done, void *arg)
{
	g_autoptr(GError) e = NULL;

	if (!strcmp(network_state(n), "active")) {
		e = err_new(EBUSY, "it is active; write 'stop' to its state first");
		return fail(n->label, "rmdir", e);
	}
	return give(n->host, n->label, NETWORK_UNDEFINE, n->key, NULL, done, arg);
}

int network_order(Network *n, GBytes *text, NodeDone done, void *arg)
{
	static const struct {
		const char *word;
		NetworkOrder order;
		bool noun;
	} words[] = {
		{ "start", NETWORK_START, false },
		{ "stop", NETWORK_STOP, false },
		{ "active", NETWORK_START, true },
		{ "inactive", NETWORK_STOP, true },
	};
	gsize len;
	const char *data = g_bytes_get_data(text, &len);
	g_autofree char *word = g_strndup(data ? data : "", MIN(len, 64));
	const bool active = n->active, begun = request_begun(NULL);
	g_autoptr(GError) e = NULL;

	g_strstrip(word);
	for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
		if (strcmp(words[i].word, word))
			continue;
		if (!strcmp(network_state(n), "unknown") ||
		    active != (words[i].order == NETWORK_START))
			return give(n->host, n->label, words[i].order, n->key, NULL, done, arg);
		/* So it is, or a daemon that has died since has made it so. */
		if (words[i].noun || begun) {
			succeed(n->label);
			done(arg, 0);
			return 0;
		}
		e = err_new(EALREADY, "it is %s already", network_state(n));
		return fail(n->label, word, e);
	}
	e = err_new(EINVAL, "'%.32s' is no word for it: write start or stop", word);
	return fail(n->label, "state", e);
}

int network_define(Network *n, GBytes *text, NodeDone done, void *arg)
{
	g_autoptr(GError) e = NULL;
	NetSpec *spec = netspec_parse(n->name, text, &e);

	if (!spec)
		return fail(n->label, "spec.yaml", e);
	return give(n->host, n->label, NETWORK_DEFINE, n->key, spec, done, arg);
}

int network_judge(Network *n, GBytes *text)
{
	g_autoptr(GError) e = NULL;

	return netspec_judge(text, &e) ? 0 : fail(n->label, "spec.yaml", e);
}

/* ---- leases ---- */

typedef struct Leases {
	uint32_t number;
	NodeFetched fn;
	void *arg;
} Leases;

static void have_leases(void *arg, GBytes *text, const GError *e)
{
	Leases *l = arg;
	Network *n = network_by_number(l->number);

	if (n && !e)
		n->leases_size = g_bytes_get_size(text);
	l->fn(l->arg, text, e ? n ? fail(n->label, "leases", e) : err_code(e) : 0);
	g_free(l);
}

int network_leases(Network *n, NodeFetched fn, void *arg)
{
	Leases *l;

	if (!n->host->be || !n->host->be->cls->network_leases)
		return EOPNOTSUPP;
	l = g_new0(Leases, 1);
	*l = (Leases){ n->number, fn, arg };
	n->host->be->cls->network_leases(n->host, n->key, have_leases, l);
	return 0;
}
