/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU is asked on behalf of whoever reads a file. A question goes to the monitor as one or
 * more commands and is answered when the last of these is; if the monitor goes first, it fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/guestnet.h"
#include "backends/qemu/qemu.h"
#include "vmfs/err.h"
#include "vmfs/specval.h"

#define MAX_COMMANDS 3
#define MAX_PICTURE  (64u << 20) /* bytes */
#define PICTURE	     "screen.png"
#define NS_OF_US     1000
#define HOLD_MS	     20	     /* that a key is down: enough for a guest, and quick */
#define DISK_PREFIX  "disk-" /* of a disk's id in argv.c */
#define AGENT_MS     1000    /* for a part of an answer: the rest does not wait for longer */

typedef struct Question Question;
typedef struct Picture Picture;

struct Question {
	QemuVm *q;
	Ask *ask;
	QmpSlot *slots[MAX_COMMANDS]; /* under way */
	GString *out, *net;	      /* of ASK_STATS */
	Timer *agent_timer;	      /* the agent is asked as well */
	Picture *picture;	      /* being read in the pool */
};

/* ---- questions ---- */

/* NULL, and refused, when there is nobody to answer. */
static Question *question_new(BackendVm *bv, Ask *a)
{
	QemuVm *q = qemu_of(bv);
	Question *n;

	if (!q->qmp || q->exited) {
		ask_fail(a, err_new(EHOSTDOWN, "QEMU does not answer; 'kill' ends it"));
		return NULL;
	}
	n = g_new0(Question, 1);
	n->q = q;
	n->ask = a;
	g_queue_push_tail(&q->questions, n);
	return n;
}

struct Picture {
	Question *question; /* NULL: nobody waits any more */
	char *path;
	uid_t owner;
	GBytes *bytes;
	GError *error;
};

static void nics_answered(void *arg, const json_t *result, const GError *err);

/* The answer or, NULL, err: both are taken. */
static void question_end(Question *n, GBytes *answer, GError *err)
{
	Ask *a = n->ask;

	if (n->agent_timer)
		agent_cancel(n->q->agent, nics_answered, n);
	timer_stop(&n->agent_timer);

	g_queue_remove(&n->q->questions, n);
	for (size_t i = 0; i < MAX_COMMANDS; i++)
		qmp_cancel(&n->slots[i]);
	if (n->picture)
		n->picture->question = NULL;
	if (n->out)
		g_string_free(n->out, TRUE);
	if (n->net)
		g_string_free(n->net, TRUE);
	g_free(n);
	if (err)
		ask_fail(a, err);
	else
		ask_answer(a, answer);
}

void qemu_fail_questions(QemuVm *q)
{
	while (q->questions.head)
		question_end(q->questions.head->data, NULL,
			     err_new(EIO, "the connection to QEMU ended before it answered"));
}

/* ---- screen ---- */

static GBytes *read_picture(const Picture *p, GError **err)
{
	const int fd = open(p->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	g_autofree char *buf = NULL;
	struct stat st;
	ssize_t n = -1;

	/* The directory is its owner's, who could put anything there, a link to another's file too.
	 */
	if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_nlink == 1 &&
	    st.st_uid == p->owner && st.st_size <= MAX_PICTURE) {
		buf = g_malloc((gsize)st.st_size + 1);
		n = pread(fd, buf, (size_t)st.st_size, 0);
	}
	if (fd >= 0)
		close(fd);
	(void)unlink(p->path);
	if (n <= 0) {
		(void)err_set(err, EIO, "QEMU's picture of the display, %s, cannot be read",
			      p->path);
		return NULL;
	}
	return g_bytes_new_take(g_steal_pointer(&buf), (gsize)n);
}

static void picture_work(void *job)
{
	Picture *p = job;

	p->bytes = read_picture(p, &p->error);
}

static void picture_done(void *job)
{
	Picture *p = job;

	if (p->question) {
		p->question->picture = NULL;
		question_end(p->question, g_steal_pointer(&p->bytes), g_steal_pointer(&p->error));
	}
	g_clear_pointer(&p->bytes, g_bytes_unref);
	g_clear_error(&p->error);
	g_free(p->path);
	g_free(p);
}

static char *picture_path(const QemuVm *q)
{
	return g_build_filename(vm_run_dir(qemu_vm(q)), PICTURE, NULL);
}

