/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between the core and a hypervisor. A backend is one const BackendClass; a slot that
 * is NULL is something it cannot do: the file or verb is then absent. Everything here runs on the
 * loop thread, and nothing may block: state is pushed up when it changes, and an op ends by calling
 * op_ok(), op_fail() or through its steps.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "vmfs/ask.h"
#include "vmfs/netspec.h"
#include "vmfs/op.h"
#include "vmfs/proc.h"
#include "vmfs/spec.h"

typedef struct Snapshot Snapshot; /* vmfs/snapshot.h */
typedef struct Backend Backend;
typedef struct BackendVm BackendVm;
typedef struct Host Host;

/* op_arg() of OP_APPLY. */
typedef struct SpecChange {
	char *key;  /* as of spec_diff(): "memory", "disks.data", "nics.eth0.ports" */
	Spec *want; /* BackendVm.spec with that one difference */
} SpecChange;

typedef enum ExecStream { EXEC_STDIN, EXEC_STDOUT, EXEC_STDERR, EXEC_STREAMS } ExecStream;

/*
 * A command in the guest (exec.h). op[OP_EXEC] starts it, op[OP_EXEC_SIGNAL] sends ExecJob.signal;
 * op_arg() is the job. Between the op's success and exec_ended() it runs.
 */
typedef struct ExecJob ExecJob;
typedef struct ExecClass {
	/* Bytes taken from its output, each once; 0 when it has ended and no more will come.
	 * -EAGAIN: none now, and exec_look_again() is called when there are. */
	ssize_t (*read)(ExecJob *job, ExecStream which, char *buf, size_t size);
	bool (*ready)(ExecJob *job, ExecStream which); /* read() would not say -EAGAIN */
	/* Bytes given to it; 0: no room, and exec_look_again() is called when there is. */
	size_t (*write)(ExecJob *job, const char *data, size_t len);
	void (*close_input)(ExecJob *job); /* end of file follows; told again after adopt */
	/* Take away what it has outside; it has ended, and can still be read. */
	void (*drop)(ExecJob *job);
	void (*forget)(ExecJob *job); /* free ExecJob.run, and leave all else as it is */
	void (*save)(const ExecJob *job, GKeyFile *run, const char *group);
	/* After a restart of the daemon. false: nothing is known of it. */
	bool (*adopt)(BackendVm *bv, ExecJob *job, GKeyFile *run, const char *group);
} ExecClass;

/* A snapshot in the hypervisor's own books. */
typedef struct BookedSnapshot {
	char *name;
	int64_t made;	  /* microseconds since 1970 */
	char *spec, *xml; /* what it holds, as a spec and in its own words; or NULL */
} BookedSnapshot;

/* Called once, on the loop; e (borrowed) is NULL when it is done. */
typedef void (*BackendDone)(void *arg, const GError *e);

/* The same with text (borrowed), if it is done. */
typedef void (*BackendText)(void *arg, GBytes *text, const GError *e);

typedef enum NetworkOrder {
	NETWORK_DEFINE, /* as the spec says */
	NETWORK_START,
	NETWORK_STOP,
	NETWORK_UNDEFINE,
} NetworkOrder;

