/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens to a VM without anyone asking at that moment: it is started when the host has
 * booted (autostart), started again when it ended (restart), stopped and removed when its time is
 * up (expires). The spec says so, and it takes effect at once. Loop thread only.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmfs/loop.h"
#include "vmfs/op.h"

typedef struct Spec Spec;

/* Embedded in Vm. Times are microseconds since 1970, 0 for none. */
typedef struct Lifetime {
	Timer *restart, *retry;
	int64_t restart_at; /* it is waited until then */
	unsigned restarts;  /* since its user started it */
	unsigned failures;  /* since it ran well */
	int64_t started;    /* of g_get_monotonic_time(); 0: before this daemon */
	char *expires;	    /* what the spec said when expires_at was made of it; or NULL */
	int64_t expires_at;
	bool expiring; /* its time is up, and it is being stopped and removed */
} Lifetime;

/* The VMs are known: start what is to be started. Once. */
void lifetime_begin(void);

/* A run has ended. `reason` is that of backend_gone(). */
void lifetime_ended(Vm *vm, VmState state, const char *reason);
/* Its user has started it. */
void lifetime_started(Vm *vm);
/* It is to be started again, at some time. */
bool lifetime_is_waiting(const Vm *vm);
/* It is not, then. */
void lifetime_cancel(Vm *vm);
/* A document has come into force. */
void lifetime_spec_changed(Vm *vm);
/* May a document with these keys come into force? EINVAL. */
bool lifetime_check(const Vm *vm, const Spec *spec, GError **err);
/* The VM goes from memory. */
void lifetime_fini(Vm *vm);

/* The lines of `status`. */
void lifetime_show(const Vm *vm, GString *out);
/* In `meta`, for good, and in what concerns a run. */
void lifetime_save_meta(const Vm *vm, GKeyFile *meta);
void lifetime_load_meta(Vm *vm, GKeyFile *meta);
void lifetime_save_run(const Vm *vm, GKeyFile *run);
void lifetime_load_run(Vm *vm, GKeyFile *run);
