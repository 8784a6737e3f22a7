/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU and guests say: the QMP client, first fed by hand and then over real sockets with
 * peers that lie, stall or hang up; and the parsers of their answers.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

typedef struct Seen {
	Qmp *qmp;
	bool ready, closed, free_on_answer;
	int closed_code, answers, answer_code;
	char answer[64], event[64];
} Seen;

static void on_ready(void *arg)
{
	Seen *s = arg;

	s->ready = true;
}

static void on_event(void *arg, const char *name, const json_t *data)
{
	Seen *s = arg;

	g_strlcpy(s->event, name, sizeof(s->event));
}

static void on_closed(void *arg, const GError *err)
{
	Seen *s = arg;

	g_assert_false(s->closed);
	s->closed = true;
	s->closed_code = err_code(err);
}

static const QmpOps ops = { .ready = on_ready, .event = on_event, .closed = on_closed };

static void on_answer(void *arg, const json_t *result, const GError *err)
{
	Seen *s = arg;
	const char *text = json_string_value(json_object_get(result, "status"));

	g_assert_true(!result != !err);
	s->answers++;
	s->answer_code = err ? err_code(err) : 0;
	g_strlcpy(s->answer, err ? err->message : text ? text : "", sizeof(s->answer));
	if (s->free_on_answer)
		qmp_free(g_steal_pointer(&s->qmp));
}

static void feed(Seen *s, const char *text)
{
	g_autofree char *line = g_strdup(text);

	qmp_feed(s->qmp, line, strlen(line));
}

static Seen *greeted(void)
{
	Seen *s = g_new0(Seen, 1);

	s->qmp = qmp_new(&ops, s);
	feed(s, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}");
	feed(s, "{\"return\": {}, \"id\": 1}");
	g_assert_true(s->ready);
	return s;
}

static void seen_free(Seen *s)
{
	qmp_free(s->qmp);
	g_free(s);
}

static void test_answers(void)
{
	Seen *s = greeted();

	qmp_execute(s->qmp, "query-status", NULL, on_answer, s);
	qmp_execute(s->qmp, "stop", NULL, on_answer, s);
	feed(s, "{\"return\": {}, \"id\": 77}");
	feed(s, "{\"return\": {}, \"id\": \"2\"}");
	feed(s, "{\"return\": {}}");
	g_assert_cmpint(s->answers, ==, 0);
	feed(s, "{\"timestamp\": {}, \"event\": \"RESUME\"}");
	g_assert_cmpstr(s->event, ==, "RESUME");
	feed(s, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"No space left on device\"}, "
		"\"id\": 3}");
	g_assert_cmpint(s->answer_code, ==, ENOSPC);
	g_assert_cmpstr(s->answer, ==, "stop: No space left on device");
	feed(s, "{\"return\": {\"status\": \"running\"}, \"id\": 2}");
	g_assert_cmpstr(s->answer, ==, "running");
	feed(s, "{\"return\": {\"status\": \"twice\"}, \"id\": 2}");
	g_assert_cmpint(s->answers, ==, 2);
	seen_free(s);
}

static void test_cancel(void)
{
	Seen *s = greeted();
	QmpSlot *slot = qmp_execute(s->qmp, "stop", NULL, on_answer, s);

	qmp_cancel(&slot);
	g_assert_null(slot);
	qmp_cancel(&slot);
	feed(s, "{\"return\": {}, \"id\": 2}");
	g_assert_cmpint(s->answers, ==, 0);
	qmp_execute(s->qmp, "cont", NULL, on_answer, s);
	s->free_on_answer = true;
	feed(s, "{\"return\": {}, \"id\": 3}");
	g_assert_cmpint(s->answers, ==, 1);
	g_assert_false(s->closed);
	seen_free(s);
}

