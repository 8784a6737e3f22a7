/* SPDX-License-Identifier: Apache-2.0 */
/* One entry put into a YAML text and taken out of it: the rest must stay as it is. */
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/yamlsplice.h"

typedef struct Case {
	const char *before, *name, *value, *after;
} Case;

// clang-format off
static const Case cases[] = {
	/* The section is missing. */
	{ "", "d", "{file: /d}", "disks:\n  d: {file: /d}\n" },
	{ "# only this\n", "d", "{file: /d}", "# only this\ndisks:\n  d: {file: /d}\n" },
	{ "cpus: 2", "d", "{file: /d}", "cpus: 2\ndisks:\n  d: {file: /d}\n" },
	{ "cpus: 2\n# last\n", "d", "{file: /d}", "cpus: 2\ndisks:\n  d: {file: /d}\n# last\n" },
	{ "---\ncpus: 2 # two\n...\n", "d", "{file: /d}",
	  "---\ncpus: 2 # two\ndisks:\n  d: {file: /d}\n...\n" },
	{ "---\n", "d", "{file: /d}", "---\ndisks:\n  d: {file: /d}\n" },
	{ "null\n", "d", "{file: /d}", "{disks: {d: {file: /d}}}\n" },
	{ "{}\n", "d", "{file: /d}", "{disks: {d: {file: /d}}}\n" },
	{ "{cpus: 2}", "d", "{file: /d}", "{cpus: 2, disks: {d: {file: /d}}}" },
	{ "  cpus: 2\n", "d", "{file: /d}", "  cpus: 2\n  disks:\n    d: {file: /d}\n" },
	{ "cpus: 2\r\n", "d", "{file: /d}", "cpus: 2\r\ndisks:\r\n  d: {file: /d}\r\n" },
	{ "\xef\xbb\xbf" "cpus: 2\n", "d", "{file: /d}",
	  "\xef\xbb\xbf" "cpus: 2\ndisks:\n  d: {file: /d}\n" },
	/* Block style. */
	{ "disks:\n  a: {file: /a}\ncpus: 2\n", "d", "{file: /d}",
	  "disks:\n  a: {file: /a}\n  d: {file: /d}\ncpus: 2\n" },
	{ "disks:\n    a:      # one\n        file: /a  # its\n\n# the rest\ncpus: 2\n", "d", "{file: /d}",
	  "disks:\n    a:      # one\n        file: /a  # its\n    d: {file: /d}\n\n# the rest\ncpus: 2\n" },
	{ "disks:\n  a:\n    file: |-\n      /a\n\ncpus: 2\n", "d", "{file: /d}",
	  "disks:\n  a:\n    file: |-\n      /a\n\n  d: {file: /d}\ncpus: 2\n" },
	{ "disks:\n  \xc3\xa4: {file: \"/\xf0\x9f\x98\x80\"} # \xe2\x82\xac\ncpus: 2\n", "d", "{file: /d}",
	  "disks:\n  \xc3\xa4: {file: \"/\xf0\x9f\x98\x80\"} # \xe2\x82\xac\n  d: {file: /d}\ncpus: 2\n" },
	{ "disks:\n  a: {file: /a}", "d", "{file: /d}", "disks:\n  a: {file: /a}\n  d: {file: /d}\n" },
	/* A text at the very end does not get the line end that is put behind it. */
	{ "cloud_init: {}\ndisks: {}\nuser: |\n  a\n  b", "d", "{file: /d}",
	  "cloud_init: {}\ndisks: {d: {file: /d}}\nuser: |\n  a\n  b" },
	{ "user: |\n  a\n  b", "d", "{file: /d}", "user: |-\n  a\n  b\ndisks:\n  d: {file: /d}\n" },
	{ "user: >+2 # x\n  a", "d", "{file: /d}", "user: >2- # x\n  a\ndisks:\n  d: {file: /d}\n" },
	{ "user: |-\n  a", "d", "{file: /d}", "user: |-\n  a\ndisks:\n  d: {file: /d}\n" },
	{ "user: |\n  a\n", "d", "{file: /d}", "user: |\n  a\ndisks:\n  d: {file: /d}\n" },
	{ "disks:\n  a:\n    file: |\n      /a", "d", "{file: /d}",
	  "disks:\n  a:\n    file: |-\n      /a\n  d: {file: /d}\n" },
	{ "user: '|'", "d", "{file: /d}", "user: '|'\ndisks:\n  d: {file: /d}\n" },
	/* Flow style. */
	{ "disks: {}\n", "d", "{file: /d}", "disks: {d: {file: /d}}\n" },
	{ "disks: { }\n", "d", "{file: /d}", "disks: {d: {file: /d} }\n" },
	{ "disks: {a: {file: /a}} # x\ncpus: 2\n", "d", "{file: /d}",
	  "disks: {a: {file: /a}, d: {file: /d}} # x\ncpus: 2\n" },
	{ "disks: {a: {file: /a},}\n", "d", "{file: /d}", "disks: {a: {file: /a}, d: {file: /d},}\n" },
	{ "disks: {\n  a: {file: /a} # x\n}\n", "d", "{file: /d}",
	  "disks: {\n  a: {file: /a}, d: {file: /d} # x\n}\n" },
	{ "{\"disks\": {\"a\": {\"file\": \"/a\"}}}", "d", "{file: /d}",
	  "{\"disks\": {\"a\": {\"file\": \"/a\"}, d: {file: /d}}}" },
	/* Out of block style. */
	{ "disks:\n  # one\n  a: {file: /a}\n  # two\n  d: {file: /d} # gone\n  # three\n  e:\n    file: /e\ncpus: 2\n",
	  "d", NULL,
	  "disks:\n  # one\n  a: {file: /a}\n  # two\n  # three\n  e:\n    file: /e\ncpus: 2\n" },
	{ "disks:\n  d:\n    file: /d\n    readonly: true\n  e: {file: /e}", "d", NULL, "disks:\n  e: {file: /e}" },
	{ "disks:\n  e: {file: /e}\n  d: {file: /d}", "d", NULL, "disks:\n  e: {file: /e}\n" },
	{ "cpus: 2\ndisks:   # all\n  # of it\n  d:\n    file: /d\n\nmemory: 1G\n", "d", NULL,
	  "cpus: 2\ndisks: {}   # all\n  # of it\n\nmemory: 1G\n" },
	{ "disks :\n  d: {file: /d}\n", "d", NULL, "disks : {}\n" },
	{ "disks:\n  ? d\n  : {file: /d}\n  e: {file: /e}\n", "d", NULL, "disks:\n  e: {file: /e}\n" },
	{ "disks:\n  d:\n    file: |-\n      /d\n  e: {file: /e}\n", "d", NULL, "disks:\n  e: {file: /e}\n" },
	/* Out of flow style. */
	{ "disks: {d: {file: /d}}\n", "d", NULL, "disks: {}\n" },
	{ "disks: { d: {file: /d} } # x\n", "d", NULL, "disks: {} # x\n" },
	{ "disks: {a: {file: /a}, d: {file: /d}}\n", "d", NULL, "disks: {a: {file: /a}}\n" },
	{ "disks: {d: {file: /d}, a: {file: /a}}\n", "d", NULL, "disks: {a: {file: /a}}\n" },
	{ "disks: {a: 1, d: 2, e: 3}\n", "d", NULL, "disks: {a: 1, e: 3}\n" },
	{ "disks: {\n  a: {file: /a},  # x\n  d: {file: /d},\n}\n", "d", NULL,
	  "disks: {\n  a: {file: /a},\n}\n" },
};

