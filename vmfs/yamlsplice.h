/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes to a YAML text that leave the rest of it as the user wrote it: comments, order, layout.
 * Pure; any thread.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

/* One entry of a mapping that is a value at the top of the document. */
typedef struct YamlEdit {
	const char *section; /* key of the mapping: "disks" */
	const char *name;    /* key of the entry */
	const char *value;   /* the entry's new value in flow style; NULL: the entry goes */
	const char *preset;  /* entry that is meant while the section is missing; NULL: none */
	bool over; /* one of that name may be there. Of a mapping that has the keys of the new
		    * value only these are changed. */
} YamlEdit;

/*
 * The changed text; NULL with EINVAL where it is written in a way that cannot be changed so. The
 * caller must read the result and see that it means what it should.
 */
GString *yaml_splice(const char *text, size_t len, const YamlEdit *edit, GError **err);

/* A word or a path as a scalar, in quotes where it needs them; owned by the caller. */
char *yaml_quote(const char *text);
