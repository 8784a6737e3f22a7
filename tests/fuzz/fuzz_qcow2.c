/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a qcow2 image that somebody wants to use. Seeds: tests/data/qcow2. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/qcow2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	g_autoptr(GError) err = NULL;
	Qcow2 q;

	if (fd < 0)
		fd = memfd_create("fuzz", 0);
	if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size)
		abort();
	if (qcow2_read(fd, &q, &err)) {
		if (q.size > INT64_MAX || strlen(q.backing) > QCOW2_MAX_BACKING ||
		    !g_utf8_validate(q.backing, -1, NULL) || err)
			abort();
	} else if (!err || strlen(err->message) > 200) {
		abort();
	}
	return 0;
}
