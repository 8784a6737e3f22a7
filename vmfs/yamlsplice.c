/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The places come from libyaml's marks. What a line holds beside a node of block style can only be
 * blanks and a comment, so whole lines are put in and taken out there.
 */
#include "vmfs/yamlsplice.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/yamltree.h"

#define STEP 2 /* of indentation, in what is new */

static const YamlLimits limits = { .depth = YAML_MAX_DEPTH, .items = G_MAXUINT / 2 };

typedef struct Splice {
	const char *text;
	size_t len;
	const YamlEdit *edit;
	GString *out;
} Splice;

char *yaml_quote(const char *text)
{
	static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
				   "/._+-=@";
	GString *s;

	if ((g_ascii_isalpha(*text) || *text == '/') && !text[strspn(text, safe)] &&
	    g_ascii_strcasecmp(text, "null") != 0)
		return g_strdup(text);
	s = g_string_new("\"");
	for (; *text; text++) {
		if (*text == '\t')
			g_string_append(s, "\\t");
		else if (*text == '"' || *text == '\\')
			g_string_append_printf(s, "\\%c", *text);
		else
			g_string_append_c(s, *text);
	}
	g_string_append_c(s, '"');
	return g_string_free(s, FALSE);
}

/* ---- places ---- */

static const YamlNode *last_in(const YamlNode *node)
{
	while (node->kind != YAML_IS_SCALAR && !node->flow && node->items->len)
		node = node->items->pdata[node->items->len - 1];
	return node;
}

static size_t node_end(const YamlNode *node)
{
	node = last_in(node);
	return node->kind == YAML_IS_SCALAR || node->flow ? node->end : node->start;
}

/* Behind the line in which a node of block style ends. */
static size_t after_line(const Splice *s, size_t end)
{
	const char *newline;

	/* A text in `|` has its last line end as well. */
	if (end && s->text[end - 1] == '\n')
		return end;
	newline = memchr(s->text + end, '\n', s->len - end);
	return newline ? (size_t)(newline + 1 - s->text) : s->len;
}

static size_t line_start(const Splice *s, size_t at)
{
	while (at && s->text[at - 1] != '\n')
		at--;
	return at;
}

static const char *line_break(const Splice *s)
{
	const char *newline = memchr(s->text, '\n', s->len);

	return newline && newline > s->text && newline[-1] == '\r' ? "\r\n" : "\n";
}

/* YAML has more line ends than we look for: CR alone, NEL, LS and PS. */
static bool has_odd_lines(const Splice *s)
{
	for (size_t i = 0; i < s->len; i++) {
		const char *p = s->text + i;

		if ((*p == '\r' && p[1] != '\n') || g_str_has_prefix(p, "\xc2\x85") ||
		    g_str_has_prefix(p, "\xe2\x80\xa8") || g_str_has_prefix(p, "\xe2\x80\xa9"))
			return true;
	}
	return false;
}

/* ---- changes ---- */

static void copy(const Splice *s, size_t from, size_t to)
{
	g_string_append_len(s->out, s->text + from, (gssize)(to - from));
}

static void put_line(const Splice *s, unsigned indent, const char *key, const char *value)
{
	g_string_append_printf(s->out, "%*s%s:%s%s%s", (int)indent, "", key, *value ? " " : "",
			       value, line_break(s));
}

/* Beside the entry there is the one that was meant without a section. */
static bool is_preset_too(const YamlEdit *e)
{
	return e->preset && strcmp(e->preset, e->name) != 0;
}

/* The section as it will be, where it was not there at all. */
static void put_section(const Splice *s, unsigned indent)
{
	const YamlEdit *e = s->edit;

	put_line(s, indent, e->section, e->value ? "" : "{}");
	if (!e->value)
		return;
	if (is_preset_too(e))
		put_line(s, indent + STEP, e->preset, "{}");
	put_line(s, indent + STEP, e->name, e->value);
}

