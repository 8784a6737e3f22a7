/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any requests, in any order, with the sim backend behind. The kernel is trusted to form them
 * well, so each is built from the input's bytes: opcode, file, handle, name, payload. What one
 * input made is there for the next, as in a daemon that lives long. No request gets two answers.
 */
#define FUSE_USE_VERSION 314
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "place.h"
#include "vmfs/document.h"
#include "vmfs/fs.h"
#include "vmfs/hosts.h"
#include "vmfs/images.h"
#include "vmfs/keep.h"
#include "vmfs/loop.h"
#include "vmfs/node.h"
#include "vmfs/registry.h"
#include "vmfs/store.h"

#define MAX_KNOWN 32 /* files and handles that later requests can name */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Asked {
	uint32_t opcode;
	uint64_t node, fh;
} Asked;

typedef struct Handle {
	uint64_t fh, node;
} Handle;

static struct {
	int kernel;	     /* the other end of what is /dev/fuse elsewhere */
	uint64_t unique, fh; /* of the last request */
	GHashTable *asked;   /* Asked not yet answered, by unique */
	uint64_t nodes[MAX_KNOWN];
	Handle handles[MAX_KNOWN];
	unsigned n_nodes, n_handles;
} f;

/* What is left of the input. */
typedef struct Bytes {
	const uint8_t *at;
	size_t left;
} Bytes;

static uint64_t take(Bytes *b, size_t n)
{
	uint64_t v = 0;

	for (; n && b->left; n--, b->at++, b->left--)
		v = v << 8 | *b->at;
	return v;
}

static void put(GByteArray *out, const void *data, size_t len)
{
	g_byte_array_append(out, data, (guint)len);
}

static void put_bytes(GByteArray *out, Bytes *b, size_t len)
{
	const size_t n = MIN(len, b->left);

	put(out, b->at, n);
	b->at += n;
	b->left -= n;
}

/* Mostly a name that means something. */
static void put_name(GByteArray *out, Bytes *b)
{
	static const char *const names[] = {
		"v",
		"w",
		"x",
		".vmfs",
		"state",
		"spec.yaml",
		"spec.yaml.rej",
		"status",
		".io",
		"console",
		"events",
		"wait",
		"ip",
		"sim",
		"list",
		"backends",
		"hosts",
		"local",
		"snapshots",
		"disks",
		"exec",
		"j",
		"cmd",
		"stdin",
		"nics",
		"images",
		"stats",
		"keys",
		"4913",
		"spec.yaml~",
		"spec.yam!",
		"..",
	};
	const uint64_t which = take(b, 1);

	if (which < 224) {
		const char *name = names[which % G_N_ELEMENTS(names)];

		put(out, name, strlen(name) + 1);
		return;
	}
	for (uint64_t n = take(b, 1) % 64 + 1; n; n--) {
		/* Neither of these comes in a name. */
		uint8_t c = (uint8_t)take(b, 1);

		c = c == '/' || !c ? 'n' : c;
		put(out, &c, 1);
	}
	put(out, "", 1);
}

/* Files that the daemon has told of: the kernel names no others, though some may be gone by now. */
static uint64_t pick_node(Bytes *b)
{
	return f.nodes[take(b, 1) % f.n_nodes];
}

/* With its own file. One may be of a former daemon. */
static uint64_t pick_handle(Bytes *b, uint64_t *node)
{
	const uint64_t which = take(b, 1);
	const Handle *h;

	if (which == 255 || !f.n_handles)
		return UINT64_MAX - take(b, 1);
	h = &f.handles[which % f.n_handles];
	*node = h->node;
	return h->fh;
}

static void learn_node(uint64_t node)
{
	f.nodes[f.n_nodes < MAX_KNOWN ? f.n_nodes++ : 1 + node % (MAX_KNOWN - 1)] = node;
}

static void learn_handle(uint64_t fh, uint64_t node)
{
	f.handles[f.n_handles < MAX_KNOWN ? f.n_handles++ : fh % MAX_KNOWN] = (Handle){ fh, node };
}

/* A request on it is under way: the kernel then keeps it open. */
static bool in_use(uint64_t fh)
{
	GHashTableIter it;
	gpointer asked;

	g_hash_table_iter_init(&it, f.asked);
	while (g_hash_table_iter_next(&it, NULL, &asked))
		if (((const Asked *)asked)->fh == fh)
			return true;
	return false;
}

