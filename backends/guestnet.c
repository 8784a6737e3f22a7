/* SPDX-License-Identifier: Apache-2.0 */
#include "backends/guestnet.h"

#include "vmfs/netaddr.h"

static const char *mac_of(const json_t *nic)
{
	return json_string_value(json_object_get(nic, "hardware-address"));
}

const json_t *guestnet_find(const json_t *interfaces, const char *mac)
{
	json_t *nic;
	size_t i;

	json_array_foreach(interfaces, i, nic)
	{
		const char *its = mac_of(nic);

		if (its && !g_ascii_strcasecmp(its, mac))
			return nic;
	}
	return NULL;
}

GPtrArray *guestnet_ips(const json_t *interfaces, bool (*ours)(const void *arg, const char *mac),
			const void *arg)
{
	GPtrArray *ips = g_ptr_array_new_with_free_func(g_free);
	size_t i, j;
	json_t *nic, *addr;

	json_array_foreach(interfaces, i, nic)
	{
		const char *mac = mac_of(nic);

		if (!mac || !ours(arg, mac))
			continue;
		json_array_foreach(json_object_get(nic, "ip-addresses"), j, addr)
		{
			const char *text = json_string_value(json_object_get(addr, "ip-address"));

			if (text)
				netaddr_add(ips, text);
		}
	}
	return ips;
}

void guestnet_counters(GString *out, const char *name, const json_t *interface)
{
	static const struct {
		const char *member, *key;
	} rows[] = {
		{ "rx-bytes", "rx_bytes" }, { "rx-packets", "rx_packets" },
		{ "rx-errs", "rx_errors" }, { "rx-dropped", "rx_drops" },
		{ "tx-bytes", "tx_bytes" }, { "tx-packets", "tx_packets" },
		{ "tx-errs", "tx_errors" }, { "tx-dropped", "tx_drops" },
	};
	const json_t *counters = json_object_get(interface, "statistics");

	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		const json_t *v = json_object_get(counters, rows[i].member);

		if (json_is_integer(v) && json_integer_value(v) >= 0)
			g_string_append_printf(out, "net.%s.%s %" JSON_INTEGER_FORMAT "\n", name,
					       rows[i].key, json_integer_value(v));
	}
}