typedef struct BackendClass {
	const char *name, *doc;
	size_t vm_size;	 /* of the derived BackendVm, whose first member is the base; zeroed */
	bool hidden;	 /* never chosen by default */
	bool clones;	 /* OP_START looks at vm_clone_source() */
	bool autostarts; /* itself, when its host has booted, what is in its books (Vm.home) */

	/* Find out whether it is usable here; answers once with backend_probed(). */
	void (*probe)(Backend *be);
	/* Pure: can this spec be run? EINVAL or EOPNOTSUPP with the key in the sentence. */
	bool (*check)(Backend *be, const Spec *spec, GError **err);
	/* Pure: this key of the spec leaves it to the backend, so that nothing differs from it. */
	bool (*is_open)(const Spec *want, const char *key);
	/* Pure: the command line that a start would run. Spawns nothing, reads no file. */
	bool (*cmdline)(BackendVm *bv, GPtrArray *argv, GError **err);
	/* The VM goes from memory (removed, or the daemon ends): drop all watches. What runs goes
	 * on. */
	void (*fini)(BackendVm *bv);
	/* What adopt will need, into the group "backend". */
	void (*save)(const BackendVm *bv, GKeyFile *run);
	/*
	 * OP_ADOPT (op[OP_ADOPT]) after a restart of the daemon: find the VM again with what save()
	 * wrote (vm_run_file()), report backend_state(), and finish the op; or undo a half-done
	 * start and report backend_gone().
	 */
	void (*op[OP_MAX])(BackendVm *bv, Op *op);
	/*
	 * Pure: could OP_APPLY (op[OP_APPLY]) make this difference between `want` and bv->spec good
	 * while the VM runs? The op changes the VM in one key, or fails with nothing changed; when
	 * it succeeds, the core takes its `want` for bv->spec.
	 */
	bool (*can_apply)(const BackendVm *bv, const Spec *want, const char *key);
	/* Type these bytes; returns how many were taken, 0 when the buffer is full. */
	size_t (*console_write)(BackendVm *bv, const char *data, size_t len);
	/* Ask the guest for its addresses again (someone began to wait for one). */
	void (*want_ip)(BackendVm *bv);
	/*
	 * Someone waits for cloud-init in the guest: ask, and call backend_cloud_init() later. It
	 * is wanted again after each answer, and each time the agent comes up, while someone waits.
	 */
	void (*want_cloud_init)(BackendVm *bv);
	/*
	 * Answer a question about a VM that runs or is paused: ask_answer() or ask_fail(), once, at
	 * once or later; also when the VM ends or fini() is called before the answer is there.
	 */
	void (*ask[ASK_MAX])(BackendVm *bv, Ask *a);
	/*
	 * Of a VM that is in the hypervisor's own books (Vm.home): write there what a new spec
	 * says, another name; take it out of them.
	 */
	void (*define)(BackendVm *bv, Spec *spec, BackendDone fn, void *arg);
	void (*rename)(BackendVm *bv, const char *name, BackendDone fn, void *arg);
	void (*undefine)(BackendVm *bv, BackendDone fn, void *arg);
	/*
	 * What its books say of the VM in their own words: text that lives until it changes
	 * (EV_SPEC), or NULL. OP_REDEFINE takes another such text, a char * (op_arg()).
	 */
	const char *(*definition)(const BackendVm *bv);
	/*
	 * Its books have the snapshots too: op[OP_SNAPSHOT] takes one there, under snapshot_name(),
	 * and backend_snapshots() tells of all of them. Drop one; see whether there are others by
	 * now, that nothing has told of: it is told before fn.
	 */
	void (*snapshot_drop)(BackendVm *bv, const char *name, BackendDone fn, void *arg);
	void (*snapshot_look)(BackendVm *bv, BackendDone fn, void *arg);
	/* Somebody reads the console. */
	void (*want_console)(BackendVm *bv);
	/*
	 * Other hosts, and this one, that it reaches by a URI (hosts.h): reach it from now on, and
	 * let go of it again. The rest shows what it knows: "key value" lines.
	 */
	void (*host_open)(Host *host);
	void (*host_close)(Host *host);
	bool (*host_is_up)(const Host *host);
	void (*host_status)(const Host *host, GString *out);
	void (*host_node)(const Host *host, GString *out);
	/*
	 * The networks of a host, which it reports with networks_update() (networks.h): first the
	 * order, then what has become of them, then fn. A new one has no key (NULL). The text of
	 * leases is as the file of that name has it.
	 */
	void (*network_order)(Host *host, NetworkOrder order, const char *key, NetSpec *spec_take,
			      BackendDone fn, void *arg);
	void (*network_leases)(Host *host, const char *key, BackendText fn, void *arg);
	const ExecClass *exec; /* NULL: no commands in the guest */
	/* A line of the `sim` file: faults and guest behaviour that a test orders. */
	bool (*control)(BackendVm *bv, char *line, GError **err);
} BackendClass;

