/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: a text that decodes encodes back to itself, byte for byte; any bytes encode and decode back to themselves. */
#include "xks_base64.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t capacity = xks_base64_decoded_max(size), len, back_len;
    uint8_t *decoded = malloc(capacity + 1), *back = malloc(size + 1);
    char *text = malloc(xks_base64_encoded_len(size) + 1);
    if (xks_base64_decode((const char *)data, size, decoded, capacity, &len) == XKS_OK) {
        xks_base64_encode(decoded, len, text);
        if (xks_base64_encoded_len(len) != size || memcmp(text, data, size) != 0) {
            abort();
        }
    }
    xks_base64_encode(data, size, text);
    if (xks_base64_decode(text, xks_base64_encoded_len(size), back, size, &back_len) != XKS_OK || back_len != size ||
        memcmp(back, data, size) != 0) {
        abort();
    }
    free(decoded);
    free(text);
    free(back);
    return 0;
}
