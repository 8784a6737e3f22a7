/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree as tables: one row a file, one behaviour a row. fs.c turns requests into calls of the
 * row's functions; nothing else knows a name of the tree.
 *
 * An inode number is packed from its object and its row: serial of the VM (0: the host) in the high
 * 32 bits, number of a smaller object (scratch file, backend, host) in 24, number of the row in 8.
 * It is decoded, never looked up, and is the same after a restart of the daemon. The root is 1.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "vmfs/ask.h"
#include "vmfs/vm.h"

typedef struct Node Node;
typedef struct Dir Dir;
typedef struct Reader Reader;

/* A row applied to an object. */
typedef struct NodeRef {
	const Node *node;
	Vm *vm;	      /* NULL: the host */
	uint32_t sub; /* 0: none */
} NodeRef;

/* An open stream: where its reader stands. */
struct Reader {
	uint64_t pos;
	uint32_t after; /* serial of the VM told of last, of a stream of all VMs */
	GString *first; /* told before what the stream holds; or NULL */
	bool told;	/* its one answer is in `first`: end of file after that */
	void *own;	/* what the stream's open() made for this one, and its close() frees */
	bool writes;	/* it was opened for writing */
};

typedef struct StreamClass {
	void (*open)(const NodeRef *r, Reader *reader);
	void (*close)(const NodeRef *r, Reader *reader); /* NULL: there is nothing to free */
	/* Bytes put into buf, 0 at the end, -EAGAIN when there is nothing yet, or another -errno.
	 */
	ssize_t (*read)(const NodeRef *r, Reader *reader, char *buf, size_t size);
	/* A read would not wait. */
	bool (*ready)(const NodeRef *r, const Reader *reader);
	/* Bytes taken, -EAGAIN when there is no room, or another -errno; NULL: not writable. */
	ssize_t (*write)(const NodeRef *r, Reader *reader, const char *data, size_t len);
	GQueue *(*queue)(const NodeRef *r);	  /* what a reader waits on */
	GQueue *(*write_queue)(const NodeRef *r); /* what a writer waits on */
	/* A writer waits for room as long as it takes, as with a pipe. It keeps other writers of
	 * this one file from being interrupted meanwhile. */
	bool patient;
} StreamClass;

/* How a change of the tree ended: 0 or an errno. */
typedef void (*NodeDone)(void *arg, int err);

/* Text that was fetched (borrowed), or an errno. */
typedef void (*NodeFetched)(void *arg, GBytes *text, int err);

/* What is done to a file that is written; err (0 or an errno) is that of a write. */
typedef enum NodeEdit { EDIT_OPENED, EDIT_WROTE, EDIT_CLOSED } NodeEdit;

struct Node {
	uint8_t id; /* for good: in inode numbers and stored attributes */
	const char *name;
	mode_t mode; /* type and permissions, before the umask of whoever made the VM */

	/* One of these: */
	void (*show)(const NodeRef *r, GString *out);
	const Dir *dir;
	const StreamClass *stream;
	const char *target; /* of a symlink */
	const char *(*link)(
		const NodeRef *r);     /* target that is found out when it is asked for; or NULL */
	bool lazy;		       /* asking for its target makes it: lstat(2) does not */
	int (*file)(const NodeRef *r); /* a descriptor of the file behind it; -1 and errno */
	/* Comes with file, where it can be written to: the same for writing; and what is then told.
	 */
	int (*edit)(const NodeRef *r);
	void (*edited)(const NodeRef *r, NodeEdit what, int err);
	AskKind ask;			  /* what the hypervisor says when it is opened */
	size_t (*size)(const NodeRef *r); /* comes with show, where it is cheaper, or with fetch */
	bool document;			  /* spec.yaml: taken as a whole on close */
	bool scratch;			  /* an editor's file */

	/* May come with show: what one write orders. Sets *op (a reference) if there is to wait. */
	bool (*store)(const NodeRef *r, const char *data, size_t len, Op **op, GError **err);
	void (*remove)(const NodeRef *r); /* unlink is allowed, and does this */

	/*
	 * May come with show, of what is the host's: what a write orders when that takes its time.
	 * An errno as of a slot of Dir; it calls request_begin() itself. With judge() it is ordered
	 * by close(2), of all that was written; judge() tells an errno when no text that follows
	 * can make that good, else 0.
	 */
	int (*order)(const NodeRef *r, GBytes *text, NodeDone done, void *arg);
	int (*judge)(const NodeRef *r, GBytes *text);
	/* Of what is the host's: text that is found out when it is opened. Calls fn once, within
	 * seconds, unless it returns an errno. */
	int (*fetch)(const NodeRef *r, NodeFetched fn, void *arg);

