/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spec.yaml: good and bad documents, and the promise of spec_parse_prefix(): it never refuses the
 * beginning of a good document. Files: $G_TEST_SRCDIR/data/spec/{good,bad}, by default below
 * tests/; the first line of a bad one may be `# expect: PART OF THE SENTENCE`.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "vmfs/err.h"
#include "vmfs/spec.h"
#include "vmfs/specval.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

// clang-format off
static const char *const good_texts[] = {
	"",
	"\n",
	"---\n",
	"--- {}\n...\n",
	"null\n",
	"cpus: 1",
	"cpus: 1024\n",
	"memory: 16MiB",
	"memory: 1T\n",
	"memory: 64TiB\n",
	"memory: 2g\n",
	"memory: 2048mib\n",
	"memory: 1048576k\n",
	"backend: sim\n",
	"stop_timeout: 1h\n",
	"stop_timeout: 0\n",
	"stop_timeout: 90\n",
	"boot: {}\n",
	"sim: {}\n",
	"disks: {}\nnics: {}\n",
	"nics: {eth0: {}}\n",
	"nics: {eth0: {ports: []}}\n",
	"nics: {eth0: {ports: [0:22, 0:22, 1:1/tcp, 1:1/udp]}}\n",
	"boot: {kernel: /k, cmdline: ~\n  foo}\n",
	"boot:\n kernel: /k\n cmdline: null\n  foo\n",
	"boot:\n kernel: /k\n cmdline: |\n  one line",
	"boot:\n kernel: /k\n cmdline: |\n  one line\n\ncpus: 2\n",
	"boot:\n kernel: /k\n cmdline: 'it''s\n  # no comment'\n",
	"disks:\n  0123456789012345678901234567890: {image: _x.1-2}\n",
	"disks:\n  a: # why\n    # not\n\n    file: /a # yes\n",
	"disks:\n  ? a\n  :\n    ? file\n    : /a\n",
	"disks:\n  a:\n    size: 1GiB\n",
	"cloud_init: {}\n",
	"cloud_init:\n  user_data: |\n    #!/bin/sh\n    echo hi\n  ssh_keys:\n  - ssh-rsa\n    AAAA\n",
	"cloud_init: {meta_data: {instance-id: a}, network_config: 'version: 2'}\n",
};

