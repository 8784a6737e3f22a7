/* SPDX-License-Identifier: Apache-2.0 */
/* Questions about a domain that runs: its picture, its counters, its keyboard, its monitor. */
#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <linux/input-event-codes.h>
#include <string.h>

#include "backends/guestnet.h"
#include "backends/libvirt/agent.h"
#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "vmfs/ask.h"
#include "vmfs/err.h"

#define MAX_PICTURE (64u << 20) /* bytes */
#define HOLD_MS	    20		/* that a key is down */
#define AGENT_MS    1000	/* for a part of an answer: the rest does not wait for longer */

static void answered(LvCall *c)
{
	if (c->error)
		ask_fail(c->arg, g_steal_pointer(&c->error));
	else
		ask_answer(c->arg, g_byte_array_free_to_bytes(g_steal_pointer(&c->bytes)));
}

static void ask(BackendVm *bv, Ask *a, bool (*work)(LvCall *c, GError **err),
		void (*done)(LvCall *c))
{
	GError *e = NULL;
	LvCall *c = lv_call_new(lv_of(bv), work, done, &e);

	if (!c) {
		ask_fail(a, e);
		return;
	}
	c->arg = a;
	c->name = g_strdup(ask_text(a));
	c->bytes = g_byte_array_new();
	lv_call_send(c);
}

static void say(LvCall *c, const char *text)
{
	g_byte_array_append(c->bytes, (const guint8 *)text, (guint)strlen(text));
}

/* ---- the picture ---- */

static bool receive(LvCall *c, virStreamPtr stream, GError **err)
{
	char buf[65536];
	int n;

	while ((n = virStreamRecv(stream, buf, sizeof buf)) > 0) {
		g_byte_array_append(c->bytes, (const guint8 *)buf, (guint)n);
		if (c->bytes->len > MAX_PICTURE) {
			(void)virStreamAbort(stream);
			return err_set(err, EFBIG, "the picture is too large");
		}
	}
	if (n < 0)
		lv_error(err, "cannot read the picture");
	else
		(void)virStreamFinish(stream);
	return n == 0;
}

static bool work_screen(LvCall *c, GError **err)
{
	virStreamPtr stream = virStreamNew(c->virt, 0);
	char *type = stream ? virDomainScreenshot(c->dom, stream, 0, 0) : NULL;
	bool ok = false;

	if (!type)
		lv_error(err, "libvirt gives no picture");
	else if (strcmp(type, "image/png"))
		ok = err_set(err, EOPNOTSUPP, "this host's libvirt gives pictures as %s only",
			     type);
	else
		ok = receive(c, stream, err);
	free(type);
	if (stream)
		virStreamFree(stream);
	return ok;
}

void lv_ask_screen(BackendVm *bv, Ask *a)
{
	ask(bv, a, work_screen, answered);
}

/* ---- the counters ---- */

static bool number(const virDomainStatsRecord *r, const char *field, unsigned long long *ret)
{
	const virTypedParameter *p = virTypedParamsGet(r->params, r->nparams, field);

	if (!p)
		return false;
	switch ((virTypedParameterType)p->type) {
	case VIR_TYPED_PARAM_INT:
		*ret = (unsigned long long)MAX(p->value.i, 0);
		return true;
	case VIR_TYPED_PARAM_UINT:
		*ret = p->value.ui;
		return true;
	case VIR_TYPED_PARAM_LLONG:
		*ret = (unsigned long long)MAX(p->value.l, 0);
		return true;
	case VIR_TYPED_PARAM_ULLONG:
		*ret = p->value.ul;
		return true;
	case VIR_TYPED_PARAM_DOUBLE:
	case VIR_TYPED_PARAM_BOOLEAN:
	case VIR_TYPED_PARAM_STRING:
		break;
	}
	return false;
}

/* One line, if libvirt has that number; it is divided and multiplied to our unit. */
static void line(LvCall *c, const virDomainStatsRecord *r, const char *key, const char *field,
		 unsigned div, unsigned mul)
{
	unsigned long long v;
	g_autofree char *text = NULL;

	if (!number(r, field, &v))
		return;
	text = g_strdup_printf("%s %llu\n", key, v / div * mul);
	say(c, text);
}

typedef struct Counter {
	const char *key, *field;
} Counter;

