/* SPDX-License-Identifier: Apache-2.0 */
/* The backend `libvirt`: its class, and a VM's place in it. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backends/libvirt/call.h"
#include "backends/libvirt/xml.h"
#include "vmfs/err.h"
#include "vmfs/registry.h"

/* What is there as long as it runs. */
static void forget_run(LvVm *lv)
{
	lv_ip_stop(lv);
	lv_console_end(lv);
	lv_cloud_init_reset(lv);
	lv_ssh_forget(lv);
	lv->ports_failed = lv->console_refused = false;
}

void lv_show(LvVm *lv, LvState s)
{
	Vm *vm = lv->base.vm;
	const VmState before = vm->pushed;
	const bool ran = before == VM_RUNNING || before == VM_PAUSED || before == VM_STOPPING;

	if (lv_snapshot_hides(lv, s))
		return;

	if (s.state == VM_STOPPED && lv->ending)
		s.reason = lv->ending;
	if (s.state == VM_STOPPED || s.state == VM_CRASHED || s.state == VM_ASLEEP) {
		forget_run(lv);
		vm_remove_run_dir(vm);
	}
	/* What is known of its end is not to be forgotten for a word that says less. */
	if (s.state == before && s.state == VM_STOPPED && !s.reason)
		s.reason = vm->reason;
	if (s.state == VM_RUNNING && s.state == before && !s.arrived)
		s.reason = vm->reason;
	if ((s.state == VM_STOPPED || s.state == VM_CRASHED) && ran)
		backend_gone(&lv->base, s.state, s.reason, -1);
	else
		backend_state(&lv->base, s.state, s.reason);
	if (s.pid)
		backend_pid(&lv->base, s.pid);
	if (s.state != VM_UNKNOWN)
		backend_found(&lv->base);
	if (s.state == VM_RUNNING)
		lv_exec_look(lv);
	lv_op_look(lv);
}

void lv_agent(LvVm *lv, bool up)
{
	/* It may be that of another boot. */
	lv->cloud_init.tries = 0;
	backend_agent(&lv->base, up);
	lv_ssh_agent(lv, up);
	if (!up) {
		exec_lost(&lv->base, "agent");
		return;
	}
	lv_op_agent_up(lv);
	lv_ip_start(lv);
}

static void connect_to_host(LvVm *lv)
{
	const Host *host = host_find(lv->base.vm->home.host);

	if (lv->host || !host || !host->link)
		return;
	lv->host = host->link;
	g_hash_table_insert(lv->host->domains, lv->base.vm->home.key, lv);
}

static void prepare(LvVm *lv)
{
	if (!lv->calls)
		lv->calls = g_ptr_array_new();
}

LvVm *lv_bind(Vm *vm)
{
	LvVm *lv = lv_of(vm_backend(vm, NULL));

	prepare(lv);
	connect_to_host(lv);
	return lv;
}

void lv_settle(LvVm *lv)
{
	Vm *vm = lv->base.vm;

	prepare(lv);
	if (!vm->home.be) {
		vm->home.be = lv->base.be;
		vm->home.host = g_strdup(vm->spec->host ? vm->spec->host : "local");
		vm->home.key = g_uuid_string_random();
		vm->home.name = g_strdup(vm->name);
		registry_save_meta(vm, NULL, NULL);
	}
	connect_to_host(lv);
}

bool lv_shares_virtiofs(const Spec *spec)
{
	for (unsigned i = 0; i < spec->shares->len; i++)
		if (lv_xml_share_type(spec->shares->pdata[i]) == SHARE_VIRTIOFS)
			return true;
	return false;
}

bool lv_has_rights(const Vm *vm, const char *what, GError **err)
{
	return vm_uid(vm) == geteuid() ||
	       err_set(err, EPERM,
		       "%s: libvirt does that with its own rights, not with those of user %u, who "
		       "owns the VM",
		       what, vm_uid(vm));
}

bool lv_is_allowed(const Vm *vm, const Spec *spec, GError **err)
{
	return (!spec->shares->len || lv_has_rights(vm, "shares", err)) &&
	       (!spec->devices->len || lv_has_rights(vm, "devices", err));
}

static bool is_of_seed(const char *key)
{
	return !strcmp(key, "cloud_init") || g_str_has_prefix(key, "cloud_init.");
}

/* A key that differs, but where the user left it to us, or XML cannot say it; but of what runs, it
 * is known which seed it has. */