static void test_garbage(void)
{
	static const char *const rows[] = { "hello",	"[1]", "{\"return\":",
					    "\xff\xfe", "{}}", "null" };

	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		Seen *s = greeted();
		qmp_execute(s->qmp, "stop", NULL, on_answer, s);
		feed(s, rows[i]);
		g_assert_true(s->closed);
		g_assert_cmpint(s->closed_code, ==, EPROTO);
		g_assert_cmpint(s->answer_code, ==, EPROTO);
		feed(s, "{\"return\": {}, \"id\": 2}");
		g_assert_cmpint(s->answers, ==, 1);
		seen_free(s);
	}
}

static void test_not_greeted(void)
{
	Seen s = { 0 };

	s.qmp = qmp_new(&ops, &s);
	feed(&s, "{\"return\": {}, \"id\": 1}");
	g_assert_false(s.ready);
	g_assert_true(s.closed);
	qmp_free(s.qmp);
}

/* ---- over a socket ---- */

static void give_up(void *arg)
{
	g_error("nothing happened");
}

static void run_until(const bool *flag)
{
	Timer *t = timer_start(20000, give_up, NULL);

	while (!*flag)
		uv_run(loop_get(), UV_RUN_ONCE);
	timer_stop(&t);
}

typedef struct Peer {
	char dir[64], *path;
	int listener, fd;
} Peer;

