/* SPDX-License-Identifier: Apache-2.0 */
/* The values of spec.yaml's keys. Everything here has a bound, whatever the text is. */
#include "vmfs/specval.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "vmfs/err.h"

#define QUOTE_CHARS    40
#define MAX_EXPIRES_MS (3660ull * 86400 * 1000) /* ten years */

char *specval_quote(const char *text)
{
	g_autoptr(GString) s = g_string_new("'");
	unsigned n = 0;

	for (const char *p = text; *p; p = g_utf8_next_char(p)) {
		gunichar c = g_utf8_get_char(p);

		if (n++ == QUOTE_CHARS) {
			g_string_append(s, "...");
			break;
		}
		g_string_append_unichar(s, g_unichar_isprint(c) ? c : '?');
	}
	g_string_append_c(s, '\'');
	return g_string_free(g_steal_pointer(&s), FALSE);
}

/* EINVAL with "'text' WHY". */
static bool bad(GError **err, const char *text, const char *why)
{
	g_autofree char *quoted = specval_quote(text);

	return err_set(err, EINVAL, "%s %s", quoted, why);
}

/* Levenshtein's distance of short words; long ones are far from everything. */
static unsigned distance(const char *a, const char *b)
{
	size_t na = strlen(a), nb = strlen(b);
	unsigned row[SPECVAL_MAX_NAME + 2], diagonal, above;

	if (na > SPECVAL_MAX_NAME || nb > SPECVAL_MAX_NAME)
		return UINT_MAX;
	for (unsigned j = 0; j <= nb; j++)
		row[j] = j;
	for (unsigned i = 1; i <= na; i++) {
		diagonal = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= nb; j++) {
			above = row[j];
			row[j] = MIN(MIN(above, row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
			diagonal = above;
		}
	}
	return row[nb];
}

const char *specval_suggest(const char *text, const char *const *names)
{
	/* Half of a short word is not a typo. */
	unsigned best = MIN(3, (unsigned)MIN(strlen(text), SPECVAL_MAX_NAME) / 2 + 1);
	const char *found = NULL;

	for (; *names; names++) {
		unsigned d = distance(text, *names);

		if (d < best) {
			best = d;
			found = *names;
		}
	}
	return found;
}

char *specval_format_size(uint64_t bytes)
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB" };
	size_t unit = G_N_ELEMENTS(units) - 1;
	uint64_t tenths;

	if (bytes < 1024)
		return g_strdup_printf("%" G_GUINT64_FORMAT " bytes", bytes);
	while (unit && bytes >> (10 * (unit + 1)) == 0)
		unit--;
	/* To the nearest tenth; the double is exact enough for what is only shown. */
	tenths = (uint64_t)((double)bytes / (double)(1ull << (10 * (unit + 1))) * 10 + 0.5);
	if (tenths % 10 == 0)
		return g_strdup_printf("%" G_GUINT64_FORMAT "%s", tenths / 10, units[unit]);
	return g_strdup_printf("%" G_GUINT64_FORMAT ".%u%s", tenths / 10, (unsigned)(tenths % 10),
			       units[unit]);
}

/* The digits that text begins with; false if there are none or too many. */
static bool take_digits(const char **text, uint64_t *ret)
{
	uint64_t n = 0;
	const char *p = *text;

	if (!g_ascii_isdigit(*p))
		return false;
	for (; g_ascii_isdigit(*p); p++)
		if (__builtin_mul_overflow(n, 10, &n) ||
		    __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n))
			return false;
	*text = p;
	*ret = n;
	return true;
}

bool specval_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret, GError **err)
{
	const char *p = text;
	uint64_t n;

	if (!take_digits(&p, &n) || *p)
		return bad(err, text, "is not a whole number");
	if (n < min || n > max)
		return err_set(err, EINVAL,
			       "%" G_GUINT64_FORMAT " is not from %" G_GUINT64_FORMAT
			       " to %" G_GUINT64_FORMAT,
			       n, min, max);
	*ret = n;
	return true;
}

