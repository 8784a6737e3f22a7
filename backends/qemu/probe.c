/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What there is to run VMs with. A /dev/kvm that opens is no proof: under some nested hypervisors
 * it works so slowly that emulation is faster. So a small loop is timed, in a child process that
 * can be killed. Loop thread only, except for qemu_probe_kvm_main(), which is that child's main().
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifdef __x86_64__
#include <linux/kvm.h>
#endif

#include "backends/qemu/qemu.h"
#include "vmfs/err.h"

#define VERSION_TIMEOUT_MS 5000
#define KVM_TIMEOUT_MS	   1000
/* KVM takes less than 1 ms for the loop, and emulation not much more: beyond this it is useless. */
#define KVM_SLOW_MS 5.0
#define KVM_TURNS   65536

/* Filled in once, when the daemon starts; the one mutable thing that all VMs share. */
static QemuHost host;

const QemuHost *qemu_host(void)
{
	return &host;
}

/* ---- the child ---- */

#ifdef __x86_64__

#define GUEST_MEMORY (2u << 20)
#define GUEST_CODE   0x8000

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Identity-mapped pages and code: mov $KVM_TURNS,%rcx; 1: dec %rcx; jnz 1b; hlt */
static void fill_memory(uint8_t *m)
{
	static const uint8_t code[] = {
		0x48,
		0xb9,
		KVM_TURNS & 0xff,
		KVM_TURNS >> 8 & 0xff,
		KVM_TURNS >> 16 & 0xff,
		0,
		0,
		0,
		0,
		0,
		0x48,
		0xff,
		0xc9,
		0x75,
		0xfb,
		0xf4,
	};
	static const struct {
		uint32_t at;
		uint64_t entry;
	} tables[] = { { 0x1000, 0x2003 }, { 0x2000, 0x3003 }, { 0x3000, 0x83 } };

	for (size_t i = 0; i < G_N_ELEMENTS(tables); i++)
		memcpy(m + tables[i].at, &tables[i].entry, sizeof(tables[i].entry));
	memcpy(m + GUEST_CODE, code, sizeof(code));
}