static const Case presets[] = {
	{ "cpus: 2\n", "eth1", "{network: user}",
	  "cpus: 2\nnics:\n  eth0: {}\n  eth1: {network: user}\n" },
	{ "{cpus: 2}\n", "eth1", "{}", "{cpus: 2, nics: {eth0: {}, eth1: {}}}\n" },
	{ "cpus: 2\n", "eth0", NULL, "cpus: 2\nnics: {}\n" },
	{ "nics:\n  eth0: {}\n", "eth0", NULL, "nics: {}\n" },
	{ "nics: {}\n", "eth1", "{}", "nics: {eth1: {}}\n" },
};

/* Written so that no place can be told, or not good at all. */
static const Case bad[] = {
	{ "? disks\n: d: {file: /d}\n", "d", NULL, NULL },
	{ "disks: [d]\n", "d", "{file: /d}", NULL },
	{ "disks:\n", "d", "{file: /d}", NULL },
	{ "disks: {a: 1}\n", "d", NULL, NULL },
	{ "just words\n", "d", "{file: /d}", NULL },
	{ "cpus: 2\rmemory: 1G\n", "d", "{file: /d}", NULL },
	{ "cpus: 2 # \xe2\x80\xa8\n", "d", "{file: /d}", NULL },
	{ "cpus: [\n", "d", "{file: /d}", NULL },
};

