/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process of a domain: libvirt has no call for it, but its QEMU driver keeps a file of each,
 * in the directory of its socket. Any thread.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/libvirt/lv.h"

#define SYSTEM_DIR "/run/libvirt"

/* The directory of a libvirtd of this machine that runs QEMU; NULL: it is none of these. */
static char *run_dir(const char *text)
{
	g_autoptr(GUri) uri = g_uri_parse(text, G_URI_FLAGS_NONE, NULL);
	g_autoptr(GHashTable) params = NULL;
	const char *server, *query, *socket;

	if (!uri || strcmp(g_uri_get_scheme(uri), "qemu") != 0)
		return NULL;
	server = g_uri_get_host(uri);
	if (server && *server)
		return NULL;
	query = g_uri_get_query(uri);
	params = query ? g_uri_parse_params(query, -1, "&", G_URI_PARAMS_NONE, NULL) : NULL;
	socket = params ? g_hash_table_lookup(params, "socket") : NULL;
	if (socket)
		return g_path_get_dirname(socket);
	return !strcmp(g_uri_get_path(uri), "/session")
		       ? g_build_filename(g_get_user_runtime_dir(), "libvirt", NULL)
		       : g_strdup(SYSTEM_DIR);
}

static pid_t read_pid(const char *dir, const char *sub, const char *name)
{
	g_autofree char *path = g_strdup_printf("%s/%s/%s.pid", dir, sub, name);
	const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	char text[16] = "";
	guint64 pid = 0;

	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof text - 1) > 0)
		(void)g_ascii_string_to_unsigned(g_strchomp(text), 10, 1, G_MAXINT, &pid, NULL);
	close(fd);
	return (pid_t)pid;
}

pid_t lv_pid(virDomainPtr dom)
{
	char *text = virConnectGetURI(virDomainGetConnect(dom));
	g_autofree char *dir = text ? run_dir(text) : NULL;
	const char *name = virDomainGetName(dom);
	pid_t pid;

	free(text);
	if (!dir || !name || strchr(name, '/'))
		return 0;
	pid = read_pid(dir, "qemu", name);
	/* Where a user's own libvirtd has them. */
	return pid ? pid : read_pid(dir, "qemu/run", name);
}
