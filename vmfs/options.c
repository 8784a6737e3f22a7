/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/options.h"

#include <errno.h>
#include <glib.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define FUSE_USE_VERSION 314
#include <fuse_opt.h>
#include <stddef.h>

#define DEFAULT_FIRST_ID 1000
#define MAX_ID		 65535 /* two bytes of a MAC address */

typedef struct Raw {
	Options o;
	char *ids;
	char *words[2]; /* SOURCE and MOUNTPOINT */
	unsigned n_words;
} Raw;

enum { KEY_IGNORE = 1, KEY_HOST };

#define OPTION(text, field, value)                                                                 \
	{                                                                                          \
		text, offsetof(Raw, field), value                                                  \
	}

/* mount(8) passes what stands in fstab on; these say nothing to a file system. */
#define IGNORE(text) FUSE_OPT_KEY(text, KEY_IGNORE)

static const struct fuse_opt table[] = {
	OPTION("-f", o.foreground, 1),
	OPTION("-d", o.debug, 1),
	OPTION("debug", o.debug, 1),
	OPTION("-h", o.help, 1),
	OPTION("--help", o.help, 1),
	OPTION("-V", o.version, 1),
	OPTION("--version", o.version, 1),
	OPTION("--upgrade", o.upgrade, 1),
	OPTION("--probe-kvm", o.probe_kvm, 1),
	OPTION("--notify-helper", o.notify_helper, 1),
	OPTION("--served", o.served, 1),
	OPTION("--man", o.man, 1),
	OPTION("--markdown", o.markdown, 1),
	OPTION("--state-dir=%s", o.state_dir, 0),
	OPTION("state_dir=%s", o.state_dir, 0),
	OPTION("--runtime-dir=%s", o.runtime_dir, 0),
	OPTION("runtime_dir=%s", o.runtime_dir, 0),
	OPTION("verb_timeout=%u", o.verb_timeout_s, 0),
	OPTION("ids=%s", ids, 0),
	OPTION("hosts=%s", o.hosts_file, 0),
	FUSE_OPT_KEY("host=", KEY_HOST),
	IGNORE("defaults"),
	IGNORE("auto"),
	IGNORE("noauto"),
	IGNORE("user"),
	IGNORE("nouser"),
	IGNORE("users"),
	IGNORE("owner"),
	IGNORE("group"),
	IGNORE("nofail"),
	IGNORE("_netdev"),
	IGNORE("comment="),
	IGNORE("x-"),
	IGNORE("rw"),
	FUSE_OPT_END,
};

static int on_option(void *data, const char *arg, int key, struct fuse_args *out)
{
	Raw *raw = data;

	(void)out;
	if (key == KEY_HOST) {
		if (!raw->o.hosts)
			raw->o.hosts = g_ptr_array_new_with_free_func(g_free);
		g_ptr_array_add(raw->o.hosts, g_strdup(strchr(arg, '=') + 1));
		return 0;
	}
	if (key == KEY_IGNORE || !strncmp(arg, "x-", 2))
		return 0;
	if (key != FUSE_OPT_KEY_NONOPT)
		return 1;
	if (raw->n_words == G_N_ELEMENTS(raw->words)) {
		fprintf(stderr, "vmfs: too many arguments: '%s'\n", arg);
		return -1;
	}
	raw->words[raw->n_words++] = g_strdup(arg);
	return 0;
}

void options_usage(void)
{
	printf("usage: vmfs [options] MOUNTPOINT\n"
	       "\n"
	       "    -f                     stay in the foreground\n"
	       "    -d, -o debug           foreground, and say what happens\n"
	       "    -o OPT[,OPT...]        options, as in fstab:\n"
	       "       allow_other         let other users in (the default for root)\n"
	       "       host=NAME=URI       a host and libvirt's URI of it; `local` is this one\n"
	       "       hosts=FILE          more of them, a line each (default %s)\n"
	       "       ids=FIRST-LAST      range of the VMs' `id` (default %d-%d)\n"
	       "       state_dir=DIR, runtime_dir=DIR   as below\n"
	       "       verb_timeout=SEC    let no verb take longer\n"
	       "    --state-dir=DIR        what is kept of the VMs\n"
	       "    --runtime-dir=DIR      sockets of the running VMs\n"
	       "    --upgrade              have what is mounted there go on with a new version\n"
	       "    -V, --version          print the version\n"
	       "    -h, --help             print this\n"
	       "\n"
	       "unmount: fusermount3 -u MOUNTPOINT; the VMs go on\n",
	       geteuid() == 0 ? "/etc/vmfs/hosts" : "~/.config/vmfs/hosts", DEFAULT_FIRST_ID,
	       MAX_ID);
}

