/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/grow.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART (8 << 20) /* bytes: the disk works on large ones best */

/* Nobody else is to hear of these. */
static void drain(int changes)
{
	char events[4096];

	while (read(changes, events, sizeof(events)) > 0)
		;
}

/* false: `stop` says so. */
static bool wait_for_more(int changes, int stop)
{
	struct pollfd fds[] = { { .fd = stop, .events = POLLIN },
				{ .fd = changes, .events = POLLIN } };

	while (poll(fds, G_N_ELEMENTS(fds), -1) < 0 && errno == EINTR)
		;
	if (fds[1].revents)
		drain(changes);
	return !fds[0].revents;
}

void grow_wait(int stop)
{
	while (wait_for_more(-1, stop))
		;
}

void grow_follow(int fd, int stop, bool (*fn)(void *arg), void *arg)
{
	int changes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
	bool go_on = changes >= 0 && inotify_add_watch(changes, path, IN_MODIFY) >= 0;

	do {
		go_on = go_on && fn(arg);
	} while (wait_for_more(go_on ? changes : -1, stop));
	if (changes >= 0)
		close(changes);
}

typedef struct Flush {
	int fd;
	off_t done;
} Flush;

static bool flush_part(void *arg)
{
	Flush *f = arg;
	struct stat st;

	if (fstat(f->fd, &st))
		return false;
	if (st.st_size - f->done >= PART) {
		(void)sync_file_range(f->fd, f->done, st.st_size - f->done, SYNC_FILE_RANGE_WRITE);
		f->done = st.st_size;
	}
	return true;
}

int grow_flush(int fd, int stop)
{
	Flush f = { .fd = fd };

	grow_follow(fd, stop, flush_part, &f);
	return fdatasync(fd) ? errno : 0;
}
