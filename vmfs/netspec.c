/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/netspec.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmfs/err.h"
#include "vmfs/specfield.h"
#include "vmfs/specval.h"

#define MAX_BRIDGE 15 /* characters of an interface's name */

static const char *const forward_names[] = { "none",	"nat",	"route",       "open",	  "bridge",
					     "private", "vepa", "passthrough", "hostdev", NULL };

// clang-format off
static const Field net_fields[] = {
	{ "forward", FIELD_WORD, offsetof(NetSpec, forward), .choices = forward_names,
	  .preset = "none", .doc = "where its packets may go: nowhere else (none), behind the host's address (nat), routed, on a bridge that is there..." },
	{ "bridge", FIELD_TEXT, offsetof(NetSpec, bridge),
	  .doc = "the host's bridge; absent: libvirt makes one and names it" },
	{ "address", FIELD_TEXT, offsetof(NetSpec, address),
	  .doc = "the host's address in it, with its prefix: 192.168.150.1/24" },
	{ "dhcp", FIELD_TEXT, offsetof(NetSpec, dhcp),
	  .doc = "addresses to give to guests: 192.168.150.2-192.168.150.254" },
	{ "domain", FIELD_TEXT, offsetof(NetSpec, domain), .doc = "its name in the guests' DNS" },
	{ "autostart", FIELD_BOOL, offsetof(NetSpec, autostart), .preset = "false",
	  .doc = "started with libvirt" },
	{ 0 },
};
// clang-format on
static const Section net_section = { net_fields, sizeof(NetSpec), NULL, "forward: nat" };

NetSpec *netspec_new(const char *name)
{
	return spec_object_new(&net_section, name);
}

void netspec_free(NetSpec *s)
{
	if (s)
		spec_object_free(&net_section, s);
}

/* AF_INET, AF_INET6, or -1. */
static int family_of(const char *address, struct in6_addr *bytes)
{
	if (inet_pton(AF_INET, address, bytes) == 1)
		return AF_INET;
	return inet_pton(AF_INET6, address, bytes) == 1 ? AF_INET6 : -1;
}

bool netspec_split(const char *text, char **ret_address, unsigned *ret_prefix)
{
	const char *slash = strchr(text, '/');
	g_autofree char *address = slash ? g_strndup(text, (size_t)(slash - text)) : NULL;
	struct in6_addr bytes;
	uint64_t prefix;
	int family = address ? family_of(address, &bytes) : -1;

	if (family < 0 ||
	    !specval_number(slash + 1, 1, family == AF_INET ? 31 : 127, &prefix, NULL))
		return false;
	*ret_address = g_steal_pointer(&address);
	*ret_prefix = (unsigned)prefix;
	return true;
}

static bool check_address(const NetSpec *s, GError **err)
{
	g_autofree char *address = NULL;
	unsigned prefix;

	return !s->address || netspec_split(s->address, &address, &prefix) ||
	       err_set(err, EINVAL,
		       "address: '%.80s' is not an address with its prefix, like 192.168.150.1/24",
		       s->address);
}

static bool check_dhcp(const NetSpec *s, GError **err)
{
	g_auto(GStrv) part = s->dhcp ? g_strsplit(s->dhcp, "-", 3) : NULL;
	struct in6_addr first, last;
	int family;

	if (!part)
		return true;
	family = part[0] && part[1] && !part[2] ? family_of(g_strstrip(part[0]), &first) : -1;
	return (family >= 0 && family_of(g_strstrip(part[1]), &last) == family) ||
	       err_set(err, EINVAL,
		       "dhcp: '%.80s' is not a range of addresses, like "
		       "192.168.150.2-192.168.150.254",
		       s->dhcp);
}

static bool check_bridge(const NetSpec *s, GError **err)
{
	const size_t len = s->bridge ? strlen(s->bridge) : 1;

	return (len && len <= MAX_BRIDGE && (!s->bridge || !strpbrk(s->bridge, "/ :"))) ||
	       err_set(err, EINVAL, "bridge: '%.80s' is not the name of an interface", s->bridge);
}

static bool check(const NetSpec *s, GError **err)
{
	return check_address(s, err) && check_dhcp(s, err) && check_bridge(s, err);
}

static NetSpec *read_text(const char *name, GBytes *text, bool prefix, GError **err)
{
	g_autoptr(NetSpec) s = netspec_new(name);
	gsize len;
	const char *data = g_bytes_get_data(text, &len);

	if (!spec_read_object(&net_section, s, data ? data : "", len, prefix, err) ||
	    !check(s, err))
		return NULL;
	return g_steal_pointer(&s);
}

NetSpec *netspec_parse(const char *name, GBytes *text, GError **err)
{
	g_autoptr(NetSpec) s = read_text(name, text, false, err);

	if (s && s->dhcp && !s->address) {
		(void)err_set(err, EINVAL, "dhcp: needs an address of the host's own: add one");
		return NULL;
	}
	return g_steal_pointer(&s);
}

bool netspec_judge(GBytes *text, GError **err)
{
	g_autoptr(NetSpec) s = read_text("", text, true, err);

	return s != NULL;
}

char *netspec_text(const NetSpec *s)
{
	GString *out = g_string_new(NULL);

	for (const Field *f = net_fields; f->name; f++) {
		const void *slot = spec_field_slot(f, s);
		const char *text = f->type == FIELD_BOOL ? *(const bool *)slot ? "true" : "false"
							 : *(char *const *)slot;

		if (!text)
			continue;
		g_string_append_printf(out, "%s: ", f->name);
		if (f->type == FIELD_TEXT)
			specval_write_string(out, text);
		else
			g_string_append(out, text);
		g_string_append_c(out, '\n');
	}
	return g_string_free(out, FALSE);
}

void netspec_help(GString *out)
{
	spec_help_section(out, &net_section);
}
