/* SPDX-License-Identifier: Apache-2.0 */
/* A file that somebody is writing, and what is to be done as it grows. Blocks: pool only. */
#pragma once

#include <stdbool.h>

/*
 * Call fn now and whenever the file behind fd has been written to, until `stop` can be read from.
 * Once fn returns false, or where changes are not told, it only waits for that.
 */
void grow_follow(int fd, int stop, bool (*fn)(void *arg), void *arg);

/* Only wait. */
void grow_wait(int stop);

/* To the disk as it grows, and all of it in the end; 0 or an errno. */
int grow_flush(int fd, int stop);
