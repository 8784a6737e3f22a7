/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/host.h"

#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

uint64_t host_memory(void)
{
	struct sysinfo si;

	return sysinfo(&si) ? 0 : ((uint64_t)si.totalram + si.totalswap) * si.mem_unit;
}

/* MemAvailable of proc(5), in bytes: what can be had without swapping. */
static uint64_t available_memory(void)
{
	g_autofree char *text = NULL;
	const char *line;

	if (!g_file_get_contents("/proc/meminfo", &text, NULL, NULL))
		return 0;
	line = strstr(text, "MemAvailable:");
	return line ? g_ascii_strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024 : 0;
}

void host_show_node(GString *out)
{
	struct sysinfo si;
	const double one = 1 << SI_LOAD_SHIFT;

	if (sysinfo(&si))
		return;
	g_string_append_printf(out,
			       "cpus %ld\nmemory %" G_GUINT64_FORMAT "\nfree %" G_GUINT64_FORMAT
			       "\nload %.2f %.2f %.2f\n",
			       sysconf(_SC_NPROCESSORS_ONLN), (uint64_t)si.totalram * si.mem_unit,
			       available_memory(), (double)si.loads[0] / one,
			       (double)si.loads[1] / one, (double)si.loads[2] / one);
}

const char *host_boot_id(void)
{
	static char *id;

	if (!id && g_file_get_contents("/proc/sys/kernel/random/boot_id", &id, NULL, NULL))
		g_strstrip(id);
	return id ? id : "";
}
