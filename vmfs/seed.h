/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NoCloud seed: a small ISO image labelled `cidata`, from which cloud-init in the guest learns
 * who it is and what it is to do. There may be secrets in it.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

#include "vmfs/spec.h"

#define SEED_NAME "seed.iso" /* in the VM's data directory */

typedef struct Seed {
	char *user_data, *meta_data, *network_config; /* the last may be NULL */
} Seed;

/*
 * What is to be in it: for the VM of that name, with that instance-id, unless the spec's own
 * meta_data says otherwise. Pure.
 */
Seed *seed_new(const SpecCloudInit *c, const char *name, const char *instance_id);
void seed_free(Seed *s);

/* A DiskFill (diskfile.h) for the pool; arg is the Seed. No sentence has any of it. */
bool seed_fill(int fd, const void *arg, GError **err);
