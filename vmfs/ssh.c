/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/ssh.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmfs/ask.h"
#include "vmfs/err.h"
#include "vmfs/loop.h"
#include "vmfs/rights.h"
#include "vmfs/vm.h"
#include "vmfs/waitq.h"

typedef struct SshWait SshWait;

#define KEY_NAME	 "ssh_key"
#define MAX_KEY		 4096 /* bytes of a public key */
#define KEYGEN_MS	 10000
#define JUMP		 "  ProxyJump "
#define FIRST_PAUSE_MS	 100
#define MAX_PAUSE_MS	 2000
#define PROBE_TIMEOUT_MS 5000

/* ---- the key ---- */

struct SshKey {
	ProcUser user; /* without groups: it is the user's own directory */
	char *path, *public_path, *comment;
	char *public_key;
	GError *error;
	bool made;   /* by ssh-keygen, just now */
	SshKeyFn fn; /* NULL: cancelled */
	void *arg;
	ProcRun *run;
};

static void key_free(SshKey *k)
{
	g_free(k->path);
	g_free(k->public_path);
	g_free(k->comment);
	g_free(k->public_key);
	g_clear_error(&k->error);
	g_free(k);
}

/* One line of a public key; the directory is its owner's, and so is what is in it. */
static char *read_public(const char *path)
{
	char text[MAX_KEY + 1];
	struct stat st;
	const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t n = -1;

	if (fd < 0)
		return NULL;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode))
		n = read(fd, text, MAX_KEY);
	close(fd);
	text[MAX(n, 0)] = 0;
	text[strcspn(text, "\n")] = 0;
	for (const char *c = text; *c; c++)
		if (*c < ' ' || *c > '~')
			return NULL;
	return g_str_has_prefix(text, "ssh-ed25519 ") ? g_strdup(text) : NULL;
}

static void key_work(void *job)
{
	SshKey *k = job;
	int before;

	if (!rights_take(&k->user, &before)) {
		(void)err_set(&k->error, EPERM, "vmfs cannot act with the rights of user %u",
			      k->user.uid);
	} else {
		k->public_key = read_public(k->public_path);
		/* Half of one would be in the way of ssh-keygen. */
		if (!k->public_key && !k->made) {
			(void)unlink(k->path);
			(void)unlink(k->public_path);
		} else if (!k->public_key) {
			(void)err_set(&k->error, EIO, "%s is no public key", k->public_path);
		}
	}
	rights_drop(&k->user, before);
}

static void key_worked(void *job);

static void key_made(void *arg, const GString *out, const GError *err)
{
	SshKey *k = arg;

	k->run = NULL;
	k->made = true;
	if (err && err_code(err) == ENOENT)
		(void)err_set(&k->error, ENOENT,
			      "ssh-keygen, which makes the VM's own key, is not installed (on "
			      "Debian: apt install openssh-client)");
	else if (err)
		k->error = err_new(err_code(err), "ssh-keygen: %s", err->message);
	if (k->error)
		key_worked(k);
	else
		loop_work(key_work, key_worked, k);
}

static void key_worked(void *job)
{
	SshKey *k = job;
	char *argv[] = {
		(char *)"ssh-keygen", (char *)"-q", (char *)"-t", (char *)"ed25519",
		(char *)"-N",	      (char *)"",   (char *)"-C", k->comment,
		(char *)"-f",	      k->path,	    NULL,
	};

	if (k->fn && !k->public_key && !k->error) {
		k->run = proc_run(argv, &k->user, KEYGEN_MS, key_made, k);
		return;
	}
	if (k->fn)
		k->fn(k->arg, k->public_key, k->error);
	key_free(k);
}

static char *key_path(Vm *vm)
{
	return g_build_filename(vm_data_dir(vm), KEY_NAME, NULL);
}