static void screen_dumped(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;

	n->slots[0] = NULL;
	if (err) {
		question_end(n, NULL, g_error_copy(err));
		return;
	}
	n->picture = g_new0(Picture, 1);
	n->picture->question = n;
	n->picture->path = picture_path(n->q);
	n->picture->owner = vm_uid(qemu_vm(n->q));
	loop_work(picture_work, picture_done, n->picture);
}

void qemu_ask_screen(BackendVm *bv, Ask *a)
{
	Question *n = question_new(bv, a);

	if (!n)
		return;
	g_autofree char *path = picture_path(n->q);
	json_t *args = json_object();
	json_object_set_new(args, "filename", json_string(path));
	json_object_set_new(args, "format", json_string("png"));
	n->slots[0] = qmp_execute(n->q->qmp, "screendump", args, screen_dumped, n);
}

/* ---- stats ---- */

static void add_line(GString *out, const char *key, uint64_t value)
{
	g_string_append_printf(out, "%s %" G_GUINT64_FORMAT "\n", key, value);
}

/* The numbers that a file of /proc begins with; how many there were. */
static int read_numbers(const char *path, unsigned long long ret[2])
{
	g_autofree char *text = NULL;

	if (!g_file_get_contents(path, &text, NULL, NULL))
		return 0;
	return MAX(0, sscanf(text, "%llu %llu", &ret[0], &ret[1]));
}

/* Microseconds that a thread of QEMU has been on a CPU. */
static bool thread_time(const QemuVm *q, json_int_t tid, uint64_t *ret)
{
	char path[64];
	unsigned long long v[2];

	g_snprintf(path, sizeof path, "/proc/%d/task/%" JSON_INTEGER_FORMAT "/schedstat",
		   (int)proc_pid(q->proc), tid);
	if (read_numbers(path, v) < 1)
		return false;
	*ret = v[0] / NS_OF_US;
	return true;
}

/* No more than it has: each costs a look at a file. */
static void add_cpus(Question *n, const json_t *cpus)
{
	const size_t count = MIN(json_array_size(cpus), n->q->base.spec->cpus);
	uint64_t each, all = 0;

	add_line(n->out, "cpu.count", count);
	for (size_t i = 0; i < count; i++) {
		const json_t *tid = json_object_get(json_array_get(cpus, i), "thread-id");
		g_autofree char *key = g_strdup_printf("cpu.%zu.time_us", i);

		if (!json_is_integer(tid) || !thread_time(n->q, json_integer_value(tid), &each))
			continue;
		add_line(n->out, key, each);
		all += each;
	}
	add_line(n->out, "cpu.time_us", all);
}

static void add_memory(Question *n)
{
	char path[64];
	unsigned long long pages[2];

	add_line(n->out, "memory.max", n->q->base.spec->memory);
	g_snprintf(path, sizeof path, "/proc/%d/statm", (int)proc_pid(n->q->proc));
	if (read_numbers(path, pages) == 2)
		add_line(n->out, "memory.rss", pages[1] * (uint64_t)sysconf(_SC_PAGESIZE));
}

static void cpus_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;

	n->slots[0] = NULL;
	/* Its threads are known by their numbers only while it is there. */
	if (err || !n->q->proc || n->q->exited)
		return;
	add_cpus(n, result);
	add_memory(n);
}

static void balloon_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;
	const json_t *actual = json_object_get(result, "actual");

	n->slots[1] = NULL;
	if (json_is_integer(actual))
		add_line(n->out, "memory.balloon", (uint64_t)json_integer_value(actual));
}

/* The spec's name of the disk behind a device: its id, as a path of QEMU's objects. */
static const char *disk_name(const json_t *device)
{
	const char *qdev = json_string_value(json_object_get(device, "qdev"));
	const char *at = qdev ? strstr(qdev, DISK_PREFIX) : NULL;

	return at ? at + strlen(DISK_PREFIX) : NULL;
}

