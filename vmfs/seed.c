/* SPDX-License-Identifier: Apache-2.0 */
/* libarchive knows how to write ISO 9660, in a tenth of a millisecond. */
#include "vmfs/seed.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/specval.h"

/* Bytes. Those who look for a label read this much, busybox for one, or do not look at all. */
#define MIN_SIZE (512 << 10)

static void add_pair(GString *out, const char *key, const char *value)
{
	g_string_append_printf(out, "%s: ", key);
	specval_write_string(out, value);
	g_string_append_c(out, '\n');
}

static void add_unless_given(GString *out, const SpecCloudInit *c, const char *key,
			     const char *value)
{
	if (!c->meta_data || !g_hash_table_contains(c->meta_data, key))
		add_pair(out, key, value);
}

Seed *seed_new(const SpecCloudInit *c, const char *name, const char *instance_id)
{
	Seed *s = g_new0(Seed, 1);
	GString *meta = g_string_new(NULL);
	GHashTableIter it;
	gpointer key, value;

	add_unless_given(meta, c, "instance-id", instance_id);
	add_unless_given(meta, c, "local-hostname", name);
	if (c->meta_data) {
		g_hash_table_iter_init(&it, c->meta_data);
		while (g_hash_table_iter_next(&it, &key, &value))
			add_pair(meta, key, value);
	}
	if (c->ssh_keys->len)
		g_string_append(meta, "public-keys:\n");
	for (guint i = 0; i < c->ssh_keys->len; i++) {
		g_string_append(meta, "- ");
		specval_write_string(meta, c->ssh_keys->pdata[i]);
		g_string_append_c(meta, '\n');
	}
	/* It has to be there, and cloud-init warns of an empty one. */
	s->user_data = g_strdup(c->user_data ? c->user_data : "#cloud-config\n{}\n");
	s->meta_data = g_string_free(meta, FALSE);
	s->network_config = g_strdup(c->network_config);
	return s;
}

void seed_free(Seed *s)
{
	if (!s)
		return;
	g_free(s->user_data);
	g_free(s->meta_data);
	g_free(s->network_config);
	g_free(s);
}

static bool add_file(struct archive *a, const char *name, const char *text)
{
	struct archive_entry *e = archive_entry_new();
	const size_t len = strlen(text);
	bool ok;

	archive_entry_set_pathname(e, name);
	archive_entry_set_filetype(e, AE_IFREG);
	archive_entry_set_perm(e, 0400);
	archive_entry_set_size(e, (la_int64_t)len);
	ok = archive_write_header(a, e) == ARCHIVE_OK &&
	     archive_write_data(a, text, len) == (la_ssize_t)len;
	archive_entry_free(e);
	return ok;
}

bool seed_fill(int fd, const void *arg, GError **err)
{
	const Seed *s = arg;
	struct archive *a = archive_write_new();
	bool ok = archive_write_set_format_iso9660(a) == ARCHIVE_OK &&
		  archive_write_set_options(a, "volume-id=cidata,rockridge=useful,joliet,!pad") ==
			  ARCHIVE_OK &&
		  archive_write_open_fd(a, fd) == ARCHIVE_OK &&
		  add_file(a, "user-data", s->user_data) &&
		  add_file(a, "meta-data", s->meta_data) &&
		  (!s->network_config || add_file(a, "network-config", s->network_config)) &&
		  archive_write_close(a) == ARCHIVE_OK;
	const int code = ok ? 0 : archive_errno(a);
	struct stat st;

	(void)archive_write_free(a);
	if (!ok)
		return err_set(err, code > 0 ? code : EIO, "%s", g_strerror(code > 0 ? code : EIO));
	if (fstat(fd, &st) || (st.st_size < MIN_SIZE && ftruncate(fd, MIN_SIZE)))
		return err_set(err, errno, "%s", g_strerror(errno));
	return true;
}
