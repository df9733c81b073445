/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: no bytes but those that we sealed open, and those open to what was sealed. */
#include "xks_seal.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int holds)
{
    if (!holds) {
        abort();
    }
}

/* data[0]: which byte of what is sealed is changed, and by what; the rest is the secret. */
static void seal_and_change(const xks_secret *key, const uint8_t *data, size_t size)
{
    uint8_t sealed[XKS_SEAL_MAX_BYTES];
    size_t sealed_len, len;
    xks_secret *secret, *opened;
    if (size < 4 || size - 3 > XKS_SEAL_MAX_SECRET_BYTES) {
        return;
    }
    must(xks_secret_from_bytes(data + 3, size - 3, &secret) == XKS_OK);
    must(xks_seal_secret(key, "name", 4, secret, sealed, &sealed_len) == XKS_OK);
    must(xks_seal_open_secret(key, "name", 4, sealed, sealed_len, &opened) == XKS_OK);
    must(memcmp(xks_secret_view(opened, &len), data + 3, size - 3) == 0 && len == size - 3);
    xks_secret_free(opened);
    sealed[((size_t)data[0] << 8 | data[1]) % sealed_len] ^= data[2];
    xks_status status = xks_seal_open_secret(key, "name", 4, sealed, sealed_len, &opened);
    must((status == XKS_OK) == (data[2] == 0));
    xks_secret_free(opened);
    xks_secret_free(secret);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    xks_secret *master, *opened;
    xks_secret_pages *pages;
    char error[XKS_ERROR_TEXT_BYTES];
    uint8_t key[32];
    memset(key, 7, sizeof key);
    must(xks_secret_from_bytes(key, sizeof key, &master) == XKS_OK);
    must(xks_secret_pages_new(1, &pages, error) == XKS_OK);
    must(xks_seal_open(master, "name", 4, data, size, pages, 0) != XKS_OK);
    must(xks_seal_open_secret(master, "name", 4, data, size, &opened) != XKS_OK && opened == NULL);
    seal_and_change(master, data, size);
    xks_secret_free(master);
    xks_secret_pages_free(pages, 1);
    return 0;
}
