/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Orders to a host about one VM: a function that runs in a thread of the host's pool, and one that
 * runs on the loop with what it found. A call outlives its VM, its op and its connection; it knows
 * what is left of them.
 */
#pragma once

#include "backends/libvirt/lv.h"
#include "backends/libvirt/xml.h"

typedef struct LvCall LvCall;
struct LvCall {
	/* For the loop. */
	Vm *vm;	  /* a reference */
	LvVm *lv; /* NULL once nobody is interested: look at lv_call_alive() */
	void *tag;
	Op *op; /* NULL once it was cancelled */
	BackendDone fn;
	void *arg;
	void (*done)(LvCall *c);

	/* For the thread, and then for the loop. */
	virConnectPtr virt;
	bool (*work)(LvCall *c, GError **err);
	char key[VIR_UUID_STRING_BUFLEN];
	virDomainPtr dom; /* looked up by key before work(); NULL if `absent` and there is none */
	bool absent;	  /* there may be no such domain */
	bool slow;	  /* in the threads for that */
	bool guest;	  /* waits for the guest's agent: in the threads for that, one a VM */
	char *name;
	char *snapshot;
	Spec *spec, *have; /* references of the loop's */
	unsigned id;
	char *xml; /* what was defined */
	bool made; /* and it was not before */
	char *dir; /* own.c: where it can have files of its own; NULL: nowhere */
	uid_t uid; /* whose they are */
	gid_t gid;
	LvCaps caps; /* of the host: as far as known, then as learnt */
	bool console, resume;
	bool ports;	     /* there are forwards to be made */
	bool again;	     /* it may have been done, for a daemon that has died since */
	virConnectPtr other; /* a reference: of the host that it is moved to */
	int percent;
	gint unwanted; /* atomic: it is not to be begun any more */
	virStreamPtr stream;
	GPtrArray *list; /* of char *, or what its work() finds */
	GByteArray *bytes;
	LvState state; /* after it */
	GError *error;
};

/* plug.c, in the pool: the XML of what runs, to be g_free()d; NULL and err. */
char *lv_live_xml(const LvCall *c, GError **err);

/* verbs.c, in the pool: the domain is as c->spec says. */
bool lv_work_define(LvCall *c, GError **err);

/* verbs.c: a call of an op that is one call and perhaps an event. NULL: the op has failed. */
LvCall *lv_op_begin(LvVm *lv, Op *op, bool (*work)(LvCall *c, GError **err),
		    void (*done)(LvCall *c));

/* NULL and err when the host is away. Fill in the rest, then send it. */
LvCall *lv_call_new(LvVm *lv, bool (*work)(LvCall *c, GError **err), void (*done)(LvCall *c),
		    GError **err);
void lv_call_send(LvCall *c);
/* The VM is still there, and its host is the same connection. */
bool lv_call_alive(const LvCall *c);
/* A call that may change what it is is under way. */
bool lv_is_being_defined(const LvVm *lv);
/* Nothing more is to come of the calls of this VM, which goes. */
void lv_call_forget(LvVm *lv);

/* ask.c, in the pool: what QEMU's monitor for people says to a line; or NULL. */
char *lv_hmp(virDomainPtr dom, const char *line, GError **err);

/* ports.c, in the pool: */

/* Of a domain that runs: the forwards that its definition has are there. c->list is what is. */
bool lv_ports_work(LvCall *c, GError **err);
/* Those of the nic that "nics.eth0" or "nics.eth0.ports" names become as in c->spec; all or none.
 */
bool lv_ports_change(LvCall *c, const char *key, GError **err);
/* Something leads to the guest's ssh server, if a nic of c->spec can forward: else c->list, which
 * is what is there, stays NULL. */
bool lv_ports_ssh(LvCall *c, GError **err);
/* On the loop: tell what is there, if c found out. */
void lv_ports_report(const LvCall *c);

/* nvram.c, in the pool: */

/* A definition that is to come in the place of `had` (NULL: there is none), so that the variables
 * of its UEFI are its own (owned by the caller). */
char *lv_nvram_own(LvCall *c, const char *had, char *xml_take);
/* Before it is given another name: they stay where they are. */
bool lv_nvram_keep(LvCall *c, GError **err);

/* own.c, in the pool: */
bool lv_learn_caps(LvCall *c, GError **err);
/* Those of c->spec, which are there, can be reached by the host's QEMUs. */
bool lv_own_reach(LvCall *c, GError **err);
/* On the loop: for those two. */
void lv_own_call(LvCall *c);
