/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading spec.yaml: a tree of YAML by the rows of spec.c. The same code judges whole documents and
 * unfinished ones; of these it reports only what no further text can mend.
 */
#include <errno.h>
#include <string.h>

#include "vmfs/clone.h"
#include "vmfs/err.h"
#include "vmfs/specfield.h"
#include "vmfs/specval.h"

static unsigned host_cpus;   /* 0: unknown */
static uint64_t host_memory; /* 0: unknown */

void spec_set_limits(unsigned max_cpus, uint64_t max_memory)
{
	host_cpus = max_cpus;
	host_memory = max_memory;
}

static bool fail(const Reader *r, const YamlNode *at, GError **err, const char *fmt, ...)
	G_GNUC_PRINTF(4, 5);

static bool fail(const Reader *r, const YamlNode *at, GError **err, const char *fmt, ...)
{
	g_autofree char *why = NULL;
	va_list ap;

	va_start(ap, fmt);
	why = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	return err_set(err, EINVAL, "line %u: %s%s%s", at->line, r->path->str,
		       r->path->len ? ": " : "", why);
}

static bool fail_unknown(const Reader *r, const Section *s, const YamlNode *key, GError **err)
{
	g_autofree char *quoted = specval_quote(key->text), *all = NULL;
	g_autoptr(GPtrArray) names = g_ptr_array_new();
	const char *meant;

	for (const Field *f = s->fields; f->name; f++)
		g_ptr_array_add(names, (void *)f->name);
	g_ptr_array_add(names, NULL);
	meant = specval_suggest(key->text, (const char *const *)names->pdata);
	if (meant)
		return fail(r, key, err, "unknown key %s, did you mean '%s'?", quoted, meant);
	all = g_strjoinv(", ", (char **)names->pdata);
	return fail(r, key, err, "unknown key %s, the keys here are: %s", quoted, all);
}

static size_t enter(Reader *r, const char *name)
{
	size_t mark = r->path->len;

	if (mark)
		g_string_append_c(r->path, '.');
	g_string_append(r->path, name);
	return mark;
}

static void leave(Reader *r, size_t mark)
{
	g_string_truncate(r->path, mark);
}

/* Refuse the i-th key of a mapping if an earlier one is the same. */
static bool check_new(const Reader *r, const YamlNode *map, unsigned i, GError **err)
{
	const YamlNode *key = yaml_key(map, i), *first = yaml_find(map, key->text, NULL);
	g_autofree char *quoted = NULL;

	if (first == key)
		return true;
	quoted = specval_quote(key->text);
	return fail(r, key, err, "the key %s is there twice, first on line %u: remove one", quoted,
		    first->line);
}

/* Nothing can be said of the value: reading stopped before it, or it may go on. */
static bool is_undecided(const YamlNode *value)
{
	return !value || (value->kind == YAML_IS_SCALAR && value->open);
}

static bool check_given(const Reader *r, const YamlNode *value, GError **err)
{
	return !yaml_is_null(value) ||
	       fail(r, value, err, "needs a value: give one, or remove the key");
}

static void set_string(void *slot, char *value_take)
{
	g_free(*(char **)slot);
	*(char **)slot = value_take;
}

static bool set_size(const Field *f, const char *text, void *slot, GError **err)
{
	g_autofree char *step = NULL;
	uint64_t n;

	if (!specval_size(text, f->min, f->max, &n, err))
		return false;
	if (n % f->step) {
		step = specval_format_size(f->step);
		return err_set(err, EINVAL, "%s is not a multiple of %s", text, step);
	}
	memcpy(slot, &n, sizeof(n));
	return true;
}

static bool set_duration(const Field *f, const char *text, void *slot, GError **err)
{
	uint64_t ms;

	if (!specval_duration(text, f->max, &ms, err))
		return false;
	if (ms < f->min)
		return err_set(err, EINVAL, "%s is less than %" G_GUINT64_FORMAT "ms", text,
			       f->min);
	memcpy(slot, &ms, sizeof(ms));
	return true;
}

static bool set_number(const Field *f, const char *text, void *slot, GError **err)
{
	uint64_t n;
	unsigned value;

	if (!specval_number(text, f->min, f->max, &n, err))
		return false;
	value = (unsigned)n;
	memcpy(slot, &value, sizeof(value));
	return true;
}

