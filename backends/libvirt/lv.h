/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the libvirt backend. A host has one connection. Its calls may block for as long as the
 * host likes, so they are made in threads of its own; its events come in a thread of libvirt's,
 * which copies them and posts them to the loop. All else, and all that is not said to be otherwise,
 * is the loop thread's. Across threads go only: references to the connection, keys, and copies.
 */
#pragma once

#include <glib.h>
#include <libvirt/libvirt.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/backend.h"
#include "backends/cloudinit.h"
#include "backends/libvirt/xml.h"
#include "vmfs/hosts.h"
#include "vmfs/loop.h"
#include "vmfs/prepare.h"
#include "vmfs/registry.h"
#include "vmfs/ssh.h"
#include "vmfs/vm.h"

extern const BackendClass libvirt_class;

/* A host's connection. */
typedef struct LvHost {
	Host *host;
	Pool *pool;
	virConnectPtr virt; /* NULL: the host is away */
	uint32_t attempt;   /* which connection it is: what comes from another is dropped */
	bool opening;
	char *why;     /* it is away: a sentence; or NULL */
	char *version; /* of libvirt and the hypervisor, there */
	LvCaps caps;   /* as far as they were asked for */
	unsigned cpus;
	uint64_t memory, free; /* bytes; free: when a domain of it was last looked at */
	unsigned tries;
	Timer *retry;
	GHashTable *domains; /* key to LvVm: those that vmfs has a VM for */

	/* call.c */
	unsigned outstanding; /* jobs that have not come back */
	Timer *doubt;	      /* until it is asked whether it is there at all, or has to be */
	bool pinged;
	Timer *nudge; /* until libvirt's client is woken */
	unsigned nudge_ms, nudges;

	/* networks.c */
	GQueue net_jobs; /* one after the other: the first is under way */

	/* discover.c */
	GHashTable *looks; /* key to LvLook: those to be looked at */
	GQueue to_look;	   /* of keys, owned by `looks` */
	unsigned looking;  /* jobs */
	Timer *first;	   /* until the first list is shown though not all is known */
} LvHost;

typedef struct LvConsole LvConsole;

typedef struct LvVm {
	BackendVm base;
	LvHost *host;	    /* NULL: it is not known there */
	char *xml;	    /* of the domain as it is defined; NULL: not known, or not defined */
	bool redefined;	    /* by us, since: the next one seen may be the same and yet be news */
	GPtrArray *calls;   /* of LvCall: those that are under way */
	void *guest_call;   /* the LvCall that waits for the guest's agent; NULL: none */
	GQueue guest_calls; /* of LvCall: its followers */

	/* verbs.c: the op that waits for an answer or an event. */
	Op *op;
	Timer *op_timer;
	const char *ending; /* why it ends, when we end it */
	void *start;	    /* the LvCall that starts or moves it */
	bool undoing;	    /* and what that has done is to be undone */

	/* own.c: what is being made; NULL: nothing is */
	Prepare *prepare;
	struct LvSeedKey *seed_key;

	/* move.c: numbers of hosts; 0: it is not being moved. */
	uint32_t from, to;
	Timer *move_timer;

	/* snapshots.c */
	OpKind holding;	     /* what a snapshot or a restore does on its way is not shown */
	unsigned snaps_turn; /* a list that was begun before this was reached may be old */
	char **snapshots;    /* their names, as told last; NULL: to be told again */

	LvConsole *console;		  /* NULL: not connected */
	bool connecting, console_refused; /* refused: and that was told */

	CloudInit cloud_init;
	void *cloud_init_call; /* the LvCall that looks; NULL: none does */

	/* ssh.c; the key is NULL until somebody asks, or a seed has it */
	struct LvSsh *ssh; /* who asks; NULL: nobody does, or its call is under way */
	char *ssh_key;
	char *ssh_user; /* who was given it last */
	bool ssh_authorized;
	unsigned ssh_turn; /* what was begun before this was reached was another guest's */

	bool ports_failed; /* ports.c: and that was told */

	/* ip.c: the series of questions. */
	Timer *ip_timer;
	unsigned ip_try;
	bool ip_asked;
} LvVm;

