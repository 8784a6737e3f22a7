/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory file: a head, a slot for the request that is being received, and two logs of which one
 * holds. A log is a row of records, each of which sets, appends to or unsets a value. When most of
 * it is history, what is live is copied into the other one and that one holds. Only the head's
 * `end` makes records count, so a crash in the midst of anything leaves what was before.
 */
#include "vmfs/keep.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/log.h"

#define MAGIC	    "vmfskeep"
#define HEAD_SIZE   (64u << 10)
#define AREA_SIZE   ((uint64_t)1 << 30) /* sparse: only what is written takes memory */
#define FILE_SIZE   (HEAD_SIZE + KEEP_SLOT + 2 * AREA_SIZE)
#define MIN_HISTORY (1u << 20)	 /* bytes of history that are not worth copying the rest for */
#define SLOT_WARM   (136u << 10) /* bytes of the slot that are in memory from the start */

G_STATIC_ASSERT(sizeof(KeepHead) <= HEAD_SIZE);

typedef enum RecordOp { SET, APPEND, UNSET } RecordOp;

typedef struct Record {
	uint32_t len; /* of the bytes that follow, which are padded to 8 */
	uint16_t kind;
	uint16_t op;
	uint64_t key;
} Record;

/* A live value: its bytes are those of one record or more. */
typedef struct Value {
	uint64_t key;
	KeepKind kind;
	uint32_t n;	    /* records */
	size_t len, stored; /* bytes of the value; of its records */
	uint64_t first;	    /* where its record is */
	GArray *more;	    /* of uint64_t; NULL: no other record */
} Value;

static struct {
	char *map;
	KeepHead *head; /* NULL: detached */
	int fd;
	uint64_t end; /* with what is not committed yet */
	uint64_t changes;
	size_t live; /* bytes of the records of live values */
	bool full;   /* said once */
	GHashTable *values[KEEP_KINDS];
} keep = { .fd = -1 };

static char *area(unsigned n)
{
	return keep.map + HEAD_SIZE + KEEP_SLOT + n * AREA_SIZE;
}

static size_t padded(size_t len)
{
	return (len + 7) & ~(size_t)7;
}

static const Record *record_at(uint64_t at)
{
	return (const Record *)(const void *)(area(keep.head->area) + at);
}

static const char *bytes_of(const Record *r)
{
	return (const char *)(r + 1);
}

static void value_free(void *data)
{
	Value *v = data;

	if (v->more)
		g_array_unref(v->more);
	g_free(v);
}

static Value *find(KeepKind kind, uint64_t key)
{
	return keep.values[kind] ? g_hash_table_lookup(keep.values[kind], &key) : NULL;
}

static void forget(KeepKind kind, uint64_t key)
{
	const Value *v = find(kind, key);

	if (!v)
		return;
	keep.live -= v->stored;
	g_hash_table_remove(keep.values[kind], &key);
}

/* Take note of a record that is in the log. */
static void note(const Record *r, uint64_t at)
{
	Value *v;

	if (r->op != APPEND)
		forget(r->kind, r->key);
	if (r->op == UNSET)
		return;
	v = find(r->kind, r->key);
	if (!v) {
		v = g_new0(Value, 1);
		v->key = r->key;
		v->kind = r->kind;
		if (!keep.values[r->kind])
			keep.values[r->kind] = g_hash_table_new_full(g_int64_hash, g_int64_equal,
								     NULL, value_free);
		g_hash_table_insert(keep.values[r->kind], &v->key, v);
	}
	if (v->n++ == 0) {
		v->first = at;
	} else {
		if (!v->more)
			v->more = g_array_new(FALSE, FALSE, sizeof at);
		g_array_append_val(v->more, at);
	}
	v->len += r->len;
	v->stored += sizeof *r + padded(r->len);
	keep.live += sizeof *r + padded(r->len);
}

static uint64_t record_of(const Value *v, uint32_t i)
{
	return i == 0 ? v->first : g_array_index(v->more, uint64_t, i - 1);
}

