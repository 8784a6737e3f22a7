/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM: its identity, what it should be (spec), what it is (state, pushed up by the backend), and
 * the one operation that is under way. Readers see this memory; nothing here blocks. Loop thread
 * only. Counted: the registry holds one reference for as long as the VM exists.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backends/backend.h"
#include "vmfs/lifetime.h"
#include "vmfs/loop.h"
#include "vmfs/op.h"
#include "vmfs/spec.h"
#include "vmfs/stream.h"

#define VM_CONSOLE_KEEP (64u << 10) /* bytes of console that a new reader is shown */
#define VM_EVENTS_KEEP	(64u << 10) /* bytes of events that a slow reader may lag behind */

/* Who asks: the credentials of a request. */
typedef struct Caller {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	mode_t umask;
	gid_t *groups; /* supplementary, or NULL: not looked up */
	int n_groups;
	bool replaces; /* a symlink(2): it has just met a link that is in its way */
} Caller;

/* What can change, as bits of a mask: the `events` column of the node tables. */
typedef enum VmChange {
	EV_STATE = 1 << 0,
	EV_REASON = 1 << 1,
	EV_PID = 1 << 2,
	EV_IP = 1 << 3,
	EV_AGENT = 1 << 4,
	EV_SPEC = 1 << 5,
	EV_PENDING = 1 << 6,
	EV_ERROR = 1 << 7,
	EV_OPERATION = 1 << 8,
	EV_FACTS = 1 << 9,
	EV_REJECTED = 1 << 10,
	EV_NAME = 1 << 11,  /* made, removed or renamed */
	EV_OWNER = 1 << 12, /* given to another user */
	EV_EXEC = 1 << 13,  /* a job in exec/ */
	EV_SNAPSHOT = 1 << 14,
	EV_HOST = 1 << 15, /* it is on another one */
	/* Of no VM: */
	EV_HOSTS = 1 << 16,   /* a host has come or gone */
	EV_NETWORK = 1 << 17, /* the state of a network of one */
	EV_NETWORK_SPEC = 1 << 18,
	EV_NETWORK_ERROR = 1 << 19,
} VmChange;
#define EV_COUNT 20

/* What chmod and chown said of one file; unset fields follow the VM. */
typedef struct VmAttr {
	mode_t mode; /* (mode_t)-1: not set */
	uid_t uid;   /* (uid_t)-1: not set */
	gid_t gid;
} VmAttr;

/* Owner and mode of something of the host. */
typedef struct HostAttr {
	mode_t mode;
	uid_t uid;
	gid_t gid;
	int64_t changed; /* microseconds since 1970 */
} HostAttr;

/* Where a VM is in the books of a hypervisor that keeps some. */
typedef struct VmHome {
	Backend *be;  /* NULL: nowhere; only vmfs knows of it */
	char *host;   /* name in .vmfs/hosts */
	char *key;    /* what the hypervisor knows it by, whatever it is called */
	char *name;   /* what it is called there */
	bool foreign; /* found there, not made here */
} VmHome;

struct Vm {
	unsigned refs;
	bool removed;
	bool hidden; /* the kernel is still to be told that it is there */
	bool gone;   /* at its hypervisor; the kernel is still to be told */
	VmHome home;
	uint32_t serial; /* never reused; in the inode numbers and in the store */
	uint32_t id;	 /* small, unique on this host while the VM exists */
	char *name;
	char *instance_id; /* by which cloud-init tells a new machine from one it knows */
	char *next_name;   /* what it is called at home by now; NULL: the same */

	uid_t uid;
	gid_t gid;
	mode_t mode, umask;
	GHashTable *attrs;	  /* node id to VmAttr; NULL: none */
	int64_t created, changed; /* microseconds since 1970 */

	Spec *spec;	      /* in force */
	unsigned spec_writes; /* documents that are being stored, and will be in force then */
	GBytes *rejected;     /* spec.yaml.rej; NULL: none */

	VmState state;	/* what is shown: that of the op under way, else `pushed` */
	VmState pushed; /* the hypervisor's last word */
	char *reason;	/* one word, or NULL */
	int64_t since;
	int exit_status;  /* as of waitpid(2); -1: none known */
	pid_t pid;	  /* 0: none */
	GPtrArray *facts; /* "key value" strings from the backend */
	char **ips;	  /* NULL: not known */
	bool agent;
	const char *cloud_init; /* how it ended, as the agent told; NULL: not known */
	char *error;		/* the line of the `error` file, or NULL */

	BackendVm *bv;	 /* NULL until a backend is needed */
	guint run_hash;	 /* of what vm_save_run() wrote last */
	GKeyFile *run;	 /* what the backend stored before the daemon restarted */
	VmSaved saved;	 /* as stored */
	bool begun;	 /* of one with `from`: it has run */
	uint32_t origin; /* serial of the VM whose snapshot it cannot be without; 0: none */
	uint32_t origin_snapshot; /* number of that */
	GPtrArray *late_links;	  /* of nodes_attach.c; NULL: none */
	GPtrArray *snapshots;	  /* of Snapshot (snapshot.h); NULL: none yet */
	uint32_t last_snapshot;	  /* number of the newest */
	pid_t full_for;		  /* whose import of a snapshot did not fit; 0: nobody's */
	char *data_dir, *run_dir;
	Op *op, *next_op;    /* under way; waiting for op to be cancelled */
	GPtrArray *to_apply; /* keys of spec.yaml that are still to be tried live; NULL: none */
	bool apply_later;    /* the spec was changed while another op was under way */