/* Whether spec_parse_prefix() may already say so is the last column. */
static const struct {
	const char *text, *part;
	bool early;
} bad_texts[] = {
	{ "cpus: 0\n", "line 1: cpus: 0 is not from 1 to 1024", true },
	{ "cpus: 1025\n", "is not from 1 to 1024", true },
	{ "cpus: two\n", "line 1: cpus: 'two' is not a whole number", true },
	{ "cpus: -1\n", "is not a whole number", true },
	{ "cpus: 99999999999999999999999\n", "is not a whole number", true },
	{ "cpus: [2]\n", "cpus: needs one value, not a list", true },
	{ "cpus: {a: b}\n", "cpus: needs one value, not a mapping", true },
	{ "cpus:\n", "line 1: cpus: needs a value", false },
	{ "cpus: ~\n", "line 1: cpus: needs a value", false },
	{ "cpus:\nmemory: 1GiB\n", "line 1: cpus: needs a value", true },
	{ "memory: 15MiB\n", "15MiB is less than the minimum of 16MiB", true },
	{ "memory: 512\n", "512 bytes is less than the minimum of 16MiB: a number alone", true },
	{ "memory: 65TiB\n", "65TiB is more than the limit of 64TiB", true },
	{ "memory: 100000001\n", "is not a multiple of 1MiB", true },
	{ "memory: 2GB\n", "'2GB' is not a size", true },
	{ "memory: 1.5GiB\n", "'1.5GiB' is not a size", true },
	{ "memory: 2 GiB\n", "'2 GiB' is not a size", true },
	{ "memory: -2GiB\n", "is not a size", true },
	{ "memory: 99999999999T\n", "is not a size", true },
	{ "accel: hvf\n", "accel: unknown value 'hvf', it can be: auto, kvm, tcg", true },
	{ "backend: qmeu\n", "unknown value 'qmeu', did you mean 'qemu'?", true },
	{ "machine: microvm\n", "machine: microvm needs boot.kernel", false },
	{ "machine: microvm\nfirmware: uefi\n", "has no uefi", true },
	{ "firmware: uefi\nboot: {cmdline: x}\n", "line 2: boot: cmdline needs a kernel", true },
	{ "boot: /vmlinuz\n", "boot: needs keys of its own, like {kernel: ...}", true },
	{ "boot: {kernel: vmlinuz}\n", "boot.kernel: 'vmlinuz' is not an absolute path", true },
	{ "boot: {kernel: \"/a\\nb\"}\n", "must be one line", true },
	{ "boot:\n  kernel: /k\n  cmdline: |\n    a\n    b\n", "must be one line", false },
	{ "disks: [a]\n", "disks: must be a mapping like {NAME: {...}}", true },
	{ "disks: {a b: {file: /a}}\n", "disks: 'a b' is not a name", true },
	{ "disks: {-a: {file: /a}}\n", "is not a name", true },
	{ "disks: {01234567890123456789012345678901: {file: /a}}\n", "is not a name", true },
	{ "disks: {a: {file: /a}, a: {file: /b}}\n", "disks: the key 'a' is there twice", true },
	{ "disks: {a: {image: ../a}}\n", "neither an absolute path nor the name", true },
	{ "disks: {a: {image: .hidden}}\n", "neither an absolute path nor the name", true },
	{ "disks: {a: {image: ''}}\n", "neither an absolute path nor the name", true },
	{ "disks: {a: {file: debian}}\n", "disks.a.file: 'debian' is not an absolute", true },
	{ "disks: {a: {file: /a, format: vmdk}}\n", "it can be: raw, qcow2", true },
	{ "disks: {a: {file: /a, readonly: yes}}\n", "'yes' is neither true nor false", true },
	{ "disks: {a: {image: x, size: 1000001}}\n", "less than the minimum of 1MiB", true },
	{ "disks: {a: }\n", "disks.a: needs a value", true },
	{ "disks:\n  a:\n    format: raw\n", "disks.a: needs an image", false },
	{ "cloud_init: yes\n", "cloud_init: needs keys of its own", true },
	{ "cloud_init:\n", "cloud_init: needs a value", false },
	{ "cloud_init: {users: x}\n", "unknown key 'users', the keys here are: user_data", true },
	{ "cloud_init: {user_data: {a: b}}\n", "cloud_init.user_data: needs one value", true },
	{ "cloud_init: {meta_data: a}\n", "meta_data: must be a mapping", true },
	{ "cloud_init: {ssh_keys: ssh-rsa AAAA}\n", "ssh_keys: must be a list", true },
	{ "cloud_init: {ssh_keys: [[a]]}\n", "ssh_keys: must be a list of words", true },
	{ "cloud_init: {ssh_keys: [hunter2]}\n", "ssh_keys: is not a public ssh key", true },
	{ "cloud_init: {ssh_keys: [ssh-rsa]}\n", "ssh_keys: is not a public ssh key", true },
	{ "cloud_init: {ssh_keys: ['ssh-rsa AAAA\n\n  b']}\n", "must be one line", true },
	{ "nics: {a: {network: a/b}}\n", "no name of a network", true },
	{ "nics: {a: {mac: 52:54:00:12:34}}\n", "is not a MAC address", true },
	{ "nics: {a: {mac: \"53:54:00:12:34:56\"}}\n", "is a multicast address", true },
	{ "nics: {a: {mac: \"00:00:00:00:00:00\"}}\n", "cannot be an interface's", true },
	{ "nics: {a: {ports: 8080:80}}\n", "nics.a.ports: must be a list", true },
	{ "nics: {a: {ports: [80]}}\n", "'80' is not a port", true },
	{ "nics: {a: {ports: [80:80/sctp]}}\n", "is not a port", true },
	{ "nics: {a: {ports: [1:2:3:4]}}\n", "is not a port", true },
	{ "nics: {a: {ports: [\"[::1]:80:80\"]}}\n", "only IPv4 is supported", true },
	{ "nics: {a: {ports: [localhost:80:80]}}\n", "'localhost' is not an IPv4 address", true },
	{ "nics: {a: {ports: [80:0]}}\n", "guest port 0 is not from 1 to 65535", true },
	{ "nics: {a: {ports: [65536:1]}}\n", "host port 65536 is not from 0", true },
	{ "nics: {a: {ports: [{a: b}]}}\n", "must be words", true },
	{ "stop_timeout: 61m\n", "61m is more than the limit of 3600s", true },
	{ "stop_timeout: 3601\n", "3601s is more than the limit", true },
	{ "stop_timeout: soon\n", "'soon' is not a duration", true },
	{ "stop_timeout: 99999999999999999999h\n", "is not a duration", true },
	{ "sim: {a: [b]}\n", "sim: a needs a value, one word or text", true },
	{ "sim: {a: , b: c}\n", "sim: a needs a value", true },
	{ "sim: {a.b: c}\n", "sim: a key has letters", true },
	{ "- cpus\n", "line 1: write lines of 'key: value'", true },
	{ "hello\n", "line 1: write lines of 'key: value'", true },
	{ "? [a]\n: b\n", "a key must be a word", true },
	{ "{a: b}: c\n", "a key must be a word", true },
	{ "cpus: *a\n", "aliases (*) are not supported", true },
	{ "cpus: &a 2\n", "anchors (&) are not supported", true },
	{ "&a cpus: 2\n", "anchors (&) are not supported", true },
	{ "cpus: ! 'x\n", "closing quote is missing", false },
	{ "cpus: !x 2\n", "tags (!) are not supported", true },
	{ "cpus: \"2\n", "closing quote is missing", false },
	{ "cpus: {\n", "line 1: cpus: needs one value", true },
	{ "disks: {\n", "line 2, column 1: ", false },
	{ "accel: @\n", "put the value in quotes", true },
	{ "accel: kvm: b\n", "need quotes?", true },
	{ "cpus: 2\n memory: 2\n", "indented too far", true },
	{ "cpus:2\nmemory: 1GiB\n", "line 2", true },
	{ "cpus: 2\n\tmemory: 1GiB\n", "line 2, column 1: a tab", true },
	{ "cpus: \"\\q\"\n", "unknown escape character", true },
	{ "cpus: 2\n\x01", "control characters are not allowed", false },
	{ "%YAML 1.1\n", "line 2", false },
	{ "cpus: 2\n---\n", "a second document", true },
};
// clang-format on

