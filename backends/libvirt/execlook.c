/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's side of exec/: all of it is in the guest, so that it outlives vmfs and libvirt and
 * goes with the guest to other hosts, and needs nothing but the agent. A job has a directory in
 * /run with FIFOs. A keeper holds them open, pumps carry what is printed into a file, a part at a
 * time, and wait until it is fetched. In the pool.
 */
#include <errno.h>
#include <string.h>

#include "backends/agentexec.h"
#include "backends/libvirt/agent.h"
#include "backends/libvirt/exec.h"
#include "vmfs/err.h"

/*
 * $1: the directory, whose name nobody can guess; $2: the command line. `ctl` takes words: at "end"
 * the command has ended, and what it has printed is followed by the directory's name; all that
 * comes later is somebody else's.
 */
static const char wrapper[] =
	"umask 077\n"
	"cd /run && mkdir \"$1.new\" && cd \"$1.new\" || exit 125\n"
	"mkfifo go ctl in out err out.ack err.ack || exit 125\n"
	"pump() {\n"
	"	n=1\n"
	"	while { echo $n; dd if=\"$1\" bs=131072 count=1; } >\"$1.new\"; do\n"
	"		mv \"$1.new\" \"$1.part\"\n"
	"		k=0\n"
	"		while [ \"$k\" -lt $n ]; do read -r k <\"$1.ack\" || exit; done\n"
	"		n=$((n + 1))\n"
	"	done\n"
	"}\n"
	"keep() {\n"
	"	pump out 3>&- & o=$!\n"
	"	pump err 3>&- & e=$!\n"
	"	mv \"/run/$1.new\" \"/run/$1\"\n"
	"	while read -r word <&6; do\n"
	"		case $word in\n"
	"		eof) exec 3>&- ;;\n"
	"		end) printf %s \"$1\" >&4 & printf %s \"$1\" >&5 & ;;\n"
	"		quit) break ;;\n"
	"		esac\n"
	"	done\n"
	"	kill $o $e\n"
	"	rm -rf \"/run/$1\"\n"
	"}\n"
	"keep \"$1\" 3<>in 4<>out 5<>err 6<>ctl 7<>go 8<>out.ack 9<>err.ack \\\n"
	"	</dev/null >/dev/null 2>&1 &\n"
	"read -r go <go || exit 125\n"
	"cd / && exec <\"/run/$1/in\" || exit 125\n"
	"command -v setsid >/dev/null &&\n"
	"	exec setsid /bin/sh -c \"$2\" >\"/run/$1/out\" 2>\"/run/$1/err\"\n"
	"exec /bin/sh -c \"$2\" >\"/run/$1/out\" 2>\"/run/$1/err\"\n";

/* $2: the number of this part of the input, which is to come but once. */
static const char writer[] = "cd \"/run/$1\" && mkdir \"in.$2\" && exec cat >in";

void lv_exec_look_free(LvExecLook *l)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(l->out); i++)
		g_clear_pointer(&l->out[i].bytes, g_byte_array_unref);
	g_clear_pointer(&l->input, g_byte_array_unref);
	json_decref(l->status);
	g_free(l->command);
	g_free(l->dir);
	g_free(l);
}

static char *path_of(const LvExecLook *l, const char *file)
{
	return g_strdup_printf("/run/%s/%s", l->dir, file);
}

static bool begin(virDomainPtr dom, LvExecLook *l, GError **err)
{
	json_t *result =
		lv_agent_ask(dom, "guest-exec",
			     json_pack("{s:s,s:[s,s,s,s,s],s:b}", "path", "/bin/sh", "arg", "-c",
				       wrapper, "vmfs", l->dir, l->command, "capture-output", true),
			     err);
	const bool ok = agentexec_pid(result, &l->pid);

	if (result && !ok)
		(void)err_set(err, EPROTO, "the guest's agent did not tell a process id");
	json_decref(result);
	return ok;
}

/* A word for one of the job's FIFOs. */
static bool say(virDomainPtr dom, const LvExecLook *l, const char *fifo, const char *word,
		GError **err)
{
	g_autofree char *path = path_of(l, fifo);

	return lv_agent_write(dom, path, word, err);
}

static json_t *status_of(virDomainPtr dom, json_int_t pid, GError **err)
{
	return lv_agent_ask(dom, "guest-exec-status", json_pack("{s:I}", "pid", pid), err);
}

