/* SPDX-License-Identifier: Apache-2.0 */
/* The fleet for Prometheus, in its text format. */
#pragma once

#include <glib.h>

void metrics_show(GString *out);
