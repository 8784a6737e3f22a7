/* SPDX-License-Identifier: Apache-2.0 */
/* All numbers of the format are big-endian. */
#include "vmfs/qcow2.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "vmfs/err.h"

#define MAGIC	     0x514649fbu
#define EXT_END	     0u
#define EXT_FORMAT   0xe2792acau /* of the backing file */
#define MAX_HEADER   4096	 /* bytes that are looked at for extensions */
#define HEADER_V2    72
#define HEADER_V3    104
#define MAX_L1	     (32u << 20) /* bytes, as QEMU has it */
#define MAX_REFTABLE (8u << 20)
#define MAX_BLOCKS   16 /* of reference counts that are looked at */
#define CLUSTER_BITS 16 /* of what is written */
#define CLUSTER	     (1u << CLUSTER_BITS)
#define REFTABLE_AT  CLUSTER
#define REFBLOCK_AT  (2 * CLUSTER)
#define L1_AT	     (3 * CLUSTER)
#define DATA_PER_L2  ((uint64_t)CLUSTER / 8 * CLUSTER)
#define OFFSET_MASK  0x00fffffffffffe00ull /* of an entry of a table */

static uint64_t get(const uint8_t *p, unsigned bytes)
{
	uint64_t v = 0;

	while (bytes--)
		v = v << 8 | *p++;
	return v;
}

static void put(uint8_t *p, unsigned bytes, uint64_t v)
{
	while (bytes--) {
		p[bytes] = (uint8_t)v;
		v >>= 8;
	}
}

