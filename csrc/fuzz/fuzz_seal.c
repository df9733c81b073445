/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: no bytes but those that we sealed open. */
#include "xks_seal.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    xks_secret *master;
    xks_secret_pages *pages;
    char error[XKS_ERROR_TEXT_BYTES];
    uint8_t key[32];
    memset(key, 7, sizeof key);
    if (xks_secret_from_bytes(key, sizeof key, &master) != XKS_OK || xks_secret_pages_new(1, &pages, error) != XKS_OK ||
        xks_seal_open(master, "name", 4, data, size, pages, 0) == XKS_OK) {
        abort();
    }
    xks_secret_free(master);
    xks_secret_pages_free(pages, 1);
    return 0;
}