	/* Of what is the host's: owner and mode (NULL result: it is no more), and how they are
	 * changed. Absent: the daemon's, as the row says, for good. */
	const HostAttr *(*attr)(const NodeRef *r);
	void (*set_attr)(const NodeRef *r, const HostAttr *attr, NodeDone done, void *arg);

	bool (*present)(const NodeRef *r); /* NULL: always */
	bool hidden;			   /* not listed by readdir */
	bool exact;			   /* its text changes with `events` and nothing else */
	unsigned events;		   /* VmChange bits on which it changes */
	const char *doc;		   /* one sentence, for help and the manual */
};

/* A directory: rows, and perhaps objects that are all of one row. */
struct Dir {
	const Node *rows;  /* ended by a row without a name */
	const Node *child; /* row of the objects; NULL: none */
	/* The object that follows number `after` (any: lseek(2) gives it): its number, and its name
	 * (copied into name). 0: no more. */
	uint32_t (*next)(const NodeRef *dir, uint32_t after, char name[256]);
	uint32_t (*find)(const NodeRef *dir, const char *name); /* 0: none */
	/* Of objects that may have changed without a word: look, and call done once, within a
	 * second. It is listed after that. NULL: it is known. */
	void (*look)(const NodeRef *dir, NodeDone done, void *arg);

	/*
	 * What its users do to the objects; NULL: EPERM. An errno that is known at once is
	 * returned. Else 0 is, and done is called once, within a second or so: the kernel keeps
	 * the directory locked meanwhile. `who` is borrowed, and has its groups.
	 */
	int (*make)(const NodeRef *dir, const char *name, mode_t mode, const Caller *who,
		    NodeDone done, void *arg); /* mkdir(2) */
	int (*link)(const NodeRef *dir, const char *name, const char *target, const Caller *who,
		    NodeDone done, void *arg); /* symlink(2) */
	int (*create)(const NodeRef *dir, const char *name, const Caller *who, NodeDone done,
		      void *arg); /* open(2) of a file that is not there */
	/* rmdir(2) or unlink(2), as the kind of the object is */
	int (*drop)(const NodeRef *r, const Caller *who, NodeDone done, void *arg);
	/* To another name in the same directory. An object of that name may exist. */
	int (*rename)(const NodeRef *r, const char *newname, const Caller *who, NodeDone done,
		      void *arg);

	/* Where editors replace spec.yaml: what scratch.h calls a file of theirs, which is then an
	 * object here. Owned by the caller. NULL: they cannot. */
	char *(*scratch)(const NodeRef *dir, const char *name);
};

/* All that is written is taken as a whole by close(2). */
static inline bool node_is_whole(const Node *n)
{
	return n->document || n->judge;
}

extern const Node root_node; /* nodes_root.c */

/* Self-check of the tables; aborts on a mistake in them. At start. */
void node_init(void);
/* NULL when there is no such row. */
const Node *node_by_id(uint8_t id);

uint64_t node_ino(const NodeRef *r);
/* false when the object is no more (ESTALE). */
bool node_from_ino(uint64_t ino, NodeRef *ret);
/* It is there now. */
bool node_is_present(const NodeRef *r);
/* false: ENOENT; *ret is then the row of that name, if there is one that is absent now. */
bool node_lookup(const NodeRef *dir, const char *name, NodeRef *ret);

/*
 * List a directory. *cookie is 0 at first and is moved on; it is stable while the directory
 * changes. false: no more.
 */
bool node_list(const NodeRef *dir, uint64_t *cookie, char name[256], NodeRef *ret);

/* Type, permissions, owner, size and times. */
void node_stat(const NodeRef *r, struct stat *st);

/* The manual of the tree, made from the rows: for people, for scdoc(5), and for the README. */
void node_help(GString *out);
void node_man(GString *out);
void node_markdown(GString *out);

/* nodes_vm.c, nodes_io.c, nodes_exec.c, nodes_host.c */
extern const Dir vm_dir;
extern const Dir io_dir;
extern const Dir hosts_dir;    /* nodes_hosts.c */
extern const Dir networks_dir; /* nodes_networks.c */
/* nodes_attach.c: rows from here on, in pairs of a directory and what is in it */
#define ATTACH_ROWS 140
extern const Dir disks_dir, nics_dir, shares_dir, devices_dir;
/* nodes_device.c */
extern const Dir devices_dir_of_host;
extern const Node devices_bus_row;
bool devices_present(const NodeRef *r);
extern const Dir exec_dir, exec_io_dir;
extern const Dir snapshots_dir; /* nodes_snapshot.c */
bool snapshots_present(const NodeRef *r);
extern const Node host_rows[];
extern const StreamClass events_all_stream;