bool specval_size(const char *text, uint64_t min, uint64_t max, uint64_t *ret, GError **err)
{
	static const char units[] = "KMGT";
	const char *p = text, *unit;
	unsigned shift = 0;
	uint64_t n;
	g_autofree char *have = NULL, *limit = NULL;

	if (!take_digits(&p, &n))
		return bad(err, text, "is not a size: write one like 512MiB or 2GiB");
	unit = *p ? strchr(units, g_ascii_toupper(*p)) : NULL;
	if (unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		p++;
		if (g_ascii_strcasecmp(p, "iB") == 0)
			p += 2;
	}
	if (*p || n > UINT64_MAX >> shift)
		return bad(err, text, "is not a size: write one like 512MiB or 2GiB");
	n <<= shift;
	have = specval_format_size(n);
	if (n < min) {
		limit = specval_format_size(min);
		return err_set(err, EINVAL, "%s is less than the minimum of %s%s", have, limit,
			       unit ? "" : ": a number alone is bytes, write a unit: MiB, GiB");
	}
	if (max && n > max) {
		limit = specval_format_size(max);
		return err_set(err, EINVAL, "%s is more than the limit of %s", have, limit);
	}
	*ret = n;
	return true;
}

bool specval_duration(const char *text, uint64_t max_ms, uint64_t *ret_ms, GError **err)
{
	static const struct {
		const char *name;
		unsigned ms;
	} units[] = { { "", 1000 },   { "s", 1000 },	{ "ms", 1 },
		      { "m", 60000 }, { "h", 3600000 }, { "d", 86400000 } };
	const char *p = text;
	uint64_t n;

	if (!take_digits(&p, &n))
		return bad(err, text, "is not a duration: write one like 30s or 2m");
	for (size_t i = 0; i < G_N_ELEMENTS(units); i++) {
		if (strcmp(p, units[i].name) != 0)
			continue;
		if (n > max_ms / units[i].ms)
			return err_set(err, EINVAL,
				       "%" G_GUINT64_FORMAT "%s is more than the limit of "
				       "%" G_GUINT64_FORMAT "s",
				       n, *p ? p : "s", max_ms / 1000);
		*ret_ms = n * units[i].ms;
		return true;
	}
	return bad(err, text, "is not a duration: write one like 30s or 2m");
}

bool specval_bool(const char *text, bool *ret, GError **err)
{
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return bad(err, text, "is neither true nor false");
	*ret = text[0] == 't';
	return true;
}

bool specval_choice(const char *text, const char *const *choices, unsigned *ret, GError **err)
{
	g_autofree char *quoted = NULL, *all = NULL;
	const char *meant;

	for (unsigned i = 0; choices[i]; i++) {
		if (strcmp(text, choices[i]) == 0) {
			*ret = i;
			return true;
		}
	}
	quoted = specval_quote(text);
	if (!choices[1])
		return err_set(err, EINVAL, "%s is not known, only '%s' is", quoted, choices[0]);
	meant = specval_suggest(text, choices);
	if (meant)
		return err_set(err, EINVAL, "unknown value %s, did you mean '%s'?", quoted, meant);
	all = g_strjoinv(", ", (char **)choices);
	return err_set(err, EINVAL, "unknown value %s, it can be: %s", quoted, all);
}

bool specval_text(const char *text, char **ret, GError **err)
{
	size_t n = strlen(text);

	while (n && text[n - 1] == '\n')
		n--;
	if (n > SPECVAL_MAX_TEXT)
		return err_set(err, EINVAL, "longer than %d bytes", SPECVAL_MAX_TEXT);
	/* A block scalar of one line ends with a newline. */
	for (const char *p = text; p < text + n; p++)
		if (g_ascii_iscntrl(*p) && *p != '\t')
			return bad(err, text, "must be one line without control characters");
	*ret = g_strndup(text, n);
	return true;
}