/* One that is not known any more has been asked for by a former daemon. */
static bool has_written(virDomainPtr dom, json_int_t pid, GError **err)
{
	g_autoptr(GError) e = NULL;
	json_t *status = status_of(dom, pid, &e);
	const bool unknown = e && err_code(e) == EIO;
	const bool done = unknown || json_is_true(json_object_get(status, "exited"));

	json_decref(status);
	if (e && !unknown)
		g_propagate_error(err, g_steal_pointer(&e));
	return done;
}

static bool give_input(virDomainPtr dom, LvExecLook *l, GError **err)
{
	g_autofree char *data = g_base64_encode(l->input->data, l->input->len);
	g_autofree char *number = g_strdup_printf("%" G_GUINT64_FORMAT, l->number);
	json_t *result =
		lv_agent_ask(dom, "guest-exec",
			     json_pack("{s:s,s:[s,s,s,s,s],s:s}", "path", "/bin/sh", "arg", "-c",
				       writer, "vmfs", l->dir, number, "input-data", data),
			     err);
	const bool ok = agentexec_pid(result, &l->writer);

	json_decref(result);
	return ok;
}

static bool look_at_input(virDomainPtr dom, LvExecLook *l, GError **err)
{
	GError *e = NULL;

	if (!l->writer && l->input && !give_input(dom, l, &e) && e) {
		g_propagate_error(err, e);
		return false;
	}
	if (l->writer)
		l->written = has_written(dom, l->writer, &e);
	if (!e && l->eof && (!l->writer || l->written))
		l->eof_said = say(dom, l, "ctl", "eof\n", &e);
	if (e)
		g_propagate_error(err, e);
	return !e;
}

/* A part begins with its number and a newline. */
static void take_part(LvLookOut *out, GByteArray *part_take)
{
	const guint8 *end =
		part_take->len ? memchr(part_take->data, '\n', MIN(part_take->len, 24)) : NULL;
	g_autofree char *number =
		end ? g_strndup((char *)part_take->data, (gsize)(end - part_take->data)) : NULL;

	out->number = number ? g_ascii_strtoull(number, NULL, 10) : 0;
	if (out->number <= out->taken) {
		out->number = 0;
		g_byte_array_unref(part_take);
		return;
	}
	out->bytes = g_byte_array_remove_range(part_take, 0, (guint)(end - part_take->data) + 1);
}

static bool look_at_output(virDomainPtr dom, LvExecLook *l, unsigned i, GError **err)
{
	static const char *const parts[] = { "out.part", "err.part" };
	static const char *const acks[] = { "out.ack", "err.ack" };
	LvLookOut *out = &l->out[i];
	g_autofree char *path = path_of(l, parts[i]);
	g_autofree char *ack = g_strdup_printf("%" G_GUINT64_FORMAT "\n", out->taken);
	GByteArray *part;
	GError *e = NULL;

	if (out->ack && say(dom, l, acks[i], ack, &e))
		out->ack = false;
	if (!e && out->wanted) {
		part = lv_agent_read(dom, path, LV_EXEC_PART + 32, &e);
		if (part)
			take_part(out, part);
	}
	if (e)
		g_propagate_error(err, e);
	return !e;
}

static bool look_at_status(virDomainPtr dom, LvExecLook *l, GError **err)
{
	if (!l->ended)
		l->status = status_of(dom, l->pid, err);
	return l->ended || l->status;
}

static bool look(virDomainPtr dom, LvExecLook *l, GError **err)
{
	GError *e = NULL;

	if (l->quit)
		(void)say(dom, l, "ctl", "quit\n", &e);
	else if (!l->gone)
		l->gone = say(dom, l, "go", "\n", &e);
	else if (l->end)
		l->end_said = say(dom, l, "ctl", "end\n", &e);
	if (e) {
		g_propagate_error(err, e);
		return false;
	}
	if (l->quit)
		return true;
	if (l->gone && !l->ended && !look_at_input(dom, l, err))
		return false;
	for (unsigned i = 0; i < G_N_ELEMENTS(l->out); i++)
		if (l->gone && !look_at_output(dom, l, i, err))
			return false;
	return look_at_status(dom, l, err);
}

bool lv_exec_work(LvCall *c, GError **err)
{
	LvExecLook *l = c->arg;

	return l->command ? begin(c->dom, l, err) : look(c->dom, l, err);
}
