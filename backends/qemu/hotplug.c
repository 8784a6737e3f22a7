/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plugging and unplugging while the VM runs. A device is what it would be on the command line: its
 * options there are turned into commands here, each with the one that takes it back. A device goes
 * when the guest lets go of it, and only then what is behind it. Loop thread only.
 */
#include <errno.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

#define UNPLUG_MS 5000

/* How an option of the command line is said to the monitor. */
typedef struct Way {
	const char *option, *command, *first; /* the key of a value that begins without one */
	const char *undo, *undo_key;	      /* takes the value of `undo_from` */
	const char *undo_from;
	json_t *(*nest)(json_t *flat); /* where the command has them in another shape; takes them */
} Way;

static json_t *nest_chardev(json_t *flat);

static const Way ways[] = {
	{ "-blockdev", "blockdev-add", "driver", "blockdev-del", "node-name", "node-name" },
	{ "-netdev", "netdev_add", "type", "netdev_del", "id", "id" },
	{ "-chardev", "chardev-add", "type", "chardev-remove", "id", "id", nest_chardev },
	{ "-device", "device_add", "driver" },
};

/* What comes and goes, by what the ids of its devices begin with. */
static const struct Kind {
	const char *prefix, *section;
} kinds[] = {
	{ QEMU_DISK_ID, "disks" },
	{ QEMU_NIC_ID, "nics" },
	{ QEMU_SHARE_ID, "shares" },
	{ QEMU_DEVICE_ID, "devices" },
};

/* "disks.data" of "disk-data"; NULL: not one of these. Owned by the caller. */
static char *key_of(const char *id)
{
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (g_str_has_prefix(id, kinds[i].prefix))
			return g_strdup_printf("%s.%s", kinds[i].section,
					       id + strlen(kinds[i].prefix));
	return NULL;
}

/* And back; NULL likewise. */
static char *id_of(const char *key)
{
	const char *dot = strchr(key, '.');
	const size_t len = dot ? (size_t)(dot - key) : 0;

	for (size_t i = 0; len && i < G_N_ELEMENTS(kinds); i++)
		if (strlen(kinds[i].section) == len && !strncmp(kinds[i].section, key, len))
			return g_strconcat(kinds[i].prefix, dot + 1, NULL);
	return NULL;
}

typedef struct Command {
	const char *name;
	json_t *args;
	const char *undo;
	json_t *undo_args;
} Command;

/* In the pool: the groups of the owner, with whose rights files are used and programs run. */
typedef struct Lookup {
	QemuVm *q; /* NULL: nobody waits any more */
	uid_t uid;
	gid_t gid;
	ProcUser user;
} Lookup;

typedef struct Plug {
	Lookup *lookup;
	char *key, *id; /* "disks.data", "disk-data" */
	Spec *want;
	GPtrArray *commands; /* of Command */
	guint next;
	const char *controller; /* that the first of them makes; or NULL */
	GError *error;		/* set: the commands before `next` are being taken back */
	bool asked;		/* the guest, to let go of it */
} Plug;

static void command_free(void *arg)
{
	Command *c = arg;

	json_decref(c->args);
	json_decref(c->undo_args);
	g_free(c);
}

void qemu_plug_free(QemuVm *q)
{
	Plug *p = g_steal_pointer(&q->plug);

	if (!p)
		return;
	if (p->lookup)
		p->lookup->q = NULL;
	prepare_cancel(&q->disks);
	qemu_shares_cancel(q);
	g_ptr_array_unref(p->commands);
	g_clear_error(&p->error);
	spec_unref(p->want);
	g_free(p->key);
	g_free(p->id);
	g_free(p);
}

/* ---- options to commands ---- */

static json_t *word(const char *text)
{
	if (!strcmp(text, "on") || !strcmp(text, "off"))
		return json_boolean(text[1] == 'n');
	return json_string(text);
}