typedef void (*TextFn)(const char *text, size_t len, const char *name);

static void each_file(const char *kind, TextFn fn)
{
	const char *root = g_getenv("G_TEST_SRCDIR"), *name;
	g_autofree char *path = g_build_filename(root ? root : "tests", "data", "spec", kind, NULL);
	g_autoptr(GError) error = NULL;
	g_autoptr(GDir) dir = g_dir_open(path, 0, &error);

	g_assert_no_error(error);
	while ((name = g_dir_read_name(dir))) {
		g_autofree char *file = g_build_filename(path, name, NULL), *text = NULL;
		size_t len;

		g_file_get_contents(file, &text, &len, &error);
		g_assert_no_error(error);
		fn(text, len, name);
	}
}

static Spec *must_parse(const char *text)
{
	g_autoptr(GError) error = NULL;
	Spec *spec = spec_parse(text, strlen(text), &error);

	g_assert_no_error(error);
	g_assert_nonnull(spec);
	return spec;
}

/* In a block of its own size, so that a read past the end is seen. */
static bool prefix_ok(const char *text, size_t len, GError **err)
{
	g_autofree char *copy = g_memdup2(text, len);

	return spec_parse_prefix(copy, len, err);
}

static void check_good(const char *text, size_t len, const char *name)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *copy = g_memdup2(text, len);
	g_autoptr(Spec) spec = spec_parse(copy, len, &error);

	if (!spec)
		g_error("%s: %s", name, error->message);
	g_assert_cmpuint(g_bytes_get_size(spec->text), ==, len);
	for (size_t cut = 0; cut <= len; cut++)
		if (!prefix_ok(text, cut, &error))
			g_error("%s, first %zu bytes: %s", name, cut, error->message);
}

static void test_good(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(good_texts); i++)
		check_good(good_texts[i], strlen(good_texts[i]), good_texts[i]);
	each_file("good", check_good);
}

static void check_bad(const char *text, size_t len, const char *name, const char *part)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *copy = g_memdup2(text, len);
	g_autoptr(Spec) spec = spec_parse(copy, len, &error);

	if (spec)
		g_error("%s: should be refused", name);
	g_assert_error(error, VMFS_ERROR, EINVAL);
	if (part && !strstr(error->message, part))
		g_error("%s: '%s' lacks '%s'", name, error->message, part);
	g_assert_true(g_str_has_prefix(error->message, "line "));
	g_assert_true(g_utf8_validate(error->message, -1, NULL));
	g_assert_null(strchr(error->message, '\n'));
	g_assert_cmpuint(strlen(error->message), <, 400);
	for (size_t cut = 0; cut <= len; cut++) {
		g_autoptr(GError) early = NULL;
		g_autoptr(Spec) begun = spec_parse(text, cut, NULL);
		bool ok = prefix_ok(text, cut, &early);

		g_assert_true(ok == !early);
		g_assert_true(ok || !begun);
	}
}

