/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

static struct {
	bool debug, journal;
	int syslog; /* atomic: set while the store thread may log */
} config;

void log_init(bool debug)
{
	config.debug = debug;
	/* Set by systemd when stderr goes to the journal: systemd.exec(5). */
	config.journal = getenv("JOURNAL_STREAM") != NULL;
}

void log_to_syslog(void)
{
	openlog("vmfs", LOG_PID, LOG_DAEMON);
	g_atomic_int_set(&config.syslog, true);
}

static void G_GNUC_PRINTF(2, 0) log_line(int priority, const char *fmt, va_list ap)
{
	g_autofree char *text = g_strdup_vprintf(fmt, ap);

	/* What a guest or a user said may be in it: one message stays one line. */
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = ' ';
	if (g_atomic_int_get(&config.syslog))
		syslog(priority, "%s", text);
	else if (config.journal)
		fprintf(stderr, "<%d>%s\n", priority, text);
	else
		fprintf(stderr, "vmfs: %s\n", text);
}

#define LOG_FUNCTION(name, priority)                                                               \
	void name(const char *fmt, ...)                                                            \
	{                                                                                          \
		va_list ap;                                                                        \
                                                                                                   \
		va_start(ap, fmt);                                                                 \
		log_line(priority, fmt, ap);                                                       \
		va_end(ap);                                                                        \
	}

LOG_FUNCTION(log_error, LOG_ERR)
LOG_FUNCTION(log_warning, LOG_WARNING)
LOG_FUNCTION(log_info, LOG_INFO)

void log_debug(const char *fmt, ...)
{
	va_list ap;

	if (!config.debug)
		return;
	va_start(ap, fmt);
	log_line(LOG_DEBUG, fmt, ap);
	va_end(ap);
}
