/* SPDX-License-Identifier: Apache-2.0 */
/* xks_metadata.h - ciphertextMetadata: what we put there, and telling it from what others have put there.
 *
 * Layer:   protocol (may include primitives; never p11, never Python.h).
 * Layout:  u8 tag, always 0xA5 | u32be version of the HYOK key, from 1
 *          The tag begins no UTF-8 text, so that an operator's own words, which AWS's sample proxy sends here, are never taken for it.
 *          A change of the layout takes another tag, since ciphertexts live for ever.
 * Memory:  allocates nothing.
 * Threads: pure functions of their arguments.
 * Source:  XKS Proxy API spec v1.0.3, Encrypt, response field ciphertextMetadata: at most 20 bytes, returned unchanged on Decrypt.
 */
#ifndef XKS_METADATA_H
#define XKS_METADATA_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_METADATA_TAG 165
#define XKS_METADATA_BYTES 5

void xks_metadata_write(uint32_t version, uint8_t out[5]);

/* XKS_BAD_INPUT: it is not ours, in length, tag or a version of 0. Nothing but what _write has made is ours. */
XKS_MUST_CHECK xks_status xks_metadata_read(const uint8_t *metadata, size_t len, uint32_t *version);

#endif
