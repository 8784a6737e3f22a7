/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by fs.c (session), fs_tree.c (names and attributes), fs_change.c
 * (making, removing, renaming), fs_file.c and fs_write.c (open files). */
#pragma once

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <linux/fuse.h>

#include "vmfs/document.h"
#include "vmfs/node.h"
#include "vmfs/waitq.h"

void fs_caller(fuse_req_t req, Caller *who);
/* The credentials with the supplementary groups; caller frees who->groups. */
void fs_caller_groups(fuse_req_t req, Caller *who);
/* An entry for r, with the times for which the kernel may believe it; counts as looked up. */
void fs_fill_entry(const NodeRef *r, struct fuse_entry_param *e);
void fs_reply_entry(fuse_req_t req, const NodeRef *r);
double fs_attr_timeout(const NodeRef *r); /* seconds */
/* Decode an inode number, or answer ESTALE and return false. */
bool fs_ref(fuse_req_t req, fuse_ino_t ino, NodeRef *r);
/* The same of a directory; ENOTDIR when it is none. */
bool fs_ref_dir(fuse_req_t req, fuse_ino_t ino, NodeRef *r);

/*
 * A request that waits. end() is called, never from within fs_park(), when its caller was hit by a
 * signal (EINTR) or the daemon ends (ENOTCONN), and must answer with that.
 */
typedef struct Parked {
	fuse_req_t req;
	void (*end)(struct Parked *p, int err);
	GList all, interrupted; /* links of the session's queues */
	bool is_interrupted;
} Parked;
void fs_park(Parked *p, fuse_req_t req, void (*end)(Parked *p, int err));
/* Take the request back, to answer it. */
fuse_req_t fs_unpark(Parked *p);

/* fs_tree.c */
void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int valid,
		struct fuse_file_info *fi);
void fs_readlink(fuse_req_t req, fuse_ino_t ino);
void fs_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
/* That process has this directory of links open. */
bool fs_is_listed(fuse_ino_t ino, pid_t pid);
/* That process has just looked up a link that is in it. */
bool fs_is_met(fuse_ino_t ino, pid_t pid);
void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi);
/* fs_change.c */
void fs_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void fs_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void fs_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
	       const char *newname, unsigned flags);

/* fs_file.c */

/* An open file: what is kept for its number. */
typedef struct Handle {
	uint64_t fh;
	NodeRef ref;	 /* holds a reference to the VM */
	int flags;	 /* of open(2) */
	GString *text;	 /* of a shown file, as rendered by the last read at offset 0 */
	uint32_t seen;	 /* version at that time: for POLLPRI */
	Reader reader;	 /* of a stream */
	GBytes *answer;	 /* of an asked file */
	bool unread;	 /* of the answer nothing has been read */
	GByteArray *doc; /* of a document: what is being written; NULL: nothing yet */
	bool dirty, truncated, refused;
	bool editing; /* a file that is written */
	bool kept;    /* a successor would know it; of a light one that is the exception */
	Op *op;	      /* of a command: accepted, and not yet waited for */
	WaitEntry poll;
	uint64_t kh; /* by which the kernel knows who polls it; 0: nobody */
} Handle;

Handle *fs_handle(uint64_t fh); /* NULL: closed */
void fs_handle_close(Handle *h);
void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
	       struct fuse_file_info *fi);
void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
/* Bytes of data from off on. */
void fs_reply_slice(fuse_req_t req, const char *data, size_t len, off_t off, size_t size);
void fs_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph);
void fs_close_handles(void);
/* Wait for what would make a poll(2) of it return. */
void fs_handle_poll(Handle *h, uint64_t kh);
Handle *fs_handle_insert(uint64_t fh, const NodeRef *r, int flags);

/* fs_keep.c: open files for a successor of this daemon */
void fs_keep_handle(Handle *h);
void fs_keep_text(uint64_t fh, const GString *text); /* NULL: none */
void fs_keep_answer(const Handle *h);
void fs_keep_document(const Handle *h);
void fs_forget_handle(uint64_t fh);
/* Bring back those of a former daemon. At start. */
void fs_restore_handles(void);

/* fs.c: tell the kernel that a poll(2) can return. */
void fs_notify_poll(uint64_t kh);

/* fs_ask.c */
void fs_open_asked(fuse_req_t req, Handle *h, const struct fuse_open_out *out);
void fs_read_asked(fuse_req_t req, Handle *h, size_t size, off_t off);

/* fs_blob.c */
void fs_read_blob(fuse_req_t req, Handle *h, size_t size, off_t off);
void fs_write_blob(fuse_req_t req, Handle *h, const char *buf, size_t size, off_t off);
/* 0 or an errno. */
int fs_open_blob(Handle *h);
int fs_truncate_blob(const NodeRef *r, off_t size);
void fs_close_blob(Handle *h);

/* fs_write.c */
void fs_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
	      struct fuse_file_info *fi);
void fs_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
/* The whole text that holds now, of a document (node_is_whole()). */
GBytes *fs_document_text(const NodeRef *r);
/* Have this one in its place, for whoever asks; `bad` is the errno of one that is none. */
void fs_document_commit(fuse_req_t req, const NodeRef *r, GBytes *text, int bad, DocumentDone fn,
			void *arg);
/* Cut the text being written through an open handle of a document. 0 or an errno. */
int fs_truncate_handle(uint64_t fh, uint64_t size);