static void check_bad_file(const char *text, size_t len, const char *name)
{
	static const char marker[] = "# expect: ";
	g_autofree char *part = NULL;

	if (g_str_has_prefix(text, marker))
		part = g_strndup(text + strlen(marker), strcspn(text + strlen(marker), "\n"));
	check_bad(text, len, name, part);
}

static void test_bad(void)
{
	for (size_t i = 0; i < G_N_ELEMENTS(bad_texts); i++) {
		const char *text = bad_texts[i].text;
		bool ok;

		check_bad(text, strlen(text), text, bad_texts[i].part);
		ok = prefix_ok(text, strlen(text), NULL);
		if (ok == bad_texts[i].early)
			g_error("%s: told %s", text, ok ? "too late" : "too early");
	}
	each_file("bad", check_bad_file);
}

/* Documents of random lines: most are bad, and those that are good must be so from the start. */
static void test_random_lines(void)
{
	// clang-format off
	static const char *const lines[] = {
		"cpus: 2\n", "memory: 1GiB\n", "boot:\n", "  kernel: /k\n", "  cmdline: a\n",
		"    b: c\n", "    b\n", "disks:\n", "disks: {\n", "  root:\n", "    file: /a\n",
		"    image: a\n", "    size: 1G\n", "    file:\n", "      /b\n",
		"  a: {file: /a}\n", "  }\n", "}\n", "{\n", ",\n", "  b: {\n", "    image: x\n",
		"    }\n", "  , c: {image: y}}\n", "nics:\n", "  eth0: {}\n", "  eth0:\n",
		"    ports:\n", "    - 1:2\n", "    -\n", "      3:4\n", "    ports: [\n",
		"      5:6,\n", "      ]\n", "    mac: \"52:\n", "? cpus\n", ": 2\n", "  : 3\n",
		"sim:\n", "  x: |\n", "  x: 'a\n", "  y: \"a\n", "    text'\n", "    text\"\n",
		"---\n", "...\n", "# c\n", "  # c\n", "\n", "machine: microvm\n",
		"firmware: uefi\n", "memory:\n", "  512MiB\n", "  null\n", "~\n", "cpus\n",
		"\"cpus\"\n", "cpus: *a\n", "memory: &a 1G\n", "<<:\n", "%YAML 1.1\n",
		"stop_timeout: >\n", "  30s\n", "sim: {a: >-\n",
		"cloud_init:\n", "  user_data: |\n", "  ssh_keys:\n", "  - ssh-rsa AAAA\n",
		"  - ssh-rsa\n",
	};
	// clang-format on
	unsigned good = 0, rounds = g_test_slow() ? 5000000 : 20000;

	for (unsigned i = 0; i < rounds; i++) {
		g_autoptr(GString) s = g_string_new(NULL);
		unsigned n = 1 + (unsigned)g_test_rand_int_range(0, 8);
		g_autoptr(Spec) spec = NULL;

		for (unsigned j = 0; j < n; j++)
			g_string_append(
				s, lines[g_test_rand_int_range(0, (gint32)G_N_ELEMENTS(lines))]);
		spec = spec_parse(s->str, s->len, NULL);
		if (!spec)
			continue;
		good++;
		check_good(s->str, s->len, s->str);
	}
	g_test_message("%u good of %u", good, rounds);
	g_assert_cmpuint(good, >, rounds / 2000);
}

static void test_default(void)
{
	g_autoptr(Spec) a = spec_default(), b = spec_default(), empty = must_parse("# nothing\n");
	g_autoptr(GPtrArray) diff = spec_diff(a, empty), paths = spec_paths(a);
	const SpecNic *nic;

	g_assert_true(a == b);
	g_assert_cmpuint(diff->len, ==, 0);
	g_assert_cmpuint(paths->len, ==, 0);
	g_assert_null(a->backend);
	g_assert_cmpuint(a->cpus, ==, 1);
	g_assert_cmpuint(a->memory, ==, 256 * MIB);
	g_assert_cmpint(a->machine, ==, MACHINE_Q35);
	g_assert_cmpuint(a->stop_timeout_ms, ==, 30000);
	g_assert_cmpuint(a->disks->len, ==, 0);
	g_assert_cmpuint(a->nics->len, ==, 1);
	nic = a->nics->pdata[0];
	g_assert_cmpstr(nic->name, ==, "eth0");
	g_assert_cmpstr(nic->network, ==, "user");
	g_assert_null(nic->mac);
	g_assert_cmpuint(nic->ports->len, ==, 0);
	g_assert_null(a->sim);
	g_assert_false(a->cloud_init.given);
	g_assert_cmpuint(a->cloud_init.ssh_keys->len, ==, 0);
}