static inline LvVm *lv_of(BackendVm *bv)
{
	return (LvVm *)bv;
}

/* error.c */

/* The last error of libvirt in this thread, as one of ours. Any thread. */
void lv_error(GError **err, const char *what);
/* Nothing is printed by libvirt itself. */
void lv_init_errors(void);

/* state.c: pure; any thread */

typedef struct LvState {
	VmState state;
	const char *reason; /* a word; static */
	bool arrived;	    /* it ran on another host up to now */
	pid_t pid;	    /* of what runs; 0: not known, or not here */
} LvState;

/* It is on its way between two hosts: on which it runs is not said yet. */
static inline bool lv_is_passing(LvState s)
{
	return s.state == VM_PAUSED && !g_strcmp0(s.reason, "migrating");
}

LvState lv_state_of(int state, int reason);
/* That, of a domain of which it is known whether its memory is kept. */
LvState lv_state_with_sleep(LvState s, bool asleep);
/* Ask for it: in the pool. false: it is not known. */
bool lv_state_now(virDomainPtr dom, LvState *ret);
/* What a lifecycle event says. VM_STATE_MAX: that has to be asked. */
LvState lv_state_of_event(int event, int detail);

/* Which connection: for libvirt to hand back, so that nothing of it has to be kept alive. */
static inline void *lv_tag(uint32_t number, uint32_t attempt)
{
	return (void *)((uintptr_t)number << 32 | attempt);
}

/* pid.c */

/* Of the process that a domain is; 0: it is not known, or not one of this machine. */
pid_t lv_pid(virDomainPtr dom);

/* conn.c */

/* Once. false: libvirt does not work here. */
bool lv_init(void);
/* The URI to be used for a host; NULL: none. Owned by the caller. */
char *lv_uri(const Host *host);
void lv_host_open(Host *host);
void lv_host_close(Host *host);
bool lv_host_is_up(const Host *host);
void lv_host_status(const Host *host, GString *out);
void lv_host_node(const Host *host, GString *out);
/* The host that has this connection still; or NULL. */
LvHost *lv_host_at(const void *tag);
static inline void *lv_host_tag(const LvHost *lh)
{
	return lv_tag(lh->host->number, lh->attempt);
}
/* EHOSTDOWN with a sentence. */
bool lv_host_need(const LvHost *lh, GError **err);
/* The connection has turned out to be of no use: `why` (taken) is a sentence. */
void lv_host_away(LvHost *lh, char *why);
/* What says good-bye to a host, and so may wait for it: in threads that nobody else needs. */
void lv_close_work(void (*work)(void *job), void (*done)(void *job), void *job);

/* call.c */

/* As pool_work(), in the host's pool: and if it takes long, the host is asked whether it lives. */
void lv_host_work(LvHost *lh, void (*work)(void *job), void (*done)(void *job), void *job);
/* The same for what takes as long as a guest is large: in threads that nobody else needs. */
void lv_host_slow_work(LvHost *lh, void (*work)(void *job), void (*done)(void *job), void *job);
/* And for what takes as long as a guest likes. */
void lv_host_guest_work(LvHost *lh, void (*work)(void *job), void (*done)(void *job), void *job);
/* For done(): one of `tag`'s has come back. */
void lv_host_worked(const void *tag);
void lv_host_trust(LvHost *lh);

/* events.c */

/* In the pool, on a new connection: from now on, all that happens is posted. */
bool lv_events_begin(virConnectPtr virt, void *tag, GError **err);

/* discover.c */

/* What a job found out about a domain. */
typedef struct LvFound {
	char key[VIR_UUID_STRING_BUFLEN];
	char *name;
	LvState state;
	char *xml;	  /* as it is defined; NULL: not asked */
	Spec *spec, *run; /* what that says; what runs says; or NULL */
	char **snapshots; /* their names, sorted; NULL: not known */
	bool agent;	  /* it is there */
	bool known;	  /* false: there is no such domain */
} LvFound;

