/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/takeover.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmfs/log.h"
#include "vmfs/loop.h"

#define SOCKET_NAME "takeover"
#define PATIENCE_S  30 /* for the daemon to end */

static struct {
	char *path, *mountpoint;
	int fds[TAKEOVER_FDS];
	bool (*is_orphan)(void);
	void (*taken)(void);
	int listener, peer;
	Watch *watch, *peer_watch;
} offer = { .listener = -1, .peer = -1 };

static bool socket_address(const char *runtime_dir, struct sockaddr_un *sa)
{
	g_autofree char *path = g_build_filename(runtime_dir, SOCKET_NAME, NULL);

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	return g_strlcpy(sa->sun_path, path, sizeof sa->sun_path) < sizeof sa->sun_path;
}

/* ---- the daemon ---- */

static bool send_fds(int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof offer.fds)];
		struct cmsghdr align;
	} control = { 0 };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof control.buf };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof offer.fds);
	memcpy(CMSG_DATA(c), offer.fds, sizeof offer.fds);
	return sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

static void drop_peer(void)
{
	watch_stop(&offer.peer_watch, true);
	offer.peer = -1;
}

/* What it is to keep: that must be this mount. */
static void on_peer(void *arg, int status, int events)
{
	char wanted[PATH_MAX];
	ssize_t n = recv(offer.peer, wanted, sizeof wanted - 1, MSG_DONTWAIT);

	(void)arg;
	(void)status;
	(void)events;
	wanted[MAX(n, 0)] = 0;
	if (n <= 0 || strcmp(wanted, offer.mountpoint) || !send_fds(offer.peer)) {
		drop_peer();
		return;
	}
	/* The connection stays open: its end tells that we have ended. */
	watch_stop(&offer.peer_watch, false);
	watch_stop(&offer.watch, true);
	(void)unlink(offer.path);
	log_info("another keeper takes over");
	offer.taken();
}

static void on_connection(void *arg, int status, int events)
{
	struct ucred peer;
	socklen_t len = sizeof peer;
	int fd = accept4(offer.listener, NULL, NULL, SOCK_CLOEXEC);

	(void)arg;
	(void)status;
	(void)events;
	if (fd < 0)
		return;
	if (offer.peer_watch || !offer.is_orphan() ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) ||
	    (peer.uid != geteuid() && peer.uid != 0)) {
		close(fd);
		return;
	}
	offer.peer = fd;
	offer.peer_watch = watch_start(fd, UV_READABLE, on_peer, NULL);
}

void takeover_offer(const char *runtime_dir, const char *mountpoint, const int fds[TAKEOVER_FDS],
		    bool (*is_orphan)(void), void (*taken)(void))
{
	struct sockaddr_un sa;
	int fd;

	if (!socket_address(runtime_dir, &sa))
		return;
	(void)unlink(sa.sun_path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof sa) || chmod(sa.sun_path, 0600) ||
	    listen(fd, 1)) {
		log_error("cannot offer the mount to another keeper: %s", g_strerror(errno));
		if (fd >= 0)
			close(fd);
		return;
	}
	offer.path = g_strdup(sa.sun_path);
	offer.mountpoint = g_strdup(mountpoint);
	memcpy(offer.fds, fds, sizeof offer.fds);
	offer.is_orphan = is_orphan;
	offer.taken = taken;
	offer.listener = fd;
	offer.watch = watch_start(fd, UV_READABLE, on_connection, NULL);
}

void takeover_withdraw(void)
{
	if (offer.path)
		(void)unlink(offer.path);
}

/* ---- the keeper ---- */

static bool receive_fds(int fd, int ret_fds[TAKEOVER_FDS])
{
	const size_t size = TAKEOVER_FDS * sizeof(int);
	union {
		char buf[CMSG_SPACE(TAKEOVER_FDS * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = sizeof control.buf };
	const struct cmsghdr *c;

	if (recvmsg(fd, &msg, MSG_CMSG_CLOEXEC) != 1)
		return false;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(size))
		return false;
	memcpy(ret_fds, CMSG_DATA(c), size);
	return true;
}

bool takeover_ask(const char *runtime_dir, const char *mountpoint, int ret_fds[TAKEOVER_FDS])
{
	const struct timeval patience = { .tv_sec = PATIENCE_S };
	struct sockaddr_un sa;
	bool ok = false;
	char byte;
	int fd;

	if (!socket_address(runtime_dir, &sa))
		return false;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (!connect(fd, (struct sockaddr *)&sa, sizeof sa) &&
	    send(fd, mountpoint, strlen(mountpoint), MSG_NOSIGNAL) > 0 && receive_fds(fd, ret_fds))
		ok = recv(fd, &byte, 1, 0) == 0;
	close(fd);
	return ok;
}
