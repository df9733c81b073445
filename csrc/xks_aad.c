/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_aad.h"

#include "xks_hash.h"
#include <string.h>

xks_status xks_aad_compose(xks_span aad, xks_span metadata, uint8_t *out, size_t out_capacity, size_t *out_len)
{
    *out_len = 0;
    if (aad.len > XKS_MAX_AAD_BYTES || metadata.len > XKS_MAX_METADATA_BYTES) {
        return XKS_TOO_LONG;
    }
    size_t needed = XKS_AAD_OVERHEAD_BYTES + aad.len + metadata.len;
    if (out_capacity < needed) {
        return XKS_NO_SPACE;
    }
    xks_put_u16be(out, (uint16_t)aad.len);
    if (aad.len > 0 && aad.data != out + 2) {
        memmove(out + 2, aad.data, aad.len);
    }
    out[2 + aad.len] = (uint8_t)metadata.len;
    if (metadata.len > 0) {
        memcpy(out + XKS_AAD_OVERHEAD_BYTES + aad.len, metadata.data, metadata.len);
    }
    *out_len = needed;
    return XKS_OK;
}

xks_status xks_aad_compose_sample(xks_span aad, xks_span metadata, uint8_t *out, size_t out_capacity, size_t *out_len)
{
    uint8_t digest[XKS_SHA256_BYTES];
    size_t digest_len = aad.data == NULL ? 0 : sizeof digest;
    *out_len = 0;
    if (aad.len > XKS_MAX_AAD_BYTES || metadata.len > XKS_MAX_METADATA_BYTES) {
        return XKS_TOO_LONG;
    }
    size_t needed = XKS_AAD_OVERHEAD_BYTES + digest_len + metadata.len;
    if (out_capacity < needed) {
        return XKS_NO_SPACE;
    }
    xks_sha256_once(aad.data, aad.len, digest);
    xks_put_u16be(out, (uint16_t)aad.len);
    memcpy(out + 2, digest, digest_len);
    out[2 + digest_len] = (uint8_t)metadata.len;
    if (metadata.len > 0) {
        memcpy(out + XKS_AAD_OVERHEAD_BYTES + digest_len, metadata.data, metadata.len);
    }
    *out_len = needed;
    return XKS_OK;
}

void xks_cdiv(xks_span aad, xks_span metadata, xks_span iv, xks_span ciphertext, xks_span tag, uint8_t digest[32])
{
    xks_sha256 hash;
    xks_sha256_init(&hash);
    xks_sha256_update(&hash, aad.data, aad.len);
    xks_sha256_update(&hash, metadata.data, metadata.len);
    xks_sha256_update(&hash, iv.data, iv.len);
    xks_sha256_update(&hash, ciphertext.data, ciphertext.len);
    xks_sha256_update(&hash, tag.data, tag.len);
    xks_sha256_final(&hash, digest);
}