/* In the pool: what there is, with states but without XML. Of LvFound. */
GPtrArray *lv_list(virConnectPtr virt, GError **err);
/* The first list of a connection has come (taken). */
void lv_discovered(LvHost *lh, GPtrArray *found);
/* An event says that it is so. */
void lv_heard(LvHost *lh, const char *key, const char *name, LvState state);
/* Something about it has changed, whatever it is. */
void lv_look(LvHost *lh, const char *key);
/* Whether it is being looked at; if it is, then again: that answer may be of a time before now. */
bool lv_overtake(LvHost *lh, const char *key);
/* Forget what was to be looked at: the host is away. */
void lv_look_no_more(LvHost *lh);

/* move.c */
void lv_migrate(BackendVm *bv, Op *op);
/* What a host tells of this domain, which is on its way, is not to be shown. */
bool lv_move_hides(const LvHost *lh, const char *key, LvState state);
/* The VM of a domain that has turned up on `lh`, if it has come there from another host. */
LvVm *lv_move_arrived(LvHost *lh, const char *key, LvState state);
/* Moves to this host come to nothing: it is away. */
void lv_move_away(const LvHost *lh);
void lv_move_forget(LvVm *lv);

/* libvirt.c */
void lv_show(LvVm *lv, LvState s);
/* The guest's agent has come or gone. */
void lv_agent(LvVm *lv, bool up);
/* The VM's place at its host, once it has one. */
LvVm *lv_bind(Vm *vm);
/* Give it one. */
void lv_settle(LvVm *lv);
/* It is defined like this (both taken). */
void lv_defined(LvVm *lv, char *xml, Spec *spec);
/* And it runs like this. */
void lv_runs(LvVm *lv, Spec *spec, bool agent);

/* Some share of it is virtiofs. */
bool lv_shares_virtiofs(const Spec *spec);
/* Else EPERM: libvirt asks nobody what the VM's owner may do. */
bool lv_has_rights(const Vm *vm, const char *what, GError **err);
/* The same for what a spec has of that kind. */
bool lv_is_allowed(const Vm *vm, const Spec *spec, GError **err);

/* The `status` lines of those that run now, in place of those that ran. */
void lv_shares_report(LvVm *lv, const Spec *had, const Spec *spec);

/* verbs.c */
void lv_start(BackendVm *bv, Op *op);
void lv_stop(BackendVm *bv, Op *op);
void lv_kill(BackendVm *bv, Op *op);
void lv_pause(BackendVm *bv, Op *op);
void lv_resume(BackendVm *bv, Op *op);
void lv_reboot(BackendVm *bv, Op *op);
void lv_reset(BackendVm *bv, Op *op);
void lv_undefine_op(BackendVm *bv, Op *op);
void lv_sleep(BackendVm *bv, Op *op);
void lv_redefine(BackendVm *bv, Op *op);
void lv_wake(BackendVm *bv, Op *op);
void lv_define(BackendVm *bv, Spec *spec, BackendDone fn, void *arg);
void lv_rename(BackendVm *bv, const char *name, BackendDone fn, void *arg);
void lv_undefine(BackendVm *bv, BackendDone fn, void *arg);
void lv_op_clear(LvVm *lv);
/* A step, with the LvVm: the files that the VM's own disks are of are made. */
void lv_prepare_run(Op *op, void *ctx);
void lv_prepare_cancel(Op *op, void *ctx);
/* Of what libvirt does not end half-way: goes on once its answer is there. */
void lv_undo(Op *op, void *ctx);
/* Of the op that lv_op_begin() began (takes the error; NULL: success). */
void lv_op_end(LvVm *lv, GError *take);
/* For the op that waits for this: the state has changed; the guest has reset; the agent is there;
 * the host is away. */
void lv_op_look(LvVm *lv);
void lv_op_rebooted(LvVm *lv);
void lv_op_agent_up(LvVm *lv);
void lv_op_away(LvVm *lv);

/* own.c */
/* What runs there runs on this machine, and sees its files. */
bool lv_host_is_here(const Host *host);
bool lv_is_own(const SpecDisk *d);
/* It wants files of vmfs's own. */
bool lv_has_own(const Spec *spec);
/*
 * Make them, as lv->prepare; with `key`, the disk that "disks.data" names only. false: the VM has
 * none there, and done() is not called.
 */
