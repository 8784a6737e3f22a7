/* SPDX-License-Identifier: Apache-2.0 */
/* A daemon's state in a directory of its own, which is removed in the end: for its fuzzers. */
#pragma once

/* Set up the loop, the store and the sim backend; aborts where it cannot. The directory. */
const char *place_open(void);
