/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as spec.yaml, one entry put in and taken out again. What must hold: a change that the
 * splicer makes of a good document is a good document that differs in that entry and in nothing
 * else, or reading tells; and no byte is read that is not there. Seeds: tests/data/spec.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/spec.h"
#include "vmfs/yamlsplice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static Spec *change(const Spec *spec, const YamlEdit *edit)
{
	g_autofree char *key = g_strdup_printf("%s.%s", edit->section, edit->name);
	const bool there = spec_named(spec, key) != NULL;
	g_autoptr(GError) error = NULL, unreadable = NULL;
	g_autoptr(GPtrArray) keys = NULL;
	GString *out;
	Spec *after;
	gsize len;
	const char *text = g_bytes_get_data(spec->text, &len);

	if (there == !!edit->value)
		return NULL;
	out = yaml_splice(text ? text : "", len, edit, &error);
	if (!out) {
		if (err_code(error) != EINVAL)
			abort();
		return NULL;
	}
	after = spec_parse(out->str, out->len, &unreadable);
	g_string_free(out, TRUE);
	if (!after)
		return NULL; /* which the caller refuses, as it does what differs otherwise */
	keys = spec_diff(after, spec);
	if (keys->len == 1 && !strcmp(keys->pdata[0], key) &&
	    !spec_named(after, key) != !!edit->value)
		return after;
	spec_unref(after);
	abort();
}

/* In the place of one that is there: whatever it was, nothing else is another. */
static void replace(const Spec *spec, const YamlEdit *edit)
{
	g_autofree char *key = g_strdup_printf("%s.%s", edit->section, edit->name);
	g_autofree char *below = g_strconcat(key, ".", NULL);
	gsize len;
	const char *text = g_bytes_get_data(spec->text, &len);
	GString *out = yaml_splice(text ? text : "", len, edit, NULL);
	g_autoptr(Spec) after = out ? spec_parse(out->str, out->len, NULL) : NULL;
	g_autoptr(GPtrArray) keys = after ? spec_diff(after, spec) : NULL;

	if (out)
		g_string_free(out, TRUE);
	for (unsigned i = 0; keys && i < keys->len; i++)
		if (!g_str_has_prefix(keys->pdata[i], below))
			abort();
}

static void in_and_out(const Spec *spec, const char *section, const char *value, const char *preset)
{
	const YamlEdit in = { section, "zz-9", value, preset },
		       out = { section, "zz-9", NULL, preset };
	g_autoptr(Spec) with = change(spec, &in);
	g_autoptr(Spec) without = with ? change(with, &out) : NULL;
	g_autoptr(GPtrArray) keys = without ? spec_diff(without, spec) : NULL;

	if (keys && keys->len)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(Spec) spec = spec_parse((const char *)data, size, NULL);

	if (!spec)
		return 0;
	in_and_out(spec, "disks", "{file: /zz}", NULL);
	in_and_out(spec, "nics", "{network: user}", "eth0");
	for (unsigned i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];
		const YamlEdit out = { "disks", d->name, NULL, NULL };
		const YamlEdit over = { "disks", d->name, "{file: /zz}", NULL, true };

		spec_unref(change(spec, &out));
		replace(spec, &over);
	}
	for (unsigned i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];
		const YamlEdit out = { "nics", n->name, NULL, "eth0" };

		spec_unref(change(spec, &out));
	}
	return 0;
}