/* Those of a disk or an interface, which libvirt numbers. */
static void lines_of(LvCall *c, const virDomainStatsRecord *r, const char *group,
		     const char *const *names, const char *kind, const Counter *rows, unsigned n)
{
	g_autofree char *count_field = g_strdup_printf("%s.count", kind);
	unsigned long long count = 0;

	(void)number(r, count_field, &count);
	for (unsigned i = 0; i < count && i <= SPEC_MAX_ITEMS && names[i]; i++)
		for (unsigned k = 0; strcmp(names[i], XML_SEED) && k < n; k++) {
			g_autofree char *key =
				g_strdup_printf("%s.%s.%s", group, names[i], rows[k].key);
			g_autofree char *field =
				g_strdup_printf("%s.%u.%s", kind, i, rows[k].field);

			line(c, r, key, field, 1, 1);
		}
}

static void all_lines(LvCall *c, const virDomainStatsRecord *r, const char *xml)
{
	static const Counter disk[] = {
		{ "read_ops", "rd.reqs" },  { "read_bytes", "rd.bytes" },
		{ "write_ops", "wr.reqs" }, { "write_bytes", "wr.bytes" },
		{ "flush_ops", "fl.reqs" },
	};
	static const Counter nic[] = {
		{ "rx_bytes", "rx.bytes" }, { "rx_packets", "rx.pkts" },
		{ "rx_errors", "rx.errs" }, { "rx_drops", "rx.drop" },
		{ "tx_bytes", "tx.bytes" }, { "tx_packets", "tx.pkts" },
		{ "tx_errors", "tx.errs" }, { "tx_drops", "tx.drop" },
	};
	g_auto(GStrv) disks = lv_xml_names(xml, "disk");
	g_auto(GStrv) nics = lv_xml_names(xml, "interface");
	unsigned long long cpus = 0;

	line(c, r, "cpu.count", "vcpu.current", 1, 1);
	(void)number(r, "vcpu.current", &cpus);
	for (unsigned i = 0; i < cpus && i < SPEC_MAX_CPUS; i++) {
		g_autofree char *key = g_strdup_printf("cpu.%u.time_us", i);
		g_autofree char *field = g_strdup_printf("vcpu.%u.time", i);

		line(c, r, key, field, 1000, 1);
	}
	line(c, r, "cpu.time_us", "cpu.time", 1000, 1);
	line(c, r, "memory.max", "balloon.maximum", 1, 1024);
	line(c, r, "memory.rss", "balloon.rss", 1, 1024);
	line(c, r, "memory.balloon", "balloon.current", 1, 1024);
	lines_of(c, r, "block", (const char *const *)disks, "block", disk, G_N_ELEMENTS(disk));
	lines_of(c, r, "net", (const char *const *)nics, "net", nic, G_N_ELEMENTS(nic));
}

static bool work_stats(LvCall *c, GError **err)
{
	virDomainPtr doms[] = { c->dom, NULL };
	virDomainStatsRecordPtr *records = NULL;
	int n = virDomainListGetStats(doms,
				      VIR_DOMAIN_STATS_CPU_TOTAL | VIR_DOMAIN_STATS_BALLOON |
					      VIR_DOMAIN_STATS_VCPU | VIR_DOMAIN_STATS_INTERFACE |
					      VIR_DOMAIN_STATS_BLOCK,
				      &records, 0);
	g_autofree char *text = NULL;
	char *xml;

	if (n < 0) {
		lv_error(err, "libvirt gives no counters");
		return false;
	}
	xml = virDomainGetXMLDesc(c->dom, 0);
	if (n > 0)
		all_lines(c, records[0], xml ? xml : "");
	/* What runs, with the addresses of its nics. */
	text = xml ? lv_xml_spec(xml, NULL) : NULL;
	c->spec = text ? spec_restore(text, strlen(text), NULL) : NULL;
	free(xml);
	virDomainStatsRecordListFree(records);
	return true;
}

/*
 * Of a user network libvirt counts nothing, so what the guest counts is told. The rest does not
 * wait for it for longer than AGENT_MS: the agent may be stuck, or there are others who wait for
 * it.
 */
typedef struct Nics {
	LvCall *call;
	Ask *ask; /* NULL: it has had its answer */
	GByteArray *rest;
	Timer *timer;
} Nics;

