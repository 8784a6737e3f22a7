/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/scratch.h"

#include <errno.h>
#include <string.h>

#include "vmfs/keep.h"
#include "vmfs/registry.h"

#define AWAY_US G_USEC_PER_SEC

/* Numbers are not used again while the daemon runs: an open descriptor must not find another file.
 */
static uint32_t last_number;

static GHashTable *of_host; /* number to Scratch; NULL: none */

static GHashTable *table_of(const Vm *vm)
{
	return vm ? vm->scratch : of_host;
}

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

/* The table is made when it is needed. */
static void insert(Vm *vm, Scratch *f)
{
	GHashTable **table = vm ? &vm->scratch : &of_host;

	if (!*table)
		*table = g_hash_table_new_full(NULL, NULL, NULL, scratch_free);
	f->serial = vm ? vm->serial : 0;
	g_hash_table_insert(*table, GUINT_TO_POINTER(f->number), f);
}

Scratch *scratch_new(Vm *vm, const char *name, mode_t mode, uid_t uid, gid_t gid, int *err)
{
	Scratch *f;

	if (strlen(name) > SCRATCH_MAX_NAME) {
		*err = ENAMETOOLONG;
		return NULL;
	}
	if (table_of(vm) && g_hash_table_size(table_of(vm)) >= SCRATCH_MAX_FILES) {
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
	insert(vm, f);
	scratch_keep(f);
	return f;
}

Scratch *scratch_find(const Vm *vm, const char *name)
{
	GHashTableIter it;
	gpointer f;

	if (!table_of(vm))
		return NULL;
	g_hash_table_iter_init(&it, table_of(vm));
	while (g_hash_table_iter_next(&it, NULL, &f))
		if (!strcmp(((Scratch *)f)->name, name))
			return f;
	return NULL;
}

Scratch *scratch_by_number(const Vm *vm, uint32_t number)
{
	return table_of(vm) ? g_hash_table_lookup(table_of(vm), GUINT_TO_POINTER(number)) : NULL;
}

Scratch *scratch_after(const Vm *vm, uint32_t number)
{
	Scratch *best = NULL;
	GHashTableIter it;
	gpointer value;

	if (!table_of(vm))
		return NULL;
	g_hash_table_iter_init(&it, table_of(vm));
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		Scratch *f = value;

		if (f->number > number && (!best || f->number < best->number))
			best = f;
	}
	return best;
}

void scratch_remove(Vm *vm, Scratch *f)
{
	g_hash_table_remove(table_of(vm), GUINT_TO_POINTER(f->number));
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

static gboolean is_below(gpointer number, gpointer file, gpointer prefix)
{
	(void)number;
	return g_str_has_prefix(((Scratch *)file)->name, prefix);
}

void scratch_free_below(const char *prefix)
{
	if (of_host)
		g_hash_table_foreach_remove(of_host, is_below, (gpointer)prefix);
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

/* ---- documents that are moved away ---- */

static GHashTable *away; /* inode number to the time when it is back, in microseconds */

static gboolean is_back(gpointer ino, gpointer until, gpointer now)
{
	if (*(int64_t *)until > *(int64_t *)now)
		return FALSE;
	keep_unset(KEEP_AWAY, *(uint64_t *)ino);
	return TRUE;
}

static void set_away(uint64_t ino, int64_t until)
{
	int64_t now = g_get_monotonic_time();

	if (!away)
		away = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
	g_hash_table_insert(away, g_memdup2(&ino, sizeof ino), g_memdup2(&until, sizeof until));
	g_hash_table_foreach_remove(away, is_back, &now);
}

void scratch_away(uint64_t ino)
{
	const int64_t until = g_get_monotonic_time() + AWAY_US;

	keep_set(KEEP_AWAY, ino, &until, sizeof until);
	set_away(ino, until);
}

void scratch_here(uint64_t ino)
{
	if (away && g_hash_table_remove(away, &ino))
		keep_unset(KEEP_AWAY, ino);
}

bool scratch_is_away(uint64_t ino)
{
	const int64_t *until = away ? g_hash_table_lookup(away, &ino) : NULL;

	return until && g_get_monotonic_time() < *until;
}

/* ---- for a successor ---- */

static void restore_away(uint64_t ino, GBytes *value)
{
	int64_t until;

	keep_copy(&until, sizeof until, value);
	set_away(ino, until);
}

static void restore(uint64_t key, GBytes *value)
{
	g_autoptr(GBytes) data = keep_get(KEEP_SCRATCH_DATA, key);
	Vm *vm = registry_by_serial((uint32_t)(key >> 32));
	const uint32_t number = (uint32_t)key;
	KeptScratch k;
	Scratch *f;

	keep_copy(&k, sizeof k, value);
	if (!vm && key >> 32) {
		keep_unset(KEEP_SCRATCH, key);
		keep_unset(KEEP_SCRATCH_DATA, key);
		return;
	}
	f = g_new0(Scratch, 1);
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
	insert(vm, f);
	last_number = MAX(last_number, number);
}

void scratch_restore(void)
{
	keep_each(KEEP_SCRATCH, restore);
	keep_each(KEEP_AWAY, restore_away);
}