static void set_option(json_t *args, const char *key, const char *value)
{
	if (!strcmp(key, "hostfwd")) { /* the only one that is there more than once */
		json_t *list = json_object_get(args, key), *item = json_object();

		if (!list) {
			list = json_array();
			json_object_set_new(args, key, list);
		}
		json_object_set_new(item, "str", json_string(value));
		json_array_append_new(list, item);
	} else {
		json_object_set_new(args, key, word(value));
	}
}

/* "driver=file,filename=/a,,b" to an object; a comma in a value is doubled. */
static json_t *parse_options(const char *text, const char *first)
{
	json_t *args = json_object();
	g_autoptr(GString) part = g_string_new(NULL);
	char *equals;

	for (;; text++) {
		if (*text == ',' && text[1] == ',') {
			text++;
		} else if (!*text || *text == ',') {
			equals = strchr(part->str, '=');
			if (equals)
				*equals = '\0';
			set_option(args, equals ? part->str : first,
				   equals ? equals + 1 : part->str);
			g_string_truncate(part, 0);
			first = "";
			if (!*text)
				return args;
			continue;
		}
		g_string_append_c(part, *text);
	}
}

static json_t *one_arg(const char *key, const char *value)
{
	json_t *args = json_object();

	json_object_set_new(args, key, json_string(value));
	return args;
}

/* Of a socket at a path, the only kind that is plugged in. */
static json_t *nest_chardev(json_t *flat)
{
	json_t *args = json_pack("{s:O, s:{s:O, s:{s:{s:s, s:{s:O}}, s:b}}}", "id",
				 json_object_get(flat, "id"), "backend", "type",
				 json_object_get(flat, "type"), "data", "addr", "type", "unix",
				 "data", "path", json_object_get(flat, "path"), "server", 0);

	json_decref(flat);
	return args;
}

static void add_command(Plug *p, const char *option, const char *value)
{
	for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
		const Way *w = &ways[i];
		Command *c;

		if (strcmp(w->option, option) != 0)
			continue;
		c = g_new0(Command, 1);
		c->name = w->command;
		c->args = parse_options(value, w->first);
		c->undo = w->undo;
		if (w->undo)
			c->undo_args =
				one_arg(w->undo_key,
					json_string_value(json_object_get(c->args, w->undo_from)));
		if (w->nest)
			c->args = w->nest(c->args);
		g_ptr_array_add(p->commands, c);
	}
}

static bool has_back_end(const char *id)
{
	return !g_str_has_prefix(id, QEMU_DEVICE_ID);
}

/*
 * What is behind the device, the last first. It may be gone, so what QEMU says does not matter; fn
 * (or NULL) is told when it has said it.
 */
static QmpSlot *remove_back_end(QemuVm *q, const char *id, QmpFn fn)
{
	const char *name = strchr(id, '-') + 1;

	if (!q->qmp || !has_back_end(id))
		return NULL;
	if (g_str_has_prefix(id, QEMU_NIC_ID)) {
		g_autofree char *net = g_strconcat(QEMU_NET_PREFIX, name, NULL);

		return qmp_execute(q->qmp, "netdev_del", one_arg("id", net), fn, q);
	}
	if (g_str_has_prefix(id, QEMU_SHARE_ID))
		return qmp_execute(q->qmp, "chardev-remove", one_arg("id", id), fn, q);
	g_autofree char *node = qemu_block_node("disk-", name);
	g_autofree char *file = qemu_block_node("file-", name);

	qmp_execute(q->qmp, "blockdev-del", one_arg("node-name", node), NULL, NULL);
	return qmp_execute(q->qmp, "blockdev-del", one_arg("node-name", file), fn, q);
}

static void forget_slot(QemuVm *q, const char *prefix, const char *name)
{
	g_autofree char *id = g_strconcat(prefix, name, NULL);

	g_hash_table_remove(q->slots, id);
}

static void forget_slots(QemuVm *q, const char *id)
{
	const char *name = strchr(id, '-') + 1;

	g_hash_table_remove(q->slots, id);
	if (g_str_has_prefix(id, QEMU_DISK_ID))
		forget_slot(q, QEMU_TARGET_ID, name);
	if (g_str_has_prefix(id, QEMU_NIC_ID)) {
		forget_slot(q, QEMU_MAC_ID, name);
		forget_slot(q, QEMU_LEASE_ID, name);
	}
	backend_changed(&q->base);
}

