/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots are libvirt's own: what virsh takes is shown here, and the reverse. libvirt says
 * nothing when one comes or goes, so they are looked at with their domain, and when their directory
 * is. What a domain goes through while it is restored, or stands still to be saved, is not shown as
 * its state: for its users it runs, or has been stopped, by what the order says.
 */
#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "backends/libvirt/xmltree.h"
#include "vmfs/err.h"

#define MAX_TEXT (256u << 10)

bool lv_snapshot_hides(const LvVm *lv, LvState s)
{
	if (s.state == VM_UNKNOWN)
		return false;
	return lv->holding == OP_RESTORE || (lv->holding == OP_SNAPSHOT && s.state == VM_PAUSED);
}

/* ---- in the pool: what there is ---- */

static gint by_name(gconstpointer a, gconstpointer b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

char **lv_snapshot_names(virDomainPtr dom)
{
	virDomainSnapshotPtr *all = NULL;
	const int n = virDomainListAllSnapshots(dom, &all, 0);
	GPtrArray *names = g_ptr_array_new();

	for (int i = 0; i < n; i++) {
		g_ptr_array_add(names, g_strdup(virDomainSnapshotGetName(all[i])));
		virDomainSnapshotFree(all[i]);
	}
	free(all);
	g_ptr_array_sort(names, by_name);
	g_ptr_array_add(names, NULL);
	if (n >= 0)
		return (char **)g_ptr_array_free(names, FALSE);
	g_ptr_array_unref(names);
	return NULL;
}

/* The domain in a snapshot's XML, as a spec. */
static char *spec_of(xmlNode *root)
{
	xmlNode *domain = xmltree_find(root, "domain");
	xmlBuffer *buf = domain ? xmlBufferCreate() : NULL;
	char *spec = NULL;

	if (buf && xmlNodeDump(buf, domain->doc, domain, 0, 0) >= 0)
		spec = lv_xml_spec((const char *)xmlBufferContent(buf), NULL);
	if (buf)
		xmlBufferFree(buf);
	return spec;
}

static int64_t time_of(xmlNode *root)
{
	const xmlNode *n = xmltree_find(root, "creationTime");
	g_autofree char *text = n ? xmltree_text(n) : NULL;
	const int64_t s = text ? g_ascii_strtoll(text, NULL, 10) : 0;

	return s > 0 && s < INT64_MAX / G_USEC_PER_SEC ? s * G_USEC_PER_SEC : 0;
}

static void booked_free(void *arg)
{
	BookedSnapshot *b = arg;

	g_free(b->name);
	g_free(b->spec);
	g_free(b->xml);
	g_free(b);
}

static BookedSnapshot *describe(virDomainSnapshotPtr one)
{
	BookedSnapshot *b = g_new0(BookedSnapshot, 1);
	char *xml = virDomainSnapshotGetXMLDesc(one, 0);
	xmlDoc *doc = xml && strlen(xml) <= MAX_TEXT ? xmltree_read(xml, "domainsnapshot") : NULL;

	b->name = g_strdup(virDomainSnapshotGetName(one));
	if (doc) {
		b->xml = g_strdup(xml);
		b->spec = spec_of(xmlDocGetRootElement(doc));
		b->made = time_of(xmlDocGetRootElement(doc));
		xmlFreeDoc(doc);
	}
	free(xml);
	return b;
}

static bool work_look(LvCall *c, GError **err)
{
	virDomainSnapshotPtr *all = NULL;
	const int n = c->dom ? virDomainListAllSnapshots(c->dom, &all, 0) : 0;

	if (n < 0) {
		lv_error(err, "libvirt does not list its snapshots");
		return false;
	}
	c->list = g_ptr_array_new_with_free_func(booked_free);
	for (int i = 0; i < n; i++) {
		g_ptr_array_add(c->list, describe(all[i]));
		virDomainSnapshotFree(all[i]);
	}
	free(all);
	return true;
}

/* ---- on the loop: what there is ---- */

/* Something has been done to them: all is to be told again. */
static void forget_told(LvVm *lv)
{
	lv->snaps_turn++;
	g_clear_pointer(&lv->snapshots, g_strfreev);
}

void lv_snapshot_away(LvVm *lv)
{
	lv->holding = OP_NONE;
	forget_told(lv);
}

static void tell(LvVm *lv, const GPtrArray *all)
{
	GPtrArray *names = g_ptr_array_new();

	for (guint i = 0; i < all->len; i++)
		g_ptr_array_add(names, g_strdup(((BookedSnapshot *)all->pdata[i])->name));
	g_ptr_array_sort(names, by_name);
	g_ptr_array_add(names, NULL);
	g_strfreev(lv->snapshots);
	lv->snapshots = (char **)g_ptr_array_free(names, FALSE);
	backend_snapshots(&lv->base, all);
}

static void looked(LvCall *c)
{
	if (lv_call_alive(c) && !c->error && c->id == c->lv->snaps_turn)
		tell(c->lv, c->list);
	if (c->fn)
		c->fn(c->arg, c->error);
}

void lv_snapshot_look(BackendVm *bv, BackendDone fn, void *arg)
{
	LvVm *lv = lv_of(bv);
	g_autoptr(GError) e = NULL;
	/* Of what is in no books yet there are none. */
	LvCall *c = lv->host ? lv_call_new(lv, work_look, looked, &e) : NULL;

	if (!c) {
		if (fn)
			fn(arg, e);
		return;
	}
	c->absent = true;
	c->id = lv->snaps_turn;
	c->fn = fn;
	c->arg = arg;
	lv_call_send(c);
}

void lv_snapshots_found(LvVm *lv, char **names_take)
{
	g_auto(GStrv) names = names_take;

	if (!names || (lv->snapshots && g_strv_equal((const char *const *)names,
						     (const char *const *)lv->snapshots)))
		return;
	/* There are none, as with most. */
	if (!*names && !vm_has_snapshots(lv->base.vm))
		lv->snapshots = g_steal_pointer(&names);
	else
		lv_snapshot_look(&lv->base, NULL, NULL);
}

/* ---- in the pool: taking, restoring and dropping ---- */

static virDomainSnapshotPtr find(const LvCall *c)
{
	return virDomainSnapshotLookupByName(c->dom, c->snapshot, 0);
}

/* What libvirt says of disks that cannot hold one is no help to who has to find others. */
static void refuse(GError **err)
{
	const bool unfit = virGetLastErrorCode() == VIR_ERR_CONFIG_UNSUPPORTED;

	lv_error(err, "libvirt cannot take it");
	if (unfit)
		g_prefix_error(err, "a snapshot is kept in the VM's own disks: it needs one at "
				    "least, and each must be qcow2, or readonly: ");
}

static bool work_take(LvCall *c, GError **err)
{
	g_autofree char *xml = g_markup_printf_escaped(
		"<domainsnapshot><name>%s</name></domainsnapshot>", c->snapshot);
	virDomainSnapshotPtr made = NULL;

	if (c->spec && !lv_work_define(c, err))
		return false;
	made = c->again ? NULL : find(c);
	if (made) {
		virDomainSnapshotFree(made);
		return err_set(err, EEXIST, "libvirt has a snapshot '%s' already", c->snapshot);
	}
	if (g_atomic_int_get(&c->unwanted))
		return err_set(err, ECANCELED, "it was not begun");
	made = virDomainSnapshotCreateXML(c->dom, xml, 0);
	if (!made) {
		refuse(err);
		/* That of a daemon that has died since was finished before it was this one's turn.
		 */
		made = c->again ? find(c) : NULL;
		if (made)
			g_clear_error(err);
	}
	if (made && g_atomic_int_get(&c->unwanted))
		(void)virDomainSnapshotDelete(made, 0);
	else if (made)
		(void)work_look(c, NULL); /* what it holds is to be known when it is ready */
	if (made)
		virDomainSnapshotFree(made);
	(void)lv_state_now(c->dom, &c->state);
	return made;
}

static bool work_restore(LvCall *c, GError **err)
{
	virDomainSnapshotPtr one = find(c);
	int r = -1;

	if (!one) {
		lv_error(err, "libvirt cannot find the snapshot");
		return false;
	}
	if (!g_atomic_int_get(&c->unwanted))
		r = virDomainRevertToSnapshot(one, 0);
	/* That the machine is another one by then is what was ordered. */
	if (r < 0 && virGetLastErrorCode() == VIR_ERR_SNAPSHOT_REVERT_RISKY)
		r = virDomainRevertToSnapshot(one, VIR_DOMAIN_SNAPSHOT_REVERT_FORCE);
	if (r < 0)
		lv_error(err, "libvirt cannot restore it");
	virDomainSnapshotFree(one);
	(void)lv_state_now(c->dom, &c->state);
	return r >= 0;
}

static bool work_drop(LvCall *c, GError **err)
{
	virDomainSnapshotPtr one = find(c);
	int r;

	if (!one) {
		lv_error(err, "libvirt cannot find the snapshot");
		return false;
	}
	r = virDomainSnapshotDelete(one, 0);
	if (r < 0)
		lv_error(err, "libvirt cannot remove it");
	virDomainSnapshotFree(one);
	return r >= 0;
}

/* ---- on the loop ---- */

static void dropped(LvCall *c)
{
	/* Before who listed them meanwhile. */
	c->fn(c->arg, c->error);
	if (!lv_call_alive(c))
		return;
	forget_told(c->lv);
	lv_snapshot_look(&c->lv->base, NULL, NULL);
}

void lv_snapshot_drop(BackendVm *bv, const char *name, BackendDone fn, void *arg)
{
	g_autoptr(GError) e = NULL;
	LvCall *c = lv_call_new(lv_of(bv), work_drop, dropped, &e);

	if (!c) {
		fn(arg, e);
		return;
	}
	c->snapshot = g_strdup(name);
	c->slow = true;
	c->fn = fn;
	c->arg = arg;
	lv_call_send(c);
}

/* It is another machine that runs: nothing that was known of the former one holds. */
static void renew(LvVm *lv)
{
	lv_agent(lv, false);
	backend_ips(&lv->base, NULL);
	lv_console_renew(lv);
}

static void done(LvCall *c)
{
	LvVm *lv = c->lv;
	Op *op = c->op;

	/* Its host is away, and that was its end; or a call of a later op is under way. */
	if (!lv || lv->start != c)
		return;
	lv->start = NULL;
	if (lv->holding == OP_RESTORE && !c->error)
		renew(lv);
	lv->holding = OP_NONE;
	if (c->state.state != VM_STATE_MAX)
		lv_show(lv, c->state);
	forget_told(lv);
	if (c->list)
		tell(lv, c->list);
	lv_look(lv->host, lv->base.vm->home.key);
	if (!op)
		return;
	if (lv->undoing) {
		lv->undoing = false;
		op_next(op);
	} else if (c->error) {
		op_fail(op, g_steal_pointer(&c->error));
	} else {
		op_next(op);
	}
}

static void begin(LvVm *lv, Op *op, bool (*work)(LvCall *c, GError **err))
{
	Vm *vm = lv->base.vm;
	const Snapshot *s = op_arg(op);
	GError *e = NULL;
	LvCall *c = lv_call_new(lv, work, done, &e);

	if (!c) {
		op_fail(op, e);
		return;
	}
	c->op = op;
	c->slow = true;
	c->snapshot = g_strdup(snapshot_name(s));
	c->again = op_is_restored(op);
	/* As at its start: what is stopped is in libvirt's books as its spec says. */
	if (op_kind(op) == OP_SNAPSHOT && !vm->home.foreign && !vm_is_live(vm)) {
		c->absent = true;
		c->id = vm->id;
		c->name = g_strdup(vm->name);
		c->spec = spec_ref(vm->spec);
		lv_own_call(c);
	}
	lv->start = c;
	lv->holding = op_kind(op);
	lv_call_send(c);
}

static void run_take(Op *op, void *ctx)
{
	begin(ctx, op, work_take);
}

static void run_restore(Op *op, void *ctx)
{
	begin(ctx, op, work_restore);
}

/* libvirt cannot end it half-way. */
static void cancel(Op *op, void *ctx)
{
	LvVm *lv = ctx;

	(void)op;
	lv->undoing = lv->start != NULL;
	if (lv->start)
		g_atomic_int_set(&((LvCall *)lv->start)->unwanted, 1);
}

static const Step take_steps[] = {
	{ "taking", run_take, cancel, lv_undo },
	{ 0 },
};

/* Of one that has perhaps not been started yet. */
static const Step take_stopped_steps[] = {
	{ "preparing", lv_prepare_run, lv_prepare_cancel, NULL },
	{ "taking", run_take, cancel, lv_undo },
	{ 0 },
};

static const Step restore_steps[] = {
	{ "restoring", run_restore, cancel, lv_undo },
	{ 0 },
};

void lv_snapshot(BackendVm *bv, Op *op)
{
	const bool own = !bv->vm->home.foreign && !vm_is_live(bv->vm);

	lv_settle(lv_of(bv));
	op_steps(op, own ? take_stopped_steps : take_steps, lv_of(bv), NULL);
}

void lv_restore(BackendVm *bv, Op *op)
{
	if (snapshot_is_booked(op_arg(op)))
		op_steps(op, restore_steps, lv_of(bv), NULL);
	else
		op_fail(op, err_new(EINVAL,
				    "snapshot '%s' is of another backend, and not in the "
				    "books of libvirt",
				    snapshot_name(op_arg(op))));
}
