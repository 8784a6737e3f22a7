/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that a FUSE file system can do: constant text, read with direct I/O, on libfuse's own
 * low-level loop and one thread. What it costs to read is what FUSE costs.
 *
 *   empty N -f MOUNTPOINT
 *
 * The kernel may remember the name of MOUNTPOINT/state and has to ask for that of MOUNTPOINT/asked.
 * There are N directories more, 0 and so on, with a `state` in each.
 */
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_SECONDS 3600

static const char text[] = "stopped\n";
static const char *const names[] = { "state", "asked" };

/* Directory n and its file are FIRST_DIR + 2n and the number after it. */
enum { STATE_INO = FUSE_ROOT_ID + 1, ASKED_INO, FIRST_DIR };

static fuse_ino_t end;

static int is_directory(fuse_ino_t ino)
{
	return ino == FUSE_ROOT_ID || (ino >= FIRST_DIR && (ino - FIRST_DIR) % 2 == 0);
}

/* 0: there is none. */
static fuse_ino_t find(fuse_ino_t parent, const char *name)
{
	char *rest;
	fuse_ino_t ino;

	if (parent != FUSE_ROOT_ID)
		return strcmp(name, names[0]) ? 0 : parent + 1;
	for (ino = STATE_INO; ino <= ASKED_INO; ino++)
		if (!strcmp(name, names[ino - STATE_INO]))
			return ino;
	ino = FIRST_DIR + 2 * strtoul(name, &rest, 10);
	return *rest || ino >= end ? 0 : ino;
}

static void attributes(fuse_ino_t ino, struct stat *st)
{
	const int is_dir = is_directory(ino);

	*st = (struct stat){ .st_ino = ino, .st_nlink = 1 };
	st->st_mode = is_dir ? S_IFDIR | 0755 : S_IFREG | 0444;
	st->st_size = is_dir ? 0 : (off_t)strlen(text);
}

static void empty_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = { .ino = find(parent, name) };

	if (!e.ino) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	attributes(e.ino, &e.attr);
	if (e.ino != ASKED_INO)
		e.entry_timeout = e.attr_timeout = KEEP_SECONDS;
	fuse_reply_entry(req, &e);
}

static void empty_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	(void)fi;
	attributes(ino, &st);
	fuse_reply_attr(req, &st, KEEP_SECONDS);
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

static void empty_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			  struct fuse_file_info *fi)
{
	char *buf = malloc(size), name[32];
	struct stat st = { .st_mode = S_IFDIR };
	size_t used = 0, n;

	(void)fi;
	for (fuse_ino_t i = (fuse_ino_t)off; ino == FUSE_ROOT_ID && FIRST_DIR + 2 * i < end; i++) {
		snprintf(name, sizeof name, "%lu", (unsigned long)i);
		st.st_ino = FIRST_DIR + 2 * i;
		n = fuse_add_direntry(req, buf + used, size - used, name, &st, (off_t)i + 1);
		if (n > size - used)
			break;
		used += n;
	}
	fuse_reply_buf(req, buf, used);
	free(buf);
}

static const struct fuse_lowlevel_ops ops = {
	.lookup = empty_lookup,
	.getattr = empty_getattr,
	.open = empty_open,
	.read = empty_read,
	.readdir = empty_readdir,
};

int main(int argc, char *argv[])
{
	struct fuse_args args;
	struct fuse_cmdline_opts opts;
	struct fuse_session *session;
	int r = 1;

	if (argc < 2)
		return 2;
	end = FIRST_DIR + 2 * strtoul(argv[1], NULL, 10);
	argv[1] = argv[0];
	args = (struct fuse_args)FUSE_ARGS_INIT(argc - 1, argv + 1);
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
