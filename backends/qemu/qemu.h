/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the qemu backend. One QemuVm a VM: the process (pidfd), the monitor (QMP), the console
 * (console.h) and the guest agent. The daemon itself makes the listening sockets and passes them
 * on, so connecting works before QEMU is up, and ECONNREFUSED later means that nobody holds them.
 * Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/backend.h"
#include "backends/cloudinit.h"
#include "backends/qemu/agent.h"
#include "backends/qemu/console.h"
#include "backends/qemu/qmp.h"
#include "backends/usernet.h"
#include "vmfs/line.h"
#include "vmfs/loop.h"
#include "vmfs/prepare.h"
#include "vmfs/proc.h"

/* Descriptors that QEMU is started with, and the names of their sockets in the run directory. */
#define QEMU_FD_QMP	  3
#define QEMU_FD_AGENT	  4
#define QEMU_SOCKET_QMP	  "qmp"
#define QEMU_SOCKET_AGENT "agent"
#define QEMU_SOCKET_VNC	  "vnc"
#define QEMU_PID_FILE	  "pid"

#define QEMU_AGENT_ID	"agent0" /* the agent's port, as events name it */
#define QEMU_NET_PREFIX "net-"	 /* of a nic's netdev */
#define QEMU_DISK_ID	"disk-"	 /* before the name: the device's id */
#define QEMU_NIC_ID	"nic-"
#define QEMU_SHARE_ID	"share-" /* also of its socket in the run directory */
#define QEMU_SEED_ID	"cidata"
#define QEMU_DEVICE_ID	"device-" /* of the host's devices */
/* Controllers, which come with the first device that needs one. */
#define QEMU_SCSI_ID "scsi0"
#define QEMU_USB_ID  "usb0"
/* In the slots, numbers of another kind: of a nic, for its address, and how many addresses its
 * network has met before that one; of a disk's SCSI target. */
#define QEMU_MAC_ID    "mac-"
#define QEMU_LEASE_ID  "lease-"
#define QEMU_TARGET_ID "scsi-"

#define QEMU_GUEST_IP "10.0.2.15" /* on a user network */

#define QEMU_BRIDGE_SLOTS 31
#define QEMU_UEFI_VARS	  "uefi-vars.fd"

extern const BackendClass qemu_class;

/* probe.c */

/* What the probe found; constant afterwards. */
typedef struct QemuHost {
	char *binary, *img, *virtiofsd; /* paths, or NULL */
	bool kvm;
	char *kvm_why;			   /* why not */
	const char *uefi_code, *uefi_vars; /* NULL: no OVMF */
} QemuHost;

const QemuHost *qemu_host(void);
void qemu_probe(Backend *be);
/* `vmfs --probe-kvm`: prints one line for qemu_probe() and returns the exit status. */
int qemu_probe_kvm_main(void);

/* argv.c: pure */

typedef struct QemuArgs {
	const Spec *spec;
	unsigned id;
	const char *name, *run_dir, *data_dir, *binary, *accel, *uefi_code;
	const char *machine; /* what saved memory wants ("pc-q35-7.2"); NULL: the spec's */
	bool incoming;	     /* wait for memory to be loaded */
	const char *ram;     /* a file to map memory from; NULL: it is anonymous */
	bool making;	     /* what is loaded goes to `ram`, and nothing else is to be touched */
	bool virtiofs;	     /* for shares that leave it open */
	const char *controller; /* of qemu_device_argv(): it has to come first; or NULL */
	/* Where devices are: what the guest has seen once must stay, in a snapshot as well. */
	GHashTable *slots; /* char *id to int */
	unsigned bridges;  /* at least so many */
} QemuArgs;

void qemu_argv(const QemuArgs *in, GPtrArray *argv);
/* Bytes of memory that the machine has, in the guest's balloon or not. */
static inline uint64_t qemu_ram(const Spec *s)
{
	return MAX(s->memory, s->max_memory);
}
bool qemu_check(const QemuHost *host, const Spec *spec, GError **err);
/* Served by virtiofsd, not by QEMU itself. */
bool qemu_is_virtiofs(const QemuArgs *in, const SpecShare *share);
/* The memory is one that virtiofsd can be given as well. */
bool qemu_shares_memory(const QemuArgs *in);
char *qemu_mac(unsigned id, unsigned index);
/* The controller that this device needs, by its id; NULL: none. */
const char *qemu_controller(const Spec *spec, const char *key);
/* The options of the device that "disks.data" names, as qemu_argv() has them. */
void qemu_device_argv(const QemuArgs *in, const char *key, GPtrArray *argv);
/* "disk-" and "file-": the block nodes of a disk; owned by the caller. */
char *qemu_block_node(const char *prefix, const char *disk);