/* Where there may be one of that name. */
static const Case over[] = {
	{ "disks:\n  d: {file: /a, readonly: true}  # its\n", "d", "{file: /d}",
	  "disks:\n  d: {file: /d, readonly: true}  # its\n" },
	{ "disks:\n  d:\n    # where\n    file: '/a' # there\n    readonly: true\n", "d", "{file: \"/d d\"}",
	  "disks:\n  d:\n    # where\n    file: \"/d d\" # there\n    readonly: true\n" },
	{ "disks:\n  d:\n    file: |-\n      /a\n  e: {}\n", "d", "{file: /d}",
	  "disks:\n  d:\n    file: /d\n  e: {}\n" },
	{ "disks: {d: {size: 1GiB}, e: {}}\n", "d", "{file: /d}", "disks: {d: {file: /d}, e: {}}\n" },
	{ "disks:\n  d:\n    size: 1GiB # one\n  e: {}\n", "d", "{file: /d}",
	  "disks:\n  d:\n    {file: /d} # one\n  e: {}\n" },
	{ "disks:\n  d: {file: }\n", "d", "{file: /d}", "disks:\n  d: {file: /d}\n" },
	{ "disks:\n  e: {}\n", "d", "{file: /d}", "disks:\n  e: {}\n  d: {file: /d}\n" },
	{ "", "d", "{file: /d}", "disks:\n  d: {file: /d}\n" },
};
static const Case over_preset[] = {
	{ "", "eth0", "{network: lan}", "nics:\n  eth0: {network: lan}\n" },
	{ "{}", "eth0", "{network: lan}", "{nics: {eth0: {network: lan}}}" },
	{ "nics:\n  eth0: {mac: a}\n", "eth0", "{network: lan}", "nics:\n  eth0: {network: lan}\n" },
};
// clang-format on

static GString *run(const Case *c, const char *section, const char *preset, bool is_over,
		    GError **err)
{
	const YamlEdit edit = { .section = section,
				.name = c->name,
				.value = c->value,
				.preset = preset,
				.over = is_over };

	return yaml_splice(c->before, strlen(c->before), &edit, err);
}

static void check(const Case *c, const char *section, const char *preset, bool is_over)
{
	g_autoptr(GError) err = NULL;
	GString *out = run(c, section, preset, is_over, &err);

	g_assert_no_error(err);
	g_assert_cmpstr(out->str, ==, c->after);
	g_string_free(out, TRUE);
}

static void test_disks(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
		check(&cases[i], "disks", NULL, false);
}

static void test_presets(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(presets); i++)
		check(&presets[i], "nics", "eth0", false);
}

static void test_over(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(over); i++)
		check(&over[i], "disks", NULL, true);
	for (size_t i = 0; i < G_N_ELEMENTS(over_preset); i++)
		check(&over_preset[i], "nics", "eth0", true);
}

static void test_bad(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) err = NULL;

		g_assert_null(run(&bad[i], "disks", NULL, false, &err));
		g_assert_error(err, VMFS_ERROR, EINVAL);
	}
}

static void test_quote(void)
{
	static const char *const texts[][2] = {
		{ "/srv/data.qcow2", "/srv/data.qcow2" },
		{ "user", "user" },
		{ "null", "\"null\"" },
		{ "/srv/a b", "\"/srv/a b\"" },
		{ "/srv/a: #\t\"\\", "\"/srv/a: #\\t\\\"\\\\\"" },
		{ "8", "\"8\"" },
		{ "", "\"\"" },
	};

	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		g_autofree char *quoted = yaml_quote(texts[i][0]);

		g_assert_cmpstr(quoted, ==, texts[i][1]);
	}
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/splice/disks", test_disks);
	g_test_add_func("/splice/presets", test_presets);
	g_test_add_func("/splice/over", test_over);
	g_test_add_func("/splice/bad", test_bad);
	g_test_add_func("/splice/quote", test_quote);
	return g_test_run();
}