/* 64-bit mode from the first instruction on: other modes may be run in other, faster ways. */
static bool enter_long_mode(int cpu)
{
	struct kvm_regs regs = { .rip = GUEST_CODE, .rflags = 2, .rsp = GUEST_CODE };
	struct kvm_segment code = {
		.limit = 0xffffffff,
		.selector = 8,
		.type = 11,
		.present = 1,
		.s = 1,
		.l = 1,
		.g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_sregs s;

	if (ioctl(cpu, KVM_GET_SREGS, &s))
		return false;
	data.type = 3;
	data.selector = 16;
	data.l = 0;
	data.db = 1;
	s.cr3 = 0x1000;
	s.cr4 = 1 << 5;						   /* PAE */
	s.cr0 = 1u << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1; /* PG WP NE ET MP PE */
	s.efer = 1 << 10 | 1 << 8;				   /* LMA LME */
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	return !ioctl(cpu, KVM_SET_SREGS, &s) && !ioctl(cpu, KVM_SET_REGS, &regs);
}

static bool run_loop(int kvm, double *ret_ms)
{
	const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	uint8_t *memory = mmap(NULL, GUEST_MEMORY, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct kvm_userspace_memory_region region = {
		.memory_size = GUEST_MEMORY,
		.userspace_addr = (uintptr_t)memory,
	};
	if (vm < 0 || memory == MAP_FAILED || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		return false;
	fill_memory(memory);
	const int cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	const int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (cpu < 0 || size < (int)sizeof(struct kvm_run) || !enter_long_mode(cpu))
		return false;
	const struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, cpu, 0);
	if (run == MAP_FAILED)
		return false;
	const double start = now_ms();
	while (ioctl(cpu, KVM_RUN, 0) < 0) {
		if (errno != EINTR)
			return false;
	}
	*ret_ms = now_ms() - start;
	return run->exit_reason == KVM_EXIT_HLT;
}

int qemu_probe_kvm_main(void)
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	double ms = 0;

	if (kvm < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
		printf("no /dev/kvm\n");
	else if (kvm < 0 && (errno == EACCES || errno == EPERM))
		printf("no permission to open /dev/kvm\n");
	else if (kvm < 0 || ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		printf("no use of /dev/kvm: %s\n", strerror(errno));
	else if (!run_loop(kvm, &ms))
		printf("no use of /dev/kvm: it cannot run a loop\n");
	else if (ms > KVM_SLOW_MS)
		printf("slow %.0f ms, not used\n", ms);
	else
		printf("works\n");
	return 0;
}

#else

int qemu_probe_kvm_main(void)
{
	printf("no x86-64 host\n");
	return 0;
}

#endif

/* ---- the daemon's side ---- */

static void find_uefi(void)
{
	static const struct {
		const char *code, *vars;
	} files[] = {
		{ "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd" },
		{ "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd" },
		{ "/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd" },
		{ "/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd" },
	};

	for (size_t i = 0; i < G_N_ELEMENTS(files) && !host.uefi_code; i++) {
		if (access(files[i].code, R_OK) || access(files[i].vars, R_OK))
			continue;
		host.uefi_code = files[i].code;
		host.uefi_vars = files[i].vars;
	}
}

/* It is no program of users: it is not in PATH. */
static char *find_virtiofsd(void)
{
	static const char path[] = "/usr/lib/qemu/virtiofsd";

	return access(path, X_OK) ? NULL : g_strdup(path);
}

static void finish(Backend *be)
{
	GString *s = be->status;

	g_string_append_printf(s, "kvm %s\n", host.kvm ? "works" : host.kvm_why);
	g_string_append_printf(s, "accel %s\n", host.kvm ? "kvm" : "tcg");
	g_string_append_printf(s, "img %s\n",
			       host.img ? host.img
					: "no qemu-img; on Debian: apt install "
					  "qemu-utils");
	g_string_append_printf(s, "uefi %s\n",
			       host.uefi_code ? host.uefi_code
					      : "no OVMF; on Debian: apt install "
						"ovmf");
	g_string_append_printf(s, "virtiofsd %s\n",
			       host.virtiofsd ? host.virtiofsd
					      : "no virtiofsd; on Debian: apt install "
						"qemu-system-common");
	backend_probed(be, true, NULL);
}

static void kvm_probed(void *arg, const GString *out, const GError *err)
{
	Backend *be = arg;
	g_autofree char *line = g_strndup(out->str, strcspn(out->str, "\n"));

	host.kvm = !err && !strcmp(line, "works");
	if (!host.kvm && err && err_code(err) == ETIMEDOUT)
		host.kvm_why = g_strdup_printf("slow, over %d ms, not used", KVM_TIMEOUT_MS);
	else if (!host.kvm && err)
		host.kvm_why = g_strdup_printf("not known: %s", err->message);
	else if (!host.kvm)
		host.kvm_why = *line ? g_utf8_make_valid(line, -1) : g_strdup("not known");
	finish(be);
}

/* "QEMU emulator version 7.2.22 (Debian ...)" */
static void version_probed(void *arg, const GString *out, const GError *err)
{
	static const char before[] = "QEMU emulator version ";
	Backend *be = arg;
	const char *version = strstr(out->str, before);
	char *argv[] = { (char *)"/proc/self/exe", (char *)"--probe-kvm", NULL };

	if (err || !version) {
		g_autofree char *why = g_strdup_printf("%s does not run: %s", host.binary,
						       err ? err->message : "it tells no version");
		backend_probed(be, false, why);
		return;
	}
	version += strlen(before);
	g_string_append_printf(be->status, "binary %s\nversion %.*s\n", host.binary,
			       (int)strcspn(version, " \n"), version);
	proc_run(argv, NULL, KVM_TIMEOUT_MS, kvm_probed, be);
}

void qemu_probe(Backend *be)
{
	char *argv[] = { NULL, (char *)"--version", NULL };

	host.binary = g_find_program_in_path("qemu-system-x86_64");
	host.img = g_find_program_in_path("qemu-img");
	host.virtiofsd = find_virtiofsd();
	find_uefi();
	if (!host.binary) {
		backend_probed(be, false,
			       "there is no qemu-system-x86_64 in PATH (on Debian: apt "
			       "install qemu-system-x86)");
		return;
	}
	argv[0] = host.binary;
	proc_run(argv, NULL, VERSION_TIMEOUT_MS, version_probed, be);
}