G_STATIC_ASSERT(sizeof(SpecAccel) == sizeof(unsigned));
G_STATIC_ASSERT(sizeof(SpecMachine) == sizeof(unsigned));
G_STATIC_ASSERT(sizeof(SpecFirmware) == sizeof(unsigned));
G_STATIC_ASSERT(sizeof(SpecRestart) == sizeof(unsigned));
G_STATIC_ASSERT(sizeof(SpecDisplay) == sizeof(unsigned));

/* A scalar row's value into its slot; sentences without a place. */
bool spec_field_set(const Field *f, const char *text, void *slot, GError **err)
{
	char *string = NULL;
	unsigned index;
	int64_t at;
	bool good = true;

	switch (f->type) {
	case FIELD_CHOICE:
		if (!specval_choice(text, f->choices, &index, err))
			return false;
		memcpy(slot, &index, sizeof(index));
		return true;
	case FIELD_WORD:
		if (!specval_choice(text, f->choices, &index, err))
			return false;
		string = g_strdup(f->choices[index]);
		break;
	case FIELD_COUNT:
		return set_number(f, text, slot, err);
	case FIELD_SIZE:
		return set_size(f, text, slot, err);
	case FIELD_DURATION:
		return set_duration(f, text, slot, err);
	case FIELD_BOOL:
		return specval_bool(text, slot, err);
	case FIELD_PATH:
	case FIELD_IMAGE:
		good = specval_path(text, f->type == FIELD_IMAGE, &string, err);
		break;
	case FIELD_TEXT:
		good = specval_text(text, &string, err);
		break;
	case FIELD_BLOCK:
		string = g_strdup(text);
		break;
	case FIELD_MAC:
		good = specval_mac(text, &string, err);
		break;
	case FIELD_VNC:
		good = specval_vnc(text, &string, err);
		break;
	case FIELD_EXPIRES:
		good = specval_expires(text, 0, &at, err);
		string = good ? g_strdup(text) : NULL;
		break;
	case FIELD_PCI:
		good = specval_pci(text, &string, err);
		break;
	case FIELD_USB:
		good = specval_usb(text, &string, err);
		break;
	case FIELD_GROUP:
	case FIELD_OPTION:
	case FIELD_NAMED:
	case FIELD_PORTS:
	case FIELD_LIST:
	case FIELD_STRINGS:
		g_assert_not_reached();
	}
	if (good)
		set_string(slot, string);
	return good;
}

/* What a document may ask for of this host. Presets are not measured by it. */
static bool check_host(const Reader *r, const Field *f, const void *slot, GError **err)
{
	g_autofree char *want = NULL, *have = NULL;
	uint64_t max = f->type == FIELD_SIZE ? host_memory : host_cpus;

	if (!f->of_host || !max || r->stored)
		return true;
	if (f->type == FIELD_SIZE) {
		uint64_t n;

		memcpy(&n, slot, sizeof(n));
		if (n <= max)
			return true;
		want = specval_format_size(n);
		have = specval_format_size(max);
	} else {
		unsigned n;

		memcpy(&n, slot, sizeof(n));
		if (n <= max)
			return true;
		want = g_strdup_printf("%u", n);
		have = g_strdup_printf("%" G_GUINT64_FORMAT, max);
	}
	return err_set(err, EINVAL, "%s is more than this host has (%s)", want, have);
}

static bool read_section(Reader *r, const Section *s, const YamlNode *map, void *object,
			 GError **err);

static bool read_named(Reader *r, const Field *f, const YamlNode *map, GPtrArray *array,
		       GError **err)
{
	g_ptr_array_set_size(array, 0); /* an explicit mapping replaces the preset */
	for (unsigned i = 0; i < yaml_pairs(map); i++) {
		const YamlNode *key = yaml_key(map, i), *value = yaml_value(map, i);
		void *object;
		size_t mark;
		bool good;

		if (!specval_is_name(key->text)) {
			g_autofree char *quoted = specval_quote(key->text);

			return fail(r, key, err,
				    "%s is not a name: use letters, digits, - and _, at most %d",
				    quoted, SPECVAL_MAX_NAME);
		}
		if (!check_new(r, map, i, err))
			return false;
		if (is_undecided(value))
			continue;
		object = spec_object_new(f->section, key->text);
		g_ptr_array_add(array, object);
		mark = enter(r, key->text);
		good = check_given(r, value, err) &&
		       read_section(r, f->section, value, object, err);
		leave(r, mark);
		if (!good)
			return false;
	}
	return true;
}

