/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/near.h"

#include <fcntl.h>
#include <glib.h>
#include <unistd.h>

#define PATIENCE_US    50
#define FREE_MISSES    3 /* in a row, before waiting is left out for a while */
#define MAX_SKIP_SHIFT 10

#define LONG_ROW       32	  /* requests */
#define ANY_LATENCY_US 2000000000 /* PM_QOS_CPU_LATENCY_DEFAULT_VALUE */
#define LATENCY_FILE   "/dev/cpu_dma_latency"

static unsigned misses, skip, row;
static int latency_fd = -1;
static bool clients_awake, refused;

int64_t near_patience(void)
{
	if (!skip)
		return PATIENCE_US;
	skip--;
	return 0;
}

/* While it holds, idle CPUs wait for work without going to sleep. */
static void keep_clients_awake(bool on)
{
	int32_t us = on ? 0 : ANY_LATENCY_US;

	if (clients_awake == on || refused)
		return;
	if (latency_fd < 0)
		latency_fd = open(LATENCY_FILE, O_WRONLY | O_CLOEXEC);
	if (write(latency_fd, &us, sizeof us) == sizeof us)
		clients_awake = on;
	else
		refused = true;
}

void near_waited(bool came)
{
	if (came) {
		misses = 0;
		if (++row >= LONG_ROW)
			keep_clients_awake(true);
		return;
	}
	row = 0;
	keep_clients_awake(false);
	if (++misses > FREE_MISSES)
		skip = 1u << MIN(misses - FREE_MISSES, MAX_SKIP_SHIFT);
}
