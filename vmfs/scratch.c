/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/scratch.h"

#include <errno.h>
#include <string.h>

#include "vmfs/keep.h"
#include "vmfs/registry.h"

/* Numbers are not used again while the daemon runs: an open descriptor must not find another file.
 */
static uint32_t last_number;

typedef struct KeptScratch {
	int64_t changed;
	uint32_t mode, uid, gid;
	char name[SCRATCH_MAX_NAME + 1];
} KeptScratch;

static uint64_t key_of(const Scratch *f)
{
	return (uint64_t)f->serial << 32 | f->number;
}

void scratch_keep(const Scratch *f)
{
	KeptScratch k = { .changed = f->changed, .mode = f->mode, .uid = f->uid, .gid = f->gid };

	g_strlcpy(k.name, f->name, sizeof k.name);
	keep_set(KEEP_SCRATCH, key_of(f), &k, sizeof k);
}

static void scratch_free(void *file)
{
	Scratch *f = file;

	keep_unset(KEEP_SCRATCH, key_of(f));
	keep_unset(KEEP_SCRATCH_DATA, key_of(f));

	g_free(f->name);
	g_byte_array_unref(f->data);
	g_free(f);
}

Scratch *scratch_new(Vm *vm, const char *name, mode_t mode, uid_t uid, gid_t gid, int *err)
{
	Scratch *f;

	if (strlen(name) > SCRATCH_MAX_NAME) {
		*err = ENAMETOOLONG;
		return NULL;
	}
	if (!vm->scratch)
		vm->scratch = g_hash_table_new_full(NULL, NULL, NULL, scratch_free);
	if (g_hash_table_size(vm->scratch) >= SCRATCH_MAX_FILES) {
		*err = ENOSPC;
		return NULL;
	}
	do {
		last_number = (last_number + 1) & 0xffffff;
	} while (!last_number || scratch_by_number(vm, last_number));
	f = g_new0(Scratch, 1);
	f->number = last_number;
	f->name = g_strdup(name);
	f->mode = mode;
	f->uid = uid;
	f->gid = gid;
	f->changed = vm_now();
	f->data = g_byte_array_new();
	f->serial = vm->serial;
	g_hash_table_insert(vm->scratch, GUINT_TO_POINTER(f->number), f);
	scratch_keep(f);
	return f;
}

Scratch *scratch_find(const Vm *vm, const char *name)
{
	GHashTableIter it;
	gpointer f;

	if (!vm->scratch)
		return NULL;
	g_hash_table_iter_init(&it, vm->scratch);
	while (g_hash_table_iter_next(&it, NULL, &f))
		if (!strcmp(((Scratch *)f)->name, name))
			return f;
	return NULL;
}

Scratch *scratch_by_number(const Vm *vm, uint32_t number)
{
	return vm->scratch ? g_hash_table_lookup(vm->scratch, GUINT_TO_POINTER(number)) : NULL;
}

Scratch *scratch_after(const Vm *vm, uint32_t number)
{
	Scratch *best = NULL;
	GHashTableIter it;
	gpointer value;

	if (!vm->scratch)
		return NULL;
	g_hash_table_iter_init(&it, vm->scratch);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		Scratch *f = value;

		if (f->number > number && (!best || f->number < best->number))
			best = f;
	}
	return best;
}

void scratch_remove(Vm *vm, Scratch *f)
{
	g_hash_table_remove(vm->scratch, GUINT_TO_POINTER(f->number));
}

void scratch_rename(Vm *vm, Scratch *f, const char *name)
{
	Scratch *old = scratch_find(vm, name);

	if (old && old != f)
		scratch_remove(vm, old);
	g_free(f->name);
	f->name = g_strdup(name);
	scratch_keep(f);
}

void scratch_free_all(Vm *vm)
{
	g_clear_pointer(&vm->scratch, g_hash_table_unref);
}

int scratch_truncate(Scratch *f, uint64_t size)
{
	size_t old = f->data->len;

	if (size > SCRATCH_MAX_SIZE)
		return EFBIG;
	g_byte_array_set_size(f->data, (guint)size);
	if (size > old)
		memset(f->data->data + old, 0, size - old);
	f->changed = vm_now();
	keep_set(KEEP_SCRATCH_DATA, key_of(f), f->data->data, f->data->len);
	return 0;
}

int scratch_write(Scratch *f, const char *data, size_t len, uint64_t offset)
{
	if (offset > SCRATCH_MAX_SIZE || len > SCRATCH_MAX_SIZE - offset)
		return EFBIG;
	f->changed = vm_now();
	if (offset == f->data->len) {
		g_byte_array_append(f->data, (const guint8 *)data, (guint)len);
		keep_append(KEEP_SCRATCH_DATA, key_of(f), data, len);
		return 0;
	}
	if (offset + len > f->data->len) {
		int err = scratch_truncate(f, offset + len);

		if (err)
			return err;
	}
	if (len)
		memcpy(f->data->data + offset, data, len);
	keep_set(KEEP_SCRATCH_DATA, key_of(f), f->data->data, f->data->len);
	return 0;
}

/* ---- for a successor ---- */

static void restore(uint64_t key, GBytes *value)
{
	g_autoptr(GBytes) data = keep_get(KEEP_SCRATCH_DATA, key);
	Vm *vm = registry_by_serial((uint32_t)(key >> 32));
	const uint32_t number = (uint32_t)key;
	KeptScratch k;
	Scratch *f;

	keep_copy(&k, sizeof k, value);
	if (!vm) {
		keep_unset(KEEP_SCRATCH, key);
		keep_unset(KEEP_SCRATCH_DATA, key);
		return;
	}
	f = g_new0(Scratch, 1);
	f->serial = vm->serial;
	f->number = number;
	k.name[SCRATCH_MAX_NAME] = 0;
	f->name = g_strdup(k.name);
	f->mode = k.mode;
	f->uid = k.uid;
	f->gid = k.gid;
	f->changed = k.changed;
	f->data = g_byte_array_new();
	if (data && g_bytes_get_size(data))
		g_byte_array_append(f->data, g_bytes_get_data(data, NULL),
				    (guint)g_bytes_get_size(data));
	if (!vm->scratch)
		vm->scratch = g_hash_table_new_full(NULL, NULL, NULL, scratch_free);
	g_hash_table_insert(vm->scratch, GUINT_TO_POINTER(number), f);
	last_number = MAX(last_number, number);
}

void scratch_restore(void)
{
	keep_each(KEEP_SCRATCH, restore);
}
