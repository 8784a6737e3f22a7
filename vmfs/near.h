/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answering from nearby. A round trip to a caller on another CPU is two wake-ups across CPUs, ten
 * times the work itself (tests/bench, section state). Two things save them: going to the CPU of a
 * caller who sends one request after the other, and staying awake for a moment after an answer.
 * Neither is done for long, nor when it does not pay.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* On the loop thread, before it serves. */
void near_init(void);
/* A request of this process (0: not known) has been answered. */
void near_answered(uint32_t pid);
/* We are on the CPU of the caller, who goes on when we sleep: no need to look for more. */
bool near_is_here(void);
/* Be anywhere again: what is started now, a thread or a process, inherits where we may run. */
void near_leave(void);
/* How long to stay awake for the next request, in microseconds; 0: not at all. */
int64_t near_patience(void);
/* Whether one came in that time. */
void near_waited(bool came);
