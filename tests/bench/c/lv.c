/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that keeps one connection to libvirt.
 *
 *   lv state URI NAME       virDomainGetState
 *   lv stats URI COUNT      virConnectGetAllDomainStats of the states: one call for all
 *   lv suspend URI NAME     virDomainSuspend; `lv resume` lets it go on
 *   lv define URI XML       virDomainDefineXML and virDomainUndefine
 *   lv fill URI XML FROM    defines one more a turn: %s in the file XML is "fill-N"
 *   lv create URI NAME      virDomainCreate; `lv destroy` ends it again
 *   lv events URI           a line "NANOSECONDS EVENT" for each lifecycle event
 */
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "bench.h"

typedef struct Client {
	virConnectPtr conn;
	virDomainPtr dom;
	char *xml;
	long number;
} Client;

static void fail(const char *what)
{
	errx(1, "%s: %s", what, virGetLastErrorMessage());
}

static void turn_state(void *arg)
{
	int state;

	if (virDomainGetState(((Client *)arg)->dom, &state, NULL, 0))
		fail("state");
}

static void turn_stats(void *arg)
{
	const Client *c = arg;
	virDomainStatsRecordPtr *stats = NULL;
	const int n = virConnectGetAllDomainStats(c->conn, VIR_DOMAIN_STATS_STATE, &stats, 0);

	if (n != c->number)
		errx(1, "stats: %d domains, not %ld", n, c->number);
	virDomainStatsRecordListFree(stats);
}

static void turn_define(void *arg)
{
	const Client *c = arg;
	virDomainPtr dom = virDomainDefineXML(c->conn, c->xml);

	if (!dom || virDomainUndefine(dom))
		fail("define");
	virDomainFree(dom);
}

static void turn_fill(void *arg)
{
	Client *c = arg;
	const char *at = strstr(c->xml, "%s");
	char *xml;

	if (!at ||
	    asprintf(&xml, "%.*sfill-%ld%s", (int)(at - c->xml), c->xml, c->number++, at + 2) < 0)
		errx(1, "fill");
	virDomainPtr dom = virDomainDefineXML(c->conn, xml);
	if (!dom)
		fail("fill");
	virDomainFree(dom);
	free(xml);
}

static void turn_suspend(void *arg)
{
	if (virDomainSuspend(((Client *)arg)->dom))
		fail("suspend");
}

static void turn_resume(void *arg)
{
	if (virDomainResume(((Client *)arg)->dom))
		fail("resume");
}

static void turn_create(void *arg)
{
	if (virDomainCreate(((Client *)arg)->dom))
		fail("create");
}

static void turn_destroy(void *arg)
{
	if (virDomainDestroy(((Client *)arg)->dom))
		fail("destroy");
}

static char *read_file(const char *path)
{
	char buf[16384];
	FILE *f = fopen(path, "re");
	const size_t n = f ? fread(buf, 1, sizeof buf - 1, f) : 0;

	if (!n)
		err(1, "%s", path);
	buf[n] = '\0';
	fclose(f);
	return strdup(buf);
}

static int on_event(virConnectPtr conn, virDomainPtr dom, int event, int detail, void *arg)
{
	(void)conn;
	(void)dom;
	(void)detail;
	(void)arg;
	printf("%lld %d\n", (long long)now_ns(), event);
	fflush(stdout);
	return 0;
}

static void follow(const char *uri)
{
	virConnectPtr conn;

	if (virEventRegisterDefaultImpl() || !(conn = virConnectOpen(uri)) ||
	    virConnectDomainEventRegisterAny(conn, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
					     VIR_DOMAIN_EVENT_CALLBACK(on_event), NULL, NULL) < 0)
		fail(uri);
	printf("ready\n");
	fflush(stdout);
	while (!virEventRunDefaultImpl())
		;
}

static const struct {
	const char *name;
	Turn turn;
} kinds[] = {
	{ "state", turn_state },     { "create", turn_create }, { "destroy", turn_destroy },
	{ "suspend", turn_suspend }, { "resume", turn_resume }, { "define", turn_define },
	{ "fill", turn_fill },	     { "stats", turn_stats },
};

/* Errors come with the calls that failed. */
static void quiet(void *arg, virErrorPtr error)
{
	(void)arg;
	(void)error;
}

int main(int argc, char *argv[])
{
	Client c = { 0 };

	virSetErrorFunc(NULL, quiet);
	if (argc == 3 && !strcmp(argv[1], "events")) {
		follow(argv[2]);
		return 0;
	}
	for (unsigned i = 0; argc > 3 && i < sizeof kinds / sizeof kinds[0]; i++) {
		if (strcmp(argv[1], kinds[i].name))
			continue;
		if (!(c.conn = virConnectOpen(argv[2])))
			fail(argv[2]);
		if (i < 5 && !(c.dom = virDomainLookupByName(c.conn, argv[3])))
			fail(argv[3]);
		if (kinds[i].turn == turn_define || kinds[i].turn == turn_fill)
			c.xml = read_file(argv[3]);
		c.number = atol(argv[argc - 1]);
		serve_turns(kinds[i].turn, &c);
		virConnectClose(c.conn);
		return 0;
	}
	errx(2, "usage: lv state|stats|define|fill|create|destroy|events URI ...");
}
