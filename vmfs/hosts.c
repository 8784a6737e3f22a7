/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/hosts.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/networks.h"
#include "vmfs/node.h"
#include "vmfs/notify.h"
#include "vmfs/registry.h"
#include "vmfs/store.h"

#define MAX_HOSTS 256
#define MAX_NAME  63
#define MAX_URI	  4096
#define MAX_FILE  (1u << 20)
#define WAIT_MS	  5000 /* for their first answer, before the mount is announced */

static struct {
	GPtrArray *all; /* of Host, by ascending number */
	uint32_t next_number;
	unsigned waiting; /* for the first answer of so many, and one */
	void (*fn)(void);
	Timer *timer;
	GHashTable *silent; /* set of Host: opened, and without an answer */
} hosts;

/* Host names and what stands in a VM's name behind the '@' are spelled alike. 0 or an errno. */
static int check_name(const char *name)
{
	if (strlen(name) > MAX_NAME)
		return ENAMETOOLONG;
	if (!g_ascii_isalnum(name[0]))
		return EINVAL;
	for (const char *c = name; *c; c++)
		if (!g_ascii_isalnum(*c) && !strchr("._-", *c))
			return EINVAL;
	return 0;
}

static bool check_uri(const char *uri, GError **err)
{
	if (strlen(uri) > MAX_URI)
		return err_set(err, E2BIG, "a URI has at most %d bytes", MAX_URI);
	for (const char *c = uri; *c; c++)
		if (*c <= ' ' || *c > '~')
			return err_set(err, EINVAL, "a URI has no blanks or control characters");
	return !*uri || strchr(uri, ':') ||
	       err_set(err, EINVAL, "'%.40s' is not a URI: write one like qemu+ssh://node2/system",
		       uri);
}

Host *host_find(const char *name)
{
	for (unsigned i = 0; hosts.all && i < hosts.all->len; i++) {
		Host *h = hosts.all->pdata[i];

		if (!strcmp(h->name, name))
			return h;
	}
	return NULL;
}

Host *host_after(uint32_t number)
{
	for (unsigned i = 0; i < hosts.all->len; i++) {
		Host *h = hosts.all->pdata[i];

		if (h->number > number)
			return h;
	}
	return NULL;
}

Host *host_by_number(uint32_t number)
{
	Host *h = number ? host_after(number - 1) : NULL;

	return h && h->number == number ? h : NULL;
}

unsigned host_count_vms(const Host *host, unsigned *live)
{
	const GPtrArray *vms = registry_all();
	unsigned n = 0;

	*live = 0;
	for (unsigned i = 0; i < vms->len; i++) {
		const Vm *vm = vms->pdata[i];

		if (strcmp(vm_host(vm), host->name))
			continue;
		n++;
		*live += vm_is_live(vm);
	}
	return n;
}

/* ---- the list ---- */

static Backend *reaching_backend(void)
{
	for (unsigned i = 0; backends[i]; i++)
		if (backends[i]->cls->host_open)
			return backends[i];
	return NULL;
}

static int compare(const void *a, const void *b)
{
	const Host *x = *(Host *const *)a, *y = *(Host *const *)b;

	return x->number < y->number ? -1 : x->number > y->number;
}

static Host *add(const char *name, uint32_t number)
{
	Host *h = g_new0(Host, 1);

	h->number = number;
	h->name = g_strdup(name);
	h->be = reaching_backend();
	g_ptr_array_add(hosts.all, h);
	g_ptr_array_sort(hosts.all, compare);
	hosts.next_number = MAX(hosts.next_number, number + 1);
	return h;
}

static void host_free(Host *h)
{
	g_free(h->name);
	g_free(h->uri);
	g_free(h);
}

static void save(StoreDone fn, void *arg)
{
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_autoptr(GBytes) bytes = NULL;
	gsize len;
	char *text;

	g_key_file_set_uint64(file, "hosts", "next", hosts.next_number);
	for (unsigned i = 0; i < hosts.all->len; i++) {
		const Host *h = hosts.all->pdata[i];
		g_autofree char *group = g_strconcat("host ", h->name, NULL);

		g_key_file_set_uint64(file, group, "number", h->number);
		g_key_file_set_boolean(file, group, "given", h->given);
		if (h->uri)
			g_key_file_set_string(file, group, "uri", h->uri);
	}
	text = g_key_file_to_data(file, &len, NULL);
	bytes = g_bytes_new_take(text, len);
	store_put("hosts", bytes, true, fn, arg);
}