/* ---- plug ---- */

static void plug_next(QemuVm *q);

static void not_plugged(QemuVm *q, GError *take)
{
	const char *id = q->plug->id;

	if (g_str_has_prefix(id, QEMU_SHARE_ID))
		qemu_share_removed(q, id + strlen(QEMU_SHARE_ID));
	forget_slots(q, id);
	qemu_end_op(q, take);
}

static void plug_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;
	Plug *p = q->plug;

	(void)result;
	q->op_slot = NULL;
	if (err && !p->error) {
		if (p->controller && !p->next)
			g_hash_table_remove(q->slots, p->controller);
		p->error = g_error_copy(err);
		g_prefix_error(&p->error, "%s: ", p->key);
	} else if (!p->error) {
		p->next++;
	}
	plug_next(q);
}

static void usernet_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	q->op_slot = NULL;
	/* It is there; where it could not be told, only `status` lacks a line. */
	if (!err && json_is_string(result))
		qemu_report_ports(q, q->plug->want, json_string_value(result));
	qemu_end_op(q, NULL);
}

/* The ports that the system picked are to be told. */
static void plugged(QemuVm *q)
{
	const Plug *p = q->plug;
	const SpecNic *n = g_str_has_prefix(p->key, "nics.") ? spec_named(p->want, p->key) : NULL;

	if (g_str_has_prefix(p->id, QEMU_SHARE_ID))
		qemu_share_added(q, p->id + strlen(QEMU_SHARE_ID));
	if (n && n->ports->len)
		q->op_slot =
			qmp_execute(q->qmp, "human-monitor-command",
				    one_arg("command-line", USERNET_INFO), usernet_answered, q);
	else
		qemu_end_op(q, NULL);
}

static void plug_next(QemuVm *q)
{
	Plug *p = q->plug;

	/* Backwards, past what has nothing to be taken back. */
	while (p->error && p->next) {
		const Command *c = p->commands->pdata[--p->next];

		if (!c->undo || !q->qmp)
			continue;
		q->op_slot =
			qmp_execute(q->qmp, c->undo, json_incref(c->undo_args), plug_answered, q);
		return;
	}
	if (p->error) {
		not_plugged(q, g_steal_pointer(&p->error));
	} else if (p->next == p->commands->len) {
		plugged(q);
	} else {
		const Command *c = p->commands->pdata[p->next];

		q->op_slot = qmp_execute(q->qmp, c->name, json_incref(c->args), plug_answered, q);
	}
}

static void plug_args(QemuVm *q, QemuArgs *args)
{
	qemu_fill_args(q, q->accel, q->slots, args);
	args->spec = q->plug->want;
}

static void plug(QemuVm *q)
{
	Plug *p = q->plug;
	g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
	QemuArgs args;

	plug_args(q, &args);
	p->controller = qemu_controller(p->want, p->key);
	if (p->controller && qemu_slot(q->slots, p->controller) >= 0)
		p->controller = NULL;
	args.controller = p->controller;
	qemu_slots_fill(&args);
	if (qemu_bridges(q->slots) > q->bridges) {
		if (p->controller)
			g_hash_table_remove(q->slots, p->controller);
		not_plugged(q, err_new(ENOSPC,
				       "%s: all %u slots that it was started with are taken; it "
				       "will be there after the next start",
				       p->key, q->bridges * QEMU_BRIDGE_SLOTS));
		return;
	}
	backend_changed(&q->base);
	qemu_device_argv(&args, p->key, argv);
	for (guint i = 0; i + 1 < argv->len; i += 2)
		add_command(p, argv->pdata[i], argv->pdata[i + 1]);
	/* What a daemon before us may have left when it died. */
	(void)remove_back_end(q, p->id, NULL);
	plug_next(q);
}

static void back_end_made(void *arg, const GError *err)
{
	QemuVm *q = arg;

	if (err)
		qemu_end_op(q, g_error_copy(err));
	else if (qemu_need_monitor(q))
		plug(q);
}

