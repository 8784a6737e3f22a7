/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staying awake for a moment after an answer. Most callers ask again at once, and to be woken on
 * another CPU takes ten times as long as the work itself (tests/bench, section state). It is left
 * out while it does not pay: on the caller's own CPU the caller cannot go on before we sleep.
 * In a long row of requests the callers' CPUs are kept from sleeping too, where the kernel lets us
 * (root, by /dev/cpu_dma_latency: its Documentation/power/pm_qos_interface.rst).
 *
 * Measured and left out: to end the turn without looking for another request while waiting does not
 * pay (a tenth slower on one CPU: the caller has run meanwhile, and its next request is there); to
 * follow the caller to its CPU (the scheduler then moves the caller); a shorter slice of the
 * scheduler for the daemon and its helper (no difference to an inotify watcher).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* How long to stay awake for the next request, in microseconds; 0: not at all. */
int64_t near_patience(void);
/* Whether one came in that time. */
void near_waited(bool came);
