/* SPDX-License-Identifier: Apache-2.0 */
/* Facts about this host. */
#pragma once

#include <glib.h>
#include <stdint.h>

/* "key value" lines: cpus, memory, free, load. From /proc, which does not block. */
void host_show_node(GString *out);
/* RAM and swap, in bytes. */
uint64_t host_memory(void);
/* Another one after each boot; "" when it is not known. */
const char *host_boot_id(void);
