/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of spec.yaml's keys: inside of spec.c (what the keys are, and walks over the result) and
 * specread.c (from text).
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmfs/spec.h"
#include "vmfs/yamltree.h"

typedef enum FieldType {
	FIELD_CHOICE,	/* an enum: index in choices */
	FIELD_WORD,	/* char *, one of choices */
	FIELD_COUNT,	/* unsigned, min to max */
	FIELD_SIZE,	/* uint64_t, bytes, min to max, a multiple of step */
	FIELD_DURATION, /* uint64_t, ms, up to max */
	FIELD_BOOL,	/* bool */
	FIELD_PATH,	/* char * */
	FIELD_IMAGE,	/* char *, a path or a bare name */
	FIELD_TEXT,	/* char *, one line */
	FIELD_BLOCK,	/* char *, any number of lines; is never quoted in a sentence */
	FIELD_MAC,	/* char * */
	FIELD_VNC,	/* char * */
	FIELD_EXPIRES,	/* char * */
	FIELD_PCI,	/* char * */
	FIELD_USB,	/* char * */
	FIELD_GROUP,	/* a mapping whose keys are members of the same struct */
	FIELD_OPTION,	/* such a group that may be absent: bool, whether it is there */
	FIELD_NAMED,	/* GPtrArray of section's objects: a mapping by name */
	FIELD_PORTS,	/* GPtrArray of SpecPort: a sequence */
	FIELD_LIST,	/* GPtrArray of char *, each as the row's item() takes it: a sequence */
	FIELD_STRINGS,	/* GHashTable of char * to char *: a mapping */
} FieldType;

typedef struct Section Section;

typedef struct Field {
	const char *name;
	FieldType type;
	size_t offset;
	uint64_t min, max, step;
	bool of_core;	 /* takes effect at once: what runs never differs in it */
	bool of_host;	 /* what the host has limits it too, see spec_set_limits() */
	bool is_written; /* a path in a SpecDisk: the guest writes to it unless readonly */
	bool is_dir;	 /* a path of a directory */
	const char *const *choices;
	bool (*item)(const char *text, char **ret, GError **err);
	const Section *section;
	/* What an absent key means, as the user would write it (FIELD_NAMED: the only name). */
	const char *preset;
	const char *doc;
} Field;

/* One document being read. */
typedef struct Reader {
	GString *path;	  /* "disks.root" */
	GHashTable *once; /* char *: what only one place of the document may have */
	bool stored;	  /* it was good once: what this host has now does not matter */
} Reader;

struct Section {
	const Field *fields; /* ends with a row without name */
	size_t size;	     /* of the object; FIELD_NAMED: begins with its char *name */
	/* What one key alone cannot tell. In a map that is open, keys may still come. */
	bool (*check)(Reader *r, void *object, const YamlNode *map, GError **err);
	const char *example; /* of a whole document: a line of it */
};

extern const Section spec_section; /* the whole document */

/* Checks of the sections, in specread.c. */
bool spec_check_top(Reader *r, void *object, const YamlNode *map, GError **err);
bool spec_check_ssh(Reader *r, void *object, const YamlNode *map, GError **err);
bool spec_check_boot(Reader *r, void *object, const YamlNode *map, GError **err);
bool spec_check_disk(Reader *r, void *object, const YamlNode *map, GError **err);
bool spec_check_share(Reader *r, void *object, const YamlNode *map, GError **err);
bool spec_check_device(Reader *r, void *object, const YamlNode *map, GError **err);
bool spec_check_nic(Reader *r, void *object, const YamlNode *map, GError **err);

/* Where the row's value is in an object of its section. */
static inline void *spec_field_slot(const Field *f, const void *object)
{
	return (char *)object + f->offset;
}

/* A scalar row's value from text into its slot; the sentence has no place in it. */
bool spec_field_set(const Field *f, const char *text, void *slot, GError **err);
/* A named object with its presets, and its end. */
void *spec_object_new(const Section *s, const char *name);
void spec_object_free(const Section *s, void *object);
/* An object from a document of its own; with `prefix`, from the complete lines of what is to be
 * one. */
bool spec_read_object(const Section *s, void *object, const char *text, size_t len, bool prefix,
		      GError **err);
/* As spec_help(). */
void spec_help_section(GString *out, const Section *s);
/* A spec with its presets, of that text. */
Spec *spec_new(GBytes *text_take);
