/* SPDX-License-Identifier: Apache-2.0 */
/* .vmfs/hosts/NAME/: a host as a directory. */
#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/host.h"
#include "vmfs/hosts.h"
#include "vmfs/node.h"

static uint32_t next_host(const NodeRef *dir, uint32_t after, char name[256])
{
	const Host *h = host_after(after);

	(void)dir;
	if (!h)
		return 0;
	g_strlcpy(name, h->name, 256);
	return h->number;
}

static uint32_t find_host(const NodeRef *dir, const char *name)
{
	const Host *h = host_find(name);

	(void)dir;
	return h ? h->number : 0;
}

static int make_host(const NodeRef *dir, const char *name, mode_t mode, const Caller *who,
		     NodeDone done, void *arg)
{
	(void)dir;
	(void)mode;
	(void)who;
	return host_make(name, done, arg);
}

static int drop_host(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	Host *h = host_by_number(r->sub);

	(void)who;
	return h ? host_remove(h, done, arg) : ENOENT;
}

static void show_status(const NodeRef *r, GString *out)
{
	const Host *h = host_by_number(r->sub);
	unsigned live, n;
	bool up;

	if (!h)
		return;
	n = host_count_vms(h, &live);
	up = h->number == HOST_LOCAL || (h->link && h->be->cls->host_is_up(h));
	g_string_append_printf(out, "state %s\nvms %u\nlive %u\n", up ? "up" : "away", n, live);
	if (h->link)
		h->be->cls->host_status(h, out);
}

static void show_node(const NodeRef *r, GString *out)
{
	const Host *h = host_by_number(r->sub);

	if (!h)
		return;
	if (h->number == HOST_LOCAL)
		host_show_node(out);
	else if (h->link)
		h->be->cls->host_node(h, out);
}

static void show_uri(const NodeRef *r, GString *out)
{
	const Host *h = host_by_number(r->sub);

	if (h && h->uri && *h->uri)
		g_string_append_printf(out, "%s\n", h->uri);
}

static bool store_uri(const NodeRef *r, const char *data, size_t len, Op **op, GError **err)
{
	g_autofree char *uri = g_strndup(data, len);
	Host *h = host_by_number(r->sub);

	*op = NULL;
	return h ? host_set_uri(h, g_strstrip(uri), err)
		 : err_set(err, ENOENT, "the host has been removed");
}

#define REG(mode) (S_IFREG | (mode))

// clang-format off
static const Node host_dir_rows[] = {
	{ 63, "status", REG(0444), .show = show_status,
	  .events = EV_HOSTS,
	  .doc = "'key value' lines: state, vms, live; of the connection to libvirt: connection, why" },
	{ 64, "node", REG(0444), .show = show_node,
	  .doc = "'key value' lines: cpus, memory and free in bytes, load, version" },
	{ 67, "uri", REG(0644), .show = show_uri, .store = store_uri,
	  .doc = "libvirt's URI of it: qemu:///system, qemu+ssh://node2/system; its VMs are shown" },
	{ 0 },
};
static const Dir host_dir = { .rows = host_dir_rows };
static const Node host_row = {
	65, "NAME", S_IFDIR | 0755, .dir = &host_dir,
	.doc = "a host; 'local' is this one; mkdir makes one, rmdir lets go of it and of its VMs",
};
// clang-format on

const Dir hosts_dir = {
	.child = &host_row,
	.next = next_host,
	.find = find_host,
	.make = make_host,
	.drop = drop_host,
};
