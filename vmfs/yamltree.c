/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libyaml's events to a tree. Memory is bounded by the text (libyaml never expands anything here:
 * aliases are refused) and depth by the limits, so recursion over a tree is safe.
 *
 * How a prefix is judged: libyaml pulls text only when it must look further. What it reports
 * before it has asked for more than there is holds for every continuation; so does an error that
 * it places before the cut. What else it reports after that may be due to the cut.
 */
#include "vmfs/yamltree.h"

#include <errno.h>
#include <string.h>
#include <yaml.h>

#include "vmfs/err.h"

typedef struct Loader {
	YamlTree *tree;
	const YamlLimits *max;
	const char *text;
	size_t len, taken;
	size_t index, at; /* of the place that was asked for last: in characters, in bytes */
	bool prefix;
	bool hit_end; /* libyaml has looked past the text */
	bool had_document;
	unsigned depth;
	YamlNode *stack[YAML_MAX_DEPTH]; /* borrowed from the tree */
	YamlNode *last;			 /* what was just read, if a scalar; borrowed */
} Loader;

/* What users do, by what libyaml says of it. */
static const struct {
	const char *problem, *advice;
} advices[] = {
	{ "mapping values are not allowed in this context",
	  "is a line indented too far, or does a value with ': ' in it need quotes?" },
	{ "found character that cannot start any token",
	  "put the value in quotes; YAML wants spaces for indentation, not tabs" },
	{ "did not find expected key", "is the line indented like the one above it?" },
	{ "could not find expected ':'", "write 'key: value', with a space after the colon" },
	{ "found unexpected end of stream", "a closing quote is missing" },
	{ "did not find expected ',' or '}'", "a '}' or ',' is missing" },
	{ "did not find expected ',' or ']'", "a ']' or ',' is missing" },
	{ "block sequence entries are not allowed in this context",
	  "begin the list on a line of its own" },
};

static void node_free(void *arg)
{
	YamlNode *node = arg;

	if (!node)
		return;
	g_free(node->text);
	if (node->items)
		g_ptr_array_unref(node->items);
	g_free(node);
}

void yaml_tree_clear(YamlTree *tree)
{
	g_clear_pointer(&tree->root, node_free);
	g_clear_error(&tree->error);
}

unsigned yaml_pairs(const YamlNode *map)
{
	return (map->items->len + 1) / 2;
}

const YamlNode *yaml_key(const YamlNode *map, unsigned i)
{
	return map->items->pdata[2 * i];
}

const YamlNode *yaml_value(const YamlNode *map, unsigned i)
{
	return 2 * i + 1 < map->items->len ? map->items->pdata[2 * i + 1] : NULL;
}

const YamlNode *yaml_find(const YamlNode *map, const char *name, const YamlNode **ret_value)
{
	if (!map || map->kind != YAML_IS_MAPPING)
		return NULL;
	for (unsigned i = 0; i < yaml_pairs(map); i++) {
		if (strcmp(yaml_key(map, i)->text, name) != 0)
			continue;
		if (ret_value)
			*ret_value = yaml_value(map, i);
		return yaml_key(map, i);
	}
	return NULL;
}

bool yaml_is_null(const YamlNode *node)
{
	static const char *const words[] = { "", "~", "null", "Null", "NULL", NULL };

	return node->kind == YAML_IS_SCALAR && node->plain && g_strv_contains(words, node->text);
}

static int read_text(void *arg, unsigned char *buffer, size_t size, size_t *ret_size)
{
	Loader *l = arg;
	size_t n = MIN(size, l->len - l->taken);

	memcpy(buffer, l->text + l->taken, n);
	l->taken += n;
	if (!n)
		l->hit_end = true;
	*ret_size = n;
	return 1;
}

static bool refuse(Loader *l, const yaml_mark_t *at, const char *why)
{
	l->tree->is_final = true;
	return err_set(&l->tree->error, EINVAL, "line %zu, column %zu: %s", at->line + 1,
		       at->column + 1, why);
}

/* The place of a byte, for what is found without libyaml. */
static yaml_mark_t mark_of(const char *text, const char *at)
{
	yaml_mark_t mark = { 0 };

	for (const char *p = text; p < at; p++) {
		if (*p == '\n') {
			mark.line++;
			mark.column = 0;
		} else if (((unsigned char)*p & 0xc0) != 0x80) {
			mark.column++;
		}
	}
	return mark;
}

/*
 * What the whole text must fulfil. libyaml would take tabs in some places of some styles; one rule
 * for all lines is easier to explain.
 */