static void add_disk(Question *n, const char *name, const json_t *stats)
{
	static const struct {
		const char *member, *key;
	} rows[] = {
		{ "rd_operations", "read_ops" },     { "rd_bytes", "read_bytes" },
		{ "wr_operations", "write_ops" },    { "wr_bytes", "write_bytes" },
		{ "flush_operations", "flush_ops" },
	};

	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		const json_t *v = json_object_get(stats, rows[i].member);
		g_autofree char *key = g_strdup_printf("block.%.*s.%s", (int)strcspn(name, "/"),
						       name, rows[i].key);

		if (json_is_integer(v))
			add_line(n->out, key, (uint64_t)json_integer_value(v));
	}
}

/* Its last part is there: the monitor's, or the agent's. */
static void end_stats(Question *n)
{
	if (n->slots[2] || n->agent_timer)
		return;
	g_string_append_len(n->out, n->net->str, (gssize)n->net->len);
	question_end(n, g_string_free_to_bytes(g_steal_pointer(&n->out)), NULL);
}

static void blocks_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;
	json_t *device;
	size_t i;

	n->slots[2] = NULL;
	if (err) {
		question_end(n, NULL, g_error_copy(err));
		return;
	}
	json_array_foreach(result, i, device)
	{
		const char *name = disk_name(device);

		if (name)
			add_disk(n, name, json_object_get(device, "stats"));
	}
	end_stats(n);
}

static void nics_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;
	const GPtrArray *nics = n->q->base.spec->nics;

	timer_stop(&n->agent_timer);
	for (guint i = 0; !err && i < nics->len; i++) {
		const SpecNic *nic = nics->pdata[i];
		g_autofree char *mac = qemu_nic_mac(n->q, nic);

		guestnet_counters(n->net, nic->name, guestnet_find(result, mac));
	}
	end_stats(n);
}

static void agent_late(void *arg)
{
	Question *n = arg;

	n->agent_timer = NULL;
	agent_cancel(n->q->agent, nics_answered, n);
	end_stats(n);
}

/* QEMU answers in order: the last completes its part. Of the user network it counts nothing, so
 * what the guest counts is told. */
void qemu_ask_stats(BackendVm *bv, Ask *a)
{
	Question *n = question_new(bv, a);
	Qmp *qmp;

	if (!n)
		return;
	qmp = n->q->qmp;
	n->out = g_string_new(NULL);
	n->net = g_string_new(NULL);
	n->slots[0] = qmp_execute(qmp, "query-cpus-fast", NULL, cpus_answered, n);
	n->slots[1] = qmp_execute(qmp, "query-balloon", NULL, balloon_answered, n);
	n->slots[2] = qmp_execute(qmp, "query-blockstats", NULL, blocks_answered, n);
	if (!n->q->agent || !agent_is_up(n->q->agent) || n->q->paused)
		return;
	n->agent_timer = timer_start(AGENT_MS, agent_late, n);
	agent_request(n->q->agent, GUESTNET_COMMAND, NULL, false, AGENT_MS, nics_answered, n);
}

/* ---- monitor ---- */

static void monitor_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;
	g_auto(GStrv) parts = NULL;
	char *text;

	n->slots[0] = NULL;
	if (err || !json_is_string(result)) {
		question_end(n, NULL,
			     err ? g_error_copy(err)
				 : err_new(EPROTO, "the monitor's answer is not text"));
		return;
	}
	/* It ends its lines as a terminal wants them. */
	parts = g_strsplit(json_string_value(result), "\r\n", -1);
	text = g_strjoinv("\n", parts);
	question_end(n, g_bytes_new_take(text, strlen(text)), NULL);
}

void qemu_ask_monitor(BackendVm *bv, Ask *a)
{
	Question *n = question_new(bv, a);
	json_t *args;

	if (!n)
		return;
	args = json_object();
	json_object_set_new(args, "command-line", json_string(ask_text(a)));
	n->slots[0] = qmp_execute(n->q->qmp, "human-monitor-command", args, monitor_answered, n);
}

/* ---- keys ---- */

static bool has_key(const json_t *names, const char *wanted)
{
	const json_t *name;
	size_t i;

	json_array_foreach(names, i, name)
	{
		if (!g_strcmp0(json_string_value(name), wanted))
			return true;
	}
	return false;
}

/*
 * The schema hides the names of its types: it is the one that has such members. What a machine's
 * own QEMU says is good for that machine only.
 */
