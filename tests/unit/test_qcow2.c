/* SPDX-License-Identifier: Apache-2.0 */
/* qcow2: what is written is read again and is good to qemu-img; what is cut off is found out. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/qcow2.h"

#define KIB 1024ull
#define GIB (KIB * KIB * KIB)
#define TIB (KIB * GIB)

static int image(uint64_t size, const char *backing, const char *format)
{
	g_autoptr(GError) err = NULL;
	const int fd = memfd_create("qcow2", 0);

	g_assert_true(qcow2_write(fd, size, backing, format, &err));
	g_assert_no_error(err);
	return fd;
}

static void check_by_qemu(int fd)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/fd/%d", (int)getpid(), fd);
	const char *argv[] = { "qemu-img", "check", "-q", "-f", "qcow2", path, NULL };
	g_autoptr(GError) err = NULL;
	g_autofree char *out = NULL, *words = NULL;
	int status;

	if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &words,
			  &status, &err)) {
		g_test_skip("qemu-img is not installed");
		return;
	}
	g_test_message("%s%s", out, words);
	g_assert_true(g_spawn_check_wait_status(status, NULL));
}

static void test_written(void)
{
	static const uint64_t sizes[] = { 512,	    KIB * KIB, GIB / 2,		GIB / 2 + 512,
					  20 * GIB, TIB,       100 * TIB + 512, 1024 * TIB };
	g_autofree char *longest = g_strnfill(QCOW2_MAX_BACKING, 'x');
	const char *const backings[] = { NULL, "/srv/base.raw", longest };

	*longest = '/';
	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++)
		for (size_t j = 0; j < G_N_ELEMENTS(backings); j++) {
			const int fd = image(sizes[i], backings[j], "raw");
			g_autoptr(GError) err = NULL;
			Qcow2 q;

			g_assert_true(qcow2_read(fd, &q, &err));
			g_assert_no_error(err);
			g_assert_cmpuint(q.size, ==, sizes[i]);
			g_assert_cmpstr(q.backing, ==, backings[j] ? backings[j] : "");
			g_assert_cmpstr(q.backing_format, ==, backings[j] ? "raw" : "");
			g_assert_false(q.truncated);
			if (!backings[j])
				check_by_qemu(fd);
			close(fd);
		}
}

static void test_too_much(void)
{
	g_autofree char *longer = g_strnfill(QCOW2_MAX_BACKING + 1, 'x');
	g_autoptr(GError) err = NULL, err2 = NULL;
	const int fd = memfd_create("qcow2", 0);

	g_assert_false(qcow2_write(fd, GIB, longer, "raw", &err));
	g_assert_error(err, VMFS_ERROR, ENAMETOOLONG);
	g_assert_false(qcow2_write(fd, UINT64_MAX / 2, NULL, NULL, &err2));
	g_assert_error(err2, VMFS_ERROR, EFBIG);
	close(fd);
}

/* Cut off anywhere it is refused or found to be truncated. */
static void test_truncated(void)
{
	const int fd = image(20 * GIB, "/srv/base.qcow2", "qcow2");
	const off_t end = lseek(fd, 0, SEEK_END);

	for (off_t len = 3 * 65536; len >= 0; len -= len > 2000 ? 997 : 1) {
		g_autoptr(GError) err = NULL;
		Qcow2 q;

		g_assert_cmpint(len, <, end);
		g_assert_cmpint(ftruncate(fd, len), ==, 0);
		if (qcow2_read(fd, &q, &err))
			g_assert_true(q.truncated);
		else
			g_assert_true(err_code(err) == EINVAL);
	}
	close(fd);
}

/* One byte or number of the header after the other is something else. */
static void test_damaged(void)
{
	static const uint64_t values[] = { 0, 1, 0x7f, 0xff, 0xffff, UINT32_MAX, UINT64_MAX };

	for (unsigned at = 0; at < 160; at++)
		for (size_t i = 0; i < G_N_ELEMENTS(values); i++)
			for (size_t n = 1; n <= 8; n *= 2) {
				const int fd = image(GIB, "/srv/base.qcow2", "qcow2");
				g_autoptr(GError) err = NULL;
				Qcow2 q;

				g_assert_cmpint(pwrite(fd, &values[i], n, at), ==, (ssize_t)n);
				if (!qcow2_read(fd, &q, &err))
					g_assert_true(g_str_has_prefix(err->message, "it "));
				close(fd);
			}
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/qcow2/written", test_written);
	g_test_add_func("/qcow2/too-much", test_too_much);
	g_test_add_func("/qcow2/truncated", test_truncated);
	g_test_add_func("/qcow2/damaged", test_damaged);
	return g_test_run();
}