GHashTable *qemu_slots_new(void);
/* Give places to the devices that have none, in in->slots. */
void qemu_slots_fill(const QemuArgs *in);
int qemu_slot(GHashTable *slots, const char *id); /* -1: none */
/* The networks of these have met the guest with another address. */
void qemu_slots_cloned(GHashTable *slots, const Spec *spec);
/* For what is stored, and back: damaged text gives fewer. */
char *qemu_slots_text(GHashTable *slots, unsigned bridges);
GHashTable *qemu_slots_parse(const char *text, unsigned *ret_bridges);
unsigned qemu_bridges(GHashTable *slots); /* how many these need */

/* Why a VMM that we end ends: what backend_gone() is to be told. */
typedef struct QemuEnd {
	VmState state;
	const char *reason; /* NULL: not our doing */
} QemuEnd;

/* identity.c: whose name and addresses the guest has. */
typedef enum QemuIdentity {
	IDENTITY_OWN,
	IDENTITY_COPIED,
	IDENTITY_TOLD, /* its agent was told its own */
} QemuIdentity;

typedef struct QemuVm QemuVm;

struct QemuVm {
	BackendVm base;

	/* The process. NULL: nothing runs, and all that follows is unset. */
	Proc *proc;
	uint64_t start_time;
	const char *accel; /* as in the command line: "kvm", "tcg", "kvm:tcg" */
	ProcUser user;
	bool exited; /* proc has, but its last words are still to be read */
	int exit_status;
	QemuEnd end;
	Timer *exit_timer;
	/* What to do about its end instead of reporting it: set while an op starts it, or undoes
	 * that. */
	void (*died)(QemuVm *q);

	void *start;		    /* of start.c, while it starts */
	bool clock_is_late;	    /* it slept, and has not been told the time */
	struct SaveJob *dropping;   /* what it slept in */
	void (*dropped)(QemuVm *q); /* whoever waits for that; or NULL */
	void *taking;		    /* of snapshot.c, while a snapshot is taken */
	void *sleep;		    /* of sleep.c, while it goes to sleep */
	Prepare *disks;		    /* being prepared; NULL: none are */
	GHashTable *slots;	    /* where the devices of what runs are; NULL: as at a start */
	unsigned bridges;	    /* that it was started with */
	GPtrArray *shares;	    /* of share.c: what virtiofsd serves; or NULL */
	struct QemuShares *starting_shares;
	bool shares_memory;    /* qemu_shares_memory() of what runs */
	struct Plug *plug;     /* of hotplug.c, while something is changed */
	struct Resize *resize; /* of resize.c, likewise */
	GHashTable *leaving;   /* set of ids: not ours any more, but still in the guest */

	/* The monitor. */
	Qmp *qmp;
	Timer *silence_timer; /* until it is asked again, or is reported as unknown */
	bool paused;
	const char *pause_reason;
	void (*ready)(QemuVm *q);		    /* what to do when it has greeted us */
	void (*lost)(QemuVm *q, const GError *err); /* NULL: connect again */

	/* The guest. */
	Console *console;
	Agent *agent;
	Timer *ip_timer; /* the series of questions: its next one */
	unsigned ip_try;
	bool ip_asked; /* an answer is under way */
	QmpSlot *ip_slot;
	CloudInit cloud_init;
	QemuIdentity identity;
	QmpSlot *identity_slot;

	/* Its memory, on the way to or from a file. */
	struct QemuStream *stream;
	bool held; /* that is why its vCPUs stand still: no state to report */

	/* ssh.c */
	struct QemuSsh *ssh; /* the question under way; or NULL */
	char *ssh_key;	     /* the VM's own, its public half; NULL: not asked for in this run */
	char *ssh_user;	     /* who in the guest was to be given it */
	bool ssh_authorized; /* and was */

	/* The op that waits for an answer or an event. */
	Op *op;
	QmpSlot *op_slot;
	Timer *op_timer;

	GQueue questions;     /* of ask.c */
	GPtrArray *key_names; /* likewise, a NULL after them; NULL: not asked yet */
};

static inline QemuVm *qemu_of(BackendVm *bv)
{
	return (QemuVm *)bv;
}

static inline Vm *qemu_vm(const QemuVm *q)
{
	return q->base.vm;
}