SshKey *ssh_key(Vm *vm, const ProcUser *user, SshKeyFn fn, void *arg)
{
	SshKey *k = g_new0(SshKey, 1);

	k->user = *user;
	k->user.groups = NULL;
	k->user.n_groups = 0;
	k->path = key_path(vm);
	k->public_path = g_strconcat(k->path, ".pub", NULL);
	k->comment = g_strdup_printf("vmfs:%s", vm->name);
	k->fn = fn;
	k->arg = arg;
	loop_work(key_work, key_worked, k);
	return k;
}

void ssh_key_cancel(SshKey *k)
{
	if (!k)
		return;
	k->fn = NULL;
	/* Else the pool has it, and it is freed when that is done. */
	if (k->run) {
		proc_run_cancel(k->run);
		key_free(k);
	}
}

/* ---- ssh_config ---- */

char *ssh_known_hosts(Vm *vm)
{
	return g_build_filename(vm_run_dir(vm), "known_hosts", NULL);
}

/* '%' begins something that ssh fills in. */
static void append_path(GString *out, const char *key, char *path_take)
{
	g_autofree char *path = path_take;
	g_autoptr(GString) text = g_string_new(path);

	g_string_replace(text, "%", "%%", 0);
	g_string_append_printf(out, "  %s \"%s\"\n", key, text->str);
}

char *ssh_config(Vm *vm, const char *address, const char *jump)
{
	GString *out = g_string_new(NULL);
	const char *port = strrchr(address, ':');

	g_string_append_printf(out, "Host %s\n  HostName %.*s\n  Port %s\n  User %s\n", vm->name,
			       (int)(port - address), address, port + 1, vm->spec->ssh_user);
	if (jump)
		g_string_append_printf(out, JUMP "%s\n", jump);
	append_path(out, "IdentityFile", key_path(vm));
	/* Whoever names keys has these somewhere else. */
	if (!vm->spec->cloud_init.ssh_keys->len)
		g_string_append(out, "  IdentitiesOnly yes\n");
	append_path(out, "UserKnownHostsFile", ssh_known_hosts(vm));
	g_string_append_printf(out,
			       "  HostKeyAlias %s\n  StrictHostKeyChecking accept-new\n"
			       "  LogLevel ERROR\n",
			       vm->name);
	return g_string_free(out, FALSE);
}

/* ---- wait/ssh: the server is tried only while somebody waits for it ---- */

struct SshWait {
	Vm *vm; /* whose it is */
	unsigned waiters;
	char *found;	  /* where it answered */
	AskWaiter *asked; /* for a port that leads there */
	int fd;
	Watch *watch;
	ProcRun *through; /* ssh, to try it from another host */
	char *address;
	Timer *timer; /* until it is tried again, or given up */
	uint64_t pause_ms;
};

static void try_now(void *arg);

static void stop_trying(SshWait *w)
{
	ask_leave(&w->asked);
	timer_stop(&w->timer);
	if (w->watch)
		watch_stop(&w->watch, true);
	if (w->through)
		proc_run_cancel(g_steal_pointer(&w->through));
	g_clear_pointer(&w->address, g_free);
}

static void try_later(SshWait *w)
{
	stop_trying(w);
	w->timer = timer_start(w->pause_ms, try_now, w);
	w->pause_ms = MIN(w->pause_ms * 2, MAX_PAUSE_MS);
}

static void try_over(void *arg)
{
	SshWait *w = arg;

	w->timer = NULL;
	try_later(w);
}

static void it_says(SshWait *w, const char *text, size_t len)
{
	static const char word[] = "SSH-";

	if (len < strlen(word) || memcmp(text, word, strlen(word)) != 0) {
		try_later(w);
		return;
	}
	w->found = g_steal_pointer(&w->address);
	stop_trying(w);
	waitq_wake(&w->vm->waiters);
}

static void on_socket(void *arg, int status, int events)
{
	SshWait *w = arg;
	char text[sizeof "SSH-" - 1];
	const ssize_t n = recv(w->fd, text, sizeof text, MSG_DONTWAIT);

	(void)status;
	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	it_says(w, text, (size_t)MAX(n, 0));
}