static void test_values(void)
{
	g_autoptr(Spec) s = must_parse("backend: sim\n"
				       "cpus: 4\n"
				       "memory: 2G\n"
				       "accel: tcg\n"
				       "machine: microvm\n"
				       "boot: {kernel: /k, initrd: /i, cmdline: a  b}\n"
				       "disks:\n"
				       "  z: {image: deb, size: 1GiB, format: qcow2}\n"
				       "  a: {file: '/x, y', readonly: true}\n"
				       "  e: {size: 5G}\n"
				       "nics:\n"
				       "  n: {mac: '52:54:00:AA:BB:CC', ports: [1:2/udp]}\n"
				       "  m: {ports: [0.0.0.0:0:22]}\n"
				       "stop_timeout: 2m\n"
				       "cloud_init:\n"
				       "  user_data: |\n"
				       "    #!/bin/sh\n"
				       "    true\n"
				       "  meta_data: {instance-id: me}\n"
				       "  ssh_keys: ['ssh-rsa AAAA me', sk-x AAAA]\n"
				       "sim: {boot: 5s, key: ''}\n");
	const SpecDisk *z = s->disks->pdata[0], *a = s->disks->pdata[1];
	const SpecDisk *e = s->disks->pdata[2];
	const SpecCloudInit *c = &s->cloud_init;
	const SpecNic *n = s->nics->pdata[0], *m = s->nics->pdata[1];
	const SpecPort *p = n->ports->pdata[0], *q = m->ports->pdata[0];

	g_assert_cmpstr(s->backend, ==, "sim");
	g_assert_cmpuint(s->cpus, ==, 4);
	g_assert_cmpuint(s->memory, ==, 2 * GIB);
	g_assert_cmpint(s->accel, ==, ACCEL_TCG);
	g_assert_cmpint(s->machine, ==, MACHINE_MICROVM);
	g_assert_cmpstr(s->kernel, ==, "/k");
	g_assert_cmpstr(s->initrd, ==, "/i");
	g_assert_cmpstr(s->cmdline, ==, "a  b");
	g_assert_cmpuint(s->stop_timeout_ms, ==, 120000);
	g_assert_cmpuint(s->disks->len, ==, 3);
	g_assert_cmpstr(z->name, ==, "z");
	g_assert_cmpstr(z->image, ==, "deb");
	g_assert_cmpstr(z->format, ==, "qcow2");
	g_assert_cmpuint(z->size, ==, GIB);
	g_assert_null(z->file);
	g_assert_cmpstr(a->file, ==, "/x, y");
	g_assert_true(a->readonly);
	g_assert_true(!e->image && !e->file && e->size == 5 * GIB);
	g_assert_true(c->given);
	g_assert_cmpstr(c->user_data, ==, "#!/bin/sh\ntrue\n");
	g_assert_cmpstr(g_hash_table_lookup(c->meta_data, "instance-id"), ==, "me");
	g_assert_null(c->network_config);
	g_assert_cmpuint(c->ssh_keys->len, ==, 2);
	g_assert_cmpstr(c->ssh_keys->pdata[0], ==, "ssh-rsa AAAA me");
	g_assert_cmpstr(n->mac, ==, "52:54:00:aa:bb:cc");
	g_assert_cmpstr(p->address, ==, "127.0.0.1");
	g_assert_cmpuint(p->host_port, ==, 1);
	g_assert_cmpuint(p->guest_port, ==, 2);
	g_assert_true(p->udp);
	g_assert_cmpstr(q->address, ==, "0.0.0.0");
	g_assert_cmpuint(q->host_port, ==, 0);
	g_assert_false(q->udp);
	g_assert_cmpuint(g_hash_table_size(s->sim), ==, 2);
	g_assert_cmpstr(g_hash_table_lookup(s->sim, "boot"), ==, "5s");
	g_assert_cmpstr(g_hash_table_lookup(s->sim, "key"), ==, "");
}