static bool read_port(Reader *r, const YamlNode *node, GPtrArray *array, GError **err)
{
	g_autofree char *claim = NULL;
	GError *error = NULL;
	SpecPort *port;

	if (is_undecided(node))
		return true;
	if (node->kind != YAML_IS_SCALAR)
		return fail(r, node, err, "must be words like 127.0.0.1:8080:80");
	port = g_new0(SpecPort, 1);
	g_ptr_array_add(array, port);
	if (!specval_port(node->text, port, &error)) {
		fail(r, node, err, "%s", error->message);
		g_error_free(error);
		return false;
	}
	if (!port->host_port)
		return true;
	claim = g_strdup_printf("%s:%u/%s", port->address, port->host_port,
				port->udp ? "udp" : "tcp");
	if (g_hash_table_add(r->once, g_strdup(claim)))
		return true;
	return fail(r, node, err, "host port %s is there twice: use another", claim);
}

static bool read_ports(Reader *r, const YamlNode *list, GPtrArray *array, GError **err)
{
	if (list->kind != YAML_IS_SEQUENCE)
		return fail(r, list, err, "must be a list like [\"127.0.0.1:8080:80\"]");
	for (unsigned i = 0; i < list->items->len; i++)
		if (!read_port(r, list->items->pdata[i], array, err))
			return false;
	return true;
}

static bool read_list(Reader *r, const Field *f, const YamlNode *list, GPtrArray *array,
		      GError **err)
{
	if (list->kind != YAML_IS_SEQUENCE)
		return fail(r, list, err, "must be a list like [\"...\", \"...\"]");
	for (unsigned i = 0; i < list->items->len; i++) {
		const YamlNode *node = list->items->pdata[i];
		g_autoptr(GError) error = NULL;
		char *text;

		/* Words may follow on the next line that make the last item good. */
		if (is_undecided(node) || (list->open && i + 1 == list->items->len))
			continue;
		if (node->kind != YAML_IS_SCALAR)
			return fail(r, node, err, "must be a list of words or texts");
		if (!f->item(node->text, &text, &error))
			return fail(r, node, err, "%s", error->message);
		g_ptr_array_add(array, text);
	}
	return true;
}

static bool read_strings(Reader *r, const YamlNode *map, GHashTable **table, GError **err)
{
	for (unsigned i = 0; i < yaml_pairs(map); i++) {
		const YamlNode *key = yaml_key(map, i), *value = yaml_value(map, i);

		if (!specval_is_name(key->text))
			return fail(r, key, err, "a key has letters, digits, - and _, at most %d",
				    SPECVAL_MAX_NAME);
		if (!check_new(r, map, i, err))
			return false;
		if (is_undecided(value))
			continue;
		if (value->kind != YAML_IS_SCALAR || yaml_is_null(value))
			return fail(r, value, err, "%s needs a value, one word or text", key->text);
		if (strlen(value->text) > SPECVAL_MAX_TEXT)
			return fail(r, value, err, "%s is longer than %d bytes", key->text,
				    SPECVAL_MAX_TEXT);
		if (!*table)
			*table = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
		g_hash_table_insert(*table, g_strdup(key->text), g_strdup(value->text));
	}
	return true;
}

static bool read_scalar(Reader *r, const Field *f, const YamlNode *node, void *slot, GError **err)
{
	GError *error = NULL;

	if (node->kind != YAML_IS_SCALAR)
		return fail(r, node, err, "needs one value, not a %s",
			    node->kind == YAML_IS_MAPPING ? "mapping" : "list");
	if (spec_field_set(f, node->text, slot, &error) && check_host(r, f, slot, &error))
		return true;
	fail(r, node, err, "%s", error->message);
	g_error_free(error);
	return false;
}

static bool read_field(Reader *r, const Field *f, const YamlNode *node, void *object, GError **err)
{
	void *slot = spec_field_slot(f, object);

	switch (f->type) {
	case FIELD_OPTION:
		*(bool *)slot = true;
		return read_section(r, f->section, node, object, err);
	case FIELD_GROUP:
		return read_section(r, f->section, node, object, err);
	case FIELD_NAMED:
		if (node->kind != YAML_IS_MAPPING)
			return fail(r, node, err, "must be a mapping like {NAME: {...}}");
		return read_named(r, f, node, *(GPtrArray **)slot, err);
	case FIELD_PORTS:
		return read_ports(r, node, *(GPtrArray **)slot, err);
	case FIELD_LIST:
		return read_list(r, f, node, *(GPtrArray **)slot, err);
	case FIELD_STRINGS:
		if (node->kind != YAML_IS_MAPPING)
			return fail(r, node, err, "must be a mapping like {KEY: VALUE}");
		return read_strings(r, node, slot, err);
	case FIELD_CHOICE:
	case FIELD_WORD:
	case FIELD_COUNT:
	case FIELD_SIZE:
	case FIELD_DURATION:
	case FIELD_BOOL:
	case FIELD_PATH:
	case FIELD_IMAGE:
	case FIELD_TEXT:
	case FIELD_BLOCK:
	case FIELD_MAC:
	case FIELD_VNC:
	case FIELD_EXPIRES:
	case FIELD_PCI:
	case FIELD_USB:
		break;
	}
	return read_scalar(r, f, node, slot, err);
}

