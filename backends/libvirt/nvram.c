/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The variables of a guest's UEFI are in a file of libvirt's, which it calls by the domain's name
 * unless the definition names it. So a machine of vmfs's has one that is called by what it keeps
 * for good, and another's is named in its definition before its name changes. In the pool.
 */
#include <errno.h>
#include <jansson.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "vmfs/err.h"

#define NATIVE "qemu-argv"
#define NODE   "libvirt-pflash1-storage" /* what libvirt calls that file to QEMU */

/* The file of an argument like {"driver":"file","filename":"/x","node-name":...}; or NULL. */
static char *file_of(const char *arg)
{
	json_t *said = *arg == '{' ? json_loads(arg, 0, NULL) : NULL;
	const char *node = json_string_value(json_object_get(said, "node-name"));
	char *file = !g_strcmp0(node, NODE)
			     ? g_strdup(json_string_value(json_object_get(said, "filename")))
			     : NULL;

	json_decref(said);
	return file;
}

/* What libvirt would choose for a domain like this; NULL: it does not tell. */
static char *chosen(virConnectPtr virt, const char *xml)
{
	char *line = virConnectDomainXMLToNative(virt, NATIVE, xml, 0);
	g_auto(GStrv) argv = NULL;
	char *file = NULL;

	if (line && g_shell_parse_argv(line, NULL, &argv, NULL))
		for (unsigned i = 0; argv[i] && !file; i++)
			file = file_of(argv[i]);
	free(line);
	return file;
}

char *lv_nvram_own(LvCall *c, const char *had, char *xml_take)
{
	g_autofree char *file = NULL, *dir = NULL, *own = NULL;
	char *xml;

	/* One that has run with libvirt's choice goes on with it. */
	if (!lv_xml_chooses_nvram(xml_take) || (had && lv_xml_chooses_nvram(had)))
		return xml_take;
	file = chosen(c->virt, xml_take);
	if (!file)
		return xml_take;
	dir = g_path_get_dirname(file);
	own = g_strdup_printf("%s/%s_VARS.fd", dir, c->key);
	xml = lv_xml_name_nvram(xml_take, own);
	g_free(xml_take);
	return xml;
}

bool lv_nvram_keep(LvCall *c, GError **err)
{
	char *now = virDomainGetXMLDesc(c->dom, VIR_DOMAIN_XML_INACTIVE | VIR_DOMAIN_XML_SECURE);
	g_autofree char *file = now && lv_xml_chooses_nvram(now) ? chosen(c->virt, now) : NULL;
	g_autofree char *xml = file ? lv_xml_name_nvram(now, file) : NULL;
	virDomainPtr dom = xml ? virDomainDefineXML(c->virt, xml) : NULL;
	const bool ok = !xml || dom;

	if (!ok)
		lv_error(err, "libvirt cannot keep the variables of its UEFI");
	if (dom)
		virDomainFree(dom);
	free(now);
	return ok;
}
