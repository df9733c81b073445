/* SPDX-License-Identifier: Apache-2.0 */
/* xks_seal.h - 32-byte keys at rest: AES-256-GCM under the master key.
 *
 * Layer:   crypto (over xks_aes_gcm, xks_secret).
 * Layout:  "XKSL" | u8 format = 1 | 12 bytes IV | 32 bytes ciphertext | 16 bytes tag        65 bytes
 * AAD:     the five header bytes, then context: the name of what is sealed. A sealed key moved to another name does not open.
 * Threads: pure functions of their arguments.
 */
#ifndef XKS_SEAL_H
#define XKS_SEAL_H

#include "xks_secret.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_SEALED_KEY_BYTES 65

/* A new random key, sealed. The master key must be 32 bytes, or 64 hexadecimal digits; else XKS_CONFIG. */
XKS_MUST_CHECK xks_status xks_seal_new_key(const xks_secret *master, const char *context, size_t context_len,
                                           uint8_t sealed[65]);
/* Opens into a slot. XKS_NOT_AUTHENTIC: other master key, other context, or edited bytes. */
XKS_MUST_CHECK xks_status xks_seal_open(const xks_secret *master, const char *context, size_t context_len,
                                        const uint8_t *sealed, size_t sealed_len, xks_secret_pages *pages, uint32_t slot);

#endif
