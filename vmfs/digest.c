/* SPDX-License-Identifier: Apache-2.0 */
#include "vmfs/digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <unistd.h>

#include "vmfs/err.h"
#include "vmfs/grow.h"

#define CHUNK (1u << 20)

struct Digest {
	int fd;
	DigestGoOn go_on;
	void *arg;
	EVP_MD_CTX *md;
	unsigned char *buf;
	uint64_t size;
	bool ok;
};

Digest *digest_new(int fd, DigestGoOn go_on, void *arg)
{
	Digest *d = g_new0(Digest, 1);

	d->fd = fd;
	d->go_on = go_on;
	d->arg = arg;
	d->md = EVP_MD_CTX_new();
	d->buf = g_malloc(CHUNK);
	d->ok = d->md && EVP_DigestInit_ex(d->md, EVP_sha256(), NULL);
	return d;
}

void digest_free(Digest *d)
{
	EVP_MD_CTX_free(d->md);
	g_free(d->buf);
	g_free(d);
}

static bool read_all(Digest *d, GError **err)
{
	ssize_t n = 0;

	while (d->ok && (n = read(d->fd, d->buf, CHUNK)) > 0) {
		d->size += (uint64_t)n;
		d->ok = EVP_DigestUpdate(d->md, d->buf, (size_t)n);
		if (!d->go_on(d->arg, err))
			return false;
	}
	if (n < 0)
		return err_set(err, errno, "%s", g_strerror(errno));
	return d->ok || err_set(err, EIO, "its checksum cannot be made");
}

static bool read_more(void *arg)
{
	return read_all(arg, NULL);
}

void digest_follow(Digest *d, int stop)
{
	grow_follow(d->fd, stop, read_more, d);
}

bool digest_end(Digest *d, char sha256[DIGEST_HEX + 1], uint64_t *size, GError **err)
{
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned len = 0;

	if (!read_all(d, err))
		return false;
	if (!EVP_DigestFinal_ex(d->md, sum, &len) || len != DIGEST_HEX / 2)
		return err_set(err, EIO, "its checksum cannot be made");
	for (unsigned i = 0; i < len; i++)
		g_snprintf(sha256 + 2 * (size_t)i, 3, "%02x", sum[i]);
	*size = d->size;
	return true;
}
