/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/manifest.h"

#include <errno.h>
#include <string.h>

#include "vmfs/err.h"

#define HEADER	"# vmfs snapshot "
#define VERSION "1"

static void saved_file_free(void *arg)
{
	SavedFile *f = arg;

	g_free(f->name);
	g_free(f);
}

Manifest *manifest_new(void)
{
	Manifest *m = g_rc_box_new0(Manifest);

	m->files = g_ptr_array_new_with_free_func(saved_file_free);
	m->facts = g_ptr_array_new_with_free_func(g_free);
	return m;
}

static void manifest_clear(void *arg)
{
	Manifest *m = arg;

	g_ptr_array_unref(m->files);
	g_ptr_array_unref(m->facts);
}

void manifest_unref(Manifest *m)
{
	g_rc_box_release_full(m, manifest_clear);
}

SavedFile *manifest_file(const Manifest *m, const char *name)
{
	for (guint i = 0; i < m->files->len; i++) {
		SavedFile *f = m->files->pdata[i];

		if (!strcmp(f->name, name))
			return f;
	}
	return NULL;
}

const char *manifest_fact(const Manifest *m, const char *key)
{
	const size_t len = strlen(key);

	for (guint i = 0; i < m->facts->len; i++) {
		const char *fact = m->facts->pdata[i];

		if (!strncmp(fact, key, len) && fact[len] == ' ')
			return fact + len + 1;
	}
	return NULL;
}

bool savedir_is_name(const char *name)
{
	const size_t len = strlen(name);

	if (!len || len > SAVEDIR_MAX_NAME || !g_ascii_isalnum(*name))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!g_ascii_isalnum(name[i]) && !strchr("._-", name[i]))
			return false;
	return true;
}

SavedFile *manifest_add(Manifest *m, const char *name)
{
	SavedFile *f = g_new0(SavedFile, 1);

	f->name = g_strdup(name);
	f->size = UINT64_MAX;
	g_ptr_array_add(m->files, f);
	return f;
}

static bool parse_sum(Manifest *m, const char *line, GError **err)
{
	const char *name = line + DIGEST_HEX + 2;

	if (strspn(line, "0123456789abcdef") != DIGEST_HEX || line[DIGEST_HEX] != ' ' ||
	    !line[DIGEST_HEX + 1] || !savedir_is_name(name) || !strcmp(name, SAVEDIR_MANIFEST))
		return err_set(err, EBADMSG, "manifest: '%.100s' is not a checksum and a name",
			       line);
	if (manifest_file(m, name))
		return err_set(err, EBADMSG, "manifest: two checksums of '%s'", name);
	if (m->files->len == SAVEDIR_MAX_FILES)
		return err_set(err, EBADMSG, "manifest: more than %d files", SAVEDIR_MAX_FILES);
	memcpy(manifest_add(m, name)->sha256, line, DIGEST_HEX);
	return true;
}

/* "# size 1048576 memory" tells how much there is to come; sha256sum(1) takes it for a comment. */
static void parse_sizes(Manifest *m)
{
	for (guint i = 0; i < m->facts->len; i++) {
		const char *fact = m->facts->pdata[i];
		char *end;
		guint64 size;
		SavedFile *f;

		if (!g_str_has_prefix(fact, "size "))
			continue;
		size = g_ascii_strtoull(fact + 5, &end, 10);
		f = *end == ' ' ? manifest_file(m, end + 1) : NULL;
		if (f)
			f->size = size;
	}
}

Manifest *manifest_parse(const char *data, size_t len, GError **err)
{
	g_autofree char *text = g_strndup(data, MIN(len, SAVEDIR_MAX_MANIFEST));
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
	g_autoptr(Manifest) m = manifest_new();
	guint i;

	if (!g_str_has_prefix(text, HEADER)) {
		(void)err_set(err, EBADMSG, "manifest: it does not begin with '" HEADER "'");
		return NULL;
	}
	if (strcmp(lines[0] + strlen(HEADER), VERSION)) {
		(void)err_set(
			err, ENOTSUP,
			"manifest: made by another version of vmfs: format %.20s, not " VERSION,
			lines[0] + strlen(HEADER));
		return NULL;
	}
	for (i = 1; lines[i]; i++) {
		if (g_str_has_prefix(lines[i], "# "))
			g_ptr_array_add(m->facts, g_strdup(lines[i] + 2));
		else if (*lines[i] && !parse_sum(m, lines[i], err))
			return NULL;
	}
	/* The last line has an end, or more is to come. */
	if (*lines[i - 1] || !m->files->len) {
		(void)err_set(err, EBADMSG, "manifest: it is incomplete");
		return NULL;
	}
	parse_sizes(m);
	return g_steal_pointer(&m);
}

GBytes *manifest_text(const Manifest *m)
{
	GString *out = g_string_new(HEADER VERSION "\n");
	gsize len;

	for (guint i = 0; i < m->facts->len; i++)
		g_string_append_printf(out, "# %s\n", (char *)m->facts->pdata[i]);
	for (guint i = 0; i < m->files->len; i++) {
		const SavedFile *f = m->files->pdata[i];
		g_string_append_printf(out, "# size %" G_GUINT64_FORMAT " %s\n", f->size, f->name);
	}
	for (guint i = 0; i < m->files->len; i++) {
		const SavedFile *f = m->files->pdata[i];
		g_string_append_printf(out, "%s  %s\n", f->sha256, f->name);
	}
	len = out->len;
	return g_bytes_new_take(g_string_free(out, FALSE), len);
}