bool specval_is_network(const char *text)
{
	const size_t len = strlen(text);

	return g_ascii_isalnum(*text) && len <= SPECVAL_MAX_NETWORK &&
	       strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
		       len;
}

bool specval_is_image_name(const char *text)
{
	if (!g_ascii_isalnum(*text) && *text != '_')
		return false;
	for (; *text; text++)
		if (!g_ascii_isalnum(*text) && !strchr("._-", *text))
			return false;
	return true;
}

bool specval_path(const char *text, bool bare, char **ret, GError **err)
{
	if (*text != '/' && !(bare && specval_is_image_name(text)))
		return bad(err, text,
			   bare ? "is neither an absolute path nor the name of an image"
				: "is not an absolute path: begin it with /");
	return specval_text(text, ret, err);
}

bool specval_ssh_key(const char *text, char **ret, GError **err)
{
	static const char *const types[] = { "ssh-", "ecdsa-", "sk-" };
	static const char how[] = "is not a public ssh key: give a line like 'ssh-ed25519 AAAA... "
				  "me@host', as it is in a .pub file";
	const char *key = strchr(text, ' ');
	bool known = false;

	for (size_t i = 0; i < G_N_ELEMENTS(types); i++)
		known |= g_str_has_prefix(text, types[i]);
	/* Who pasted a private key does not want to see it in a log. */
	if (!known || !key || !g_str_has_prefix(key + strspn(key, " "), "AAAA"))
		return err_set(err, EINVAL, how);
	if (!specval_text(text, ret, NULL))
		return err_set(err, EINVAL,
			       "is no public ssh key: must be one line of at most %d bytes",
			       SPECVAL_MAX_TEXT);
	return true;
}

bool specval_mac(const char *text, char **ret, GError **err)
{
	static const char pattern[] = "xx:xx:xx:xx:xx:xx";
	bool good = strlen(text) == strlen(pattern);

	for (size_t i = 0; good && pattern[i]; i++)
		good = pattern[i] == ':' ? text[i] == ':' : g_ascii_isxdigit(text[i]);
	if (!good)
		return bad(err, text, "is not a MAC address like 52:54:00:12:34:56");
	if (g_ascii_xdigit_value(text[1]) & 1)
		return bad(err, text, "is a multicast address: make the first byte even, like 52");
	if (strcmp(text, "00:00:00:00:00:00") == 0)
		return bad(err, text, "cannot be an interface's address");
	*ret = g_ascii_strdown(text, -1);
	return true;
}

bool specval_pci(const char *text, char **ret, GError **err)
{
	static const char pattern[] = "xxxx:xx:xx.x";
	bool good = strlen(text) == strlen(pattern);

	for (size_t i = 0; good && pattern[i]; i++)
		good = pattern[i] == 'x' ? g_ascii_isxdigit(text[i]) : text[i] == pattern[i];
	if (!good)
		return bad(err, text, "is not the address of a PCI device like 0000:01:00.0");
	*ret = g_ascii_strdown(text, -1);
	return true;
}

/* As many hubs deep as there can be. */
bool specval_usb(const char *text, char **ret, GError **err)
{
	static const char pattern[] = "^[1-9][0-9]{0,2}-[1-9][0-9]{0,2}(\\.[1-9][0-9]{0,2}){0,5}$";

	if (!g_regex_match_simple(pattern, text, 0, 0))
		return bad(err, text, "is not the port of a USB device like 1-2 or 1-2.3");
	*ret = g_strdup(text);
	return true;
}

