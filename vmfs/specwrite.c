/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A spec from two others, by the rows of spec.c: written as text and read again, so that what is
 * stored of it is what is meant: a line a key, as in a document that a person wrote.
 */
#include <inttypes.h>
#include <string.h>

#include "vmfs/specfield.h"
#include "vmfs/specval.h"

/* What is written: `have`, but for `key`, which is taken from `want`. */
typedef struct Writer {
	const char *key;
} Writer;

static void write_section(const Writer *w, GString *out, const char *prefix, const Section *s,
			  const void *want, const void *have);

static void write_comma(GString *out)
{
	if (out->len && out->str[out->len - 1] != '{')
		g_string_append(out, ", ");
}

/* A name that the user chose may look like anything. */
static void begin_named(GString *out, const char *name)
{
	write_comma(out);
	specval_write_string(out, name);
	g_string_append(out, ": ");
}

static void begin_field(GString *out, const Field *f)
{
	write_comma(out);
	g_string_append_printf(out, "%s: ", f->name);
}

static void write_ports(GString *out, const GPtrArray *ports)
{
	g_string_append_c(out, '[');
	for (unsigned i = 0; i < ports->len; i++) {
		const SpecPort *p = ports->pdata[i];

		g_string_append_printf(out, "%s\"%s:%u:%u%s\"", i ? ", " : "", p->address,
				       p->host_port, p->guest_port, p->udp ? "/udp" : "");
	}
	g_string_append_c(out, ']');
}

static void write_list(GString *out, const GPtrArray *list)
{
	g_string_append_c(out, '[');
	for (unsigned i = 0; i < list->len; i++) {
		g_string_append(out, i ? ", " : "");
		specval_write_string(out, list->pdata[i]);
	}
	g_string_append_c(out, ']');
}

static void write_strings(GString *out, GHashTable *table)
{
	GHashTableIter iter;
	void *key, *value;

	g_string_append_c(out, '{');
	g_hash_table_iter_init(&iter, table);
	while (g_hash_table_iter_next(&iter, &key, &value)) {
		begin_named(out, key);
		specval_write_string(out, value);
	}
	g_string_append_c(out, '}');
}

static void write_value(GString *out, const Field *f, const void *slot)
{
	const void *pointer = NULL;
	unsigned count;
	uint64_t n;

	switch (f->type) {
	case FIELD_CHOICE:
		memcpy(&count, slot, sizeof(count));
		begin_field(out, f);
		specval_write_string(out, f->choices[count]);
		return;
	case FIELD_COUNT:
		memcpy(&count, slot, sizeof(count));
		if (!count && !f->preset) /* not given */
			return;
		begin_field(out, f);
		g_string_append_printf(out, "%u", count);
		return;
	case FIELD_SIZE:
	case FIELD_DURATION:
		memcpy(&n, slot, sizeof(n));
		if (!n && !f->preset) /* not given */
			return;
		begin_field(out, f);
		g_string_append_printf(out, "%" PRIu64 "%s", n,
				       f->type == FIELD_DURATION ? "ms" : "");
		return;
	case FIELD_BOOL:
		begin_field(out, f);
		g_string_append(out, *(const bool *)slot ? "true" : "false");
		return;
	case FIELD_WORD:
	case FIELD_PATH:
	case FIELD_IMAGE:
	case FIELD_TEXT:
	case FIELD_BLOCK:
	case FIELD_MAC:
	case FIELD_VNC:
	case FIELD_EXPIRES:
	case FIELD_PCI:
	case FIELD_USB:
	case FIELD_PORTS:
	case FIELD_LIST:
	case FIELD_STRINGS:
		memcpy(&pointer, slot, sizeof(pointer));
		break;
	case FIELD_GROUP:
	case FIELD_OPTION:
	case FIELD_NAMED:
		g_assert_not_reached();
	}
	if (!pointer)
		return;
	begin_field(out, f);
	if (f->type == FIELD_PORTS)
		write_ports(out, pointer);
	else if (f->type == FIELD_LIST)
		write_list(out, pointer);
	else if (f->type == FIELD_STRINGS)
		write_strings(out, (GHashTable *)pointer);
	else
		specval_write_string(out, pointer);
}

static const void *find_named(const GPtrArray *objects, const char *name)
{
	for (unsigned i = 0; i < objects->len; i++)
		if (strcmp(*(char **)objects->pdata[i], name) == 0)
			return objects->pdata[i];
	return NULL;
}

static void write_object(const Writer *w, GString *out, const char *prefix, const Section *s,
			 const void *want, const void *have)
{
	begin_named(out, *(char *const *)(have ? have : want));
	g_string_append_c(out, '{');
	write_section(w, out, prefix, s, want ? want : have, have ? have : want);
	g_string_append_c(out, '}');
}