/* qemu.c */
/* All borrowed. */
void qemu_fill_args(QemuVm *q, const char *accel, GHashTable *slots, QemuArgs *args);
const char *qemu_accel(const Spec *spec);
/* Keep it as the one that waits. */
void qemu_begin_op(QemuVm *q, Op *op);
/* False, and the op has failed, when there is no monitor to talk to. */
bool qemu_need_monitor(QemuVm *q);
/* Clear the op, and end it: NULL is success. */
void qemu_end_op(QemuVm *q, GError *take);
/* The agent has come up: if the guest was asked to stop while it booted, it did not hear that. */
void qemu_ask_again(QemuVm *q);

/* monitor.c: what is connected to a VMM that runs */
void qemu_connect(QemuVm *q, uint64_t timeout_ms);
/* Follow the console, beginning `past` bytes ago, and the agent. */
void qemu_connect_guest(QemuVm *q, size_t past);
void qemu_disconnect(QemuVm *q);
size_t qemu_console_write(BackendVm *bv, const char *data, size_t len);
/* The ProcExitFn of the VMM; arg is the QemuVm. */
void qemu_exited(void *arg, int status);
/* `result` of query-kvm. */
void qemu_report_accel(QemuVm *q, const json_t *result);
/* Ask it to quit, and kill it when it does not. */
void qemu_quit(QemuVm *q, VmState state, const char *reason);
/* Let go of everything that belongs to a run. The process goes on, if it is there. */
void qemu_forget(QemuVm *q);
/* Its process has exited, and whatever kept that from being reported (`died`) is over. */
void qemu_report_end(QemuVm *q);
/* Take note of the end of a run, in the order that the core wants. */
void qemu_gone(QemuVm *q, VmState state, const char *reason, int exit_status);

/* start.c, wake.c */
void qemu_start(BackendVm *bv, Op *op);
void qemu_wake(BackendVm *bv, Op *op);
/* The agent has come up: tell a guest that slept the time. */
void qemu_set_clock(QemuVm *q);
/* Its vCPUs run. */
void qemu_start_resumed(QemuVm *q);
/* The VM goes from memory in the middle of it. */
void qemu_start_abandon(QemuVm *q);
/*
 * Touch the file system as the owner, between these two: what their directories hold is theirs,
 * links included. The first returns what the second wants.
 */
int qemu_as_owner(const ProcUser *u);
void qemu_as_daemon(const ProcUser *u, int before);
/* A log in the data directory, opened as the owner; -1 and errno. */
int qemu_open_log(QemuVm *q, const char *name, int flags);
/* A socket that only its user reaches. */
bool qemu_listen_at(const char *path, int *ret, GError **err);

/* adopt.c */
void qemu_save(const BackendVm *bv, GKeyFile *run);
void qemu_adopt(BackendVm *bv, Op *op);
/* Connect (again) to a VMM of which we do not know the state, and find it out. */
void qemu_resync(QemuVm *q);
/* Find a process of which only the owner's pid file tells. */
void qemu_find_process(QemuVm *q);

/*
 * share.c: start the servers that the shares of a spec need, or with `only` that one. done() is
 * called once, perhaps at once, unless cancelled first.
 */
#define QEMU_VIRTIOFSD_LOG "virtiofsd.log"
typedef struct QemuShares QemuShares;
typedef void (*QemuSharesFn)(void *arg, const GError *err);
void qemu_shares_start(QemuVm *q, const QemuArgs *args, const char *only, QemuSharesFn done,
		       void *arg);
void qemu_shares_cancel(QemuVm *q);
/* The run is over (`end`: for them as well), or the VM goes from memory. */
void qemu_shares_forget(QemuVm *q, bool end);
/* Facts for `status`: how the guest is to mount them. */
void qemu_report_shares(QemuVm *q);
void qemu_share_added(QemuVm *q, const char *name);
/* The guest has let go of it. */
void qemu_share_removed(QemuVm *q, const char *name);
/* EOPNOTSUPP: what runs has one, or a device of the host's, whose state QEMU cannot save. */
bool qemu_can_be_saved(const QemuVm *q, GError **err);
void qemu_shares_save(const QemuVm *q, GKeyFile *run);
void qemu_shares_adopt(QemuVm *q, GKeyFile *run);

/* hotplug.c: OP_APPLY of disks.NAME, nics.NAME and shares.NAME */
bool qemu_plug_can_apply(const BackendVm *bv, const Spec *want, const char *key);
void qemu_plug_apply(QemuVm *q, Op *op);
/* The guest let go of a device. */
void qemu_device_deleted(QemuVm *q, const char *id);
/* What runs as QEMU knows it, after a time without us: the answer to qom-list. */
void qemu_reconcile(QemuVm *q, const json_t *peripherals);
/* The op is over, or the VM. */
void qemu_plug_free(QemuVm *q);