bool lv_own_prepare(LvVm *lv, Spec *spec, const char *key, PrepareFn done, void *arg);
void lv_own_cancel(LvVm *lv);

/* plug.c */
void lv_apply(BackendVm *bv, Op *op);
bool lv_can_apply(const BackendVm *bv, const Spec *want, const char *key);

/* ports.c */
/* It runs: what is to be forwarded to it is, whoever started it. */
void lv_ports_look(LvVm *lv);
/* It is not known any more what is. */
void lv_ports_forget(LvVm *lv);
/* The nic of a key like "nics.eth0.ports"; NULL: it is none of these, or there is no such nic. */
const SpecNic *lv_ports_nic(const Spec *spec, const char *key);

/* ssh.c */
typedef struct LvSsh LvSsh;
void lv_ask_ssh(BackendVm *bv, Ask *a);
/* The agent has come or gone; the guest has reset; what ran has ended. */
void lv_ssh_agent(LvVm *lv, bool up);
void lv_ssh_reset(LvVm *lv);
void lv_ssh_forget(LvVm *lv);

/* console.c */
/* In the pool: NULL and err when it has no console, or another reader has it. */
virStreamPtr lv_console_connect(virConnectPtr virt, virDomainPtr dom, GError **err);
void lv_console_begin(LvVm *lv, virStreamPtr stream_take);
void lv_console_drop(virStreamPtr stream_take);
void lv_console_end(LvVm *lv);
/* Connect, if it runs. */
void lv_console_want(LvVm *lv);
/* It has another console by now, of the same name: let go of the old one and connect. */
void lv_console_renew(LvVm *lv);
size_t lv_console_write(BackendVm *bv, const char *data, size_t len);

/* cloudinit.c */
void lv_want_cloud_init(BackendVm *bv);
/* What ran has ended: begin afresh. */
void lv_cloud_init_reset(LvVm *lv);

/* ip.c */
void lv_ip_start(LvVm *lv);
void lv_ip_stop(LvVm *lv);

/* networks.c */

/* In the pool, on a new connection: as lv_events_begin(), for networks, where there are any. */
void lv_net_events(virConnectPtr virt, void *tag);
/* In the pool: all of them, of NetworkInfo; NULL: there can be none. */
GPtrArray *lv_net_list(virConnectPtr virt);
/* Look at all of them again. */
void lv_net_look(LvHost *lh);
/* The host is away, or goes. */
void lv_net_away(LvHost *lh);
void lv_network_order(Host *host, NetworkOrder order, const char *key, NetSpec *spec_take,
		      BackendDone fn, void *arg);
void lv_network_leases(Host *host, const char *key, BackendText fn, void *arg);

/* exec.c */
extern const ExecClass lv_exec;
void lv_exec_start(BackendVm *bv, Op *op);
void lv_exec_signal(BackendVm *bv, Op *op);
/* It may run again: what waited for that goes on. */
void lv_exec_look(LvVm *lv);

/* snapshots.c */
void lv_snapshot(BackendVm *bv, Op *op);
void lv_restore(BackendVm *bv, Op *op);
void lv_snapshot_drop(BackendVm *bv, const char *name, BackendDone fn, void *arg);
void lv_snapshot_look(BackendVm *bv, BackendDone fn, void *arg);
/* In the pool: names, sorted; NULL: not known. Freed with g_strfreev(). */
char **lv_snapshot_names(virDomainPtr dom);
/* That there are these (taken; NULL: not known). */
void lv_snapshots_found(LvVm *lv, char **names_take);
/* Its host is away: what was under way is not known. */
void lv_snapshot_away(LvVm *lv);
/* This state is one on the way, and not to be shown. */
bool lv_snapshot_hides(const LvVm *lv, LvState s);

/* ask.c */
void lv_ask_screen(BackendVm *bv, Ask *a);
void lv_ask_stats(BackendVm *bv, Ask *a);
void lv_ask_keys(BackendVm *bv, Ask *a);
void lv_ask_monitor(BackendVm *bv, Ask *a);