static bool check_text(Loader *l)
{
	const char *end = l->text + l->len, *bad, *line = l->text;
	yaml_mark_t mark;

	if (!g_utf8_validate(l->text, (gssize)l->len, &bad)) {
		mark = mark_of(l->text, bad);
		return refuse(l, &mark, *bad ? "this is not UTF-8" : "a NUL byte");
	}
	while (line && line < end) {
		while (line < end && *line == ' ')
			line++;
		if (line < end && *line == '\t') {
			mark = mark_of(l->text, line);
			return refuse(l, &mark, "a tab: YAML wants spaces for indentation");
		}
		line = memchr(line, '\n', (size_t)(end - line));
		if (line)
			line++;
	}
	return true;
}

static void take_parser_error(Loader *l, const yaml_parser_t *parser)
{
	const char *problem = parser->problem ? parser->problem : "not YAML", *advice = NULL;
	g_autoptr(GString) s = g_string_new(NULL);
	yaml_mark_t mark = parser->problem_mark;

	/* libyaml looks up to four characters ahead, but what it lacks it misses at the end. */
	l->tree->is_final = !l->hit_end || mark.line < mark_of(l->text, l->text + l->len).line;
	if (parser->error == YAML_READER_ERROR) {
		/* The reader runs ahead of the scanner; its verdict is about one character. */
		l->tree->is_final = true;
		mark = mark_of(l->text, l->text + MIN(parser->problem_offset, l->len));
	}
	/* "cpus: 2" and an indented "memory: 1": to call "2 memory" a bad number would mislead. */
	if (l->last && l->last->plain && (l->tree->is_final || !l->prefix))
		l->last->open = true;
	g_string_append_printf(s, "line %zu, column %zu: %s", mark.line + 1, mark.column + 1,
			       problem);
	if (parser->context)
		g_string_append_printf(s, " %s that begins on line %zu", parser->context,
				       parser->context_mark.line + 1);
	for (size_t i = 0; i < G_N_ELEMENTS(advices); i++)
		if (strcmp(advices[i].problem, problem) == 0)
			advice = advices[i].advice;
	if (advice)
		g_string_append_printf(s, ": %s", advice);
	err_set(&l->tree->error, parser->error == YAML_MEMORY_ERROR ? ENOMEM : EINVAL, "%s",
		s->str);
}

/* libyaml counts characters, and leaves a byte order mark out. */
static size_t byte_of(Loader *l, const yaml_mark_t *mark)
{
	if (!l->at && g_str_has_prefix(l->text, "\xef\xbb\xbf"))
		l->at = 3;
	for (; l->index < mark->index && l->at < l->len; l->index++)
		l->at = (size_t)(g_utf8_next_char(l->text + l->at) - l->text);
	for (; l->index > mark->index; l->index--)
		l->at = (size_t)(g_utf8_prev_char(l->text + l->at) - l->text);
	return l->at;
}

/* Hang the node into the collection that is being read. It is the tree's either way. */
static bool add_node(Loader *l, YamlNode *node, const yaml_mark_t *at)
{
	YamlNode *parent = l->depth ? l->stack[l->depth - 1] : NULL;
	g_autofree char *why = NULL;
	bool in_map = parent && parent->kind == YAML_IS_MAPPING;
	bool is_key = in_map && parent->items->len % 2 == 0;

	if (!parent) {
		l->tree->root = node;
		return true;
	}
	if (is_key && node->kind != YAML_IS_SCALAR)
		why = g_strdup("a key must be a word");
	else if (is_key && node->plain && strcmp(node->text, "<<") == 0)
		why = g_strdup("merge keys (<<) are not supported");
	else if (parent->items->len >= l->max->items * (in_map ? 2 : 1))
		why = g_strdup_printf("more than %u entries", l->max->items);
	if (why) {
		node_free(node);
		return refuse(l, at, why);
	}
	g_ptr_array_add(parent->items, node);
	return true;
}

static YamlNode *node_new(Loader *l, YamlKind kind, const yaml_mark_t *at)
{
	YamlNode *node = g_new0(YamlNode, 1);

	node->kind = kind;
	node->line = (unsigned)at->line + 1;
	node->column = (unsigned)at->column + 1;
	node->start = byte_of(l, at);
	if (kind != YAML_IS_SCALAR)
		node->items = g_ptr_array_new_with_free_func(node_free);
	return node;
}