static bool parse_ids(Raw *raw)
{
	unsigned first = DEFAULT_FIRST_ID, last = MAX_ID;
	char end;

	if (raw->ids && (sscanf(raw->ids, "%u-%u%c", &first, &last, &end) != 2 || first < 1 ||
			 last > MAX_ID || first > last)) {
		fprintf(stderr, "vmfs: ids=%s: use FIRST-LAST, from 1 to %d\n", raw->ids, MAX_ID);
		return false;
	}
	raw->o.first_id = first;
	raw->o.last_id = last;
	return true;
}

static char *absolute(char *path)
{
	/* The daemon of a keeper that has gone to the background stands elsewhere. */
	char *full = g_canonicalize_filename(path, g_getenv("VMFS_CWD"));

	free(path); /* libfuse's */
	return full;
}

static char *default_state_dir(void)
{
	return geteuid() == 0 ? g_strdup("/var/lib/vmfs")
			      : g_build_filename(g_get_user_state_dir(), "vmfs", NULL);
}

static bool set_directories(Options *o)
{
	g_autofree char *standard = default_state_dir(), *longest = NULL;

	o->state_dir = o->state_dir ? absolute(o->state_dir) : g_strdup(standard);
	if (o->runtime_dir) {
		o->runtime_dir = absolute(o->runtime_dir);
	} else {
		g_autofree char *name =
			!strcmp(o->state_dir, standard)
				? g_strdup("vmfs")
				: g_strdup_printf("vmfs-%08x", g_str_hash(o->state_dir));

		o->runtime_dir = g_build_filename(
			geteuid() == 0 ? "/run" : g_get_user_runtime_dir(), name, NULL);
	}
	longest = g_strdup_printf("%s/%u/console", o->runtime_dir, UINT32_MAX);
	if (strlen(longest) < sizeof((struct sockaddr_un *)NULL)->sun_path)
		return true;
	fprintf(stderr,
		"vmfs: the runtime directory %s is too long a path for unix sockets; use a "
		"shorter one with --runtime-dir\n",
		o->runtime_dir);
	return false;
}

/* What is left are mount options for fuse(8). */
static char *fuse_options(const Options *o, const struct fuse_args *args)
{
	GString *s = g_string_new("fsname=vmfs,subtype=vmfs,default_permissions");

	if (geteuid() == 0)
		g_string_append(s, ",allow_other");
	if (o->debug)
		g_string_append(s, ",debug");
	for (int i = 1; i < args->argc; i++)
		if (!strcmp(args->argv[i], "-o") && i + 1 < args->argc)
			g_string_append_printf(s, ",%s", args->argv[++i]);
		else if (!strncmp(args->argv[i], "-o", 2))
			g_string_append_printf(s, ",%s", args->argv[i] + 2);
	return g_string_free(s, FALSE);
}

static bool check_words(const struct fuse_args *args)
{
	for (int i = 1; i < args->argc; i++) {
		if (!strcmp(args->argv[i], "-o"))
			i++;
		else if (strncmp(args->argv[i], "-o", 2)) {
			fprintf(stderr, "vmfs: unknown option '%s'; see vmfs --help\n",
				args->argv[i]);
			return false;
		}
	}
	return true;
}

bool options_parse(int argc, char **argv, Options *ret)
{
	struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
	Raw raw = { 0 };
	bool ok = !fuse_opt_parse(&args, &raw, table, on_option);

	if (ok && !raw.o.help && !raw.o.version && !raw.o.probe_kvm && !raw.o.notify_helper &&
	    !raw.o.markdown) {
		ok = check_words(&args) && parse_ids(&raw) && set_directories(&raw.o);
		raw.o.fuse = fuse_options(&raw.o, &args);
		if (ok && !raw.n_words) {
			fprintf(stderr, "vmfs: where to mount? See vmfs --help\n");
			ok = false;
		}
		if (ok)
			raw.o.mountpoint = absolute(strdup(raw.words[raw.n_words - 1]));
		if (raw.o.hosts_file)
			raw.o.hosts_file = absolute(raw.o.hosts_file);
		raw.o.foreground |= raw.o.debug;
	}
	g_free(raw.words[0]);
	g_free(raw.words[1]);
	free(raw.ids);
	fuse_opt_free_args(&args);
	*ret = raw.o;
	return ok;
}
