/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VMM's own monitor as a stream: each open file is a conversation of its own. Lines written are
 * asked one after the other; what is read are the answers, and the end of the file when all has
 * been answered, so that `cat <&3` prints them and returns.
 */
#pragma once

#include "vmfs/node.h"

extern const StreamClass monitor_stream;
