/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The console, by a stream of libvirt's: read in libvirt's thread, which posts what it gets, and
 * written there when there is room. A guest that prints faster than the loop takes it loses some of
 * it, as at a terminal. libvirt gives a console to one reader only: that of a VM that vmfs made is
 * taken for as long as it runs, and logged; another's for as long as it runs once it is wanted.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/libvirt/call.h"
#include "vmfs/log.h"

#define CHUNK	    (16u << 10)
#define MAX_POSTED  (4u << 20) /* bytes on their way to the loop */
#define MAX_TYPED   (4u << 10)
#define LOG_MAX	    (64u << 20) /* bytes; then the older half goes */
#define CONSOLE_LOG "console.log"

struct LvConsole {
	gatomicrefcount refs; /* the loop's, and one of each job and message on its way */
	gsize tag;	      /* by which libvirt's thread finds it */
	virStreamPtr stream;
	LvVm *lv;    /* the loop's; NULL: dropped */
	bool ready;  /* the loop's: it is listened to, and can be typed at */
	gint posted; /* bytes; atomic */
	GMutex lock;
	GByteArray *typed; /* under the lock, as what follows */
	bool dropped;	   /* the stream may be gone */
};

/* libvirt does not tell, or not all versions of it do, when it calls a stream's callback no more:
 * so that has no pointer, and what is not in here is not called. */
static struct {
	GMutex lock;
	GHashTable *all; /* tag to LvConsole */
} listening;

typedef struct Message {
	LvConsole *console;
	size_t len; /* 0: it has ended */
	bool room;
	char data[];
} Message;

static void console_unref(void *arg)
{
	LvConsole *c = arg;

	if (!g_atomic_ref_count_dec(&c->refs))
		return;
	g_byte_array_unref(c->typed);
	g_mutex_clear(&c->lock);
	g_free(c);
}

static void begin_listening(LvConsole *c)
{
	static gsize last;

	g_mutex_lock(&listening.lock);
	if (!listening.all)
		listening.all = g_hash_table_new(NULL, NULL);
	c->tag = ++last;
	g_hash_table_insert(listening.all, GSIZE_TO_POINTER(c->tag), c);
	g_mutex_unlock(&listening.lock);
}

static void end_listening(const LvConsole *c)
{
	g_mutex_lock(&listening.lock);
	(void)g_hash_table_remove(listening.all, GSIZE_TO_POINTER(c->tag));
	g_mutex_unlock(&listening.lock);
}

/* A reference, or NULL. */
static LvConsole *find(void *tag)
{
	LvConsole *c;

	g_mutex_lock(&listening.lock);
	c = g_hash_table_lookup(listening.all, tag);
	if (c)
		g_atomic_ref_count_inc(&c->refs);
	g_mutex_unlock(&listening.lock);
	return c;
}

/* ---- the log, which is in a directory of the VM's owner ---- */

static int open_log(LvVm *lv)
{
	g_autofree char *path = g_build_filename(vm_data_dir(lv->base.vm), CONSOLE_LOG, NULL);
	int fd = open(path,
		      O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		      0600);
	struct stat st;

	if (fd >= 0 && (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_nlink != 1)) {
		close(fd);
		return -1;
	}
	if (fd >= 0 && geteuid() == 0 && fchown(fd, lv->base.vm->uid, lv->base.vm->gid))
		log_warning("cannot give %s to its owner: %s", path, g_strerror(errno));
	if (fd >= 0 && st.st_size > LOG_MAX &&
	    fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, LOG_MAX / 2) && ftruncate(fd, 0))
		log_warning("cannot shorten %s: %s", path, g_strerror(errno));
	return fd;
}

static void append_log(LvVm *lv, const char *data, size_t len)
{
	int fd = open_log(lv);

	if (fd < 0)
		return;
	/* On a full disk the console goes on without its log. */
	if (write(fd, data, len) < 0 && errno != ENOSPC && errno != EDQUOT)
		log_warning("%s: cannot write its console.log: %s", lv->base.vm->name,
			    g_strerror(errno));
	close(fd);
}

/* ---- on the loop ---- */

