/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/near.h"

#include <glib.h>

#define PATIENCE_US    50
#define FREE_MISSES    3 /* in a row, before waiting is left out for a while */
#define MAX_SKIP_SHIFT 10

static unsigned misses, skip;

int64_t near_patience(void)
{
	if (!skip)
		return PATIENCE_US;
	skip--;
	return 0;
}

void near_waited(bool came)
{
	if (came)
		misses = 0;
	else if (++misses > FREE_MISSES)
		skip = 1u << MIN(misses - FREE_MISSES, MAX_SKIP_SHIFT);
}