static bool has_handle(uint32_t opcode)
{
	return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FLUSH ||
	       opcode == FUSE_RELEASE || opcode == FUSE_FSYNC || opcode == FUSE_POLL ||
	       opcode == FUSE_SETATTR || opcode == FUSE_GETATTR;
}

/* *node is then that of the handle, if it takes one. */
static void put_payload(GByteArray *out, Bytes *b, uint32_t opcode, uint64_t *node)
{
	const uint64_t fh = f.fh = has_handle(opcode) ? pick_handle(b, node) : 0;

	switch (opcode) {
	case FUSE_SETATTR: {
		struct fuse_setattr_in in = { .valid = (uint32_t)take(b, 2), .fh = fh };
		in.size = take(b, 2);
		in.mode = (uint32_t)take(b, 2);
		in.uid = in.gid = (uint32_t)take(b, 1);
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_MKDIR: {
		const struct fuse_mkdir_in in = { .mode = (uint32_t)take(b, 2) };
		put(out, &in, sizeof in);
		put_name(out, b);
		return;
	}
	case FUSE_RENAME2: {
		const struct fuse_rename2_in in = { .newdir = pick_node(b),
						    .flags = (uint32_t)take(b, 1) & 3 };
		put(out, &in, sizeof in);
		put_name(out, b);
		put_name(out, b);
		return;
	}
	case FUSE_SYMLINK:
		put_name(out, b);
		put_name(out, b);
		return;
	case FUSE_LOOKUP:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		put_name(out, b);
		return;
	case FUSE_OPEN:
	case FUSE_OPENDIR: {
		/* No creation, which is CREATE's. */
		const struct fuse_open_in in = {
			.flags = (uint32_t)take(b, 2) &
				 (O_ACCMODE | O_TRUNC | O_NONBLOCK | O_APPEND),
		};
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_CREATE: {
		const struct fuse_create_in in = { .flags = O_RDWR | O_CREAT, .mode = 0100600 };
		put(out, &in, sizeof in);
		put_name(out, b);
		return;
	}
	case FUSE_READ:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS: {
		const struct fuse_read_in in = { .fh = fh,
						 .offset = take(b, 2),
						 .size = (uint32_t)take(b, 2) + 1,
						 .flags = take(b, 1) & 1 ? O_NONBLOCK : 0 };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_WRITE: {
		const size_t len = MIN(take(b, 1), b->left);
		const struct fuse_write_in in = { .fh = fh,
						  .offset = take(b, 1),
						  .size = (uint32_t)MIN(len, b->left) };
		put(out, &in, sizeof in);
		put_bytes(out, b, in.size);
		return;
	}
	case FUSE_FLUSH: {
		const struct fuse_flush_in in = { .fh = fh };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR: {
		const struct fuse_release_in in = { .fh = fh };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_FSYNC: {
		const struct fuse_fsync_in in = { .fh = fh };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_POLL: {
		const struct fuse_poll_in in = { .fh = fh, .kh = take(b, 1), .flags = 1 };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_INTERRUPT: {
		const struct fuse_interrupt_in in = { .unique = f.unique - take(b, 1) };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_GETATTR: {
		const struct fuse_getattr_in in = { .fh = fh };
		put(out, &in, sizeof in);
		return;
	}
	case FUSE_FORGET: {
		const struct fuse_forget_in in = { .nlookup = take(b, 1) };
		put(out, &in, sizeof in);
		return;
	}
	default:
		return;
	}
}

static void send_request(uint32_t opcode, uint64_t node, const GByteArray *payload)
{
	const struct fuse_in_header head = { .len = (uint32_t)(sizeof head + payload->len),
					     .opcode = opcode,
					     .unique = f.unique += 2,
					     .nodeid = node,
					     .pid = (uint32_t)getpid() };
	g_autoptr(GByteArray) all = g_byte_array_new();

	put(all, &head, sizeof head);
	put(all, payload->data, payload->len);
	if (opcode != FUSE_FORGET) {
		Asked *a = g_new(Asked, 1);

		*a = (Asked){ opcode, node, f.fh };
		g_hash_table_insert(f.asked, GSIZE_TO_POINTER(f.unique), a);
	}
	if (send(f.kernel, all->data, all->len, 0) < 0)
		abort();
}

static void learn_from(const struct fuse_out_header *head)
{
	const gpointer unique = GSIZE_TO_POINTER(head->unique);
	const Asked *asked = g_hash_table_lookup(f.asked, unique);
	uint32_t opcode;
	uint64_t node;
	const void *body = head + 1;

	/* A word of the daemon's own, to the kernel. */
	if (!head->unique)
		return;
	if (!asked)
		abort();
	opcode = asked->opcode;
	node = asked->node;
	if (!head->error && (opcode == FUSE_LOOKUP || opcode == FUSE_MKDIR ||
			     opcode == FUSE_SYMLINK || opcode == FUSE_CREATE))
		learn_node(node = ((const struct fuse_entry_out *)body)->nodeid);
	if (!head->error && opcode == FUSE_CREATE)
		body = (const struct fuse_entry_out *)body + 1;
	if (!head->error && (opcode == FUSE_OPEN || opcode == FUSE_CREATE))
		learn_handle(((const struct fuse_open_out *)body)->fh, node);
	(void)g_hash_table_remove(f.asked, unique);
}

static void take_answers(void)
{
	static uint64_t answer[(2u << 20) / 8];

	(void)uv_run(loop_get(), UV_RUN_NOWAIT);
	while (recv(f.kernel, answer, sizeof answer, MSG_DONTWAIT) > 0)
		learn_from((const struct fuse_out_header *)answer);
}

static void ended(void *arg)
{
	(void)arg;
	abort();
}

static void mount_to(int fd)
{
	const FsOptions options = { .fd = fd,
				    .fuse_options = "default_permissions",
				    .ended = ended };
	const struct fuse_init_in init = { .major = FUSE_KERNEL_VERSION,
					   .minor = 40,
					   .max_readahead = 65536,
					   .flags = ~0u & ~(FUSE_INIT_EXT) };
	g_autoptr(GByteArray) payload = g_byte_array_new();

	if (!fs_open_session(&options, NULL))
		abort();
	fs_serve();
	put(payload, &init, sizeof init);
	send_request(FUSE_INIT, 0, payload);
	take_answers();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const RegistryConfig config = { 1, 1000 };
	int fds[2], room = 4 << 20;

	(void)argc;
	(void)argv;
	f.asked = g_hash_table_new_full(NULL, NULL, NULL, g_free);
	(void)place_open();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds))
		abort();
	(void)setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	(void)setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	f.kernel = fds[1];
	document_set_mountpoint("/nowhere");
	images_load();
	if (!hosts_load("/dev/null", NULL, NULL))
		abort();
	registry_load(&config);
	vm_all.changed = fs_changed;
	learn_node(FUSE_ROOT_ID);
	mount_to(fds[0]);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t opcodes[] = {
		FUSE_LOOKUP,  FUSE_GETATTR,   FUSE_SETATTR,	FUSE_READLINK,	 FUSE_SYMLINK,
		FUSE_MKDIR,   FUSE_UNLINK,    FUSE_RMDIR,	FUSE_RENAME2,	 FUSE_OPEN,
		FUSE_READ,    FUSE_WRITE,     FUSE_FLUSH,	FUSE_RELEASE,	 FUSE_FSYNC,
		FUSE_OPENDIR, FUSE_READDIR,   FUSE_READDIRPLUS, FUSE_RELEASEDIR, FUSE_CREATE,
		FUSE_POLL,    FUSE_INTERRUPT, FUSE_FORGET,	FUSE_LOOKUP,	 FUSE_OPEN,
		FUSE_WRITE,   FUSE_READ,      FUSE_MKDIR,
	};
	Bytes b = { data, size };

	while (b.left) {
		g_autoptr(GByteArray) payload = g_byte_array_new();
		const uint32_t opcode = opcodes[take(&b, 1) % sizeof opcodes];
		uint64_t node = pick_node(&b);

		put_payload(payload, &b, opcode, &node);
		if (opcode == FUSE_RELEASE && in_use(f.fh))
			continue;
		send_request(opcode, node, payload);
		take_answers();
	}
	take_answers();
	return 0;
}
