/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metrics, by the conventions of Prometheus: base units, one family after the other. Names of VMs
 * need no escaping in labels: they are letters, digits, '.', '_' and '-'.
 */
#include "vmfs/metrics.h"

#include "version.h"
#include "vmfs/registry.h"

static void begin(GString *out, const char *name, const char *type, const char *help)
{
	g_string_append_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void show_states(GString *out)
{
	const GPtrArray *vms = registry_all();
	unsigned count[VM_STATE_MAX] = { 0 };

	for (unsigned i = 0; i < vms->len; i++)
		count[((const Vm *)vms->pdata[i])->state]++;
	begin(out, "vmfs_vms", "gauge", "Virtual machines in each state.");
	for (unsigned s = 0; s < VM_STATE_MAX; s++)
		g_string_append_printf(out, "vmfs_vms{state=\"%s\"} %u\n",
				       vm_state_name((VmState)s), count[s]);
}

static void show_state(const Vm *vm, GString *out)
{
	for (unsigned s = 0; s < VM_STATE_MAX; s++)
		g_string_append_printf(out, "vmfs_vm_state{vm=\"%s\",state=\"%s\"} %d\n", vm->name,
				       vm_state_name((VmState)s), vm->state == (VmState)s);
}

static void show_since(const Vm *vm, GString *out)
{
	g_string_append_printf(out, "vmfs_vm_state_since_seconds{vm=\"%s\"} %.6f\n", vm->name,
			       (double)vm->since / G_USEC_PER_SEC);
}

static void show_failed(const Vm *vm, GString *out)
{
	g_string_append_printf(out, "vmfs_vm_failed{vm=\"%s\"} %d\n", vm->name, vm->error != NULL);
}

static void show_agent(const Vm *vm, GString *out)
{
	g_string_append_printf(out, "vmfs_vm_agent_up{vm=\"%s\"} %d\n", vm->name, vm->agent);
}

static const struct {
	const char *name, *help;
	void (*show)(const Vm *vm, GString *out);
} families[] = {
	{ "vmfs_vm_state", "1 for the state that the virtual machine is in, 0 for the others.",
	  show_state },
	{ "vmfs_vm_state_since_seconds", "When it came into its state, in seconds since 1970.",
	  show_since },
	{ "vmfs_vm_failed", "1 if the last command or document failed; its file error says why.",
	  show_failed },
	{ "vmfs_vm_agent_up", "1 if the agent in the guest answers.", show_agent },
};

void metrics_show(GString *out)
{
	const GPtrArray *vms = registry_all();

	begin(out, "vmfs_build_info", "gauge", "Always 1; its label is the version of vmfs.");
	g_string_append(out, "vmfs_build_info{version=\"" VMFS_VERSION "\"} 1\n");
	show_states(out);
	for (unsigned f = 0; f < G_N_ELEMENTS(families); f++) {
		begin(out, families[f].name, "gauge", families[f].help);
		for (unsigned i = 0; i < vms->len; i++)
			families[f].show(vms->pdata[i], out);
	}
}
