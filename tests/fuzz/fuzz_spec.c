/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as spec.yaml. What must hold: a document that is good is good from its beginning, its
 * diff with itself is empty, and sentences are one printable line. Seeds: tests/data/spec.
 */
#include <stdlib.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(const GError *error)
{
	if (!error || err_code(error) <= 0 || strlen(error->message) > 1000 ||
	    strpbrk(error->message, "\n\r") || !g_utf8_validate(error->message, -1, NULL))
		abort();
}

static void check_spec(const Spec *spec)
{
	g_autoptr(Spec) empty = spec_default();
	g_autoptr(GPtrArray) same = spec_diff(spec, spec);
	g_autoptr(GPtrArray) to = spec_diff(spec, empty), from = spec_diff(empty, spec);
	g_autoptr(GPtrArray) paths = spec_paths(spec);

	g_autoptr(Spec) copy = spec_merge(spec, spec, "");
	g_autoptr(GPtrArray) changes = copy ? spec_diff(copy, spec) : NULL;

	if (!changes || changes->len)
		abort();
	if (same->len || to->len != from->len)
		abort();
	if (spec->memory % (1 << 20) || !spec->cpus || spec->cpus > SPEC_MAX_CPUS ||
	    spec->disks->len > SPEC_MAX_ITEMS || spec->nics->len > SPEC_MAX_ITEMS)
		abort();
	for (unsigned i = 0; i < spec->disks->len; i++) {
		const SpecDisk *disk = spec->disks->pdata[i];

		if ((disk->image && disk->file) || (!disk->image && !disk->file && !disk->size))
			abort();
	}
	for (unsigned i = 0; i < paths->len; i++) {
		const SpecPath *path = paths->pdata[i];

		if ((*path->path != '/' && !g_str_has_suffix(path->key, ".image")) || !path->line)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	g_autoptr(GError) error = NULL;
	g_autoptr(Spec) spec = spec_parse(text, size, &error);

	if (spec)
		check_spec(spec);
	else
		check_error(error);
	/* Only the text up to a line end is looked at, so these cuts are all the cuts. */
	for (size_t cut = 0; cut <= size; cut++) {
		g_autoptr(GError) early = NULL;

		if (cut < size && (!cut || text[cut - 1] != '\n'))
			continue;
		if (spec_parse_prefix(text, cut, &early))
			continue;
		check_error(early);
		if (spec)
			abort();
	}
	return 0;
}
