/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/supervisor.h"

#include <glib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "vmfs/log.h"

#define FORGET_US (5 * G_USEC_PER_SEC)

/* For good: another version of vmfs looks for them. */
static const char *const names[TAKEOVER_FDS] = {
	"vmfs-mount",
	"vmfs-memory",
	"vmfs-state",
	"vmfs-runtime",
};

static void notify(const char *text)
{
	const int r = sd_notify(0, text);

	if (r < 0)
		log_warning("cannot notify the supervisor: %s", g_strerror(-r));
}

void supervisor_ready(void)
{
	notify("READY=1\nSTATUS=serving\n");
}

void supervisor_reloading(void)
{
	g_autofree char *text = g_strdup_printf("RELOADING=1\nMONOTONIC_USEC=%" G_GINT64_FORMAT
						"\nSTATUS=handing over\n",
						g_get_monotonic_time());

	notify(text);
}

void supervisor_stopping(void)
{
	notify("STOPPING=1\n");
}

void supervisor_hold(const int fds[TAKEOVER_FDS])
{
	for (unsigned i = 0; i < TAKEOVER_FDS; i++) {
		/* Without FDPOLL=0 each request of the mount would wake the supervisor, which
		 * waits for an error of the descriptor. */
		g_autofree char *text =
			g_strdup_printf("FDSTORE=1\nFDNAME=%s\nFDPOLL=0\n", names[i]);
		const int r = sd_pid_notify_with_fds(0, 0, text, &fds[i], 1);

		if (r < 0)
			log_warning("the supervisor cannot hold %s: %s", names[i], g_strerror(-r));
	}
}

void supervisor_forget(bool wait)
{
	for (unsigned i = 0; i < TAKEOVER_FDS; i++) {
		g_autofree char *text = g_strdup_printf("FDSTOREREMOVE=1\nFDNAME=%s\n", names[i]);

		notify(text);
	}
	if (wait)
		(void)sd_notify_barrier(0, FORGET_US);
}

bool supervisor_take(int ret_fds[TAKEOVER_FDS])
{
	g_auto(GStrv) given = NULL;
	const int n = sd_listen_fds_with_names(true, &given);
	bool all = true;

	for (unsigned i = 0; i < TAKEOVER_FDS; i++)
		ret_fds[i] = -1;
	for (int g = 0; g < n; g++) {
		unsigned i = 0;

		while (i < TAKEOVER_FDS && strcmp(given[g], names[i]))
			i++;
		if (i < TAKEOVER_FDS && ret_fds[i] < 0)
			ret_fds[i] = SD_LISTEN_FDS_START + g;
		else
			close(SD_LISTEN_FDS_START + g);
	}
	for (unsigned i = 0; i < TAKEOVER_FDS; i++)
		all &= ret_fds[i] >= 0;
	if (all)
		return true;
	for (unsigned i = 0; i < TAKEOVER_FDS; i++)
		if (ret_fds[i] >= 0)
			close(ret_fds[i]);
	if (n > 0)
		supervisor_forget(true);
	return false;
}