static void value_copy(const Value *v, char *to)
{
	for (uint32_t i = 0; i < v->n; i++) {
		const Record *r = record_at(record_of(v, i));

		memcpy(to, bytes_of(r), r->len);
		to += r->len;
	}
}

/* ---- making room ---- */

/* Copy one value to the end of the other log as a single record, and have it point there. */
static uint64_t move_value(Value *v, unsigned to, uint64_t at)
{
	Record *r = (Record *)(void *)(area(to) + at);

	*r = (Record){
		.len = (uint32_t)v->len, .kind = (uint16_t)v->kind, .op = SET, .key = v->key
	};
	value_copy(v, (char *)(r + 1));
	v->first = at;
	v->n = 1;
	g_clear_pointer(&v->more, g_array_unref);
	keep.live -= v->stored;
	v->stored = sizeof *r + padded(v->len);
	keep.live += v->stored;
	return at + v->stored;
}

static void compact(void)
{
	const unsigned from = keep.head->area, to = !from;
	uint64_t at = 0;
	GHashTableIter it;
	gpointer v;

	for (unsigned kind = 0; kind < KEEP_KINDS; kind++) {
		if (!keep.values[kind])
			continue;
		g_hash_table_iter_init(&it, keep.values[kind]);
		while (g_hash_table_iter_next(&it, NULL, &v))
			at = move_value(v, to, at);
	}
	keep.head->end[to] = keep.end = at;
	__atomic_store_n(&keep.head->area, to, __ATOMIC_RELEASE);
	(void)fallocate(keep.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)(area(from) - keep.map), (off_t)AREA_SIZE);
}

/* ---- writing ---- */

static void put(RecordOp op, KeepKind kind, uint64_t key, const void *data, size_t len)
{
	const uint64_t size = sizeof(Record) + padded(len), at = keep.end;
	Record *r;

	if (!keep.head)
		return;
	if (size > AREA_SIZE - at) {
		if (!keep.full)
			log_error("more is open than a successor of this daemon could be told of");
		keep.full = true;
		return;
	}
	r = (Record *)(void *)(area(keep.head->area) + at);
	*r = (Record){ .len = (uint32_t)len, .kind = (uint16_t)kind, .op = op, .key = key };
	if (len)
		memcpy(r + 1, data, len);
	keep.end += size;
	keep.changes++;
	note(r, at);
}

void keep_set(KeepKind kind, uint64_t key, const void *data, size_t len)
{
	put(SET, kind, key, data, len);
}

void keep_append(KeepKind kind, uint64_t key, const void *data, size_t len)
{
	put(APPEND, kind, key, data, len);
}

void keep_unset(KeepKind kind, uint64_t key)
{
	if (keep.head && find(kind, key))
		put(UNSET, kind, key, NULL, 0);
}

uint64_t keep_changes(void)
{
	return keep.changes;
}

void keep_commit(void)
{
	if (!keep.head || keep.end == keep.head->end[keep.head->area])
		return;
	__atomic_store_n(&keep.head->end[keep.head->area], keep.end, __ATOMIC_RELEASE);
	if (keep.end > 2 * (uint64_t)keep.live + MIN_HISTORY)
		compact();
}

/* ---- reading ---- */

bool keep_has(KeepKind kind, uint64_t key)
{
	return find(kind, key) != NULL;
}

size_t keep_len(KeepKind kind, uint64_t key)
{
	const Value *v = find(kind, key);

	return v ? v->len : 0;
}

GBytes *keep_get(KeepKind kind, uint64_t key)
{
	const Value *v = find(kind, key);
	char *data;

	if (!v)
		return NULL;
	data = g_malloc(v->len + 1);
	value_copy(v, data);
	return g_bytes_new_take(data, v->len);
}

