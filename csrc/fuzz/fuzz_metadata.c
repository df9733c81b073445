/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: what is read as our metadata is, byte for byte, what is written for that version; and the version is never 0. */
#include "xks_metadata.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t version;
    uint8_t written[XKS_METADATA_BYTES];
    if (xks_metadata_read(data, size, &version) != XKS_OK) {
        return 0;
    }
    xks_metadata_write(version, written);
    if (version == 0 || size != sizeof written || memcmp(written, data, size) != 0) {
        abort();
    }
    return 0;
}
