/* SPDX-License-Identifier: Apache-2.0 */
/*
 * YAML text to a tree with places, over libyaml's events. A strict subset: one document, no
 * anchors, aliases, tags or merge keys, keys are words. Pure; any thread.
 *
 * (Not called yaml.h: that is libyaml's own header.)
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

typedef enum YamlKind { YAML_IS_SCALAR, YAML_IS_SEQUENCE, YAML_IS_MAPPING } YamlKind;

typedef struct YamlNode {
	YamlKind kind;
	unsigned line, column; /* from 1 */
	size_t start, end;     /* bytes of the text; of a block collection only start is known */
	/* Text that is still to come may add to it: judge what is there, not what is missing. */
	bool open;
	bool plain;	  /* scalar: neither quoted nor a block */
	bool flow;	  /* collection: in brackets */
	char *text;	  /* scalar: UTF-8 without NUL */
	GPtrArray *items; /* of YamlNode: the items; of a mapping: key, value, key, value... */
} YamlNode;

typedef struct YamlTree {
	YamlNode *root; /* what was read, up to the error if there is one; NULL: nothing */
	GError *error;	/* EINVAL, "line 3, column 9: ..."; NULL: the text is one good document */
	bool is_final;	/* no text appended to this one can mend the error */
} YamlTree;

typedef struct YamlLimits {
	unsigned depth; /* at most YAML_MAX_DEPTH */
	unsigned items; /* of a sequence, pairs of a mapping */
} YamlLimits;

#define YAML_MAX_DEPTH 32

/*
 * Read text. With `prefix` it is the beginning of a document, cut after a line: nodes are marked
 * open where the cut leaves that undecided. The caller bounds len.
 */
void yaml_load(YamlTree *tree, const char *text, size_t len, bool prefix, const YamlLimits *max);
void yaml_tree_clear(YamlTree *tree);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(YamlTree, yaml_tree_clear)

/* The pairs of a mapping; the last may lack its value (NULL) where reading stopped. */
unsigned yaml_pairs(const YamlNode *map);
const YamlNode *yaml_key(const YamlNode *map, unsigned i);
const YamlNode *yaml_value(const YamlNode *map, unsigned i);
/* The key node of that name, or NULL; its value goes to *ret_value (which may be NULL). */
const YamlNode *yaml_find(const YamlNode *map, const char *name, const YamlNode **ret_value);

/* Nothing was given: `key:` or `key: null`. */
bool yaml_is_null(const YamlNode *node);