struct Backend {
	const BackendClass *cls;
	bool usable;
	GString *status; /* "key value" lines that follow `usable` in backends/NAME/status */
};

struct BackendVm {
	Backend *be;
	Vm *vm;
	Spec *spec; /* what the VM was last started with (or would be), counted */
};

/* Called once by probe(); `why` (borrowed) says what is missing when not usable. */
void backend_probed(Backend *be, bool usable, const char *why);

/* Upward, all on the loop thread. */

/* The true state as the hypervisor sees it; reason is one word ("guest-panic") or NULL. */
void backend_state(BackendVm *bv, VmState state, const char *reason);
/* The VMM is gone: VM_STOPPED, VM_CRASHED or VM_ASLEEP; exit_status as of waitpid(2), -1 when not
 * known. */
void backend_gone(BackendVm *bv, VmState state, const char *reason, int exit_status);
/* For a backend that does not find it in OP_ADOPT but later: backend_state() has just said what a
 * restarted daemon did not know. */
void backend_found(BackendVm *bv);
/* The guest's addresses, best first (NULL-terminated, NULL: not known any more). */
void backend_ips(BackendVm *bv, const char *const *ips);
void backend_agent(BackendVm *bv, bool up);
/* How cloud-init has ended in this boot: "done" or "error"; NULL: it has not yet, ask again. */
void backend_cloud_init(BackendVm *bv, const char *result);
void backend_console(BackendVm *bv, const char *data, size_t len);
/*
 * All that console.log holds up to this offset has been told: kept, so that a reader's place is
 * found again after a crash of the daemon.
 */
