/* SPDX-License-Identifier: Apache-2.0 */
/* Keys that are pressed on the guest's keyboard by writing their names to `keys`. */
#pragma once

#include "vmfs/node.h"

/* The store of the row. */
bool keys_store(const NodeRef *r, const char *data, size_t len, Op **op, GError **err);