static void assert_diff(const char *want, const char *have, const char *keys)
{
	g_autoptr(Spec) a = must_parse(want), b = must_parse(have);
	g_autoptr(GPtrArray) diff = spec_diff(a, b);
	g_autofree char *joined = NULL;

	g_ptr_array_add(diff, NULL);
	joined = g_strjoinv(" ", (char **)diff->pdata);
	g_assert_cmpstr(joined, ==, keys);
}

static void test_diff(void)
{
	assert_diff("cpus: 2\nmemory: 1G\n", "memory: 1024MiB\ncpus: 2\n", "");
	assert_diff("cpus: 2\n", "", "cpus");
	assert_diff("memory: 1G\nfirmware: uefi\nbackend: sim\n", "", "backend memory firmware");
	assert_diff("boot: {kernel: /a, cmdline: x}\n", "boot: {kernel: /b}\n",
		    "boot.kernel boot.cmdline");
	assert_diff("disks: {a: {image: x, size: 1G}, n: {file: /n}}\n",
		    "disks: {a: {image: x, size: 2G}, o: {file: /o}}\n",
		    "disks.a.size disks.n disks.o");
	assert_diff("disks: {a: {file: /a}, b: {file: /b}}\n",
		    "disks: {b: {file: /b}, a: {file: /a}}\n", "disks");
	assert_diff("nics: {}\n", "", "nics.eth0");
	assert_diff("nics: {eth0: {ports: [1:2]}}\n", "", "nics.eth0.ports");
	assert_diff("nics: {eth0: {ports: [1:2]}}\n", "nics: {eth0: {ports: [1:2/udp]}}\n",
		    "nics.eth0.ports");
	assert_diff("disks: {a: {size: 1G}}\n", "disks: {a: {image: x, size: 1G}}\n",
		    "disks.a.image");
	assert_diff("cloud_init: {}\n", "", "cloud_init");
	assert_diff("cloud_init: {user_data: a}\n", "", "cloud_init");
	assert_diff("cloud_init: {user_data: a, ssh_keys: [ssh-rsa AAAA]}\n",
		    "cloud_init: {user_data: b, ssh_keys: [ssh-rsa AAAAB]}\n",
		    "cloud_init.user_data cloud_init.ssh_keys");
	assert_diff("cloud_init: {meta_data: {a: b}, network_config: c}\n", "cloud_init: {}\n",
		    "cloud_init.meta_data cloud_init.network_config");
	assert_diff("sim: {a: b}\n", "", "sim");
	assert_diff("sim: {a: b}\n", "sim: {a: b}\n", "");
	assert_diff("sim: {a: b, c: d}\n", "sim: {a: b, e: d}\n", "sim");
}

/* `have` with one difference made as in `want`: what differs from `want` then. */
static void assert_merge(const char *have, const char *want, const char *key, const char *left)
{
	g_autoptr(Spec) a = must_parse(have), b = must_parse(want);
	g_autoptr(Spec) merged = spec_merge(a, b, key);
	g_autoptr(GPtrArray) keys = NULL;
	g_autofree char *text = NULL;

	g_assert_nonnull(merged);
	keys = spec_diff(b, merged);
	g_ptr_array_add(keys, NULL);
	text = g_strjoinv(" ", (char **)keys->pdata);
	g_assert_cmpstr(text, ==, left);
}