void backend_console_at(BackendVm *bv, uint64_t offset);
/* Room for console_write() again. */
void backend_console_room(BackendVm *bv);
/* A `key value` line of `status` for as long as the VM runs; NULL takes it away. */
void backend_fact(BackendVm *bv, const char *key, const char *value);
/* What runs is no longer what it was, and nobody ordered that: take `spec` for bv->spec. */
void backend_spec(BackendVm *bv, Spec *spec);
/* All snapshots in its books, of BookedSnapshot (borrowed): what is not among them is no more. */
void backend_snapshots(BackendVm *bv, const GPtrArray *all);
/* What save() writes has changed and must reach the disk. */
void backend_changed(BackendVm *bv);
void backend_pid(BackendVm *bv, pid_t pid);
/* A command has ended: "exit 3", "signal 9". Not from within its ops. */
void exec_ended(ExecJob *job, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
/* Whether those who know of its end are not heard of at present. */
void exec_silent(ExecJob *job, bool silent);
void exec_look_again(ExecJob *job);
/* Nothing is known any more of all that run; `why` is one word. */
void exec_lost(BackendVm *bv, const char *why);

/* What a backend may ask of a VM. */
const char *vm_name(const Vm *vm);
const char *vm_instance_id(const Vm *vm);
/* The document in force, for what takes effect at once; the rest is in BackendVm.spec. */
const Spec *vm_spec(const Vm *vm);
unsigned vm_id(const Vm *vm);
uid_t vm_uid(const Vm *vm);
gid_t vm_gid(const Vm *vm);
VmState vm_state(const Vm *vm);
/* <state>/vms/SERIAL/data: the owner's directory of console.log, vmm.log and overlays. Exists. */
const char *vm_data_dir(Vm *vm);
/* <run>/SERIAL: for sockets; on tmpfs, the owner's, short enough for sun_path. Made by
 * vm_make_run_dir(). */
const char *vm_run_dir(Vm *vm);
bool vm_make_run_dir(Vm *vm, GError **err);
void vm_remove_run_dir(Vm *vm);
/* For one that is found by its host and not by OP_ADOPT: take what it was started with, as it was
 * written then, for BackendVm.spec. */
void vm_load_started(Vm *vm);
/* The stored run-time key file that save() wrote before the daemon died; NULL if there is none.
 * Borrowed. */
GKeyFile *vm_run_file(Vm *vm);

/* The last such offset when the daemon that told it has died since: go on there. False: there is
 * none. */
bool vm_console_resume(Vm *vm, uint64_t *offset);
/* console.log, to read: a descriptor, or -1 and errno. */
int vm_open_console_log(Vm *vm);
/*
 * Whether the memory of a VM is on the disk, as a restarted host is to know it. A VM is
 * SAVED_ASLEEP before its VMM ends, and SAVED_WAKING before the vCPUs of the next one run: from
 * then on its disks may have changed, and the memory is worth nothing. SAVED_NONE again as soon as
 * it is reported to run, to be stopped or to have crashed.
 */
typedef enum VmSaved { SAVED_NONE, SAVED_ASLEEP, SAVED_WAKING } VmSaved;
VmSaved vm_saved(const Vm *vm);
/* done (or NULL) is called once, later, when it is safe on the disk, unless it is forgotten first.
 */
typedef struct SavedNote SavedNote;
SavedNote *vm_set_saved(Vm *vm, VmSaved saved, void (*done)(void *arg, const GError *err),
			void *arg);
/* Clears *note, which may be NULL. */
void vm_saved_forget(SavedNote **note);

/*
 * What OP_SNAPSHOT is to make and OP_RESTORE to go back to, their op_arg(): a directory (savedir.h)
 * in the VM's data directory. OP_SNAPSHOT makes, fills and seals it; it calls op_accept() as soon
 * as the moment is fixed and the guest goes on. What is left by one that fails is removed by the
 * core.
 */
const char *snapshot_dir(const Snapshot *s);
const char *snapshot_name(const Snapshot *s);
unsigned snapshot_number(const Snapshot *s);
bool vm_has_snapshots(const Vm *vm);
/* It is in the hypervisor's books, and has no directory. */
bool snapshot_is_booked(const Snapshot *s);
/* The machine ran when it was taken. */
bool snapshot_has_memory(const Snapshot *s);

/*
 * For OP_START of a VM with `from` that has not run yet: the snapshot that it is to begin as, in
 * place of a boot, and that stays as long as the VM needs it; NULL: there is none. Its owner's
 * rights (NULL: not looked at) decide. False and err when it cannot be used. Until the VM runs,
 * what an earlier attempt has left of its disks is worth nothing.
 */
bool vm_clone_source(Vm *vm, const ProcUser *owner, const Snapshot **ret, GError **err);
/* The same for a dry run, which nothing follows from. */
bool vm_clone_planned(const Vm *vm, const Snapshot **ret, GError **err);
bool vm_clone_is_pending(const Vm *vm);
/* What begins the paths of the files that its disks are based on; NULL: of no other VM's. Owned by
 * the caller. */
char *vm_origin_dir(const Vm *vm);
/* The same of all VMs. */
char *vm_dirs(void);
/*
 * A directory that the backend may make, for clones of that user, and that goes with the snapshot;
 * owned by the caller. It has SNAPSHOT_UNFINISHED after its name until it is complete.
 */
char *snapshot_template(const Snapshot *s, uid_t uid);
#define SNAPSHOT_UNFINISHED ".new"
uid_t snapshot_uid(const Snapshot *s);

/* What vm.h has for backends as well. */
const char *vm_state_name(VmState state);
VmState vm_state_find(const char *name); /* VM_STATE_MAX: none */

/* backends/table.c */
extern Backend *const backends[]; /* NULL-terminated, in the order of preference */
Backend *backend_find(const char *name);
/* Find out which are usable here; done is called when all have answered. */
void backends_probe(void (*done)(void));
/* The backend of a spec: its `backend:` or the first usable one. NULL and EOPNOTSUPP with a
 * sentence. */
Backend *backend_for(const Spec *spec, GError **err);
