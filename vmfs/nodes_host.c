/* SPDX-License-Identifier: Apache-2.0 */
/* .vmfs/: everything about the host, and the manual of the tree. */
#include <string.h>

#include "version.h"
#include "vmfs/images.h"
#include "vmfs/list.h"
#include "vmfs/metrics.h"
#include "vmfs/node.h"

static void show_version(const NodeRef *r, GString *out)
{
	(void)r;
	g_string_append(out, VMFS_VERSION "\n");
}

static void show_help(const NodeRef *r, GString *out)
{
	(void)r;
	node_help(out);
}

static void show_list(const NodeRef *r, GString *out)
{
	const GString *text = list_text();

	(void)r;
	g_string_append_len(out, text->str, (gssize)text->len);
}

static size_t size_list(const NodeRef *r)
{
	(void)r;
	return list_size();
}

static void show_metrics(const NodeRef *r, GString *out)
{
	(void)r;
	metrics_show(out);
}

/* ---- backends/NAME/ ---- */

static const Backend *backend_of(const NodeRef *r)
{
	return backends[r->sub - 1];
}

static uint32_t next_backend(const NodeRef *dir, uint32_t after, char name[256])
{
	(void)dir;
	for (uint32_t i = 0; backends[i]; i++) {
		if (i < after)
			continue;
		g_strlcpy(name, backends[i]->cls->name, 256);
		return i + 1;
	}
	return 0;
}

static uint32_t find_backend(const NodeRef *dir, const char *name)
{
	(void)dir;
	for (uint32_t i = 0; backends[i]; i++)
		if (!strcmp(backends[i]->cls->name, name))
			return i + 1;
	return 0;
}

static void show_backend_status(const NodeRef *r, GString *out)
{
	const Backend *be = backend_of(r);

	g_string_append_printf(out, "usable %s\n%s", be->usable ? "yes" : "no",
			       be->status ? be->status->str : "");
}

static void show_capabilities(const NodeRef *r, GString *out)
{
	const BackendClass *cls = backend_of(r)->cls;

	for (const Verb *v = verbs; v->name; v++)
		if (cls->op[v->kind])
			g_string_append_printf(out, "%s\n", v->name);
	if (cls->clones)
		g_string_append(out, "clone\n");
	if (cls->console_write)
		g_string_append(out, "console\n");
	if (cls->cmdline)
		g_string_append(out, "cmdline\n");
	if (cls->want_ip)
		g_string_append(out, "ip\n");
	if (cls->want_cloud_init)
		g_string_append(out, "cloud-init\n");
	if (cls->exec)
		g_string_append(out, "exec\n");
	for (unsigned i = ASK_NONE + 1; i < ASK_MAX; i++)
		if (cls->ask[i])
			g_string_append_printf(out, "%s\n", ask_name((AskKind)i));
}

#define REG(mode) (S_IFREG | (mode))
#define DIR(mode) (S_IFDIR | (mode))

// clang-format off
static const Node backend_rows[] = {
	{ 60, "status", REG(0444), .show = show_backend_status,
	  .doc = "'usable yes' or 'usable no' and what is missing; what was found on this host" },
	{ 61, "capabilities", REG(0444), .show = show_capabilities,
	  .doc = "what it can do, a word a line" },
	{ 0 },
};
static const Dir backend_dir = { .rows = backend_rows };
static const Node backend_row = { 62, "NAME", DIR(0755), .dir = &backend_dir, .doc = "a hypervisor" };
static const Dir backends_dir = { .child = &backend_row, .next = next_backend, .find = find_backend };

static const Node io_rows[] = {
	{ 66, "events", REG(0444), .stream = &events_all_stream, .doc = "what changes in any VM" },
	{ 0 },
};
static const Dir host_io_dir = { .rows = io_rows };

static const Node dot_rows[] = {
	{ 50, "version", REG(0444), .show = show_version, .doc = "version of vmfs" },
	{ 51, "help", REG(0444), .show = show_help, .doc = "this manual" },
	{ 52, "list", REG(0444), .show = show_list, .size = size_list,
	  .events = LIST_CHANGES,
	  .doc = "a line a VM: name, state, backend, host, first address ('-': none)" },
	{ 57, "metrics", REG(0444), .show = show_metrics, .doc = "the fleet in Prometheus text format" },
	{ 53, "events", S_IFLNK | 0777, .target = ".io/events",
	  .doc = "stream: the events of all VMs" },
	{ 54, "backends", DIR(0755), .dir = &backends_dir, .doc = "the hypervisors: look here first" },
	{ 55, "hosts", DIR(0755), .dir = &hosts_dir, .doc = "the hosts" },
	{ 76, "networks", DIR(0755), .dir = &networks_dir,
	  .doc = "the networks of the hosts, for `network:` in spec.yaml" },
	{ 100, "images", DIR(0755), .dir = &images_dir, .attr = images_attr,
	  .set_attr = images_set_attr, .doc = "names of base images, for `image:` in spec.yaml" },
	{ 180, "devices", DIR(0755), .dir = &devices_dir_of_host, .present = devices_present,
	  .doc = "the devices of this host: ln -s them into the devices/ of a VM" },
	{ 56, ".io", DIR(0755), .dir = &host_io_dir, .hidden = true, .doc = "where the streams are" },
	{ 0 },
};
static const Dir dot_dir = { .rows = dot_rows };

const Node host_rows[] = {
	{ 3, ".vmfs", DIR(0755), .dir = &dot_dir, .doc = "about the host and vmfs itself" },
	{ 0 },
};
// clang-format on
