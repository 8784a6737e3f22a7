/* SPDX-License-Identifier: Apache-2.0 */
/* The manual of the tree, made from the same rows that make the tree. */
#include <string.h>

#include "vmfs/netspec.h"
#include "vmfs/node.h"

typedef void (*RowFn)(const Node *n, const char *path, GString *out);

/* The row in .io/ that a link to a stream leads to, or the row itself. */
static const Node *behind_link(const Node *n)
{
	if (n->target)
		for (const Node *row = io_dir.rows; row->name; row++)
			if (!strcmp(row->name, n->name))
				return row;
	return n;
}

static const char *access_of(const Node *n)
{
	n = behind_link(n);
	if (n->dir)
		return "dir";
	if (n->target || n->link)
		return "link";
	if (!(n->mode & 0222))
		return "r";
	return n->mode & 0444 ? "rw" : "w";
}

static void walk(const Node *n, const char *path, RowFn fn, GString *out)
{
	const Dir *d = n->dir;

	fn(n, path, out);
	for (const Node *row = d ? d->rows : NULL; row && row->name; row++) {
		g_autofree char *sub = g_strconcat(path, row->name, row->dir ? "/" : "", NULL);

		walk(row, sub, fn, out);
	}
	if (d && d->child) {
		g_autofree char *sub =
			g_strconcat(path, d->child->name, d->child->dir ? "/" : "", NULL);

		walk(d->child, sub, fn, out);
	}
}

static void help_row(const Node *n, const char *path, GString *out)
{
	g_string_append_printf(out, "%-30s %-5s%s\n", path, access_of(n), n->doc);
}

/* From v on, the first that is a word for `state`; or the end of the table. */
static const Verb *first_word(const Verb *v)
{
	while (v->silent)
		v++;
	return v;
}

static const char *argument(const Verb *v)
{
	return v->seconds ? " [SECONDS]" : v->word ? " SNAPSHOT" : "";
}

void node_help(GString *out)
{
	g_string_append(out, "FILES\n");
	walk(&root_node, "/", help_row, out);
	g_string_append(out, "\nVERBS, written to NAME/state\n");
	for (const Verb *v = first_word(verbs); v->name; v = first_word(v + 1))
		g_string_append_printf(out, "%s%-*s %s\n", v->name, (int)(16 - strlen(v->name)),
				       argument(v), v->doc);
	g_string_append(out, "running, stopped, paused, asleep: make it so; done at once if it is\n"
			     "\nKEYS of NAME/spec.yaml\n");
	spec_help(out);
	g_string_append(out, "\nKEYS of .vmfs/networks/NAME/spec.yaml\n");
	netspec_help(out);
}

/* scdoc(5) gives these a meaning of their own. */
static void man_text(const char *text, GString *out)
{
	for (; *text; text++) {
		if (strchr("\\*_|[]<>#`~", *text))
			g_string_append_c(out, '\\');
		g_string_append_c(out, *text);
	}
}

static void man_row(const Node *n, const char *path, GString *out)
{
	g_string_append(out, "*");
	man_text(path, out);
	g_string_append_printf(out, "* (%s)\n\t", access_of(n));
	man_text(n->doc, out);
	g_string_append(out, "\n\n");
}

void node_man(GString *out)
{
	g_string_append(out, "# FILES\n\n");
	walk(&root_node, "/", man_row, out);
	g_string_append(out, "# VERBS\n\nOne write to _NAME/state_ is one command.\n\n");
	for (const Verb *v = first_word(verbs); v->name; v = first_word(v + 1)) {
		g_string_append_printf(out, "*%s*%s\n\t", v->name, argument(v));
		man_text(v->doc, out);
		g_string_append(out, "\n\n");
	}
	g_string_append(
		out,
		"*running*, *stopped*, *paused*, *asleep*\n\tMake it so; done at once if it is.\n\n"
		"# KEYS OF SPEC.YAML\n\n```\n");
	spec_help(out);
	g_string_append(out, "```\n\n# KEYS OF A NETWORK'S SPEC.YAML\n\n```\n");
	netspec_help(out);
	g_string_append(out, "```\n");
}

/* '|' parts the cells of a table. */
static void markdown_text(const char *text, GString *out)
{
	for (; *text; text++) {
		if (*text == '|')
			g_string_append_c(out, '\\');
		g_string_append_c(out, *text);
	}
}

static void markdown_row(const Node *n, const char *path, GString *out)
{
	/* What the links lead to needs no rows of its own. */
	if (strstr(path, ".io/") || !strcmp(path, "/"))
		return;
	g_string_append_printf(out, "| `%s` | %s | ", path + 1, access_of(n));
	markdown_text(n->doc, out);
	g_string_append(out, " |\n");
}

void node_markdown(GString *out)
{
	g_string_append(out, "<!-- tree -->\n| file | | what |\n|---|---|---|\n");
	walk(&root_node, "/", markdown_row, out);
	g_string_append(out, "<!-- verbs -->\n| written to `state` | |\n|---|---|\n");
	for (const Verb *v = first_word(verbs); v->name; v = first_word(v + 1))
		g_string_append_printf(out, "| `%s%s` | %s |\n", v->name, argument(v), v->doc);
	g_string_append(
		out,
		"| `running`, `stopped`, `paused`, `asleep` | make it so; done at once if it is |\n"
		"<!-- keys -->\n```\n");
	spec_help(out);
	g_string_append(out, "```\n<!-- networks -->\n```\n");
	netspec_help(out);
	g_string_append(out, "```\n<!-- end -->\n");
}