static bool is_open(const Spec *user, const char *key)
{
	const char *last = strrchr(key, '.');
	g_autofree char *object = last ? g_strndup(key, (gsize)(last - key)) : NULL;
	const void *named = object ? spec_named(user, object) : NULL;

	/* The order of devices: that in which they came, for the guest's sake. */
	if (!strcmp(key, "disks") || !strcmp(key, "nics") || !strcmp(key, "shares") ||
	    !strcmp(key, "devices"))
		return true;
	if (named && g_str_has_prefix(key, "shares.") && !strcmp(last, ".type"))
		return ((const SpecShare *)named)->type == SHARE_AUTO;
	/* virtiofs brings it, and what has it needs no other for not having to. */
	if (!strcmp(key, "shared_memory"))
		return !user->shared_memory || lv_shares_virtiofs(user);
	if (named && g_str_has_prefix(key, "nics.") && !strcmp(last, ".mac"))
		return !((const SpecNic *)named)->mac;
	if (named && g_str_has_prefix(key, "disks.") && !strcmp(last, ".format"))
		return !((const SpecDisk *)named)->format;
	if (!strcmp(key, "accel"))
		return user->accel == ACCEL_AUTO;
	return lv_xml_lacks(key) && !is_of_seed(key);
}

/* Nothing that both can say is different. */
static bool says_the_same(const Spec *user, const Spec *xml)
{
	g_autoptr(GPtrArray) diff = spec_diff(user, xml);

	for (unsigned i = 0; i < diff->len; i++)
		if (!is_open(user, diff->pdata[i]) && !lv_xml_lacks(diff->pdata[i]))
			return false;
	return user->autostart == xml->autostart;
}

static void take_key(Spec **spec, Spec *merged_take)
{
	if (!merged_take)
		return;
	spec_unref(*spec);
	*spec = merged_take;
}

/* As XML has it, with what XML cannot say as the user had it. */
static Spec *join(const Spec *xml, const Spec *user)
{
	g_autoptr(GPtrArray) diff = spec_diff(user, xml);
	Spec *spec = spec_ref((Spec *)xml);

	/* Whether its host starts it, libvirt knows as well. */
	take_key(&spec, spec_with_core(spec, user, "autostart"));
	for (unsigned i = 0; i < diff->len; i++)
		if (lv_xml_lacks(diff->pdata[i]) && strcmp(diff->pdata[i], "backend") != 0)
			take_key(&spec, spec_merge(spec, user, diff->pdata[i]));
	return spec;
}

/* What runs, as XML has it, with the seed that it was started with. */
static Spec *join_seed(const Spec *xml, const Spec *started)
{
	g_autoptr(GPtrArray) diff = spec_diff(started, xml);
	Spec *spec = spec_ref((Spec *)xml);

	for (unsigned i = 0; i < diff->len; i++)
		if (is_of_seed(diff->pdata[i]))
			take_key(&spec, spec_merge(spec, started, diff->pdata[i]));
	return spec;
}

void lv_defined(LvVm *lv, char *xml, Spec *spec)
{
	Vm *vm = lv->base.vm;

	/* Half of what is being defined is nobody's wish; when all of it is, it is looked at again.
	 */
	if (lv_is_being_defined(lv)) {
		g_free(xml);
	} else if (lv->redefined || g_strcmp0(lv->xml, xml) ||
		   spec->autostart != vm->spec->autostart) {
		lv->redefined = false;
		g_free(lv->xml);
		lv->xml = xml;
		/* The user's own text stays for as long as it says the same. */
		if (!says_the_same(vm->spec, spec) || !g_bytes_get_size(vm->spec->text)) {
			Spec *joined = join(spec, vm->spec);

			vm_set_spec(vm, joined);
			spec_unref(joined);
		}
		vm_changed(vm, EV_SPEC);
	} else {
		g_free(xml);
	}
	spec_unref(spec);
}

void lv_shares_report(LvVm *lv, const Spec *had, const Spec *spec)
{
	for (unsigned i = 0; i < had->shares->len; i++) {
		const SpecShare *share = had->shares->pdata[i];
		g_autofree char *key = g_strconcat("shares.", share->name, NULL);
		g_autofree char *fact = g_strconcat("share.", share->name, NULL);

		if (!spec_named(spec, key))
			backend_fact(&lv->base, fact, NULL);
	}
	for (unsigned i = 0; i < spec->shares->len; i++) {
		const SpecShare *share = spec->shares->pdata[i];
		g_autofree char *fact = g_strconcat("share.", share->name, NULL);

		backend_fact(&lv->base, fact,
			     lv_xml_share_type(share) == SHARE_VIRTIOFS ? "virtiofs" : "9p");
	}
}