static bool work_nics(LvCall *c, GError **err)
{
	g_autoptr(GString) out = g_string_new(NULL);
	json_t *said;

	if (g_atomic_int_get(&c->unwanted))
		return true;
	said = lv_agent_ask(c->dom, GUESTNET_COMMAND, NULL, err);
	for (guint i = 0; i < c->spec->nics->len; i++) {
		const SpecNic *nic = c->spec->nics->pdata[i];

		if (nic->mac && !strcmp(nic->network, "user"))
			guestnet_counters(out, nic->name, guestnet_find(said, nic->mac));
	}
	json_decref(said);
	say(c, out->str);
	return !*err;
}

static void nics_end(Nics *n, const GByteArray *counted)
{
	timer_stop(&n->timer);
	if (counted)
		g_byte_array_append(n->rest, counted->data, counted->len);
	ask_answer(g_steal_pointer(&n->ask), g_byte_array_free_to_bytes(n->rest));
}

static void nics_late(void *arg)
{
	Nics *n = arg;

	n->timer = NULL;
	g_atomic_int_set(&n->call->unwanted, 1);
	nics_end(n, NULL);
}

static void nics_counted(LvCall *c)
{
	Nics *n = c->arg;

	if (n->ask)
		nics_end(n, c->bytes);
	g_free(n);
}

/* One that nobody waits for any more has its agent still. */
static bool agent_is_stuck(const LvVm *lv)
{
	LvCall *c = lv->guest_call;

	return c && g_atomic_int_get(&c->unwanted);
}

static bool asks_guest(const LvCall *c)
{
	const Vm *vm = c->vm;

	if (!lv_call_alive(c) || vm->pushed != VM_RUNNING || !vm->agent || agent_is_stuck(c->lv))
		return false;
	for (guint i = 0; c->spec && i < c->spec->nics->len; i++)
		if (!strcmp(((const SpecNic *)c->spec->nics->pdata[i])->network, "user"))
			return true;
	return false;
}

static void counted(LvCall *c)
{
	LvCall *guest = !c->error && asks_guest(c)
				? lv_call_new(c->lv, work_nics, nics_counted, NULL)
				: NULL;
	Nics *n;

	if (!guest) {
		answered(c);
		return;
	}
	n = g_new0(Nics, 1);
	*n = (Nics){ guest, c->arg, g_steal_pointer(&c->bytes),
		     timer_start(AGENT_MS, nics_late, n) };
	guest->arg = n;
	guest->guest = true;
	guest->spec = spec_ref(c->spec);
	guest->bytes = g_byte_array_new();
	lv_call_send(guest);
}

void lv_ask_stats(BackendVm *bv, Ask *a)
{
	ask(bv, a, work_stats, counted);
}

/* ---- the keyboard ---- */

#define K(name, code)                                                                              \
	{                                                                                          \
		name, KEY_##code                                                                   \
	}

