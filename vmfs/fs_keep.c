/* SPDX-License-Identifier: Apache-2.0 */
/* Open files, for a successor of this daemon: the kernel goes on to name them by their numbers. */
#include <string.h>

#include "vmfs/event.h"
#include "vmfs/fs_internal.h"
#include "vmfs/keep.h"
#include "vmfs/registry.h"
#include "vmfs/scratch.h"

typedef struct KeptHandle {
	uint64_t ino;
	int32_t flags;
	uint32_t seen;
	uint64_t pos;
	uint32_t after;
	uint8_t told, dirty, truncated, refused;
	uint64_t kh;
	uint64_t op;
	uint8_t unread, unused[7];
} KeptHandle;

void fs_keep_handle(Handle *h)
{
	const KeptHandle k = { .ino = node_ino(&h->ref),
			       .flags = h->flags,
			       .seen = h->seen,
			       .pos = h->reader.pos,
			       .after = h->reader.after,
			       .told = h->reader.told,
			       .dirty = h->dirty,
			       .truncated = h->truncated,
			       .refused = h->refused,
			       .kh = h->kh,
			       .op = h->op ? op_number(h->op) : 0,
			       .unread = h->unread };

	keep_set(KEEP_HANDLE, h->fh, &k, sizeof k);
	h->kept = true;
}

void fs_keep_text(uint64_t fh, const GString *text)
{
	if (text)
		keep_set(KEEP_TEXT, fh, text->str, text->len);
	else
		keep_unset(KEEP_TEXT, fh);
}

void fs_keep_answer(const Handle *h)
{
	gsize len;
	const void *data = g_bytes_get_data(h->answer, &len);

	keep_set(KEEP_TEXT, h->fh, data, len);
}

void fs_keep_document(const Handle *h)
{
	keep_set(KEEP_DOCUMENT, h->fh, h->doc->data, h->doc->len);
}

void fs_forget_handle(uint64_t fh)
{
	keep_unset(KEEP_HANDLE, fh);
	keep_unset(KEEP_TEXT, fh);
	keep_unset(KEEP_DOCUMENT, fh);
}

/* ---- for a successor ---- */

static GHashTable *removed; /* VMs that are no more, but open somewhere; by serial */

static Vm *removed_vm(uint32_t serial)
{
	Vm *vm = g_hash_table_lookup(removed, GUINT_TO_POINTER(serial));

	if (vm)
		return vm;
	vm = vm_new(serial, 0, "");
	vm->removed = true;
	vm_restore(vm);
	g_hash_table_insert(removed, GUINT_TO_POINTER(serial), vm);
	return vm;
}

/* As node_from_ino(), and of what is no more as well. */
static bool find_node(uint64_t ino, NodeRef *r)
{
	const uint32_t serial = (uint32_t)(ino >> 32);

	if (node_from_ino(ino, r))
		return true;
	if (!r->node)
		return false;
	if (serial && !r->vm)
		r->vm = removed_vm(serial);
	return true;
}

static GString *string_of(GBytes *bytes)
{
	gsize len;
	const char *data = g_bytes_get_data(bytes, &len);

	return g_string_new_len(data ? data : "", (gssize)len);
}

static void restore_handle(uint64_t fh, GBytes *value)
{
	g_autoptr(GBytes) text = keep_get(KEEP_TEXT, fh), doc = keep_get(KEEP_DOCUMENT, fh);
	KeptHandle k;
	NodeRef r;
	Handle *h;
	Op *op;

	keep_copy(&k, sizeof k, value);
	if (!find_node(k.ino, &r)) {
		fs_forget_handle(fh);
		return;
	}
	h = fs_handle_insert(fh, &r, k.flags);
	h->kept = true;
	h->seen = k.seen;
	/* What a stream makes for each of its readers begins anew. */
	if (r.node->stream && r.node->stream->close)
		r.node->stream->open(&r, &h->reader);
	h->reader.pos = k.pos;
	h->reader.after = k.after;
	h->reader.told = k.told;
	h->dirty = k.dirty;
	h->truncated = k.truncated;
	h->refused = k.refused;
	h->unread = k.unread;
	if (r.node->ask || r.node->fetch)
		h->answer = text ? g_bytes_ref(text) : g_bytes_new_static("", 0);
	op = k.op ? op_restored(k.op) : NULL;
	if (op)
		h->op = op_ref(op);
	if (text && r.node->stream)
		h->reader.first = string_of(text);
	else if (text && r.node->show)
		h->text = string_of(text);
	if (doc) {
		h->doc = g_byte_array_new();
		if (g_bytes_get_size(doc))
			g_byte_array_append(h->doc, g_bytes_get_data(doc, NULL),
					    (guint)g_bytes_get_size(doc));
	}
	if (k.kh)
		fs_handle_poll(h, k.kh);
}

static void unref_vm(void *vm)
{
	vm_unref(vm);
}

void fs_restore_handles(void)
{
	removed = g_hash_table_new_full(NULL, NULL, NULL, unref_vm);
	scratch_restore();
	keep_each(KEEP_HANDLE, restore_handle);
	g_clear_pointer(&removed, g_hash_table_unref);
}
