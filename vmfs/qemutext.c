/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/qemutext.h"

#include <errno.h>
#include <glib.h>
#include <string.h>

static const struct {
	const char *text;
	int code;
} texts[] = {
	{ "No such file or directory", ENOENT },
	{ "Permission denied", EACCES },
	{ "Operation not permitted", EPERM },
	{ "Address already in use", EADDRINUSE },
	{ "Could not set up host forwarding rule", EADDRINUSE },
	{ "Cannot allocate memory", ENOMEM },
	{ "cannot set up guest memory", ENOMEM },
	{ "No space left on device", ENOSPC },
	{ "Disk quota exceeded", EDQUOT },
	{ "Read-only file system", EROFS },
	{ "Is a directory", EISDIR },
	{ "Is another process using the image", EBUSY },
	{ "Failed to get", EBUSY },
	{ "Too many open files", EMFILE },
	{ "Connection refused", ECONNREFUSED },
	{ "Invalid ", EINVAL },
	{ "invalid ", EINVAL },
	{ "not in qcow2 format", EINVAL },
	{ "Image is not", EINVAL },
	{ "is not a valid", EINVAL },
	{ "not supported", EOPNOTSUPP },
	{ "has been disabled", EOPNOTSUPP }, /* a command of the agent, in its configuration */
};

int qemu_errno(const char *text)
{
	for (size_t i = 0; text && i < G_N_ELEMENTS(texts); i++) {
		if (strstr(text, texts[i].text))
			return texts[i].code;
	}
	return EIO;
}

/* Which part of the spec an option was made from: "disks.root: ", "nics.eth0: " or nothing. */
static char *option_key(const char *option, size_t len)
{
	static const struct {
		const char *mark, *key;
	} marks[] = {
		{ "node-name=file-", "disks" }, { "node-name=disk-", "disks" },
		{ "id=disk-", "disks" },	{ "id=net-", "nics" },
		{ "id=nic-", "nics" },
	};
	g_autofree char *text = g_strndup(option, len);

	for (size_t i = 0; i < G_N_ELEMENTS(marks); i++) {
		const char *at = strstr(text, marks[i].mark);
		if (!at)
			continue;
		at += strlen(marks[i].mark);
		return g_strdup_printf("%s.%.*s: ", marks[i].key, (int)strcspn(at, ","), at);
	}
	return g_strdup("");
}

/* "qemu-system-x86_64: -netdev user,id=net-eth0: it failed" to "nics.eth0: it failed" */
static char *tidy(const char *line)
{
	g_autofree char *key = g_strdup("");
	const char *colon = strstr(line, ": ");

	if (colon && (g_str_has_prefix(line, "qemu-") || g_str_has_prefix(line, "qemu:"))) {
		line = colon + 2;
		colon = strstr(line, ": ");
	}
	if (colon && g_str_has_prefix(line, "qemu: ")) {
		line = colon + 2;
	} else if (colon && *line == '-') {
		g_free(key);
		key = option_key(line, (size_t)(colon - line));
		line = colon + 2;
	}
	/* "Could not open 'x': Could not open 'x': Permission denied" */
	colon = strstr(line, ": ");
	const size_t n = colon ? (size_t)(colon + 2 - line) : 0;
	if (n && !strncmp(line, line + n, n))
		line += n;
	g_autofree char *all = g_strconcat(key, line, NULL);
	return g_utf8_make_valid(all, -1);
}

char *qemu_sentence(const char *text)
{
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

	for (int i = (int)g_strv_length(lines) - 1; i >= 0; i--) {
		const char *line = g_strstrip(lines[i]);
		if (*line && !strstr(line, "warning:"))
			return tidy(line);
	}
	return NULL;
}
