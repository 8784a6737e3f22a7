/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/netaddr.h"

#include <arpa/inet.h>
#include <string.h>

#define MAX_ADDRESSES 32

int netaddr_rank(const char *text)
{
	struct in_addr v4;
	struct in6_addr v6;

	if (inet_pton(AF_INET, text, &v4) == 1) {
		const uint32_t a = ntohl(v4.s_addr);
		if (a >> 24 == 0 || a >> 24 == 127 || a >> 16 == 0xa9fe || a >> 28 >= 0xe)
			return 0;
		return 2;
	}
	if (inet_pton(AF_INET6, text, &v6) != 1)
		return 0;
	if (IN6_IS_ADDR_UNSPECIFIED(&v6) || IN6_IS_ADDR_LOOPBACK(&v6) ||
	    IN6_IS_ADDR_LINKLOCAL(&v6) || IN6_IS_ADDR_MULTICAST(&v6))
		return 0;
	return 1;
}

void netaddr_add(GPtrArray *list, const char *text)
{
	int rank = netaddr_rank(text);
	unsigned at = 0;

	if (!rank || list->len >= MAX_ADDRESSES)
		return;
	for (unsigned i = 0; i < list->len; i++) {
		if (!strcmp(list->pdata[i], text))
			return;
		if (netaddr_rank(list->pdata[i]) >= rank)
			at = i + 1;
	}
	g_ptr_array_insert(list, (int)at, g_strdup(text));
}