static void test_merge(void)
{
	g_autoptr(Spec) two = must_parse("disks: {a: {file: /a}}\n"),
			one = must_parse("disks: {a: {image: b}}\n");

	assert_merge("cpus: 1\n", "cpus: 2\nmemory: 1G\n", "cpus", "memory");
	assert_merge("", "disks: {a: {file: /a}, b: {file: /b}}\n", "disks.b", "disks.a");
	assert_merge("disks: {a: {file: /a}, b: {file: /b}}\n", "disks: {b: {file: /b}}\n",
		     "disks.a", "");
	/* What comes later is numbered later, wherever the document has it. */
	assert_merge("disks: {a: {file: /a}}\n", "disks: {b: {file: /b}, a: {file: /a}}\n",
		     "disks.b", "disks");
	assert_merge("disks: {a: {file: /a}, b: {file: /b}}\n",
		     "disks: {b: {file: /b}, a: {file: /a}}\n", "disks", "");
	assert_merge("nics: {eth0: {}}\n", "nics: {eth0: {ports: [1:2, 3:4/udp]}}\n",
		     "nics.eth0.ports", "");
	assert_merge("", "nics: {}\n", "nics.eth0", "");
	assert_merge("boot: {kernel: /a}\n", "boot: {kernel: /b, cmdline: x}\n", "boot.kernel",
		     "boot.cmdline");
	assert_merge("sim: {a: b}\n", "sim: {a: c, d: e}\n", "sim", "");
	assert_merge("cpus: 1\n", "cpus: 2\nsim: {a: \"\\t\\\"\\\\ \u00e9\U0001f600\"}\n", "sim",
		     "cpus");
	assert_merge("stop_timeout: 0\n", "cpus: 2\nstop_timeout: 0\n", "cpus", "");
	assert_merge("cloud_init: {user_data: \"a\\nb\\n\", ssh_keys: [ssh-rsa AAAA]}\n",
		     "cpus: 2\ncloud_init: {user_data: b, ssh_keys: [ssh-rsa AAAA]}\n", "cpus",
		     "cloud_init.user_data");
	assert_merge("", "cpus: 2\ncloud_init: {meta_data: {a: b}}\n", "cloud_init", "cpus");
	assert_merge("cloud_init: {}\n", "cpus: 2\n", "cloud_init", "cpus");
	/* Half of a change may be none. */
	g_assert_null(spec_merge(two, one, "disks.a.image"));
	g_assert_null(spec_named(two, "disks.b"));
	g_assert_null(spec_named(two, "disk.a"));
	g_assert_null(spec_named(two, "disks"));
	g_assert_cmpstr(((const SpecDisk *)spec_named(two, "disks.a"))->file, ==, "/a");
}

static void test_paths(void)
{
	static const struct {
		const char *key, *path;
		bool write;
		unsigned line;
	} wanted[] = {
		{ "boot.kernel", "/k", false, 3 },	    { "disks.a.file", "/a", true, 6 },
		{ "disks.b.file", "/b", false, 7 },	    { "disks.c.image", "/c", false, 8 },
		{ "disks.d.image", "debian-12", false, 9 },
	};
	g_autoptr(Spec) s = must_parse("# comment\n"
				       "boot:\n"
				       "  kernel: /k\n"
				       "disks:\n"
				       "  a:\n"
				       "    file: /a\n"
				       "  b: {readonly: true, file: /b}\n"
				       "  c: {image: /c}\n"
				       "  d: {image: debian-12}\n");
	g_autoptr(GPtrArray) paths = spec_paths(s);

	g_assert_cmpuint(paths->len, ==, G_N_ELEMENTS(wanted));
	for (unsigned i = 0; i < paths->len; i++) {
		const SpecPath *path = paths->pdata[i];

		g_assert_cmpstr(path->key, ==, wanted[i].key);
		g_assert_cmpstr(path->path, ==, wanted[i].path);
		g_assert_true(path->write == wanted[i].write);
		g_assert_cmpuint(path->line, ==, wanted[i].line);
	}
}

static void test_limits(void)
{
	spec_set_limits(8, 25125558681); /* 23.4 GiB */
	check_bad("cpus: 1\nmemory: 1T\n", 19, "1T",
		  "line 2: memory: 1TiB is more than this host has (23.4GiB)");
	check_bad("cpus: 9\n", 8, "9", "line 1: cpus: 9 is more than this host has (8)");
	g_assert_false(prefix_ok("memory: 1T\n", 11, NULL));
	check_good("memory: 23GiB\ncpus: 8\n", 22, "23GiB");
	spec_set_limits(0, 0);
	check_good("memory: 1T\n", 11, "1T");
}

/* Of this thread, whatever else the machine has to do. */
static double cpu_seconds(void)
{
	struct timespec t;

	g_assert_no_errno(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t));
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double seconds_to_refuse(const char *text, size_t len, int code)
{
	const double begin = cpu_seconds();
	g_autoptr(GError) error = NULL, early = NULL;
	g_autoptr(Spec) spec = spec_parse(text, len, &error);

	(void)spec_parse_prefix(text, len, &early);
	g_assert_null(spec);
	g_assert_error(error, VMFS_ERROR, code);
	return cpu_seconds() - begin;
}

/* Documents made to be slow: what takes milliseconds would take minutes if it were quadratic. */
#define HOSTILE_S 2.0