static Peer *peer_new(void)
{
	Peer *p = g_new0(Peer, 1);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	strcpy(p->dir, "/tmp/vmfs-qmp-XXXXXX");
	g_assert_nonnull(g_mkdtemp(p->dir));
	p->path = g_build_filename(p->dir, "qmp", NULL);
	g_strlcpy(addr.sun_path, p->path, sizeof(addr.sun_path));
	p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	g_assert_cmpint(bind(p->listener, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
	g_assert_cmpint(listen(p->listener, 1), ==, 0);
	p->fd = -1;
	return p;
}

static void peer_free(Peer *p)
{
	close(p->listener);
	if (p->fd >= 0)
		close(p->fd);
	g_unlink(p->path);
	g_rmdir(p->dir);
	g_free(p->path);
	g_free(p);
}

static void peer_say(Peer *p, const char *text)
{
	if (p->fd < 0)
		p->fd = accept(p->listener, NULL, NULL);
	g_assert_cmpint(write(p->fd, text, strlen(text)), ==, (ssize_t)strlen(text));
}

static void test_silence(void)
{
	Peer *p = peer_new();
	Seen s = { 0 };

	s.qmp = qmp_connect(p->path, 50, &ops, &s);
	qmp_execute(s.qmp, "cont", NULL, on_answer, &s);
	run_until(&s.closed);
	g_assert_cmpint(s.closed_code, ==, ETIMEDOUT);
	g_assert_cmpint(s.answer_code, ==, ETIMEDOUT);
	qmp_free(s.qmp);
	peer_free(p);
}

static void test_nobody(void)
{
	Seen s = { 0 };

	s.qmp = qmp_connect("/nonexistent/qmp", 1000, &ops, &s);
	g_assert_false(s.closed);
	run_until(&s.closed);
	g_assert_cmpint(s.closed_code, ==, ENOENT);
	qmp_free(s.qmp);

	/* Freed before it could be told. */
	s = (Seen){ 0 };
	qmp_free(qmp_connect("/nonexistent/qmp", 1000, &ops, &s));
}

static void test_hang_up(void)
{
	Peer *p = peer_new();
	Seen s = { 0 };

	s.qmp = qmp_connect(p->path, 1000, &ops, &s);
	qmp_execute(s.qmp, "cont", NULL, on_answer, &s);
	peer_say(p, "{\"QMP\": {}}\r\n{\"return\": {}, \"id\": 1}\r\n{\"event\": "
		    "\"SHUTDOWN\"}\n{\"ret");
	close(p->fd);
	p->fd = -1;
	run_until(&s.closed);
	g_assert_true(s.ready);
	g_assert_cmpstr(s.event, ==, "SHUTDOWN");
	g_assert_cmpint(s.answers, ==, 1);
	g_assert_cmpint(s.answer_code, ==, EIO);
	qmp_free(s.qmp);
	peer_free(p);
}

static void write_some(void *arg, int status, int events)
{
	static const char zeros[65536];
	const Peer *p = arg;

	(void)send(p->fd, zeros, sizeof(zeros), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void test_endless_line(void)
{
	Peer *p = peer_new();
	Seen s = { 0 };

	s.qmp = qmp_connect(p->path, 10000, &ops, &s);
	peer_say(p, "{\"QMP\": \"");
	Watch *w = watch_start(p->fd, UV_WRITABLE, write_some, p);
	run_until(&s.closed);
	g_assert_cmpint(s.closed_code, ==, EMSGSIZE);
	watch_stop(&w, false);
	qmp_free(s.qmp);
	peer_free(p);
}

static void later(void *arg)
{
	*(bool *)arg = true;
}

/* More connections than the backlog holds: the last ones have to wait, and get through. */
static void test_backlog(void)
{
	Peer *p = peer_new();
	Seen s[6] = { 0 };
	struct pollfd ready = { .fd = p->listener, .events = POLLIN };

	for (size_t i = 0; i < G_N_ELEMENTS(s); i++)
		s[i].qmp = qmp_connect(p->path, 10000, &ops, &s[i]);
	for (size_t i = 0; i < G_N_ELEMENTS(s); i++) {
		do {
			bool waited = false;
			timer_start(20, later, &waited);
			run_until(&waited);
		} while (poll(&ready, 1, 0) == 0);
		p->fd = -1;
		peer_say(p, "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n");
		close(p->fd);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(s); i++) {
		run_until(&s[i].closed);
		g_assert_true(s[i].ready);
		qmp_free(s[i].qmp);
	}
	p->fd = -1;
	peer_free(p);
}

/* ---- parsers ---- */

static Spec *nic_spec(void)
{
	static const char yaml[] =
		"{boot: {kernel: /k}, nics: {eth0: {ports: ['0:22', '0:53/udp']}, "
		"eth1: {mac: '52:54:00:AA:00:01'}}}";

	return spec_parse(yaml, strlen(yaml), NULL);
}

static void test_agent_ips(void)
{
	static const char text[] =
		"[{\"name\": \"lo\", \"hardware-address\": \"00:00:00:00:00:00\","
		"  \"ip-addresses\": [{\"ip-address\": \"127.0.0.1\"}]},"
		" {\"name\": \"docker0\", \"hardware-address\": \"02:42:00:00:00:00\","
		"  \"ip-addresses\": [{\"ip-address\": \"172.17.0.1\"}]},"
		" {\"name\": \"a\", \"hardware-address\": \"52:54:00:00:07:00\", \"ip-addresses\": "
		"["
		"  {\"ip-address\": \"fe80::1\"}, {\"ip-address\": \"2001:db8::1\"},"
		"  {\"ip-address\": \"10.0.2.15\"}, {\"ip-address\": \"10.0.2.15\"},"
		"  {\"ip-address\": \"169.254.1.1\"}, {\"ip-address\": \"evil\\n10.1.1.1\"},"
		"  {\"ip-address\": 7}, {}, null]},"
		" {\"name\": \"b\", \"hardware-address\": \"52:54:00:aa:00:01\","
		"  \"ip-addresses\": [{\"ip-address\": \"192.0.2.9\"}]},"
		" {\"name\": \"no-mac\", \"ip-addresses\": [{\"ip-address\": \"192.0.2.1\"}]}, 5]";
	g_autoptr(Spec) spec = nic_spec();
	json_t *json = json_loads(text, 0, NULL);
	g_autoptr(GPtrArray) ips = qemu_agent_ips(json, spec, 7);

	g_ptr_array_add(ips, NULL);
	g_autofree char *got = g_strjoinv(" ", (char **)ips->pdata);
	g_assert_cmpstr(got, ==, "10.0.2.15 192.0.2.9 2001:db8::1");
	json_decref(json);
}

static void test_usernet(void)
{
	static const char text[] =
		"Hub -1 (net-eth0):\r\n"
		"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ "
		"SendQ\r\n"
		"  TCP[ESTABLISHED]   14       10.0.2.16 40022      192.0.2.1   443     0     0\r\n"
		"  UDP[236 sec]       13       10.0.2.15 34033       10.0.2.3    53     0     0\r\n"
		"  UDP[HOST_FORWARD]  10       127.0.0.1 40001       10.0.2.15    53     0     "
		"0\r\n"
		"  TCP[ESTABLISHED]   15       127.0.0.1 39555       10.0.2.99    22     0     "
		"0\r\n"
		"  TCP[HOST_FORWARD]   9       127.0.0.1 39555       10.0.2.98    22     0     "
		"0\r\n"
		"  TCP[x\r\n  UDP[] - - -\r\n";
	g_autoptr(GPtrArray) rows = qemu_usernet(text);
	g_autoptr(GPtrArray) ips = usernet_ips(rows);

	g_ptr_array_add(ips, NULL);
	g_autofree char *got = g_strjoinv(" ", (char **)ips->pdata);
	g_assert_cmpstr(got, ==, "10.0.2.16 10.0.2.15");
}

static void test_sentences(void)
{
	static const struct {
		const char *log, *sentence;
		int code;
	} rows[] = {
		{ "qemu-system-x86_64: -blockdev driver=file,node-name=file-root,filename=/x: "
		  "Could "
		  "not open '/x': No such file or directory\n",
		  "disks.root: Could not open '/x': No such file or directory", ENOENT },
		{ "qemu-system-x86_64: warning: host lacks something\n"
		  "qemu: could not open kernel file '/k': Permission denied\n"
		  "qemu-system-x86_64: warning: and so on\n\n",
		  "could not open kernel file '/k': Permission denied", EACCES },
		{ "qemu-system-x86_64: -netdev user,id=net-eth0,hostfwd=tcp:127.0.0.1:80-:22: "
		  "Could "
		  "not set up host forwarding rule 'tcp:127.0.0.1:80-:22'",
		  "nics.eth0: Could not set up host forwarding rule 'tcp:127.0.0.1:80-:22'",
		  EADDRINUSE },
		{ "qemu-img: Could not open '/x': Could not open '/x': Is a directory",
		  "Could not open '/x': Is a directory", EISDIR },
		{ "\xff: -", "\xef\xbf\xbd: -", EIO },
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		g_autofree char *got = qemu_sentence(rows[i].log);
		g_assert_cmpstr(got, ==, rows[i].sentence);
		g_assert_cmpint(qemu_errno(got), ==, rows[i].code);
	}
	g_assert_null(qemu_sentence(""));
	g_assert_null(qemu_sentence("\n \nx: warning: y\n"));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	loop_init();
	g_test_add_func("/qmp/answers", test_answers);
	g_test_add_func("/qmp/cancel", test_cancel);
	g_test_add_func("/qmp/garbage", test_garbage);
	g_test_add_func("/qmp/not-greeted", test_not_greeted);
	g_test_add_func("/qmp/silence", test_silence);
	g_test_add_func("/qmp/nobody", test_nobody);
	g_test_add_func("/qmp/hang-up", test_hang_up);
	g_test_add_func("/qmp/endless-line", test_endless_line);
	g_test_add_func("/qmp/backlog", test_backlog);
	g_test_add_func("/qemu/agent-ips", test_agent_ips);
	g_test_add_func("/qemu/usernet", test_usernet);
	g_test_add_func("/qemu/sentences", test_sentences);
	return g_test_run();
}
