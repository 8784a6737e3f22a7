/* SPDX-License-Identifier: Apache-2.0 */
/* .vmfs/networks/NAME/: a network as a directory. */
#include <errno.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/networks.h"
#include "vmfs/node.h"
#include "vmfs/scratch.h"

static uint32_t next_network(const NodeRef *dir, uint32_t after, char name[256])
{
	const Network *n = network_after(after);

	(void)dir;
	if (!n)
		return 0;
	g_strlcpy(name, n->label, 256);
	return n->number;
}

static uint32_t find_network(const NodeRef *dir, const char *name)
{
	const Network *n = network_find(name);

	(void)dir;
	return n ? n->number : 0;
}

static int make_network(const NodeRef *dir, const char *name, mode_t mode, const Caller *who,
			NodeDone done, void *arg)
{
	(void)dir;
	(void)mode;
	(void)who;
	return network_make(name, done, arg);
}

static int drop_network(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	Network *n = network_by_number(r->sub);

	(void)who;
	return n ? network_remove(n, done, arg) : ENOENT;
}

static bool have_network(const NodeRef *r)
{
	return network_by_number(r->sub) != NULL;
}

static void show_state(const NodeRef *r, GString *out)
{
	const Network *n = network_by_number(r->sub);

	if (n)
		g_string_append_printf(out, "%s\n", network_state(n));
}

static int order_state(const NodeRef *r, GBytes *text, NodeDone done, void *arg)
{
	Network *n = network_by_number(r->sub);

	return n ? network_order(n, text, done, arg) : ENOENT;
}

static void show_spec(const NodeRef *r, GString *out)
{
	const Network *n = network_by_number(r->sub);

	if (n && n->text)
		g_string_append(out, n->text);
}

static int order_spec(const NodeRef *r, GBytes *text, NodeDone done, void *arg)
{
	Network *n = network_by_number(r->sub);

	return n ? network_define(n, text, done, arg) : ENOENT;
}

static int judge_spec(const NodeRef *r, GBytes *text)
{
	Network *n = network_by_number(r->sub);

	return n ? network_judge(n, text) : ENOENT;
}

static int fetch_leases(const NodeRef *r, NodeFetched fn, void *arg)
{
	Network *n = network_by_number(r->sub);

	return n ? network_leases(n, fn, arg) : ENOENT;
}

static size_t size_leases(const NodeRef *r)
{
	const Network *n = network_by_number(r->sub);

	return n ? n->leases_size : 0;
}

static void show_error(const NodeRef *r, GString *out)
{
	const Network *n = network_by_number(r->sub);

	if (n && n->error)
		g_string_append_printf(out, "%s\n", n->error);
}

static uint32_t next_scratch(const NodeRef *dir, uint32_t after, char name[256])
{
	g_autofree char *prefix = network_scratch(dir->sub, "");
	const Scratch *f = scratch_after(NULL, after);

	while (f && !g_str_has_prefix(f->name, prefix))
		f = scratch_after(NULL, f->number);
	if (!f)
		return 0;
	g_strlcpy(name, f->name + strlen(prefix), 256);
	return f->number;
}

static char *name_scratch(const NodeRef *dir, const char *name)
{
	return network_scratch(dir->sub, name);
}

static uint32_t find_scratch(const NodeRef *dir, const char *name)
{
	g_autofree char *path = name_scratch(dir, name);
	const Scratch *f = scratch_find(NULL, path);

	return f ? f->number : 0;
}

#define REG(mode) (S_IFREG | (mode))

// clang-format off
static const Node network_rows[] = {
	{ 72, "state", REG(0644), .show = show_state, .order = order_state, .events = EV_NETWORK,
	  .doc = "active, inactive, or unknown while its host is away; write start or stop" },
	{ 73, "spec.yaml", REG(0644), .show = show_spec, .order = order_spec, .judge = judge_spec,
	  .events = EV_NETWORK_SPEC,
	  .doc = "what it is, from libvirt's XML; an edit changes that part of it, and what is active when it starts again" },
	{ 74, "leases", REG(0444), .fetch = fetch_leases, .size = size_leases,
	  .doc = "a line a guest that it has given an address: address, MAC, hostname ('-': none), end" },
	{ 75, "error", REG(0444), .show = show_error, .events = EV_NETWORK_ERROR,
	  .doc = "the last failure; empty after a success" },
	{ 0 },
};
static const Node scratch_row = {
	79, "*", REG(0600), .scratch = true,
	.doc = "scratch files of editors, as in a VM's directory",
};
static const Dir network_dir = {
	.rows = network_rows,
	.child = &scratch_row,
	.next = next_scratch,
	.find = find_scratch,
	.scratch = name_scratch,
};
static const Node network_row = {
	71, "NAME", S_IFDIR | 0755, .dir = &network_dir, .present = have_network,
	.doc = "a network of this host's libvirt; NAME@HOST: of another's; mkdir defines one that leads nowhere, rmdir undefines one that is not active",
};
// clang-format on

const Dir networks_dir = {
	.child = &network_row,
	.next = next_network,
	.find = find_network,
	.make = make_network,
	.drop = drop_network,
};
