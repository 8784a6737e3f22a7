/* SPDX-License-Identifier: Apache-2.0 */
/*
 * snapshots/ of a VM. The number of an object is that of its snapshot, and of the file in it in the
 * low bits.
 */
#include <errno.h>
#include <string.h>

#include "vmfs/node.h"
#include "vmfs/snapshot.h"

#define FILE_BITS 10
#define FILE_MASK ((1u << FILE_BITS) - 1)

static Snapshot *snapshot_of(const NodeRef *r)
{
	return snapshot_by_number(r->vm, r->sub >> FILE_BITS);
}

static bool have_snapshot(const NodeRef *r)
{
	return snapshot_of(r) != NULL;
}

bool snapshots_present(const NodeRef *r)
{
	const Backend *be = vm_backend_kind(r->vm, NULL);

	return be && be->cls->op[OP_SNAPSHOT];
}

static uint32_t next_snapshot(const NodeRef *dir, uint32_t after, char name[256])
{
	const Snapshot *s = snapshot_after(dir->vm, after >> FILE_BITS);

	if (!s)
		return 0;
	g_strlcpy(name, snapshot_name(s), 256);
	return snapshot_number(s) << FILE_BITS;
}

static uint32_t find_snapshot(const NodeRef *dir, const char *name)
{
	const Snapshot *s = snapshot_find(dir->vm, name);

	return s ? snapshot_number(s) << FILE_BITS : 0;
}

static void look(const NodeRef *dir, NodeDone done, void *arg)
{
	snapshot_look(dir->vm, done, arg);
}

static int make_snapshot(const NodeRef *dir, const char *name, mode_t mode, const Caller *who,
			 NodeDone done, void *arg)
{
	return snapshot_take(dir->vm, name, who->pid, done, arg);
}

static int drop_snapshot(const NodeRef *r, const Caller *who, NodeDone done, void *arg)
{
	Snapshot *s = snapshot_of(r);

	return s ? snapshot_drop(s, done, arg) : ENOENT;
}

static void show_state(const NodeRef *r, GString *out)
{
	const Snapshot *s = snapshot_of(r);

	if (s)
		g_string_append_printf(out, "%s\n", snapshot_state_name(snapshot_state(s)));
}

static bool have_spec(const NodeRef *r)
{
	const Snapshot *s = snapshot_of(r);

	return s && snapshot_spec(s);
}

static void show_spec(const NodeRef *r, GString *out)
{
	if (have_spec(r))
		g_string_append(out, snapshot_spec(snapshot_of(r)));
}

static bool have_xml(const NodeRef *r)
{
	const Snapshot *s = snapshot_of(r);

	return s && snapshot_xml(s);
}

static void show_xml(const NodeRef *r, GString *out)
{
	if (have_xml(r))
		g_string_append(out, snapshot_xml(snapshot_of(r)));
}

/* ---- the files of one ---- */

static uint32_t next_file(const NodeRef *dir, uint32_t after, char name[256])
{
	const Snapshot *s = snapshot_of(dir);
	const uint32_t n = s ? snapshot_file_after(s, after & FILE_MASK) : 0;

	if (!n)
		return 0;
	g_strlcpy(name, snapshot_file(s, n), 256);
	return snapshot_number(s) << FILE_BITS | n;
}

static uint32_t find_file(const NodeRef *dir, const char *name)
{
	const Snapshot *s = snapshot_of(dir);
	const uint32_t n = s ? snapshot_find_file(s, name) : 0;

	return n ? snapshot_number(s) << FILE_BITS | n : 0;
}

static int create_file(const NodeRef *dir, const char *name, const Caller *who, NodeDone done,
		       void *arg)
{
	Snapshot *s = snapshot_of(dir);

	return s ? snapshot_create(s, name, who->pid, done, arg) : ENOENT;
}

static int open_file(const NodeRef *r)
{
	const Snapshot *s = snapshot_of(r);

	errno = ESTALE;
	return s ? snapshot_open(s, r->sub & FILE_MASK, false) : -1;
}

static int edit_file(const NodeRef *r)
{
	const Snapshot *s = snapshot_of(r);

	errno = ESTALE;
	return s ? snapshot_open(s, r->sub & FILE_MASK, true) : -1;
}

static void edited(const NodeRef *r, NodeEdit what, int err)
{
	Snapshot *s = snapshot_of(r);

	if (!s)
		return;
	if (what == EDIT_OPENED)
		snapshot_opened(s);
	else if (what == EDIT_WROTE)
		snapshot_wrote(s, err);
	else
		snapshot_closed(s);
}

// clang-format off
static const Node snapshot_rows[] = {
	{ 163, "state", S_IFREG | 0444, .show = show_state, .hidden = true, .events = EV_SNAPSHOT,
	  .doc = "taking, ready, importing or damaged; not listed, for it is no part of an export" },
	{ 77, "spec.yaml", S_IFREG | 0440, .show = show_spec, .present = have_spec, .events = EV_SNAPSHOT,
	  .doc = "of a snapshot in libvirt's books: the machine as it was, as a spec" },
	{ 78, "snapshot.xml", S_IFREG | 0440, .show = show_xml, .present = have_xml, .events = EV_SNAPSHOT,
	  .doc = "of a snapshot in libvirt's books: what virsh snapshot-dumpxml prints, with its time and its parent" },
	{ 0 },
};

static const Node file_row = {
	164, "*", S_IFREG | 0660, .file = open_file, .edit = edit_file, .edited = edited, .present = have_snapshot,
	.doc = "memory, disks, spec.yaml, and a manifest with their checksums (sha256sum -c manifest); written by an import only",
};

static const Dir snapshot_dir_of_one = {
	.rows = snapshot_rows,
	.child = &file_row,
	.next = next_file,
	.find = find_file,
	.create = create_file,
};

static const Node snapshot_row = {
	162, "SNAPSHOT", S_IFDIR | 0770, .dir = &snapshot_dir_of_one, .present = have_snapshot,
	.doc = "a snapshot: mkdir takes it, rmdir drops it; tar -c exports it, tar -x imports one; `from: VM/snapshots/NAME` in the spec of a new VM makes that a clone of it; of libvirt's VMs: libvirt's own",
};

const Dir snapshots_dir = {
	.child = &snapshot_row,
	.next = next_snapshot,
	.find = find_snapshot,
	.look = look,
	.make = make_snapshot,
	.drop = drop_snapshot,
};

// clang-format on
