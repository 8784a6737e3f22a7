/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that a FUSE file system can do: constant text, read with direct I/O, on libfuse's own
 * low-level loop and one thread. What it costs to read is what FUSE costs.
 *
 *   empty -f MOUNTPOINT
 *
 * The kernel may remember the name of MOUNTPOINT/state and has to ask for that of MOUNTPOINT/asked.
 */
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_SECONDS 3600

static const char text[] = "stopped\n";
static const char *const names[] = { "state", "asked" };

enum { STATE_INO = FUSE_ROOT_ID + 1, ASKED_INO };

static void attributes(fuse_ino_t ino, struct stat *st)
{
	const int is_dir = ino == FUSE_ROOT_ID;

	*st = (struct stat){ .st_ino = ino, .st_nlink = 1 };
	st->st_mode = is_dir ? S_IFDIR | 0755 : S_IFREG | 0444;
	st->st_size = is_dir ? 0 : (off_t)strlen(text);
}

static void empty_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = { .ino = STATE_INO };

	(void)parent;
	while (e.ino <= ASKED_INO && strcmp(name, names[e.ino - STATE_INO]))
		e.ino++;
	if (e.ino > ASKED_INO) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	attributes(e.ino, &e.attr);
	if (e.ino == STATE_INO)
		e.entry_timeout = e.attr_timeout = KEEP_SECONDS;
	fuse_reply_entry(req, &e);
}

static void empty_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	(void)fi;
	attributes(ino, &st);
	fuse_reply_attr(req, &st, 0);
}

static void empty_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->direct_io = 1;
	fi->noflush = 1;
	fuse_reply_open(req, fi);
}

static void empty_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	const size_t len = strlen(text), from = (size_t)off < len ? (size_t)off : len;

	(void)ino;
	(void)fi;
	fuse_reply_buf(req, text + from, size < len - from ? size : len - from);
}

static const struct fuse_lowlevel_ops ops = {
	.lookup = empty_lookup,
	.getattr = empty_getattr,
	.open = empty_open,
	.read = empty_read,
};

int main(int argc, char *argv[])
{
	struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
	struct fuse_cmdline_opts opts;
	struct fuse_session *session;
	int r = 1;

	if (fuse_parse_cmdline(&args, &opts) || !opts.mountpoint)
		return 2;
	session = fuse_session_new(&args, &ops, sizeof ops, NULL);
	if (session && !fuse_set_signal_handlers(session) &&
	    !fuse_session_mount(session, opts.mountpoint)) {
		r = fuse_session_loop(session) < 0;
		fuse_session_unmount(session);
	}
	if (session)
		fuse_session_destroy(session);
	free(opts.mountpoint);
	fuse_opt_free_args(&args);
	return r;
}