	Stream *console, *events;    /* NULL until first used */
	uint64_t console_mark;	     /* where in console.log a former daemon was; 0: nowhere */
	uint32_t versions[EV_COUNT]; /* how often each has changed */
	uint32_t line_at, line_len;  /* in list.c's text; 0: not in it yet */
	unsigned commands;	     /* writes to `state` that are being answered */
	GQueue waiters;		     /* parked readers of wait/, and pollers of files */
	GQueue console_writers;	     /* writers for whom the console had no room */
	struct Exec *exec;	     /* exec.h; NULL until first used */
	struct SshWait *ssh;	     /* ssh.h; NULL: nobody waits for it */
	struct Tty *tty;	     /* tty.h; NULL until first looked at */
	GHashTable *scratch;	     /* scratch.h; NULL: none */
	Lifetime life;
	struct Asked *asked; /* ask.c; NULL until first asked */
};

typedef struct VmConfig {
	const char *runtime_dir;
} VmConfig;

extern VmConfig vm_config;

/* A VM in memory only; the registry brings it into being. */
Vm *vm_new(uint32_t serial, uint32_t id, const char *name);
Vm *vm_ref(Vm *vm);
void vm_unref(Vm *vm);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Vm, vm_unref)
/* Let go of the backend's watches and free what waits; the VM is then removed or the daemon ends.
 */
void vm_detach(Vm *vm);

/* There is a VMM, or there may be one. */
bool vm_is_live(const Vm *vm);

/* Show the state that holds now: for when an operation begins or ends. */
void vm_refresh_state(Vm *vm);

/* Which backend that is, or would be if it was started. NULL and err: none. */
Backend *vm_backend_kind(const Vm *vm, GError **err);
/* The backend of the VM's spec, made on first use; another one when the spec was changed. */
BackendVm *vm_backend(Vm *vm, GError **err);
/* Let go of it, of a VM that is not live. */
void vm_drop_backend(Vm *vm);
/* The host it runs on, or would. */
const char *vm_host(const Vm *vm);

/* Tell the streams, waiters, pollers and watchers that these things have changed. */
void vm_changed(Vm *vm, unsigned changes);

/* The same of all VMs together. */
typedef struct VmAll {
	uint32_t versions[EV_COUNT];
	GQueue waiters;
	void (*changed)(Vm *vm, unsigned changes); /* NULL: nobody else to tell */
} VmAll;
extern VmAll vm_all;
/* Such a change of none of them. */
void vm_all_changed(unsigned changes);

/* The hypervisor's word on the state. Shown at once unless an operation's own state is. */
void vm_push_state(Vm *vm, VmState state, const char *reason);
/* Record a failure in `error` ("start", e), or a success (NULL). */
void vm_set_error(Vm *vm, const char *verb, const GError *e);
/* Take a new document into force. */
void vm_set_spec(Vm *vm, Spec *spec);
void vm_set_rejected(Vm *vm, GBytes *text);
/* Keys that the running VM does not have yet; owned by the caller. */
GPtrArray *vm_pending(const Vm *vm);

Stream *vm_console(Vm *vm);
Stream *vm_events(Vm *vm);

/* Type at the console. Bytes taken, -EAGAIN when it has no room, -ESRCH when nothing runs. */
ssize_t vm_type(Vm *vm, const char *data, size_t len);

/* There is memory of it on the disk, and no VMM. */
bool vm_is_asleep(const Vm *vm);

/* Write to the store: identity and attributes; what a restarted daemon must know of the run. */
GBytes *vm_meta(const Vm *vm);
void vm_save_run(Vm *vm);
/* Write the spec of what runs, which is no longer that of spec.yaml, or will not be. */
void vm_save_started(Vm *vm);
/* The same of what is in memory only, for a successor of this daemon (keep.h). */
void vm_keep(const Vm *vm);
/* Bring that back into what was loaded, with the events for its readers. At start. */
void vm_restore(Vm *vm);
/* And of all VMs together; with the operations that are under way. */
void vm_restore_all(void);
/* Fill in from the store. false: damaged. */
bool vm_load(Vm *vm);
/* Make do without what a damaged meta told. */
void vm_recover(Vm *vm, uint32_t id);
bool vm_load_meta(Vm *vm, GBytes *meta);
/*
 * Be a new machine to cloud-init at the next start, which then does again what it does once: for a
 * VM that was made from another. The caller stores it by registry_save_meta().
 */
void vm_renew_instance_id(Vm *vm);
/* Find out about a VM that was live when the former daemon ended. */
void vm_adopt(Vm *vm);

/*
 * Run what was written to `state`. false: refused, with the errno and sentence to tell (which are
 * in `error` already). Else *op (a reference) is what to wait for, or NULL: nothing left to do.
 */
bool vm_command(Vm *vm, const char *text, size_t len, Op **op, GError **err);
/*
 * Order one thing of the VM's backend. false: refused, with nothing changed. Else *op (borrowed) is
 * what does it; its failure will be in `error`. Takes arg in any case.
 */
bool vm_order(Vm *vm, OpKind kind, void *arg, GDestroyNotify free_arg, Op **op, GError **err);
/* An op of the VM has ended: begin the one that cancelled it, if any. */
void vm_run_next(Vm *vm);

/*
 * Make what runs as the spec is, in all that the backend can change while it runs, a key at a
 * time. What it cannot or fails to change stays in vm_pending(); failures are in `error`.
 */
void vm_apply(Vm *vm);
bool vm_is_applying(const Vm *vm);
/* The backend could do that now. `key` is one of spec_diff(want, what runs). */
bool vm_can_apply(const Vm *vm, const Spec *want, const char *key);
/* Order one change of what runs: as vm_order(). */
bool vm_order_change(Vm *vm, const Spec *want, const char *key, Op **op, GError **err);
/* For command.c: an op has ended. */
void vm_apply_ended(Vm *vm, const Op *op);

static inline int64_t vm_now(void)
{
	return g_get_real_time();
}