static void received(void *arg)
{
	Message *m = arg;
	LvConsole *c = m->console;
	LvVm *lv = c->lv;

	(void)g_atomic_int_add(&c->posted, -(gint)m->len);
	if (lv && m->room) {
		backend_console_room(&lv->base);
	} else if (lv && m->len) {
		append_log(lv, m->data, m->len);
		backend_console(&lv->base, m->data, m->len);
	} else if (lv) {
		lv_console_end(lv);
	}
	console_unref(c);
	g_free(m);
}

/* ---- in libvirt's thread ---- */

static void post(LvConsole *c, const char *data, size_t len, bool room)
{
	Message *m;

	if (g_atomic_int_get(&c->posted) > (gint)MAX_POSTED)
		return;
	(void)g_atomic_int_add(&c->posted, (gint)len);
	m = g_malloc0(sizeof *m + len);
	m->console = c;
	m->len = len;
	m->room = room;
	if (len)
		memcpy(m->data, data, len);
	g_atomic_ref_count_inc(&c->refs);
	loop_post(received, m);
}

static void send_typed(LvConsole *c)
{
	int n = 0;
	bool all;

	g_mutex_lock(&c->lock);
	if (c->typed->len)
		n = virStreamSend(c->stream, (const char *)c->typed->data, c->typed->len);
	if (n > 0)
		g_byte_array_remove_range(c->typed, 0, (guint)n);
	all = !c->typed->len;
	g_mutex_unlock(&c->lock);
	if (all)
		(void)virStreamEventUpdateCallback(c->stream, VIR_STREAM_EVENT_READABLE);
	if (n > 0)
		post(c, NULL, 0, true);
}

static void on_stream(virStreamPtr stream, int events, void *tag)
{
	LvConsole *c = find(tag);
	char buf[CHUNK];
	int n = 0;

	if (!c) {
		(void)virStreamEventRemoveCallback(stream);
		return;
	}
	if (events & VIR_STREAM_EVENT_WRITABLE)
		send_typed(c);
	while (events & VIR_STREAM_EVENT_READABLE &&
	       (n = virStreamRecv(stream, buf, sizeof buf)) > 0)
		post(c, buf, (size_t)n, false);
	if (n == 0 && events & VIR_STREAM_EVENT_READABLE)
		events |= VIR_STREAM_EVENT_HANGUP;
	if (n == -1 || events & (VIR_STREAM_EVENT_ERROR | VIR_STREAM_EVENT_HANGUP)) {
		(void)virStreamEventRemoveCallback(stream);
		post(c, NULL, 0, false);
	}
	console_unref(c);
}

/* ---- in the pool, where jobs of one console may overtake each other ---- */

virStreamPtr lv_console_connect(virConnectPtr virt, virDomainPtr dom, GError **err)
{
	virStreamPtr stream = virStreamNew(virt, VIR_STREAM_NONBLOCK);

	if (stream && !virDomainOpenConsole(dom, NULL, stream, 0))
		return stream;
	lv_error(err, "not open");
	if (stream)
		virStreamFree(stream);
	return NULL;
}

static void watch_job(void *arg)
{
	LvConsole *c = arg;

	g_mutex_lock(&c->lock);
	if (!c->dropped)
		(void)virStreamEventAddCallback(c->stream, VIR_STREAM_EVENT_READABLE, on_stream,
						GSIZE_TO_POINTER(c->tag), NULL);
	g_mutex_unlock(&c->lock);
}

static void write_job(void *arg)
{
	LvConsole *c = arg;

	g_mutex_lock(&c->lock);
	if (!c->dropped)
		(void)virStreamEventUpdateCallback(c->stream, VIR_STREAM_EVENT_READABLE |
								      VIR_STREAM_EVENT_WRITABLE);
	g_mutex_unlock(&c->lock);
}

static void drop_job(void *stream)
{
	(void)virStreamEventRemoveCallback(stream);
	(void)virStreamAbort(stream);
	virStreamFree(stream);
}

static void end_job(void *arg)
{
	LvConsole *c = arg;

	g_mutex_lock(&c->lock);
	c->dropped = true;
	g_mutex_unlock(&c->lock);
	drop_job(c->stream);
}