static void look_up(void *job)
{
	Lookup *l = job;

	proc_user_lookup(&l->user, l->uid, l->gid);
}

static void looked_up(void *job)
{
	Lookup *l = job;
	QemuVm *q = l->q;
	Plug *p = q ? q->plug : NULL;

	if (!p) {
		proc_user_clear(&l->user);
		g_free(l);
		return;
	}
	p->lookup = NULL;
	proc_user_clear(&q->user);
	q->user = l->user;
	g_free(l);
	if (g_str_has_prefix(p->id, QEMU_SHARE_ID)) {
		QemuArgs args;

		plug_args(q, &args);
		qemu_shares_start(q, &args, p->id + strlen(QEMU_SHARE_ID), back_end_made, q);
	} else {
		qemu_disks_prepare(q, p->want, p->key, back_end_made, q);
	}
}

/* Files and processes of the owner's. */
static void make_back_end(QemuVm *q)
{
	Lookup *l = g_new0(Lookup, 1);

	l->q = q;
	l->uid = vm_uid(qemu_vm(q));
	l->gid = vm_gid(qemu_vm(q));
	q->plug->lookup = l;
	loop_work(look_up, looked_up, l);
}

/* ---- unplug ---- */

static void unplug_late(void *arg)
{
	QemuVm *q = arg;

	q->op_timer = NULL;
	qemu_end_op(q, err_new(ETIMEDOUT,
			       "%s: the guest did not let go of it within %d s, so it stays; is "
			       "it in use there, or is the guest still booting?",
			       q->plug->key, UNPLUG_MS / 1000));
}

static void unplug_answered(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	(void)result;
	q->op_slot = NULL;
	/* Asked before, and still thinking: the event will come, or not. */
	if (err && !strstr(err->message, "already in the process of unplug"))
		qemu_end_op(q, g_error_copy(err));
}

static void unplug(QemuVm *q)
{
	Plug *p = q->plug;

	p->asked = true;
	q->op_timer = timer_start(UNPLUG_MS, unplug_late, q);
	q->op_slot = qmp_execute(q->qmp, "device_del", one_arg("id", p->id), unplug_answered, q);
}

/* It went without our having waited for it: what runs is no longer what we thought. */
static void lost_device(QemuVm *q, const char *id)
{
	static const char nothing[] = "nics: {}\n";
	g_autofree char *key = key_of(id);
	g_autoptr(Spec) none = spec_parse(nothing, strlen(nothing), NULL);
	g_autoptr(Spec) left =
		spec_named(q->base.spec, key) ? spec_merge(q->base.spec, none, key) : NULL;

	if (left)
		backend_spec(&q->base, left);
}

static void unplugged(void *arg, const json_t *result, const GError *err)
{
	QemuVm *q = arg;

	(void)result;
	(void)err;
	q->op_slot = NULL;
	qemu_end_op(q, NULL);
}

void qemu_device_deleted(QemuVm *q, const char *id)
{
	const Plug *p = q->plug;
	const bool awaited = p && p->asked && !strcmp(p->id, id);

	g_autofree char *key = key_of(id);

	if (!key || !q->slots)
		return;
	if (awaited) {
		/* The event may come before the answer, which does not matter any more. */
		qmp_cancel(&q->op_slot);
		timer_stop(&q->op_timer);
	}
	forget_slots(q, id);
	if (g_str_has_prefix(id, QEMU_SHARE_ID))
		qemu_share_removed(q, id + strlen(QEMU_SHARE_ID));
	if (q->leaving)
		g_hash_table_remove(q->leaving, id);
	/* Only then is the file free for whoever wants it next. */
	if (!awaited) {
		(void)remove_back_end(q, id, NULL);
		lost_device(q, id);
	} else if (has_back_end(id)) {
		q->op_slot = remove_back_end(q, id, unplugged);
	} else {
		qemu_end_op(q, NULL);
	}
}

