/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pty of a console. Both ends are held, so that the terminal lives between users; when nobody
 * reads it, its buffer fills up and we wait for room, while the console goes on without us.
 */
#include "vmfs/tty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "vmfs/log.h"
#include "vmfs/loop.h"
#include "vmfs/waitq.h"

#define CHUNK 4096

typedef struct Tty {
	Vm *vm;
	int master, slave;
	char path[64];
	Watch *watch;
	int events;
	uint64_t pos;	 /* in the console stream */
	char out[CHUNK]; /* taken from the stream, not yet by the terminal */
	size_t out_len;
	char in[CHUNK]; /* typed, not yet taken by the guest */
	size_t in_len;
	bool moving;
	WaitEntry output, room;
} Tty;

static void want(Tty *t, int events)
{
	if (t->events != events) {
		t->events = events;
		watch_events(t->watch, events);
	}
}

/* Returns false when the terminal has no room. */
static bool push_output(Tty *t)
{
	for (;;) {
		ssize_t n;

		if (!t->out_len)
			t->out_len = stream_read(vm_console(t->vm), &t->pos, t->out, sizeof t->out);
		if (!t->out_len)
			return true;
		n = write(t->master, t->out, t->out_len);
		if (n <= 0)
			return false;
		t->out_len -= (size_t)n;
		memmove(t->out, t->out + n, t->out_len);
	}
}

/* Returns false when the guest has no room. */
static bool push_input(Tty *t)
{
	ssize_t n;

	while (t->in_len) {
		n = vm_type(t->vm, t->in, t->in_len);
		if (n == -EAGAIN)
			return false;
		/* Typed at a stopped machine: lost, as on a real one. */
		if (n < 0)
			n = (ssize_t)t->in_len;
		t->in_len -= (size_t)n;
		memmove(t->in, t->in + n, t->in_len);
	}
	return true;
}

static void move(Tty *t)
{
	bool out, in;

	/* What is typed may be echoed, and so wake us, before it has been taken out of `in`. */
	if (t->moving)
		return;
	t->moving = true;
	in = push_input(t);
	out = push_output(t);
	t->moving = false;
	waitq_remove(&t->room);
	if (!in)
		waitq_add(&t->vm->console_writers, &t->room);
	want(t, (in ? UV_READABLE : 0) | (out ? 0 : UV_WRITABLE));
}

static void on_ready(void *arg, int status, int events)
{
	Tty *t = arg;
	ssize_t n;

	if (status == 0 && (events & UV_READABLE) && !t->in_len) {
		n = read(t->master, t->in, sizeof t->in);
		t->in_len = n > 0 ? (size_t)n : 0;
	}
	move(t);
}

static void on_output(WaitEntry *e)
{
	move(WAIT_OWNER(e, Tty, output));
}

static void on_room(WaitEntry *e)
{
	move(WAIT_OWNER(e, Tty, room));
}

static bool open_pty(Tty *t)
{
	struct termios raw;

	t->master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (t->master < 0)
		return false;
	if (grantpt(t->master) || unlockpt(t->master) ||
	    ptsname_r(t->master, t->path, sizeof t->path))
		return false;
	t->slave = open(t->path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (t->slave < 0 || tcgetattr(t->slave, &raw))
		return false;
	/* The guest's own terminal driver edits and echoes. */
	cfmakeraw(&raw);
	if (tcsetattr(t->slave, TCSANOW, &raw) || fchmod(t->slave, 0600))
		return false;
	return geteuid() != 0 || !fchown(t->slave, t->vm->uid, t->vm->gid);
}

const char *tty_path(Vm *vm)
{
	Tty *t = vm->tty;

	if (t)
		return t->path;
	if (vm->pushed != VM_RUNNING && vm->pushed != VM_PAUSED)
		return NULL;
	t = g_new0(Tty, 1);
	t->vm = vm;
	t->slave = -1;
	if (!open_pty(t)) {
		log_warning("%s: cannot make a terminal: %s", vm->name, g_strerror(errno));
		if (t->slave >= 0)
			close(t->slave);
		if (t->master >= 0)
			close(t->master);
		g_free(t);
		return NULL;
	}
	vm->tty = t;
	t->pos = stream_start(vm_console(vm));
	t->output.wake = on_output;
	t->room.wake = on_room;
	waitq_add(stream_queue(vm_console(vm)), &t->output);
	t->events = UV_READABLE;
	t->watch = watch_start(t->master, t->events, on_ready, t);
	move(t);
	return t->path;
}

void tty_close(Vm *vm)
{
	Tty *t = vm->tty;

	if (!t)
		return;
	vm->tty = NULL;
	waitq_remove(&t->output);
	waitq_remove(&t->room);
	watch_stop(&t->watch, true);
	close(t->slave);
	g_free(t);
}