static int compare_keys(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void keep_each(KeepKind kind, void (*fn)(uint64_t key, GBytes *value))
{
	g_autoptr(GArray) keys = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	GHashTableIter it;
	gpointer key;

	if (!keep.values[kind])
		return;
	g_hash_table_iter_init(&it, keep.values[kind]);
	while (g_hash_table_iter_next(&it, &key, NULL))
		g_array_append_vals(keys, key, 1);
	g_array_sort(keys, compare_keys);
	for (guint i = 0; i < keys->len; i++) {
		const uint64_t k = g_array_index(keys, uint64_t, i);
		g_autoptr(GBytes) value = keep_get(kind, k);

		if (value)
			fn(k, value);
	}
}

void keep_copy(void *to, size_t size, GBytes *value)
{
	gsize len;
	const void *from = g_bytes_get_data(value, &len);

	memset(to, 0, size);
	if (len)
		memcpy(to, from, MIN(len, size));
}

/* ---- the file ---- */

static bool map_file(int fd)
{
	void *map =
		mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (map == MAP_FAILED)
		return false;
	keep.map = map;
	return true;
}

int keep_create(KeepHead **ret)
{
	int fd = memfd_create("vmfs", MFD_CLOEXEC);

	if (fd < 0)
		return -1;
	if (ftruncate(fd, (off_t)FILE_SIZE) || !map_file(fd)) {
		close(fd);
		return -1;
	}
	*ret = (KeepHead *)(void *)keep.map;
	memcpy((*ret)->magic, MAGIC, sizeof(*ret)->magic);
	(*ret)->format = KEEP_FORMAT;
	return fd;
}

static void load(void)
{
	const uint64_t end = keep.head->end[keep.head->area];
	uint64_t at = 0;

	while (at < end) {
		const Record *r = record_at(at);

		/* Cannot be, unless a daemon gone wild wrote into it. */
		if (end - at < sizeof *r || padded(r->len) > end - at - sizeof *r ||
		    r->op > UNSET) {
			log_error("what the former daemon left is damaged after %" G_GUINT64_FORMAT
				  " bytes; the rest is lost",
				  at);
			break;
		}
		/* Of a newer version: it is not for us. */
		if (r->kind < KEEP_KINDS)
			note(r, at);
		at += sizeof *r + padded(r->len);
	}
	keep.end = at;
}

KeepHead *keep_open(int fd)
{
	KeepHead *head;
	struct stat st;

	if (fstat(fd, &st) || (uint64_t)st.st_size != FILE_SIZE || !map_file(fd))
		return NULL;
	head = (KeepHead *)(void *)keep.map;
	if (memcmp(head->magic, MAGIC, sizeof head->magic) || head->format != KEEP_FORMAT ||
	    head->area > 1 || head->end[head->area] > AREA_SIZE)
		return NULL;
	return head;
}

/* fcntl(2)'s own kind of lock is the process's, not the descriptor's, and ends with it. */
static struct flock whole_file = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

bool keep_is_served(int fd)
{
	struct flock lock = whole_file;

	return !fcntl(fd, F_GETLK, &lock) && lock.l_type != F_UNLCK;
}

bool keep_attach(int fd, GError **err)
{
	keep.head = keep_open(fd);
	if (!keep.head)
		return err_set(err, EPROTO,
			       "the keeper's memory file is that of another version of vmfs; "
			       "unmount, and mount again");
	if (fcntl(fd, F_SETLK, &whole_file))
		return err_set(err, EBUSY, "another daemon serves this mount");
	/* After the lock, as a keeper asks for it after it has said who it is: one of us sees the
	 * other. */
	if (keep.head->keeper_pid != getppid() && !kill(keep.head->keeper_pid, 0))
		return err_set(err, EBUSY, "another keeper has this mount");
	keep.fd = fd;
	/* The kernel writes requests here, and must find the memory in place. */
	for (size_t i = 0; i < SLOT_WARM; i += 4096)
		__atomic_fetch_add(keep_slot() + i, 0, __ATOMIC_RELAXED);
	load();
	return true;
}

void keep_detach(void)
{
	keep_commit();
	keep.head = NULL;
}

KeepHead *keep_head(void)
{
	return keep.head;
}

char *keep_slot(void)
{
	return keep.map + HEAD_SIZE;
}