static void learn_keys(QemuVm *q, const json_t *schema)
{
	const json_t *type, *values, *name;
	size_t i, j;

	json_array_foreach(schema, i, type)
	{
		values = json_object_get(type, "values");
		if (!has_key(values, "ctrl_r") || !has_key(values, "kp_enter"))
			continue;
		q->key_names = g_ptr_array_new_with_free_func(g_free);
		json_array_foreach(values, j, name)
		{
			if (json_is_string(name))
				g_ptr_array_add(q->key_names, g_strdup(json_string_value(name)));
		}
		g_ptr_array_add(q->key_names, NULL);
		return;
	}
}

static bool check_keys(const QemuVm *q, char **words, GError **err)
{
	const char *const *names = (const char *const *)q->key_names->pdata;

	for (unsigned i = 0; words[i]; i++) {
		g_auto(GStrv) together = g_strsplit(words[i], "-", -1);

		for (unsigned j = 0; together[j]; j++) {
			const char *meant;

			if (g_strv_contains(names, together[j]))
				continue;
			meant = specval_suggest(together[j], names);
			return err_set(err, EINVAL, "there is no key '%.40s'%s%s%s", together[j],
				       meant ? "; did you mean '" : "", meant ? meant : "",
				       meant ? "'?" : "");
		}
	}
	return true;
}

json_t *qemu_keys(const char *word)
{
	g_auto(GStrv) names = g_strsplit(word, "-", -1);
	json_t *args = json_object(), *list = json_array();

	for (unsigned i = 0; names[i]; i++) {
		json_t *key = json_object();

		json_object_set_new(key, "type", json_string("qcode"));
		json_object_set_new(key, "data", json_string(names[i]));
		json_array_append_new(list, key);
	}
	json_object_set_new(args, "keys", list);
	json_object_set_new(args, "hold-time", json_integer(HOLD_MS));
	return args;
}

static void keys_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;

	n->slots[0] = NULL;
	question_end(n, err ? NULL : g_bytes_new_static("", 0), err ? g_error_copy(err) : NULL);
}

/* QEMU answers at once and presses them by and by: the last answer stands for all. */
static void send_keys(Question *n)
{
	g_auto(GStrv) words = g_strsplit(ask_text(n->ask), " ", -1);
	GError *err = NULL;

	if (!check_keys(n->q, words, &err)) {
		question_end(n, NULL, err);
		return;
	}
	for (unsigned i = 0; words[i]; i++) {
		const bool last = !words[i + 1];
		QmpSlot *slot = qmp_execute(n->q->qmp, "send-key", qemu_keys(words[i]),
					    last ? keys_answered : NULL, n);

		if (last)
			n->slots[0] = slot;
	}
}

static void schema_answered(void *arg, const json_t *result, const GError *err)
{
	Question *n = arg;

	n->slots[0] = NULL;
	if (!n->q->key_names)
		learn_keys(n->q, result);
	if (n->q->key_names)
		send_keys(n);
	else
		question_end(n, NULL,
			     err ? g_error_copy(err)
				 : err_new(EPROTO, "QEMU does not tell which keys there are"));
}

void qemu_ask_keys(BackendVm *bv, Ask *a)
{
	Question *n;

	if (bv->spec->machine == MACHINE_MICROVM) {
		ask_fail(a, err_new(EOPNOTSUPP, "a microvm has no keyboard"));
		return;
	}
	n = question_new(bv, a);
	if (n && n->q->key_names)
		send_keys(n);
	else if (n)
		n->slots[0] = qmp_execute(n->q->qmp, "query-qmp-schema", NULL, schema_answered, n);
}

/* ---- where the display is ---- */

static void vnc_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	const char *host = json_string_value(json_object_get(result, "host"));
	const char *service = json_string_value(json_object_get(result, "service"));
	const char *family = json_string_value(json_object_get(result, "family"));
	g_autofree char *where = NULL;

	if (err || !host || !service || !family)
		return;
	if (!strcmp(family, "unix"))
		where = g_build_filename(vm_run_dir(qemu_vm(q)), QEMU_SOCKET_VNC, NULL);
	else
		where = g_strdup_printf("%s:%s", host, service);
	backend_fact(&q->base, "vnc", where);
}

void qemu_report_vnc(QemuVm *q)
{
	if (q->base.spec->vnc)
		qmp_execute(q->qmp, "query-vnc", NULL, vnc_answered, q);
}