static bool add_scalar(Loader *l, const yaml_event_t *event)
{
	const char *text = (const char *)event->data.scalar.value;
	yaml_scalar_style_t style = event->data.scalar.style;
	YamlNode *node;

	/* "\0" in double quotes */
	if (strlen(text) != event->data.scalar.length)
		return refuse(l, &event->start_mark, "a NUL character");
	node = node_new(l, YAML_IS_SCALAR, &event->start_mark);
	node->end = byte_of(l, &event->end_mark);
	node->text = g_strdup(text);
	node->plain = style == YAML_PLAIN_SCALAR_STYLE;
	/*
	 * A plain scalar at the cut counts as complete, although more words may follow on an
	 * indented line: no value that is bad becomes good by appended words. Null is not a value.
	 */
	if (l->prefix && l->hit_end)
		node->open = style == YAML_LITERAL_SCALAR_STYLE ||
			     style == YAML_FOLDED_SCALAR_STYLE || yaml_is_null(node);
	if (!add_node(l, node, &event->start_mark))
		return false;
	l->last = node;
	return true;
}

static bool open_collection(Loader *l, YamlKind kind, bool flow, const yaml_mark_t *at)
{
	YamlNode *node;

	if (l->depth >= MIN(l->max->depth, YAML_MAX_DEPTH)) {
		g_autofree char *why = g_strdup_printf("more than %u levels", l->max->depth);

		return refuse(l, at, why);
	}
	node = node_new(l, kind, at);
	node->open = true;
	node->flow = flow;
	if (!add_node(l, node, at))
		return false;
	l->stack[l->depth++] = node;
	return true;
}

static void close_collection(Loader *l, const yaml_mark_t *end)
{
	YamlNode *node = l->stack[--l->depth];

	if (node->flow)
		node->end = byte_of(l, end);
	l->last = NULL;
	/* A bracket ends a flow collection and all in it; a block may go on after the cut. */
	node->open = l->prefix && l->hit_end && !node->flow;
	for (unsigned i = 0; node->flow && i < node->items->len; i++)
		((YamlNode *)node->items->pdata[i])->open = false;
}

static bool check_properties(Loader *l, const yaml_event_t *event, const void *anchor,
			     const void *tag)
{
	if (anchor)
		return refuse(l, &event->start_mark, "anchors (&) are not supported");
	if (tag)
		return refuse(l, &event->start_mark, "tags (!) are not supported");
	return true;
}

/* One event; false: reading is over, with the tree's error set unless it is the end. */
static bool take_event(Loader *l, const yaml_event_t *event)
{
	const yaml_mark_t *at = &event->start_mark;

	switch (event->type) {
	case YAML_NO_EVENT:
	case YAML_STREAM_START_EVENT:
	case YAML_DOCUMENT_END_EVENT:
		return true;
	case YAML_STREAM_END_EVENT:
		return false;
	case YAML_DOCUMENT_START_EVENT:
		if (l->had_document)
			return refuse(l, at, "a second document: there can be only one");
		l->had_document = true;
		return true;
	case YAML_ALIAS_EVENT:
		return refuse(l, at, "aliases (*) are not supported: write the value out");
	case YAML_SCALAR_EVENT:
		return check_properties(l, event, event->data.scalar.anchor,
					event->data.scalar.tag) &&
		       add_scalar(l, event);
	case YAML_SEQUENCE_START_EVENT:
		return check_properties(l, event, event->data.sequence_start.anchor,
					event->data.sequence_start.tag) &&
		       open_collection(l, YAML_IS_SEQUENCE,
				       event->data.sequence_start.style == YAML_FLOW_SEQUENCE_STYLE,
				       at);
	case YAML_MAPPING_START_EVENT:
		return check_properties(l, event, event->data.mapping_start.anchor,
					event->data.mapping_start.tag) &&
		       open_collection(l, YAML_IS_MAPPING,
				       event->data.mapping_start.style == YAML_FLOW_MAPPING_STYLE,
				       at);
	case YAML_SEQUENCE_END_EVENT:
	case YAML_MAPPING_END_EVENT:
		close_collection(l, &event->end_mark);
		return true;
	}
	return true;
}

void yaml_load(YamlTree *tree, const char *text, size_t len, bool prefix, const YamlLimits *max)
{
	Loader l = { .tree = tree, .max = max, .text = text, .len = len, .prefix = prefix };
	yaml_parser_t parser;
	yaml_event_t event;
	bool more;

	*tree = (YamlTree){ 0 };
	if (!check_text(&l))
		return;
	if (!yaml_parser_initialize(&parser)) {
		err_set(&tree->error, ENOMEM, "no memory");
		return;
	}
	yaml_parser_set_input(&parser, read_text, &l);
	do {
		if (!yaml_parser_parse(&parser, &event)) {
			take_parser_error(&l, &parser);
			break;
		}
		more = take_event(&l, &event);
		yaml_event_delete(&event);
	} while (more);
	yaml_parser_delete(&parser);
}