/* resize.c: OP_APPLY of memory and cpus */
bool qemu_resize_can_apply(const BackendVm *bv, const Spec *want, const char *key);
void qemu_resize_apply(QemuVm *q, Op *op);
/* Before its vCPUs run: memory beyond what it is to have at first is kept from the guest. */
void qemu_balloon_start(QemuVm *q);
/* What runs as QEMU knows it, after a time without us. */
void qemu_resize_reconcile(QemuVm *q);
/* Events: the guest has so much memory; it has seen that CPU. */
void qemu_balloon_changed(QemuVm *q, uint64_t bytes);
void qemu_cpu_noticed(QemuVm *q, const char *device);
/* The op is over, or the VM. */
void qemu_resize_free(QemuVm *q);

/* ask.c: files that are asked for */
void qemu_ask_screen(BackendVm *bv, Ask *a);
void qemu_ask_stats(BackendVm *bv, Ask *a);
void qemu_ask_monitor(BackendVm *bv, Ask *a);
void qemu_ask_keys(BackendVm *bv, Ask *a);
/* The arguments of send-key for keys that are pressed together: "ctrl-alt-delete". */
json_t *qemu_keys(const char *word);
/* The monitor is gone: nobody will answer these. */
void qemu_fail_questions(QemuVm *q);
/* Find out and report where the display can be watched. */
void qemu_report_vnc(QemuVm *q);

/* cloudinit.c */
void qemu_want_cloud_init(BackendVm *bv);

/* identity.c */
/* The address that a nic is to have; owned by the caller. */
char *qemu_nic_mac(const QemuVm *q, const SpecNic *n);
/* It runs, as a copy of another one. */
void qemu_identity_begin(QemuVm *q);
/* The agent has come up. */
void qemu_identity_tell(QemuVm *q);
/* The guest has changed the address of a nic. */
void qemu_identity_changed(QemuVm *q);
/* The machine was reset: it has its own now. */
void qemu_identity_reset(QemuVm *q);
void qemu_identity_adopt(QemuVm *q, bool copied);

/* ip.c */
void qemu_ip_start(QemuVm *q);
void qemu_ip_stop(QemuVm *q);
/* Report the host ports in `info usernet`'s text, as forwards of that spec. */
void qemu_report_ports(QemuVm *q, const Spec *spec, const char *usernet);
/* That text (usernet.h). */
GPtrArray *qemu_usernet(const char *text);
/* The addresses (char *) in the answer to guest-network-get-interfaces, best first. */
GPtrArray *qemu_agent_ips(const json_t *interfaces, const Spec *spec, unsigned id);

/*
 * disk.c: see whether the disks of a spec can be used, and make the files that are missing, and
 * whether its devices of the host's can be opened, with the rights of q->user; with `key`, of
 * "disks.data" or "devices.gpu" only. It becomes q->disks.
 */
void qemu_disks_prepare(QemuVm *q, const Spec *spec, const char *key, PrepareFn done, void *arg);
/*
 * Of a restore: `copies` has the paths of copies of the snapshot's disks, made by
 * qemu_snapshot_pairs(). Whether a machine of this spec can have them and what else it needs; put
 * them in the place of the disks. What the snapshot does not have had not been made yet.
 */
void qemu_disks_check_copies(QemuVm *q, const Spec *spec, const GPtrArray *copies, PrepareFn done,
			     void *arg);
bool qemu_disks_put_back(QemuVm *q, const Spec *spec, const GPtrArray *copies, GError **err);

/* ssh.c: ASK_SSH */
typedef struct QemuSsh QemuSsh;
void qemu_ask_ssh(BackendVm *bv, Ask *a);
/* Give the guest the VM's own key, if somebody has asked for it and an agent is there. */
void qemu_ssh_authorize(QemuVm *q);
/* The guest boots again. */
void qemu_ssh_reset(QemuVm *q);
/* The run is over. */
void qemu_ssh_forget(QemuVm *q);

/* With whose rights its directories are touched: without groups, for they are the user's own. */
ProcUser qemu_owner(const QemuVm *q);

/* ports.c: OP_APPLY of nics.NAME.ports */
bool qemu_ports_can_apply(const BackendVm *bv, const Spec *want, const char *key);
void qemu_ports_apply(QemuVm *q, Op *op);

/* exec.c: commands in the guest */
extern const ExecClass qemu_exec;
void qemu_exec_start(BackendVm *bv, Op *op);
void qemu_exec_signal(BackendVm *bv, Op *op);
/* The guest has opened or closed the port of that id, which may be one of a command. */
void qemu_exec_port(QemuVm *q, const char *id, bool open);
/* A device is gone, which may have been such a port. */
void qemu_exec_unplugged(QemuVm *q, const char *device);