void lv_runs(LvVm *lv, Spec *spec, bool agent)
{
	Vm *vm = lv->base.vm;
	Spec *joined;

	if (vm->pushed != VM_RUNNING && vm->pushed != VM_PAUSED && vm->pushed != VM_ASLEEP)
		return;
	lv_shares_report(lv, lv->base.spec, spec);
	joined = join_seed(spec, lv->base.spec);
	backend_spec(&lv->base, joined);
	spec_unref(joined);
	if (vm->pushed == VM_ASLEEP)
		return;
	lv_ports_look(lv);
	if (agent && !vm->agent)
		lv_agent(lv, true);
	else if (!vm->ips)
		lv_ip_start(lv);
	if (!vm->home.foreign)
		lv_console_want(lv);
}

static void probe(Backend *be)
{
	const Host *local = host_by_number(HOST_LOCAL);
	g_autofree char *uri = lv_uri(local);

	if (!lv_init())
		backend_probed(be, false, "libvirt: its library does not work here");
	else if (!uri && !host_after(HOST_LOCAL))
		backend_probed(be, false,
			       "libvirt: it does not run here; see .vmfs/hosts for other hosts");
	else
		backend_probed(be, true, NULL);
}

static bool check(Backend *be, const Spec *spec, GError **err)
{
	const Host *host = spec->host ? host_find(spec->host) : NULL;

	(void)be;
	if (spec->max_cpus || spec->max_memory)
		return err_set(err, EOPNOTSUPP,
			       "%s: backend 'libvirt' of this version changes neither cpus nor "
			       "memory of a VM that runs",
			       spec->max_cpus ? "max_cpus" : "max_memory");
	for (unsigned i = 0; i < spec->devices->len; i++) {
		const SpecDevice *d = spec->devices->pdata[i];

		if (d->usb)
			return err_set(err, EOPNOTSUPP,
				       "devices.%s: libvirt knows a USB device by its vendor or by "
				       "a number that changes, not by its port: write it to "
				       "domain.xml",
				       d->name);
	}
	for (unsigned i = 0; i < spec->shares->len; i++) {
		const SpecShare *share = spec->shares->pdata[i];

		if (share->type == SHARE_VIRTIOFS && share->readonly)
			return err_set(err, EOPNOTSUPP,
				       "shares.%s.readonly: virtiofsd cannot keep the guest from "
				       "writing; use type: 9p",
				       share->name);
	}
	for (unsigned i = 0; i < spec->disks->len; i++) {
		const SpecDisk *d = spec->disks->pdata[i];

		if (d->bus != BUS_VIRTIO)
			return err_set(err, EOPNOTSUPP,
				       "disks.%s.bus: backend 'libvirt' of this version makes "
				       "virtio disks only",
				       d->name);
	}
	for (unsigned i = 0; i < spec->nics->len; i++) {
		const SpecNic *n = spec->nics->pdata[i];

		if (n->ports->len && strcmp(n->network, "user") != 0)
			return err_set(err, EOPNOTSUPP,
				       "nics.%s.ports: ports are forwarded by `network: user` only",
				       n->name);
	}
	if (host && lv_has_own(spec) && !lv_host_is_here(host))
		return err_set(
			err, EOPNOTSUPP,
			"host: the files of disks with `image` or `size`, and of cloud_init, "
			"are on this machine, and host %s is another: name disks that are "
			"there, with `file`",
			spec->host);
	if (spec->machine == MACHINE_MICROVM)
		return err_set(err, EOPNOTSUPP, "machine: backend 'libvirt' has no microvm");
	return true;
}

/* What one would type instead. */
static bool cmdline(BackendVm *bv, GPtrArray *argv, GError **err)
{
	const Host *host = host_find(vm_host(bv->vm));
	g_autofree char *uri = host ? lv_uri(host) : NULL;
	const char *name = bv->vm->home.foreign ? bv->vm->home.name : bv->vm->name;

	if (!uri)
		return err_set(err, EHOSTDOWN, "host %s has no URI", vm_host(bv->vm));
	g_ptr_array_add(argv, g_strdup("virsh"));
	g_ptr_array_add(argv, g_strdup("-c"));
	g_ptr_array_add(argv, g_steal_pointer(&uri));
	g_ptr_array_add(argv, g_strdup("start"));
	g_ptr_array_add(argv, g_strdup(name));
	return true;
}