static void load_stored(void)
{
	g_autoptr(GBytes) bytes = store_get("hosts", MAX_FILE);
	g_autoptr(GKeyFile) file = g_key_file_new();
	g_auto(GStrv) groups = NULL;

	if (!bytes || !g_key_file_load_from_bytes(file, bytes, G_KEY_FILE_NONE, NULL))
		return;
	groups = g_key_file_get_groups(file, NULL);
	hosts.next_number = (uint32_t)MAX(hosts.next_number,
					  g_key_file_get_uint64(file, "hosts", "next", NULL));
	for (unsigned i = 0; groups[i]; i++) {
		const char *name = groups[i] + strlen("host ");
		uint64_t number;
		Host *h;

		if (!g_str_has_prefix(groups[i], "host ") || check_name(name))
			continue;
		number = g_key_file_get_uint64(file, groups[i], "number", NULL);
		h = host_find(name);
		if (!h && number > HOST_LOCAL && number < 1u << 24 &&
		    !host_by_number((uint32_t)number))
			h = add(name, (uint32_t)number);
		if (!h)
			continue;
		h->given = g_key_file_get_boolean(file, groups[i], "given", NULL);
		if (!h->given)
			h->uri = g_key_file_get_string(file, groups[i], "uri", NULL);
	}
}

static bool give(const char *name, const char *uri, GError **err)
{
	Host *h = host_find(name);

	if (check_name(name))
		return err_set(err, EINVAL, "'%.80s' is not a name of a host", name);
	if (!check_uri(uri, err)) {
		g_prefix_error(err, "host %s: ", name);
		return false;
	}
	if (!h)
		h = add(name, hosts.next_number);
	g_free(h->uri);
	h->uri = g_strdup(uri);
	h->given = true;
	return true;
}

/* Lines of a name and a URI; '#' begins a comment. */
static bool load_file(const char *path, bool must, GError **err)
{
	g_autofree char *text = NULL;
	g_auto(GStrv) lines = NULL;
	g_autoptr(GError) e = NULL;

	if (!g_file_get_contents(path, &text, NULL, &e))
		return (!must && g_error_matches(e, G_FILE_ERROR, G_FILE_ERROR_NOENT)) ||
		       err_set(err, EIO, "cannot read the hosts: %s", e->message);
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = 0; lines[i]; i++) {
		g_auto(GStrv) word = NULL;

		lines[i][strcspn(lines[i], "#")] = 0;
		g_strdelimit(g_strstrip(lines[i]), "\t", ' ');
		if (!*lines[i])
			continue;
		word = g_strsplit(lines[i], " ", 2);
		if (!word[1])
			return err_set(err, EINVAL, "%s: line %u: write NAME URI", path, i + 1);
		if (!give(word[0], g_strstrip(word[1]), err)) {
			g_prefix_error(err, "%s: line %u: ", path, i + 1);
			return false;
		}
	}
	return true;
}

bool hosts_load(const char *file, const GPtrArray *options, GError **err)
{
	g_autofree char *standard =
		geteuid() == 0 ? g_strdup("/etc/vmfs/hosts")
			       : g_build_filename(g_get_user_config_dir(), "vmfs", "hosts", NULL);

	hosts.all = g_ptr_array_new();
	(void)add("local", HOST_LOCAL);
	load_stored();
	/* What was given at another time is known by its number only. */
	if (!load_file(file ? file : standard, file != NULL, err))
		return false;
	for (unsigned i = 0; options && i < options->len; i++) {
		g_auto(GStrv) part = g_strsplit(options->pdata[i], "=", 2);

		if (!part[0] || !part[1])
			return err_set(err, EINVAL, "host=%s: write host=NAME=URI",
				       (char *)options->pdata[i]);
		if (!give(part[0], part[1], err))
			return false;
	}
	for (unsigned i = 0; i < hosts.all->len;) {
		Host *h = hosts.all->pdata[i];

		if (h->given && !h->uri && h->number != HOST_LOCAL) {
			g_ptr_array_remove_index(hosts.all, i);
			host_free(h);
		} else {
			i++;
		}
	}
	save(NULL, NULL);
	return true;
}

/* ---- reaching them ---- */

static void first_answers(void *arg)
{
	void (*fn)(void) = hosts.fn;

	(void)arg;
	hosts.timer = NULL;
	hosts.fn = NULL;
	g_clear_pointer(&hosts.silent, g_hash_table_unref);
	if (fn)
		fn();
}

