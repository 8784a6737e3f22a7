/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The supervisor that has started us, which may be systemd: it is told how far we are by
 * sd_notify(3)'s protocol, and holds what must outlive keeper and daemon in its descriptor store
 * (FileDescriptorStoreMax= in systemd.service(5)). Without one nothing of this does anything.
 */
#pragma once

#include <stdbool.h>

#include "vmfs/takeover.h"

void supervisor_ready(void);
void supervisor_reloading(void);
void supervisor_stopping(void);

/* Have it hold these (borrowed) until we forget them, or it stops us. */
void supervisor_hold(const int fds[TAKEOVER_FDS]);
/* Returns at once, or when it has closed them. */
void supervisor_forget(bool wait);
/*
 * What it held for us: once, at start. The descriptors are the caller's. False: it is not all
 * there, and nothing is held any more.
 */
bool supervisor_take(int ret_fds[TAKEOVER_FDS]);
