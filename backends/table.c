/* SPDX-License-Identifier: Apache-2.0 */
/* The backends that were built in, in the order in which one is chosen for a spec that names none.
 */
#include <errno.h>
#include <string.h>

#include "backends/backend.h"
#include "vmfs/err.h"

#define BACKEND(name)                                                                              \
	extern const BackendClass name##_class;                                                    \
	static Backend name = { .cls = &name##_class }

#ifdef HAVE_QEMU
BACKEND(qemu);
#endif
#ifdef HAVE_LIBVIRT
BACKEND(libvirt);
#endif
BACKEND(sim);

Backend *const backends[] = {
#ifdef HAVE_QEMU
	&qemu,
#endif
#ifdef HAVE_LIBVIRT
	&libvirt,
#endif
	&sim,
	NULL,
};

Backend *backend_find(const char *name)
{
	for (unsigned i = 0; backends[i]; i++)
		if (!strcmp(backends[i]->cls->name, name))
			return backends[i];
	return NULL;
}

static struct {
	unsigned left;
	void (*done)(void);
} probes;

static void one_less(void)
{
	if (--probes.left == 0)
		probes.done();
}

void backend_probed(Backend *be, bool usable, const char *why)
{
	be->usable = usable;
	if (why)
		g_string_append_printf(be->status, "missing %s\n", why);
	one_less();
}

void backends_probe(void (*done)(void))
{
	probes.done = done;
	/* One too many until all have begun: some answer at once. */
	probes.left = 1;
	for (unsigned i = 0; backends[i]; i++) {
		probes.left++;
		backends[i]->status = g_string_new(NULL);
		backends[i]->cls->probe(backends[i]);
	}
	one_less();
}

Backend *backend_for(const Spec *spec, GError **err)
{
	const bool elsewhere = spec->host && strcmp(spec->host, "local");
	Backend *be = NULL;

	if (spec->backend) {
		be = backend_find(spec->backend);
		if (be && be->usable)
			return be;
		(void)err_set(err, EOPNOTSUPP,
			      "backend '%s' is not usable here; see "
			      ".vmfs/backends/%s/status",
			      spec->backend, spec->backend);
		return NULL;
	}
	for (unsigned i = 0; backends[i]; i++)
		if (backends[i]->usable && !backends[i]->cls->hidden &&
		    (!elsewhere || backends[i]->cls->host_open))
			return backends[i];
	(void)err_set(err, EOPNOTSUPP,
		      "no backend is usable here; .vmfs/backends/*/status says what is "
		      "missing");
	return NULL;
}