static void test_hostile(void)
{
	static const char *const units[] = {
		"[",	  "{",	      "- ",	  "? ",	    "[[]],",
		"a: ",	  "{a: ",     "x ",	  "x\n",    "#\n",
		"&a ",	  "*a, ",     "\"",	  "\n",	    " ",
		"a: b\n", "a: [\n",   "- - - - ", "!a ",    "'",
		"x: |\n", "[a,b,c],", "---\n",	  "%A b\n", "sim: {a: \"\\n\"}\n",
	};

	for (size_t i = 0; i < G_N_ELEMENTS(units); i++) {
		static const char *const starts[] = { "", "sim: {a: ", "disks:\n  a: [",
						      "cpus: '" };

		for (size_t j = 0; j < G_N_ELEMENTS(starts); j++) {
			g_autoptr(GString) s = g_string_new(starts[j]);
			double seconds;

			while (s->len < SPEC_MAX_TEXT)
				g_string_append(s, units[i]);
			g_string_truncate(s, SPEC_MAX_TEXT - 2);
			g_string_append(s, "\n]");
			if (!*starts[j] && strspn(units[i], "#\n ") == strlen(units[i]))
				continue; /* empty, that is: good */
			seconds = seconds_to_refuse(s->str, s->len, EINVAL);
			if (seconds > HOSTILE_S)
				g_error("'%s' after '%s': %.3f s", units[i], starts[j], seconds);
			g_string_append_c(s, '\n');
			g_assert_cmpfloat(seconds_to_refuse(s->str, s->len, E2BIG), <, HOSTILE_S);
		}
	}
}

static void test_help(void)
{
	g_autoptr(GString) help = g_string_new(NULL);
	g_auto(GStrv) lines = NULL;

	spec_help(help);
	g_assert_nonnull(strstr(help->str, "disks.NAME.size      SIZE  "));
	g_assert_nonnull(strstr(
		help->str,
		"memory               SIZE            memory of the guest (default: 256MiB)\n"));
	g_assert_nonnull(strstr(help->str, "accel                auto|kvm|tcg  "));
	g_assert_null(strstr(help->str, "(null)"));
	lines = g_strsplit(help->str, "\n", -1);
	g_assert_cmpuint(g_strv_length(lines), >, 20);
}

static void test_formats(void)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} sizes[] = {
		{ 0, "0 bytes" },	    { 1023, "1023 bytes" },    { 1024, "1KiB" },
		{ 16 * MIB, "16MiB" },	    { 3 * GIB / 2, "1.5GiB" }, { 1024 * GIB, "1TiB" },
		{ UINT64_MAX, "16384PiB" },
	};
	g_autofree char *quoted = specval_quote("a\x01\xc3\xa4\n");

	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
		g_autofree char *text = specval_format_size(sizes[i].bytes);

		g_assert_cmpstr(text, ==, sizes[i].text);
	}
	g_assert_cmpstr(quoted, ==, "'a?\xc3\xa4?'");
}

static void test_errors(void)
{
	g_autoptr(GError) ours = err_new(ENOSPC, "%s is full", "disk");
	g_autoptr(GError) other = g_error_new(G_FILE_ERROR, G_FILE_ERROR_NOENT, "gone");
	g_autoptr(GError) set = NULL;

	g_assert_cmpint(err_code(ours), ==, ENOSPC);
	g_assert_cmpstr(ours->message, ==, "disk is full");
	g_assert_cmpint(err_code(other), ==, EIO);
	g_assert_cmpint(err_code(NULL), ==, EIO);
	g_assert_false(err_set(NULL, EPERM, "unseen"));
	g_assert_false(err_set(&set, EPERM, "no"));
	g_assert_cmpint(err_code(set), ==, EPERM);
	g_assert_cmpstr(err_name(EINVAL), ==, "EINVAL");
	g_assert_nonnull(err_name(99999));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/spec/good", test_good);
	g_test_add_func("/spec/bad", test_bad);
	g_test_add_func("/spec/random-lines", test_random_lines);
	g_test_add_func("/spec/default", test_default);
	g_test_add_func("/spec/values", test_values);
	g_test_add_func("/spec/diff", test_diff);
	g_test_add_func("/spec/paths", test_paths);
	g_test_add_func("/spec/limits", test_limits);
	g_test_add_func("/spec/hostile", test_hostile);
	g_test_add_func("/spec/merge", test_merge);
	g_test_add_func("/spec/help", test_help);
	g_test_add_func("/spec/formats", test_formats);
	g_test_add_func("/err", test_errors);
	return g_test_run();
}