static void write_named(const Writer *w, GString *out, const char *path, const Section *s,
			const GPtrArray *want, const GPtrArray *have)
{
	const bool reorder = !strcmp(w->key, path);

	for (unsigned i = 0; reorder && i < want->len; i++) {
		const char *name = *(char **)want->pdata[i];
		const void *old = find_named(have, name);

		if (old)
			write_object(w, out, path, s, NULL, old);
	}
	for (unsigned i = 0; i < have->len; i++) {
		const char *name = *(char **)have->pdata[i];
		const void *other = find_named(want, name);
		g_autofree char *prefix = g_strdup_printf("%s.%s", path, name);

		if ((reorder && other) || (!other && !strcmp(w->key, prefix)))
			continue;
		write_object(w, out, prefix, s, other, have->pdata[i]);
	}
	/* New ones come last: the guest numbers them so, whatever the document says. */
	for (unsigned i = 0; i < want->len; i++) {
		const char *name = *(char **)want->pdata[i];
		g_autofree char *prefix = g_strdup_printf("%s.%s", path, name);

		if (!find_named(have, name) && !strcmp(w->key, prefix))
			write_object(w, out, prefix, s, want->pdata[i], NULL);
	}
}

static void write_option(const Writer *w, GString *out, const char *path, const Field *f,
			 const void *want, const void *have)
{
	const void *from = strcmp(w->key, path) ? have : want;

	if (!*(const bool *)spec_field_slot(f, from))
		return;
	begin_field(out, f);
	g_string_append_c(out, '{');
	write_section(w, out, path, f->section, want, from);
	g_string_append_c(out, '}');
}

static void write_field(const Writer *w, GString *out, const char *prefix, const Field *f,
			const void *want, const void *have)
{
	g_autofree char *path = g_strconcat(prefix, *prefix ? "." : "", f->name, NULL);
	const void *a = spec_field_slot(f, want), *b = spec_field_slot(f, have);

	if (f->type == FIELD_GROUP) {
		g_autoptr(GString) inner = g_string_new(NULL);

		write_section(w, inner, path, f->section, want, have);
		if (!inner->len)
			return;
		begin_field(out, f);
		g_string_append_printf(out, "{%s}", inner->str);
	} else if (f->type == FIELD_OPTION) {
		write_option(w, out, path, f, want, have);
	} else if (f->type == FIELD_NAMED) {
		begin_field(out, f);
		g_string_append_c(out, '{');
		write_named(w, out, path, f->section, *(GPtrArray *const *)a,
			    *(GPtrArray *const *)b);
		g_string_append_c(out, '}');
	} else {
		write_value(out, f, !strcmp(w->key, path) ? a : b);
	}
}

static void write_section(const Writer *w, GString *out, const char *prefix, const Section *s,
			  const void *want, const void *have)
{
	for (const Field *f = s->fields; f->name; f++)
		write_field(w, out, prefix, f, want, have);
}

Spec *spec_merge(const Spec *have, const Spec *want, const char *key)
{
	const Writer w = { .key = key };
	g_autoptr(GString) out = g_string_new(NULL);

	for (const Field *f = spec_section.fields; f->name; f++) {
		g_autoptr(GString) line = g_string_new(NULL);

		write_field(&w, line, "", f, want, have);
		if (line->len)
			g_string_append_printf(out, "%s\n", line->str);
	}
	return spec_restore(out->str, out->len, NULL);
}

/* What `spec` has of these otherwise than `base`: pairs. */
static void write_core(GString *out, const Section *s, const void *spec, const void *base)
{
	for (const Field *f = s->fields; f->name; f++) {
		const void *slot = spec_field_slot(f, spec), *other = spec_field_slot(f, base);
		g_autoptr(GString) text = g_string_new(NULL), same = g_string_new(NULL);

		if (f->type == FIELD_GROUP) {
			write_core(text, f->section, spec, base);
			if (!text->len)
				continue;
			begin_field(out, f);
			g_string_append_printf(out, "{%s}", text->str);
		} else if (f->of_core) {
			write_value(text, f, slot);
			write_value(same, f, other);
			if (!g_string_equal(text, same))
				write_value(out, f, slot);
		}
	}
}

Spec *spec_with_core(const Spec *have, const Spec *core, const char *but)
{
	gsize len;
	const char *bytes = g_bytes_get_data(have->text, &len);
	g_autoptr(GString) out = g_string_new_len(bytes, (gssize)len);

	for (const Field *f = spec_section.fields; f->name; f++) {
		const Field one[] = { *f, { 0 } };
		const Section s = { .fields = one };
		g_autoptr(GString) pair = g_string_new(NULL);

		if (strcmp(f->name, but) != 0)
			write_core(pair, &s, core, have);
		if (pair->len)
			g_string_append_printf(out, "%s\n", pair->str);
	}
	return spec_restore(out->str, out->len, NULL);
}
