/* SPDX-License-Identifier: Apache-2.0 */
/* A network's XML and its spec, as xml.h has it for domains. Pure; any thread. */
#pragma once

#include <glib.h>

#include "vmfs/netspec.h"

/* NULL: it is not the XML of a network. Autostart is not in it. */
NetSpec *lv_netxml_spec(const char *xml);
/* A network from nothing; and one that is there, with what differs in its spec. Owned by the
 * caller. */
char *lv_netxml_new(const NetSpec *spec, GError **err);
char *lv_netxml_edit(const char *xml, const NetSpec *spec, GError **err);