bool specval_port(const char *text, SpecPort *ret, GError **err)
{
	static const char how[] = "is not a port: write HOSTPORT:GUESTPORT or "
				  "HOSTADDR:HOSTPORT:GUESTPORT, with /udp after it for UDP";
	g_auto(GStrv) ends = g_strsplit(text, "/", 3);
	g_auto(GStrv) parts = g_strsplit(ends[0] ? ends[0] : "", ":", 4);
	unsigned n_ends = g_strv_length(ends), n = g_strv_length(parts);
	const char *address = n == 3 ? parts[0] : "127.0.0.1";
	uint64_t host, guest;
	struct in_addr in;

	if (*text == '[')
		return bad(err, text, "has an IPv6 address: only IPv4 is supported here");
	if (n < 2 || n > 3 || n_ends > 2 ||
	    (n_ends == 2 && strcmp(ends[1], "udp") != 0 && strcmp(ends[1], "tcp") != 0))
		return bad(err, text, how);
	if (inet_pton(AF_INET, address, &in) != 1)
		return bad(err, address, "is not an IPv4 address like 127.0.0.1 or 0.0.0.0");
	if (!specval_number(parts[n - 2], 0, UINT16_MAX, &host, err)) {
		g_prefix_error(err, "host port ");
		return false;
	}
	if (!specval_number(parts[n - 1], 1, UINT16_MAX, &guest, err)) {
		g_prefix_error(err, "guest port ");
		return false;
	}
	ret->address = g_strdup(address);
	ret->host_port = (uint16_t)host;
	ret->guest_port = (uint16_t)guest;
	ret->udp = n_ends == 2 && ends[1][0] == 'u';
	return true;
}

bool specval_expires(const char *text, int64_t now, int64_t *ret, GError **err)
{
	static const char how[] = "is neither a time like 2h or 7d nor a date like "
				  "2030-01-31T18:00:00Z";
	g_autoptr(GDateTime) date = NULL;
	uint64_t ms;

	/* GLib would take a blank for the T as well. */
	if (strchr(text, 'T') && !strchr(text, ' '))
		date = g_date_time_new_from_iso8601(text, NULL);
	if (date) {
		*ret = g_date_time_to_unix(date) * G_USEC_PER_SEC;
		return true;
	}
	if (strchr(text, '-') || !g_ascii_isdigit(*text))
		return bad(err, text, how);
	if (!specval_duration(text, MAX_EXPIRES_MS, &ms, err))
		return false;
	*ret = now + (int64_t)ms * 1000;
	return true;
}

bool specval_vnc(const char *text, char **ret, GError **err)
{
	const char *colon = strrchr(text, ':');
	g_autofree char *address = colon ? g_strndup(text, (size_t)(colon - text)) : NULL;
	struct in_addr in;
	uint64_t port;

	if (!strcmp(text, "unix")) {
		*ret = g_strdup(text);
		return true;
	}
	if (!address || inet_pton(AF_INET, address, &in) != 1)
		return bad(err, text, "is neither unix nor an address and port like 127.0.0.1:0");
	/* VNC's own password is no protection: eight letters, in the clear. */
	if (ntohl(in.s_addr) >> 24 != 127)
		return bad(err, address,
			   "can be reached by others, and a display has no password: use unix or "
			   "127.0.0.1, and a tunnel (ssh -L)");
	if (!specval_number(colon + 1, 0, UINT16_MAX, &port, err))
		return false;
	if (port && port < 5900)
		return bad(err, colon + 1,
			   "is not a port of VNC: 5900 or more, or 0 for a free one");
	*ret = g_strdup(text);
	return true;
}

bool specval_is_name(const char *text)
{
	size_t n = strlen(text);

	if (!n || n > SPECVAL_MAX_NAME || !g_ascii_isalnum(*text))
		return false;
	for (; *text; text++)
		if (!g_ascii_isalnum(*text) && *text != '_' && *text != '-')
			return false;
	return true;
}

void specval_write_string(GString *out, const char *text)
{
	g_string_append_c(out, '"');
	for (const char *p = text; *p; p = g_utf8_next_char(p)) {
		const gunichar c = g_utf8_get_char(p);

		if (c == '"' || c == '\\')
			g_string_append_printf(out, "\\%c", (char)c);
		else if ((c >= ' ' && c <= '~') || c > 0xffff)
			g_string_append_unichar(out, c);
		else
			g_string_append_printf(out, "\\u%04x", c);
	}
	g_string_append_c(out, '"');
}