void host_answered(Host *host)
{
	if (!hosts.silent || !g_hash_table_remove(hosts.silent, host) ||
	    g_hash_table_size(hosts.silent))
		return;
	timer_stop(&hosts.timer);
	first_answers(NULL);
}

void host_changed(Host *host)
{
	const NodeRef dir = { .node = hosts_dir.child, .sub = host->number };

	networks_host_changed(host);
	vm_all_changed(EV_HOSTS);
	notify_object_change(&dir, EV_HOSTS);
}

static void open_host(Host *h)
{
	if (h->be)
		h->be->cls->host_open(h);
}

static void close_host(Host *h)
{
	if (h->be && h->link)
		h->be->cls->host_close(h);
	networks_close(h);
	host_answered(h);
}

/* VMs that were found on hosts which are not given any more. */
static void forget_homeless(void)
{
	g_autoptr(GPtrArray) homeless = g_ptr_array_new();
	const GPtrArray *vms = registry_all();

	for (unsigned i = 0; i < vms->len; i++) {
		const Vm *vm = vms->pdata[i];

		if (vm->home.foreign && !host_find(vm->home.host))
			g_ptr_array_add(homeless, vms->pdata[i]);
	}
	for (unsigned i = 0; i < homeless->len; i++)
		registry_vanish(homeless->pdata[i]);
}

void hosts_open(void (*fn)(void))
{
	forget_homeless();
	hosts.fn = fn;
	hosts.silent = g_hash_table_new(NULL, NULL);
	hosts.timer = timer_start(WAIT_MS, first_answers, NULL);
	for (unsigned i = 0; i < hosts.all->len; i++)
		g_hash_table_add(hosts.silent, hosts.all->pdata[i]);
	/* None may be the last one before all have begun. */
	g_hash_table_add(hosts.silent, &hosts);
	for (unsigned i = 0; i < hosts.all->len; i++) {
		Host *h = hosts.all->pdata[i];

		if (h->be)
			open_host(h);
		else
			host_answered(h);
	}
	host_answered((Host *)(void *)&hosts);
}

void hosts_close(void)
{
	timer_stop(&hosts.timer);
	hosts.fn = NULL;
	g_clear_pointer(&hosts.silent, g_hash_table_unref);
	for (unsigned i = 0; i < hosts.all->len; i++) {
		close_host(hosts.all->pdata[i]);
		host_free(hosts.all->pdata[i]);
	}
	g_clear_pointer(&hosts.all, g_ptr_array_unref);
}

/* ---- changes ---- */

int host_make(const char *name, void (*fn)(void *arg, int err), void *arg)
{
	int err = check_name(name);

	if (err)
		return err;
	if (!reaching_backend())
		return EOPNOTSUPP;
	if (host_find(name))
		return EEXIST;
	if (hosts.all->len >= MAX_HOSTS)
		return ENOSPC;
	(void)add(name, hosts.next_number);
	save(fn, arg);
	return 0;
}

int host_remove(Host *host, void (*fn)(void *arg, int err), void *arg)
{
	const GPtrArray *vms = registry_all();

	if (host->number == HOST_LOCAL)
		return EPERM;
	for (unsigned i = 0; i < vms->len; i++) {
		const Vm *vm = vms->pdata[i];

		/* It is on its way to it. */
		if (vm->op && op_kind(vm->op) == OP_MIGRATE && op_arg(vm->op) &&
		    !strcmp(op_arg(vm->op), host->name))
			return EBUSY;
		/* Those that were found go with the host, and come back with it. */
		if (!strcmp(vm_host(vm), host->name) && !vm->home.foreign)
			return EBUSY;
	}
	close_host(host);
	g_ptr_array_remove(hosts.all, host);
	host_free(host);
	save(fn, arg);
	return 0;
}

bool host_set_uri(Host *host, const char *uri, GError **err)
{
	if (!host->be)
		return err_set(err, EOPNOTSUPP, "this vmfs was built without libvirt");
	if (!check_uri(uri, err))
		return false;
	if (!g_strcmp0(host->uri, *uri ? uri : NULL))
		return true;
	close_host(host);
	g_free(host->uri);
	host->uri = g_strdup(*uri ? uri : host->number == HOST_LOCAL ? "" : NULL);
	host->given = false;
	open_host(host);
	host_changed(host);
	save(NULL, NULL);
	return true;
}
