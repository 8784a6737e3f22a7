/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's command line: $G_TEST_SRCDIR/data/qemu/NAME.yaml gives NAME.argv, one argument a line. The
 * first line of a document is `# accel: WORD`, what the probe would have found; `# virtiofsd`
 * that shares are served by that unless they say otherwise. After a wanted
 * change, run with VMFS_REGEN=1 and read the diff.
 */
#include <errno.h>
#include <string.h>

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

#define ACCEL	  "# accel: "
#define VIRTIOFSD "# virtiofsd"

static char *render(const char *yaml, const char *name)
{
	g_autoptr(GError) err = NULL;
	g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(Spec) spec = spec_parse(yaml, strlen(yaml), &err);
	const QemuHost host = { .kvm = true,
				.uefi_code = "/usr/share/OVMF/OVMF_CODE_4M.fd",
				.virtiofsd = (char *)"/usr/lib/qemu/virtiofsd" };
	GString *out = g_string_new(NULL);

	g_assert_no_error(err);
	g_assert_true(qemu_check(&host, spec, &err));
	g_assert_no_error(err);
	g_assert_true(g_str_has_prefix(yaml, ACCEL));
	const char *word = yaml + strlen(ACCEL);
	g_autofree char *accel = g_strndup(word, strcspn(word, "\n"));
	g_autoptr(GHashTable) slots = qemu_slots_new();
	const QemuArgs args = {
		.slots = slots,
		.spec = spec,
		.id = 0x1234,
		.name = name,
		.accel = accel,
		.run_dir = "/run/vmfs/7",
		.data_dir = "/var/lib/vmfs/vms/7/data",
		.binary = "/usr/bin/qemu-system-x86_64",
		.uefi_code = host.uefi_code,
		.virtiofs = strstr(yaml, VIRTIOFSD),
	};
	qemu_slots_fill(&args);
	qemu_argv(&args, argv);
	for (guint i = 0; i < argv->len; i++)
		g_string_append_printf(out, "%s\n", (char *)argv->pdata[i]);
	return g_string_free(out, FALSE);
}

static void test_golden(const void *data)
{
	const char *path = data;
	g_autofree char *yaml = NULL, *want = NULL;
	g_autofree char *stem = g_strndup(path, strlen(path) - strlen(".yaml"));
	g_autofree char *name = g_path_get_basename(stem);
	g_autofree char *golden = g_strconcat(stem, ".argv", NULL);

	g_assert_true(g_file_get_contents(path, &yaml, NULL, NULL));
	g_autofree char *got = render(yaml, name);
	if (g_getenv("VMFS_REGEN"))
		g_assert_true(g_file_set_contents(golden, got, -1, NULL));
	g_assert_true(g_file_get_contents(golden, &want, NULL, NULL));
	g_assert_cmpstr(got, ==, want);
}

/* What is refused before anything is started. */
static void test_check(void)
{
	static const struct {
		const char *yaml, *sentence;
		int code;
	} rows[] = {
		{ "", "nothing to boot", EINVAL },
		{ "{cpus: 300, boot: {kernel: /k}}", "cpus: ", EOPNOTSUPP },
		{ "{accel: kvm, boot: {kernel: /k}}", "accel: kvm is not usable here: slow",
		  EOPNOTSUPP },
		{ "{boot: {kernel: /k}, shares: {a: {path: /a, type: virtiofs}}}",
		  "apt install qemu-system-common", EOPNOTSUPP },
		{ "{firmware: uefi, boot: {kernel: /k}}", "apt install ovmf", EOPNOTSUPP },
	};
	const QemuHost host = { .kvm_why = (char *)"slow 75 ms, not used" };

	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		g_autoptr(GError) err = NULL;
		g_autoptr(Spec) spec = spec_parse(rows[i].yaml, strlen(rows[i].yaml), &err);
		g_assert_no_error(err);
		g_assert_false(qemu_check(&host, spec, &err));
		g_assert_error(err, VMFS_ERROR, rows[i].code);
		g_assert_nonnull(strstr(err->message, rows[i].sentence));
	}
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	const char *src = g_getenv("G_TEST_SRCDIR");
	g_autofree char *dir = g_build_filename(src ? src : "tests", "data", "qemu", NULL);
	GDir *d = g_dir_open(dir, 0, NULL);
	g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
	const char *file;

	g_assert_nonnull(d);
	while ((file = g_dir_read_name(d))) {
		if (!g_str_has_suffix(file, ".yaml"))
			continue;
		char *path = g_build_filename(dir, file, NULL);
		g_autofree char *test = g_strconcat("/qemu/argv/", file, NULL);
		g_ptr_array_add(paths, path);
		g_test_add_data_func(test, path, test_golden);
	}
	g_dir_close(d);
	g_test_add_func("/qemu/check", test_check);
	return g_test_run();
}
