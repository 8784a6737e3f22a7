/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's log: stderr, a line a message, with journald's <N> priorities under a supervisor. */
#pragma once

#include <glib.h>
#include <stdbool.h>

void log_init(bool debug);
/* For when there is no stderr any more. */
void log_to_syslog(void);
void log_error(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
void log_warning(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
void log_info(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
void log_debug(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