static const Field *find_field(const Section *s, const char *name)
{
	for (const Field *f = s->fields; f->name; f++)
		if (strcmp(f->name, name) == 0)
			return f;
	return NULL;
}

static bool read_section(Reader *r, const Section *s, const YamlNode *map, void *object,
			 GError **err)
{
	if (map->kind != YAML_IS_MAPPING)
		return fail(r, map, err, "needs keys of its own, like {%s: ...}",
			    s->fields[0].name);
	for (unsigned i = 0; i < yaml_pairs(map); i++) {
		const YamlNode *key = yaml_key(map, i), *value = yaml_value(map, i);
		const Field *f = find_field(s, key->text);
		size_t mark;
		bool good;

		if (!f)
			return fail_unknown(r, s, key, err);
		if (!check_new(r, map, i, err))
			return false;
		if (is_undecided(value))
			continue;
		mark = enter(r, f->name);
		good = check_given(r, value, err) && read_field(r, f, value, object, err);
		leave(r, mark);
		if (!good)
			return false;
	}
	return !s->check || s->check(r, object, map, err);
}

/* What one key alone cannot tell */

bool spec_check_boot(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const Spec *spec = object;

	if (map->open || spec->kernel || (!spec->initrd && !spec->cmdline))
		return true;
	return fail(r, map, err, "%s needs a kernel: add 'kernel: /path'",
		    spec->initrd ? "initrd" : "cmdline");
}

bool spec_check_disk(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const SpecDisk *disk = object;

	if (disk->image && disk->file)
		return fail(r, yaml_find(map, "file", NULL), err,
			    "has both image and file: remove one");
	if (disk->file && disk->size)
		return fail(r, yaml_find(map, "size", NULL), err,
			    "size is only for a disk of vmfs's own, not for a file: remove it");
	if (!map->open && !disk->image && !disk->file && !disk->size)
		return fail(r, map, err,
			    "needs an image (an overlay is made of it), a file (used itself), or a "
			    "size (of an empty disk)");
	return true;
}

bool spec_check_share(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const SpecShare *share = object;

	return map->open || share->path || fail(r, map, err, "needs a path: the host's directory");
}

bool spec_check_device(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const SpecDevice *d = object;
	const char *address = d->pci ? d->pci : d->usb;

	if (d->pci && d->usb)
		return fail(r, yaml_find(map, "usb", NULL), err,
			    "has both pci and usb: remove one");
	if (!map->open && !address)
		return fail(r, map, err,
			    "needs the address of a device, with pci or usb; see .vmfs/devices");
	if (address && !map->open &&
	    !g_hash_table_add(r->once, g_strdup_printf("device %s", address)))
		return fail(r, map, err, "%s is there twice", address);
	return true;
}

bool spec_check_nic(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const SpecNic *nic = object;

	if (!specval_is_network(nic->network))
		return fail(r, yaml_find(map, "network", NULL), err,
			    "that is no name of a network: it has up to %d letters, digits, "
			    "'.', '_' and '-'",
			    SPECVAL_MAX_NETWORK);
	if (nic->mac && !g_hash_table_add(r->once, g_strdup_printf("mac %s", nic->mac)))
		return fail(r, yaml_find(map, "mac", NULL), err,
			    "another nic has the mac %s already", nic->mac);
	return true;
}