/* QEMU's names, which are those of `keys`, and Linux's codes. */
// clang-format off
static const struct {
	const char *name;
	unsigned code;
} keys[] = {
	K("a", A), K("b", B), K("c", C), K("d", D), K("e", E), K("f", F), K("g", G), K("h", H),
	K("i", I), K("j", J), K("k", K), K("l", L), K("m", M), K("n", N), K("o", O), K("p", P),
	K("q", Q), K("r", R), K("s", S), K("t", T), K("u", U), K("v", V), K("w", W), K("x", X),
	K("y", Y), K("z", Z), K("0", 0), K("1", 1), K("2", 2), K("3", 3), K("4", 4), K("5", 5),
	K("6", 6), K("7", 7), K("8", 8), K("9", 9),
	K("f1", F1), K("f2", F2), K("f3", F3), K("f4", F4), K("f5", F5), K("f6", F6), K("f7", F7),
	K("f8", F8), K("f9", F9), K("f10", F10), K("f11", F11), K("f12", F12),
	K("esc", ESC), K("minus", MINUS), K("equal", EQUAL), K("backspace", BACKSPACE),
	K("tab", TAB), K("bracket_left", LEFTBRACE), K("bracket_right", RIGHTBRACE),
	K("ret", ENTER), K("semicolon", SEMICOLON), K("apostrophe", APOSTROPHE),
	K("grave_accent", GRAVE), K("backslash", BACKSLASH), K("comma", COMMA), K("dot", DOT),
	K("slash", SLASH), K("spc", SPACE), K("caps_lock", CAPSLOCK), K("less", 102ND),
	K("ctrl", LEFTCTRL), K("ctrl_r", RIGHTCTRL), K("shift", LEFTSHIFT),
	K("shift_r", RIGHTSHIFT), K("alt", LEFTALT), K("alt_r", RIGHTALT), K("meta_l", LEFTMETA),
	K("meta_r", RIGHTMETA), K("menu", COMPOSE), K("home", HOME), K("end", END), K("up", UP),
	K("down", DOWN), K("left", LEFT), K("right", RIGHT), K("pgup", PAGEUP),
	K("pgdn", PAGEDOWN), K("insert", INSERT), K("delete", DELETE), K("num_lock", NUMLOCK),
	K("scroll_lock", SCROLLLOCK), K("sysrq", SYSRQ), K("print", SYSRQ), K("pause", PAUSE),
	K("kp_0", KP0), K("kp_1", KP1), K("kp_2", KP2), K("kp_3", KP3), K("kp_4", KP4),
	K("kp_5", KP5), K("kp_6", KP6), K("kp_7", KP7), K("kp_8", KP8), K("kp_9", KP9),
	K("kp_decimal", KPDOT), K("kp_divide", KPSLASH), K("kp_multiply", KPASTERISK),
	K("kp_subtract", KPMINUS), K("kp_add", KPPLUS), K("kp_enter", KPENTER),
};
// clang-format on

static bool code_of(const char *name, unsigned *ret, GError **err)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++)
		if (!strcmp(keys[i].name, name)) {
			*ret = keys[i].code;
			return true;
		}
	return err_set(err, EINVAL, "there is no key '%.40s'", name);
}

/* false: it is not to be pressed, as one of its keys is none. */
static bool codes_of(const char *word, unsigned codes[VIR_DOMAIN_SEND_KEY_MAX_KEYS], unsigned *n,
		     GError **err)
{
	g_auto(GStrv) names = g_strsplit(word, "-", -1);

	for (*n = 0; names[*n] && *n < VIR_DOMAIN_SEND_KEY_MAX_KEYS; (*n)++)
		if (!code_of(names[*n], &codes[*n], err))
			return false;
	return true;
}

static bool work_keys(LvCall *c, GError **err)
{
	g_auto(GStrv) words = g_strsplit(c->name, " ", -1);
	unsigned codes[VIR_DOMAIN_SEND_KEY_MAX_KEYS], n;

	/* All of them are good, or none is pressed. */
	for (unsigned i = 0; words[i]; i++)
		if (!codes_of(words[i], codes, &n, err))
			return false;
	for (unsigned i = 0; words[i]; i++) {
		(void)codes_of(words[i], codes, &n, NULL);
		if (n && virDomainSendKey(c->dom, VIR_KEYCODE_SET_LINUX, HOLD_MS, codes, (int)n,
					  0) < 0) {
			lv_error(err, "libvirt cannot press keys");
			return false;
		}
	}
	return true;
}

void lv_ask_keys(BackendVm *bv, Ask *a)
{
	ask(bv, a, work_keys, answered);
}

/* ---- the monitor ---- */

char *lv_hmp(virDomainPtr dom, const char *line, GError **err)
{
	g_auto(GStrv) lines = NULL;
	char *out = NULL;

	if (virDomainQemuMonitorCommand(dom, line, &out, VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)) {
		lv_error(err, "libvirt has no way to the monitor");
		return NULL;
	}
	/* It ends its lines as a terminal wants them. */
	lines = g_strsplit(out, "\r\n", -1);
	free(out);
	return g_strjoinv("\n", lines);
}

static bool work_monitor(LvCall *c, GError **err)
{
	g_autofree char *text = lv_hmp(c->dom, c->name, err);

	if (text)
		say(c, text);
	return text;
}

void lv_ask_monitor(BackendVm *bv, Ask *a)
{
	GError *e = NULL;

	if (!lv_has_rights(bv->vm, "monitor", &e))
		ask_fail(a, e);
	else
		ask(bv, a, work_monitor, answered);
}