/* ADDRESS:PORT, from a file that the backend wrote: only this much of it is needed here. */
static bool parse_address(const char *text, struct sockaddr_in *ret)
{
	g_autofree char *host = g_strdup(text);
	char *port = strrchr(host, ':');
	unsigned number;

	if (!port || sscanf(port + 1, "%u", &number) != 1 || !number || number > UINT16_MAX)
		return false;
	*port = 0;
	*ret = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)number) };
	return inet_pton(AF_INET, host, &ret->sin_addr) == 1;
}

static void probe(SshWait *w, const char *address)
{
	struct sockaddr_in to;

	if (!parse_address(address, &to)) {
		try_later(w);
		return;
	}
	w->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (w->fd < 0 ||
	    (connect(w->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)) {
		if (w->fd >= 0)
			close(w->fd);
		try_later(w);
		return;
	}
	w->address = g_strdup(address);
	w->watch = watch_start(w->fd, UV_READABLE, on_socket, w);
	w->timer = timer_start(PROBE_TIMEOUT_MS, try_over, w);
}

static void went_through(void *arg, const GString *out, const GError *err)
{
	SshWait *w = arg;

	w->through = NULL;
	it_says(w, err ? "" : out->str, err ? 0 : out->len);
}

/* As the daemon, as libvirt gets there. */
static void probe_through(SshWait *w, const char *address, const char *jump)
{
	char *argv[] = {
		(char *)"ssh",
		(char *)"-o",
		(char *)"BatchMode=yes",
		(char *)"-W",
		(char *)address,
		(char *)"--",
		(char *)jump,
		NULL,
	};

	w->address = g_strdup(address);
	w->through = proc_run(argv, NULL, PROBE_TIMEOUT_MS, went_through, w);
}

static void asked(void *arg, GBytes *answer, const GError *err)
{
	SshWait *w = arg;
	g_autofree char *text =
		answer ? g_strndup(g_bytes_get_data(answer, NULL), g_bytes_get_size(answer)) : NULL;
	const char *through = text ? strstr(text, "\n" JUMP) : NULL;
	char host[64], port[16], jump[256];
	g_autofree char *address = NULL;

	(void)err; /* of ssh_config's readers; here it is tried again */
	w->asked = NULL;
	if (text && sscanf(text, "Host %*s HostName %63s Port %15s", host, port) == 2)
		address = g_strdup_printf("%s:%s", host, port);
	if (address && through && sscanf(through, "\n" JUMP "%255s", jump) == 1)
		probe_through(w, address, jump);
	else if (address)
		probe(w, address);
	else
		try_later(w);
}

static void try_now(void *arg)
{
	SshWait *w = arg;

	w->timer = NULL;
	if (w->vm->state == VM_RUNNING && w->vm->bv && w->vm->bv->be->cls->ask[ASK_SSH])
		ask_backend(w->vm, ASK_SSH, NULL, asked, w, &w->asked);
}

void ssh_look_again(Vm *vm)
{
	SshWait *w = vm->ssh;

	if (!w)
		return;
	stop_trying(w);
	g_clear_pointer(&w->found, g_free);
	w->pause_ms = FIRST_PAUSE_MS;
	w->timer = timer_start(0, try_now, w);
}

void ssh_wait(Vm *vm)
{
	if (!vm->ssh) {
		vm->ssh = g_new0(SshWait, 1);
		vm->ssh->vm = vm;
		ssh_look_again(vm);
	}
	vm->ssh->waiters++;
}

void ssh_unwait(Vm *vm)
{
	if (vm->ssh && !--vm->ssh->waiters)
		ssh_forget(vm);
}

const char *ssh_answers_at(const Vm *vm)
{
	return vm->ssh ? vm->ssh->found : NULL;
}

void ssh_forget(Vm *vm)
{
	if (!vm->ssh)
		return;
	stop_trying(vm->ssh);
	g_free(vm->ssh->found);
	g_clear_pointer(&vm->ssh, g_free);
}