/* Bytes read: fewer at the end of the file. -1 and errno. */
static ssize_t read_at(int fd, void *buf, size_t len, uint64_t at)
{
	size_t done = 0;

	while (done < len) {
		const ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (!n)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static bool write_at(int fd, const void *buf, size_t len, uint64_t at, GError **err)
{
	size_t done = 0;

	while (done < len) {
		const ssize_t n =
			pwrite(fd, (const char *)buf + done, len - done, (off_t)(at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set(err, errno, "%s", g_strerror(errno));
		done += (size_t)n;
	}
	return true;
}

bool qcow2_is(const void *head, size_t len)
{
	return len >= 8 && get(head, 4) == MAGIC;
}

/* What the header says, as far as it is needed. */
typedef struct Header {
	uint8_t bytes[MAX_HEADER];
	size_t len; /* of what was read */
	uint64_t file_size;
	unsigned version, cluster_bits, refcount_order;
	uint64_t l1_at, l1_entries, reftable_at, reftable_size, backing_at;
	unsigned backing_len, header_len;
} Header;

static bool damaged(GError **err, const char *what)
{
	return err_set(err, EINVAL, "it is a damaged qcow2 image: %s", what);
}

static bool read_header(int fd, Header *h, GError **err)
{
	const off_t end = lseek(fd, 0, SEEK_END);
	const ssize_t n = end < 0 ? -1 : read_at(fd, h->bytes, sizeof h->bytes, 0);

	if (n < 0)
		return err_set(err, errno, "it cannot be read: %s", g_strerror(errno));
	h->len = (size_t)n;
	h->file_size = (uint64_t)end;
	if (!qcow2_is(h->bytes, h->len))
		return err_set(err, EINVAL, "it is not a qcow2 image");
	if (h->len < HEADER_V3)
		return damaged(err, "it is truncated in its header");
	h->version = (unsigned)get(h->bytes + 4, 4);
	h->backing_at = get(h->bytes + 8, 8);
	h->backing_len = (unsigned)get(h->bytes + 16, 4);
	h->cluster_bits = (unsigned)get(h->bytes + 20, 4);
	h->l1_entries = get(h->bytes + 36, 4);
	h->l1_at = get(h->bytes + 40, 8);
	h->reftable_at = get(h->bytes + 48, 8);
	h->reftable_size = get(h->bytes + 56, 4);
	h->refcount_order = h->version == 2 ? 4 : (unsigned)get(h->bytes + 96, 4);
	h->header_len = h->version == 2 ? HEADER_V2 : (unsigned)get(h->bytes + 100, 4);
	return true;
}

static bool check_header(const Header *h, GError **err)
{
	if (h->version != 2 && h->version != 3)
		return err_set(err, EOPNOTSUPP,
			       "it is a qcow2 image of version %u, and only 2 "
			       "and 3 are known",
			       h->version);
	if (h->cluster_bits < 9 || h->cluster_bits > 21)
		return damaged(err, "its clusters have no possible size");
	if (h->refcount_order > 6)
		return damaged(err, "its reference counts have no possible size");
	if (h->header_len < (h->version == 2 ? HEADER_V2 : HEADER_V3))
		return damaged(err, "its header has no possible size");
	if (h->l1_entries * 8 > MAX_L1 || (h->reftable_size << h->cluster_bits) > MAX_REFTABLE)
		return damaged(err, "its tables are larger than they may be");
	if (h->l1_at > h->file_size || h->l1_entries * 8 > h->file_size - h->l1_at ||
	    h->reftable_at >= h->file_size)
		return damaged(err, "it is truncated: its tables are beyond its end");
	return true;
}

static bool read_backing(int fd, const Header *h, Qcow2 *q, GError **err)
{
	const size_t end = 1u << h->cluster_bits;

	if (!h->backing_at || !h->backing_len)
		return true;
	if (h->backing_len > MIN(QCOW2_MAX_BACKING, end) || h->backing_at > end - h->backing_len)
		return damaged(err, "the name of its backing file is not in its header");
	if (read_at(fd, q->backing, h->backing_len, h->backing_at) != (ssize_t)h->backing_len)
		return damaged(err, "it is truncated in its header");
	if (strlen(q->backing) != h->backing_len || !g_utf8_validate(q->backing, -1, NULL))
		return damaged(err, "the name of its backing file is none");
	return true;
}

static void read_format(const Header *h, Qcow2 *q)
{
	size_t at = h->header_len;

	while (at + 8 <= h->len) {
		const uint64_t type = get(h->bytes + at, 4), len = get(h->bytes + at + 4, 4);

		at += 8;
		if (type == EXT_END || len > h->len - at)
			return;
		if (type == EXT_FORMAT && len < sizeof q->backing_format)
			memcpy(q->backing_format, h->bytes + at, len);
		at += (len + 7) & ~(size_t)7;
	}
}

/* The number of the last cluster that a block of reference counts tells of; false: of none. */
static bool last_counted(const uint8_t *block, size_t len, unsigned order, uint64_t *ret)
{
	while (len && !block[len - 1])
		len--;
	if (!len)
		return false;
	*ret = (len - 1) * 8 >> order;
	return true;
}

/*
 * Whether the last cluster that is in use begins beyond the end of the file. Reference counts can
 * be behind what is used after a crash, but are not ahead by more than what is lost anyway.
 */
static bool check_end(int fd, const Header *h, bool *ret_truncated, GError **err)
{
	const size_t cluster = (size_t)1 << h->cluster_bits;
	const size_t table_len = (size_t)h->reftable_size << h->cluster_bits;
	g_autofree uint8_t *table = g_malloc0(table_len + 1), *block = g_malloc(cluster);
	const ssize_t n = read_at(fd, table, table_len, h->reftable_at);
	unsigned blocks = 0;

	if (n < 0)
		return err_set(err, errno, "it cannot be read: %s", g_strerror(errno));
	for (size_t i = (size_t)n / 8; i-- && blocks < MAX_BLOCKS;) {
		const uint64_t at = get(table + i * 8, 8) & OFFSET_MASK;
		const uint64_t per_block = cluster * 8 >> h->refcount_order;
		uint64_t last;
		ssize_t len;

		if (!at)
			continue;
		blocks++;
		len = at < h->file_size ? read_at(fd, block, cluster, at) : 0;
		if (len < 0)
			return err_set(err, errno, "it cannot be read: %s", g_strerror(errno));
		if (!len) {
			*ret_truncated = true;
			return true;
		}
		if (!last_counted(block, (size_t)len, h->refcount_order, &last))
			continue;
		*ret_truncated = i * per_block + last >= (h->file_size + cluster - 1) / cluster;
		return true;
	}
	return true;
}

bool qcow2_read(int fd, Qcow2 *ret, GError **err)
{
	g_autofree Header *h = g_new0(Header, 1);

	*ret = (Qcow2){ 0 };
	if (!read_header(fd, h, err) || !check_header(h, err) || !read_backing(fd, h, ret, err))
		return false;
	ret->size = get(h->bytes + 24, 8);
	if (ret->size > INT64_MAX - 512)
		return damaged(err, "its size is not possible");
	read_format(h, ret);
	return check_end(fd, h, &ret->truncated, err);
}

/* Of the first cluster; the length of what is used of it. */
static size_t fill_header(uint8_t *head, uint64_t size, uint64_t l1_entries, const char *backing,
			  const char *format)
{
	size_t at = HEADER_V3;

	put(head, 4, MAGIC);
	put(head + 4, 4, 3);
	put(head + 20, 4, CLUSTER_BITS);
	put(head + 24, 8, size);
	put(head + 36, 4, l1_entries);
	put(head + 40, 8, L1_AT);
	put(head + 48, 8, REFTABLE_AT);
	put(head + 56, 4, 1);
	put(head + 96, 4, 4); /* counts of 16 bits */
	put(head + 100, 4, HEADER_V3);
	if (backing) {
		put(head + at, 4, EXT_FORMAT);
		put(head + at + 4, 4, strlen(format));
		memcpy(head + at + 8, format, strlen(format));
		at += 8 + ((strlen(format) + 7) & ~(size_t)7);
	}
	at += 8; /* EXT_END, of length 0 */
	if (backing) {
		put(head + 8, 8, at);
		put(head + 16, 4, strlen(backing));
		memcpy(head + at, backing, strlen(backing));
		at += strlen(backing);
	}
	return at;
}

bool qcow2_write(int fd, uint64_t size, const char *backing, const char *backing_format,
		 GError **err)
{
	const uint64_t entries = (size + DATA_PER_L2 - 1) / DATA_PER_L2;
	const uint64_t clusters = L1_AT / CLUSTER + (entries * 8 + CLUSTER - 1) / CLUSTER;
	uint8_t head[HEADER_V3 + 64 + QCOW2_MAX_BACKING] = { 0 }, table[8], counts[2048] = { 0 };

	/* One block of counts is enough for the tables of the largest disk that there is. */
	if (entries * 8 > MAX_L1 || clusters * 2 > sizeof counts)
		return err_set(err, EFBIG, "a qcow2 image cannot be that large");
	if (backing && strlen(backing) > QCOW2_MAX_BACKING)
		return err_set(err, ENAMETOOLONG, "the path of its image has more than %d bytes",
			       QCOW2_MAX_BACKING);
	for (uint64_t i = 0; i < clusters; i++)
		put(counts + i * 2, 2, 1);
	put(table, 8, REFBLOCK_AT);
	/* The header last: until then it is no image. */
	if (ftruncate(fd, (off_t)(clusters * CLUSTER)))
		return err_set(err, errno, "%s", g_strerror(errno));
	return write_at(fd, counts, clusters * 2, REFBLOCK_AT, err) &&
	       write_at(fd, table, sizeof table, REFTABLE_AT, err) &&
	       write_at(fd, head, fill_header(head, size, entries, backing, backing_format), 0,
			err);
}