static const char *definition(const BackendVm *bv)
{
	return ((const LvVm *)bv)->xml;
}

static void unmanage(BackendVm *bv, Op *op)
{
	Vm *vm = bv->vm;

	if (vm->home.be && !vm->home.foreign && lv_has_own(vm->spec)) {
		op_fail(op, err_new(EBUSY, "it uses files in vmfs's own directory, which go with "
					   "the machine: disks with `image` or `size`, or the "
					   "seed of cloud_init"));
		return;
	}
	if (!vm->home.be || !lv_of(bv)->xml) {
		op_fail(op, err_new(ESRCH, "libvirt does not have it: it has not been started "
					   "yet, or was undefined"));
		return;
	}
	vm->home.foreign = true;
	registry_save_meta(vm, NULL, NULL);
	op_ok(op);
}

static void adopt(BackendVm *bv, Op *op)
{
	prepare(lv_of(bv));
	/* What it is its host says, or will. */
	if (bv->vm->home.be)
		(void)lv_bind(bv->vm);
	else
		backend_state(bv, VM_STOPPED, NULL);
	op_ok(op);
}

static void want_ip(BackendVm *bv)
{
	if (lv_of(bv)->host)
		lv_ip_start(lv_of(bv));
}

static void want_console(BackendVm *bv)
{
	if (lv_of(bv)->host)
		lv_console_want(lv_of(bv));
}

static void fini(BackendVm *bv)
{
	LvVm *lv = lv_of(bv);

	if (!lv->calls)
		return;
	lv_op_clear(lv);
	lv_call_forget(lv);
	lv_move_forget(lv);
	lv_own_cancel(lv);
	prepare_forget(&lv->prepare);
	forget_run(lv);
	if (lv->host)
		g_hash_table_remove(lv->host->domains, bv->vm->home.key);
	g_free(lv->xml);
	g_strfreev(lv->snapshots);
	g_ptr_array_unref(lv->calls);
}

const BackendClass libvirt_class = {
	.name = "libvirt",
	.doc = "libvirt: the domains of this host and of others",
	.vm_size = sizeof(LvVm),
	.autostarts = true,
	.probe = probe,
	.check = check,
	.is_open = is_open,
	.cmdline = cmdline,
	.fini = fini,
	.op = {
		[OP_START] = lv_start,
		[OP_STOP] = lv_stop,
		[OP_KILL] = lv_kill,
		[OP_PAUSE] = lv_pause,
		[OP_RESUME] = lv_resume,
		[OP_REBOOT] = lv_reboot,
		[OP_RESET] = lv_reset,
		[OP_SLEEP] = lv_sleep,
		[OP_WAKE] = lv_wake,
		[OP_UNDEFINE] = lv_undefine_op,
		[OP_UNMANAGE] = unmanage,
		[OP_REDEFINE] = lv_redefine,
		[OP_MIGRATE] = lv_migrate,
		[OP_SNAPSHOT] = lv_snapshot,
		[OP_RESTORE] = lv_restore,
		[OP_APPLY] = lv_apply,
		[OP_EXEC] = lv_exec_start,
		[OP_EXEC_SIGNAL] = lv_exec_signal,
		[OP_ADOPT] = adopt,
	},
	.ask = {
		[ASK_SCREEN] = lv_ask_screen,
		[ASK_STATS] = lv_ask_stats,
		[ASK_KEYS] = lv_ask_keys,
		[ASK_MONITOR] = lv_ask_monitor,
		[ASK_SSH] = lv_ask_ssh,
	},
	.can_apply = lv_can_apply,
	.console_write = lv_console_write,
	.definition = definition,
	.want_ip = want_ip,
	.want_cloud_init = lv_want_cloud_init,
	.want_console = want_console,
	.define = lv_define,
	.rename = lv_rename,
	.undefine = lv_undefine,
	.snapshot_drop = lv_snapshot_drop,
	.snapshot_look = lv_snapshot_look,
	.host_open = lv_host_open,
	.host_close = lv_host_close,
	.host_is_up = lv_host_is_up,
	.host_status = lv_host_status,
	.host_node = lv_host_node,
	.network_order = lv_network_order,
	.network_leases = lv_network_leases,
	.exec = &lv_exec,
};
