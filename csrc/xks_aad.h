/* SPDX-License-Identifier: Apache-2.0 */
/* xks_aad.h - the additional authenticated data handed to the key manager, and the CDIV.
 *
 * Layer:   protocol (may include primitives; never p11, never Python.h).
 * Layout:  u16be aad_len | aad | u8 metadata_len | metadata
 * Memory:  allocates nothing; inputs are borrowed for the call, out is the caller's.
 * Threads: pure functions of their arguments.
 * Source:  XKS Proxy API spec v1.0.3, Encrypt, response field ciphertextMetadata; Appendix C.
 */
#ifndef XKS_AAD_H
#define XKS_AAD_H

#include "xks_bytes.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_AAD_OVERHEAD_BYTES 3
#define XKS_MAX_METADATA_BYTES 20
/* What two length bytes can say. The limit of the API is lower and stands with the codec. */
#define XKS_MAX_AAD_BYTES 65535
#define XKS_SAMPLE_DIGEST_BYTES 32

/* Writes 3 + aad.len + metadata.len bytes. XKS_TOO_LONG when a part is over its limit, XKS_NO_SPACE when out is too small.
 * aad.data may already stand at out + 2: then it is not moved. */
XKS_MUST_CHECK xks_status xks_aad_compose(xks_span aad, xks_span metadata, uint8_t *out, size_t out_capacity,
                                          size_t *out_len);

/* The same as AWS's sample proxy (aws-samples/aws-kms-xks-proxy) composes it, to decrypt what it has encrypted:
 *   u16be aad_len | SHA-256(aad), 32 bytes | u8 metadata_len | metadata
 * aad.data NULL: the request had no AAD, and the digest is left out; an empty AAD that is there has one. Otherwise as above, and out may
 * lie over aad. */
XKS_MUST_CHECK xks_status xks_aad_compose_sample(xks_span aad, xks_span metadata, uint8_t *out, size_t out_capacity,
                                                 size_t *out_len);

/* ciphertextDataIntegrityValue: SHA-256(aad | metadata | iv | ciphertext | tag), the request's own aad, no lengths. */
void xks_cdiv(xks_span aad, xks_span metadata, xks_span iv, xks_span ciphertext, xks_span tag, uint8_t digest[32]);

#endif