static char *flow_section(const YamlEdit *e)
{
	if (!e->value)
		return g_strdup_printf("%s: {}", e->section);
	return g_strdup_printf("%s: {%s%s%s: %s}", e->section, is_preset_too(e) ? e->preset : "",
			       is_preset_too(e) ? ": {}, " : "", e->name, e->value);
}

/* The line end that ends this node now would be a part of its text: a `|` or `>` at the end. */
static bool takes_line_end(const Splice *s, const YamlNode *node)
{
	const size_t len = node->kind == YAML_IS_SCALAR ? strlen(node->text) : 0;

	return len && node->text[len - 1] != '\n' && strchr("|>", s->text[node->start]);
}

/* As far as `at`, with the node's last line end stripped, whatever its indicators say of that. */
static void copy_stripped(const Splice *s, const YamlNode *node, size_t at)
{
	const size_t indicators =
		node->start + 1 + strspn(s->text + node->start + 1, "0123456789+-");

	copy(s, 0, node->start + 1);
	for (size_t i = node->start + 1; i < indicators; i++)
		if (g_ascii_isdigit(s->text[i]))
			g_string_append_c(s->out, s->text[i]);
	g_string_append_c(s->out, '-');
	copy(s, indicators, at);
}

/*
 * Begin a line of our own at `at`, behind the node `before` (NULL: none), where a line begins or
 * the text ends without a line end.
 */
static void copy_lines(const Splice *s, const YamlNode *before, size_t at)
{
	const bool whole = !at || s->text[at - 1] == '\n';

	if (!whole && before && takes_line_end(s, last_in(before)))
		copy_stripped(s, last_in(before), at);
	else
		copy(s, 0, at);
	if (!whole)
		g_string_append(s->out, line_break(s));
}

static void insert_flow(const Splice *s, const YamlNode *map, const char *entry)
{
	const YamlNode *last = map->items->len ? map->items->pdata[map->items->len - 1] : NULL;
	const size_t at = last ? node_end(last) : map->start + 1;

	copy(s, 0, at);
	g_string_append_printf(s->out, "%s%s", last ? ", " : "", entry);
	copy(s, at, s->len);
}

static void insert_section(const Splice *s, const YamlNode *root)
{
	g_autofree char *flow = flow_section(s->edit);
	size_t at = s->len;

	if (root && root->kind == YAML_IS_MAPPING && root->flow) {
		insert_flow(s, root, flow);
	} else if (root && root->kind == YAML_IS_SCALAR && root->start != root->end) {
		/* null, in letters */
		copy(s, 0, root->start);
		g_string_append_printf(s->out, "{%s}", flow);
		copy(s, root->end, s->len);
	} else {
		const bool map = root && root->kind == YAML_IS_MAPPING;

		if (map)
			at = after_line(s, node_end(root));
		copy_lines(s, map ? root : NULL, at);
		put_section(s, map ? root->column - 1 : 0);
		copy(s, at, s->len);
	}
}

static void insert_entry(const Splice *s, const YamlNode *map)
{
	g_autofree char *entry = g_strdup_printf("%s: %s", s->edit->name, s->edit->value);

	if (map->flow) {
		insert_flow(s, map, entry);
	} else {
		const size_t at = after_line(s, node_end(map));

		copy_lines(s, map, at);
		put_line(s, map->column - 1, s->edit->name, s->edit->value);
		copy(s, at, s->len);
	}
}

static void remove_flow(const Splice *s, const YamlNode *map, unsigned i)
{
	const unsigned n = yaml_pairs(map);
	size_t from, to;

	if (n == 1) {
		copy(s, 0, map->start + 1);
		copy(s, map->end - 1, s->len);
		return;
	}
	if (i + 1 < n) {
		from = yaml_key(map, i)->start;
		to = yaml_key(map, i + 1)->start;
	} else {
		from = node_end(yaml_value(map, i - 1));
		to = node_end(yaml_value(map, i));
	}
	copy(s, 0, from);
	copy(s, to, s->len);
}

