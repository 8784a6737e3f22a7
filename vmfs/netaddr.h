/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of guests: which are of use, and which are better. Pure. */
#pragma once

#include <glib.h>

/* 0: of no use to anyone else (loopback, link-local, no address at all); higher is better. */
int netaddr_rank(const char *text);
/* Into the list of char *, the best first; not if it is there, or of no use. */
void netaddr_add(GPtrArray *list, const char *text);