/* What nobody wants, but the guest has. QEMU would take its name for another, and mix them up. */
static void send_away(QemuVm *q, const char *id)
{
	if (!q->leaving)
		q->leaving = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	g_hash_table_add(q->leaving, g_strdup(id));
	qmp_execute(q->qmp, "device_del", one_arg("id", id), NULL, NULL);
}

/* ---- the op ---- */

/* One that virtiofsd serves: it has a slot, where those of 9p come with the machine. */
static bool can_plug_share(const QemuVm *q, const Spec *want, const char *key)
{
	const SpecShare *share = spec_named(want, key);
	g_autofree char *id = id_of(key);
	QemuArgs args;

	if (!share)
		return q->slots && qemu_slot(q->slots, id) >= 0;
	qemu_fill_args((QemuVm *)q, q->accel, q->slots, &args);
	return q->shares_memory && qemu_is_virtiofs(&args, share);
}

bool qemu_plug_can_apply(const BackendVm *bv, const Spec *want, const char *key)
{
	const bool there = spec_named(bv->spec, key) != NULL,
		   wanted = spec_named(want, key) != NULL;

	if (bv->spec->machine != MACHINE_Q35 || there == wanted)
		return false;
	if (g_str_has_prefix(key, "shares."))
		return can_plug_share((const QemuVm *)bv, want, key);
	return g_str_has_prefix(key, "disks.") || g_str_has_prefix(key, "nics.") ||
	       g_str_has_prefix(key, "devices.");
}

void qemu_plug_apply(QemuVm *q, Op *op)
{
	const SpecChange *change = op_arg(op);
	Plug *p = g_new0(Plug, 1);

	qemu_begin_op(q, op);
	qemu_plug_free(q);
	q->plug = p;
	p->key = g_strdup(change->key);
	p->id = id_of(change->key);
	p->want = spec_ref(change->want);
	p->commands = g_ptr_array_new_with_free_func(command_free);
	if (!qemu_need_monitor(q))
		return;
	if (!spec_named(p->want, p->key)) {
		unplug(q);
		return;
	}
	if (q->leaving && g_hash_table_contains(q->leaving, p->id)) {
		send_away(q, p->id);
		qemu_end_op(q, err_new(EBUSY,
				       "%s: the guest has not let go yet of the one of that name "
				       "which it had before; try again, or take another name",
				       p->key));
		return;
	}
	if (g_str_has_prefix(p->id, QEMU_NIC_ID))
		plug(q);
	else
		make_back_end(q);
}

/* ---- after a time without us ---- */

static bool is_listed(const json_t *peripherals, const char *id)
{
	const json_t *item;
	size_t i;

	json_array_foreach(peripherals, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "name"));

		if (name && !strcmp(name, id))
			return true;
	}
	return false;
}

/* Gone while nobody listened, or plugged in by one who died before taking note of it. */
void qemu_reconcile(QemuVm *q, const json_t *peripherals)
{
	g_autoptr(Spec) spec = spec_ref(q->base.spec);
	const GPtrArray *const sections[] = { spec->disks, spec->nics, spec->shares,
					      spec->devices };
	static const char *const controllers[] = { QEMU_SCSI_ID, QEMU_USB_ID };
	const json_t *item;
	size_t i;

	for (size_t n = 0; q->slots && n < G_N_ELEMENTS(controllers); n++)
		if (!is_listed(peripherals, controllers[n]))
			g_hash_table_remove(q->slots, controllers[n]);
	G_STATIC_ASSERT(G_N_ELEMENTS(sections) == G_N_ELEMENTS(kinds));
	for (size_t n = 0; n < G_N_ELEMENTS(kinds); n++) {
		for (guint k = 0; k < sections[n]->len; k++) {
			const char *name = *(char **)sections[n]->pdata[k];
			g_autofree char *id = g_strconcat(kinds[n].prefix, name, NULL);

			if (!is_listed(peripherals, id))
				qemu_device_deleted(q, id);
		}
	}
	json_array_foreach(peripherals, i, item)
	{
		const char *id = json_string_value(json_object_get(item, "name"));
		g_autofree char *key = id ? key_of(id) : NULL;

		if (key && !spec_named(q->base.spec, key))
			send_away(q, id);
	}
}