static void job_done(void *arg)
{
	console_unref(arg);
}

static void watched(void *arg)
{
	LvConsole *c = arg;

	c->ready = true;
	/* Who typed meanwhile waits for it. */
	if (c->lv)
		backend_console_room(&c->lv->base);
	console_unref(c);
}

static void stream_dropped(void *arg)
{
	(void)arg;
}

/* ---- on the loop ---- */

void lv_console_drop(virStreamPtr stream_take)
{
	lv_close_work(drop_job, stream_dropped, stream_take);
}

void lv_console_begin(LvVm *lv, virStreamPtr stream_take)
{
	LvConsole *c;

	lv_console_end(lv);
	if (!lv->host) {
		lv_console_drop(stream_take);
		return;
	}
	c = g_new0(LvConsole, 1);
	g_atomic_ref_count_init(&c->refs);
	g_mutex_init(&c->lock);
	c->typed = g_byte_array_new();
	c->stream = stream_take;
	c->lv = lv;
	begin_listening(c);
	lv->console = c;
	if (lv->console_refused)
		backend_fact(&lv->base, "console", NULL);
	lv->console_refused = false;
	g_atomic_ref_count_inc(&c->refs);
	pool_work(lv->host->pool, watch_job, watched, c);
}

void lv_console_end(LvVm *lv)
{
	LvConsole *c = lv->console;

	if (!c)
		return;
	lv->console = NULL;
	c->lv = NULL;
	end_listening(c);
	lv_close_work(end_job, job_done, c);
}

static bool work_connect(LvCall *c, GError **err)
{
	c->stream = lv_console_connect(c->virt, c->dom, err);
	return c->stream;
}

/* Most likely another client has it: libvirt gives it to one at a time. */
static void refused(LvVm *lv, const GError *err)
{
	g_autofree char *why = g_strdelimit(g_strdup(err->message), "\n", ' ');

	lv->console_refused = true;
	backend_fact(&lv->base, "console", why);
}

static void connected(LvCall *c)
{
	if (c->lv)
		c->lv->connecting = false;
	if (c->lv && c->error && lv_call_alive(c))
		refused(c->lv, c->error);
	if (!c->stream)
		return;
	if (lv_call_alive(c))
		lv_console_begin(c->lv, c->stream);
	else
		lv_console_drop(c->stream);
}

void lv_console_want(LvVm *lv)
{
	LvCall *c;

	if (lv->console || lv->connecting ||
	    (lv->base.vm->pushed != VM_RUNNING && lv->base.vm->pushed != VM_PAUSED))
		return;
	c = lv_call_new(lv, work_connect, connected, NULL);
	if (!c)
		return;
	lv->connecting = true;
	lv_call_send(c);
}

static bool work_reconnect(LvCall *c, GError **err)
{
	end_job(c->arg);
	return work_connect(c, err);
}

static void reconnected(LvCall *c)
{
	console_unref(c->arg);
	connected(c);
}

void lv_console_renew(LvVm *lv)
{
	LvConsole *old = lv->console;
	LvCall *c = old ? lv_call_new(lv, work_reconnect, reconnected, NULL) : NULL;

	if (!c) {
		lv_console_end(lv);
		return;
	}
	/* One after the other: libvirt refuses a second reader. */
	c->arg = old;
	lv->console = NULL;
	old->lv = NULL;
	end_listening(old);
	lv->connecting = true;
	lv_call_send(c);
}

size_t lv_console_write(BackendVm *bv, const char *data, size_t len)
{
	LvVm *lv = lv_of(bv);
	LvConsole *c = lv->console;
	size_t n;

	if (!c || !c->ready) {
		lv_console_want(lv);
		return 0; /* until it is there */
	}
	g_mutex_lock(&c->lock);
	n = MIN(len, MAX_TYPED - MIN(c->typed->len, MAX_TYPED));
	g_byte_array_append(c->typed, (const guint8 *)data, (guint)n);
	g_mutex_unlock(&c->lock);
	if (n) {
		g_atomic_ref_count_inc(&c->refs);
		pool_work(lv->host->pool, write_job, job_done, c);
	}
	return n;
}