static bool remove_block(const Splice *s, const YamlNode *section, const YamlNode *map, unsigned i)
{
	const size_t key = yaml_key(map, i)->start, from = line_start(s, key);
	const size_t to = after_line(s, node_end(yaml_value(map, i)));
	size_t colon = section->end;

	if (from + strspn(s->text + from, " ?") < key)
		return false;
	if (yaml_pairs(map) > 1) {
		copy(s, 0, from);
		copy(s, to, s->len);
		return true;
	}
	/* Without a value the key would be an error, and without it the preset would be back. */
	colon += strspn(s->text + colon, " ");
	if (s->text[colon] != ':' || colon >= from)
		return false;
	copy(s, 0, colon + 1);
	g_string_append(s->out, " {}");
	copy(s, colon + 1, from);
	copy(s, to, s->len);
	return true;
}

static bool remove_entry(const Splice *s, const YamlNode *section, const YamlNode *map)
{
	for (unsigned i = 0; i < yaml_pairs(map); i++) {
		if (strcmp(yaml_key(map, i)->text, s->edit->name) != 0)
			continue;
		if (!map->flow)
			return remove_block(s, section, map, i);
		remove_flow(s, map, i);
		return true;
	}
	return false;
}

static void put_in_place_of(const Splice *s, const YamlNode *old, const char *value, size_t len)
{
	size_t end = node_end(old);

	/* A text in `|` has its last line end as well. */
	if (end > old->start && s->text[end - 1] == '\n')
		end--;
	copy(s, 0, old->start);
	g_string_append_len(s->out, value, (gssize)len);
	copy(s, end, s->len);
}

/* The one key of the new value, where the old one has it too. */
static bool replace_key(const Splice *s, const YamlNode *old)
{
	const char *text = s->edit->value;
	g_auto(YamlTree) tree = { 0 };
	const YamlNode *key, *value, *there;

	yaml_load(&tree, text, strlen(text), false, &limits);
	if (!tree.root || tree.root->kind != YAML_IS_MAPPING || yaml_pairs(tree.root) != 1)
		return false;
	key = yaml_key(tree.root, 0);
	value = yaml_value(tree.root, 0);
	if (old->kind != YAML_IS_MAPPING || !yaml_find(old, key->text, &there) ||
	    there->start == there->end)
		return false;
	put_in_place_of(s, there, text + value->start, value->end - value->start);
	return true;
}

static bool replace_entry(const Splice *s, const YamlNode *old)
{
	/* `name:` and nothing more has no place of its own. */
	if (old->start == node_end(old))
		return false;
	if (!replace_key(s, old))
		put_in_place_of(s, old, s->edit->value, strlen(s->edit->value));
	return true;
}

static bool splice(const Splice *s, const YamlNode *root)
{
	const YamlNode *map = NULL, *section, *old;

	if (root && root->kind != YAML_IS_MAPPING && !yaml_is_null(root))
		return false;
	section = yaml_find(root, s->edit->section, &map);
	if (section && (!map || map->kind != YAML_IS_MAPPING))
		return false;
	if (!section)
		insert_section(s, root);
	else if (s->edit->over && yaml_find(map, s->edit->name, &old))
		return replace_entry(s, old);
	else if (s->edit->value)
		insert_entry(s, map);
	else
		return remove_entry(s, section, map);
	return true;
}

GString *yaml_splice(const char *text, size_t len, const YamlEdit *edit, GError **err)
{
	/* Ends with NUL, so that it can be looked at a little past the end. */
	g_autofree char *copied = g_strndup(text, len);
	g_autoptr(GString) out = g_string_sized_new(len + 256);
	const Splice s = { .text = copied, .len = len, .edit = edit, .out = out };
	g_auto(YamlTree) tree = { 0 };

	yaml_load(&tree, copied, len, false, &limits);
	if (tree.error) {
		g_propagate_error(err, g_steal_pointer(&tree.error));
		return NULL;
	}
	if (!has_odd_lines(&s) && splice(&s, tree.root))
		return g_steal_pointer(&out);
	(void)err_set(err, EINVAL,
		      "spec.yaml is written in a way in which %s.%s cannot be changed; edit it",
		      edit->section, edit->name);
	return NULL;
}