bool spec_check_ssh(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const char *user = ((const Spec *)object)->ssh_user;
	const size_t len = strlen(user);

	if (len && len <= 32 && *user != '-' &&
	    strspn(user, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
		    len)
		return true;
	return fail(r, yaml_find(map, "user", NULL), err,
		    "a user's name is up to 32 letters, digits, '.', '_' and '-'");
}

bool spec_check_top(Reader *r, void *object, const YamlNode *map, GError **err)
{
	const Spec *spec = object;
	const YamlNode *machine = yaml_find(map, "machine", NULL);
	g_autoptr(GError) error = NULL;
	g_auto(GStrv) from = NULL;

	if (spec->from && !clone_parse(spec->from, &from, &error))
		return fail(r, yaml_find(map, "from", NULL), err, "from: %s", error->message);

	if (!map->open && spec->vnc && spec_display(spec) == DISPLAY_NONE)
		return fail(r, yaml_find(map, "vnc", NULL), err,
			    "vnc shows a display, and there is none: add 'display: vga'");
	/* What runs may differ from the document in one of them. */
	if (!map->open && !r->stored && spec->max_cpus && spec->max_cpus < spec->cpus)
		return fail(r, yaml_find(map, "max_cpus", NULL), err,
			    "max_cpus is below cpus: make it at least %u, or leave it out",
			    spec->cpus);
	if (!map->open && !r->stored && spec->max_memory && spec->max_memory < spec->memory)
		return fail(r, yaml_find(map, "max_memory", NULL), err,
			    "max_memory is below memory: make it at least %" G_GUINT64_FORMAT
			    "MiB, or leave it out",
			    spec->memory >> 20);
	if (spec->machine != MACHINE_MICROVM)
		return true;
	if (spec->firmware == FIRMWARE_UEFI)
		return fail(r, machine, err, "machine: microvm has no uefi firmware: use q35");
	if (!map->open && !spec->kernel)
		return fail(r, machine, err,
			    "machine: microvm needs boot.kernel: give one, or use q35");
	return true;
}

/* Documents */

typedef enum Manner { WHOLE, PREFIX, STORED } Manner;

static bool read_text(const Section *s, void *object, const char *text, size_t len, Manner manner,
		      GError **err)
{
	const bool prefix = manner == PREFIX;
	static const YamlLimits max = { .depth = SPEC_MAX_DEPTH, .items = SPEC_MAX_ITEMS };
	g_autoptr(GString) path = g_string_new(NULL);
	g_autoptr(GHashTable) once = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	g_auto(YamlTree) tree = { 0 };
	Reader r = { .path = path, .once = once, .stored = manner == STORED };

	yaml_load(&tree, text, len, prefix, &max);
	/* What was read before an error is judged first: its own faults come before that one. */
	if (tree.root && !yaml_is_null(tree.root) && !is_undecided(tree.root)) {
		if (tree.root->kind != YAML_IS_MAPPING)
			return fail(&r, tree.root, err, "write lines of 'key: value', like '%s'",
				    s->example);
		if (!read_section(&r, s, tree.root, object, err))
			return false;
	}
	if (tree.error && (tree.is_final || !prefix)) {
		g_propagate_error(err, g_steal_pointer(&tree.error));
		return false;
	}
	return true;
}

bool spec_read_object(const Section *s, void *object, const char *text, size_t len, bool prefix,
		      GError **err)
{
	const char *last = prefix && len ? memrchr(text, '\n', len) : NULL;

	if (prefix && !last)
		return true;
	if (last)
		len = (size_t)(last + 1 - text);
	return read_text(s, object, text, len, prefix ? PREFIX : WHOLE, err);
}

static Spec *read_document(const char *text, size_t len, Manner manner, GError **err)
{
	g_autoptr(Spec) spec = spec_new(g_bytes_new(text, len));

	return read_text(&spec_section, spec, text, len, manner, err) ? g_steal_pointer(&spec)
								      : NULL;
}

static bool check_length(size_t len, GError **err)
{
	g_autofree char *max = NULL;

	if (len <= SPEC_MAX_TEXT)
		return true;
	max = specval_format_size(SPEC_MAX_TEXT);
	return err_set(err, E2BIG, "the document is larger than %s", max);
}

Spec *spec_parse(const char *text, size_t len, GError **err)
{
	if (!check_length(len, err))
		return NULL;
	return read_document(text ? text : "", len, WHOLE, err);
}

Spec *spec_restore(const char *text, size_t len, GError **err)
{
	return read_document(text ? text : "", len, STORED, err);
}

bool spec_parse_prefix(const char *text, size_t len, GError **err)
{
	const char *last = len ? memrchr(text, '\n', len) : NULL;
	g_autoptr(Spec) spec = NULL;

	if (!check_length(len, err))
		return false;
	if (!last)
		return true;
	spec = read_document(text, (size_t)(last + 1 - text), PREFIX, err);
	return spec != NULL;
}
