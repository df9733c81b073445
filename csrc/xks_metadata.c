/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_metadata.h"

void xks_metadata_write(uint32_t version, uint8_t out[5])
{
    out[0] = XKS_METADATA_TAG;
    for (unsigned i = 0; i < 4; i++) {
        out[1 + i] = (uint8_t)(version >> (24 - 8 * i));
    }
}

xks_status xks_metadata_read(const uint8_t *metadata, size_t len, uint32_t *version)
{
    *version = 0;
    if (len != XKS_METADATA_BYTES || metadata[0] != XKS_METADATA_TAG) {
        return XKS_BAD_INPUT;
    }
    for (unsigned i = 0; i < 4; i++) {
        *version = *version << 8 | metadata[1 + i];
    }
    return *version > 0 ? XKS_OK : XKS_BAD_INPUT;
}
