/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: any bytes are scanned without reading outside them; what passes still passes inside an array, up to the depth. */
#include "xks_json.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 2), *exact = malloc(size + 1);
    text[0] = '[';
    memcpy(text + 1, data, size);
    memcpy(exact, data, size);
    text[size + 1] = ']';
    xks_status alone = xks_json_check_members(exact, size), inside = xks_json_check_members(text, size + 2);
    if (alone == XKS_OK && inside != XKS_OK && inside != XKS_TOO_LONG) {
        abort();
    }
    free(text);
    free(exact);
    return 0;
}
