/* SPDX-License-Identifier: Apache-2.0 */
/* xks_aes_gcm.h - AES-256-GCM over libcrypto, key schedule kept from the first use on.
 *
 * Layer:   crypto (may include primitives; never p11, never Python.h).
 * Memory:  a key owns its bytes and its libcrypto contexts and wipes them; inputs are borrowed, outputs are the caller's.
 * Threads: one thread at a time per key (the context is reused).
 * Source:  NIST SP 800-38D. XKS allows IVs of 12 or 16 bytes and tags of 16 bytes only: everything else is refused here.
 */
#ifndef XKS_AES_GCM_H
#define XKS_AES_GCM_H

#include "xks_bytes.h"
#include "xks_secret.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_AES256_KEY_BYTES 32
#define XKS_GCM_IV_BYTES 12
#define XKS_GCM_LONG_IV_BYTES 16
#define XKS_GCM_TAG_BYTES 16

typedef struct xks_aes_gcm_key xks_aes_gcm_key;

XKS_MUST_CHECK xks_status xks_aes_gcm_key_new(const uint8_t key[32], xks_aes_gcm_key **out);
void xks_aes_gcm_key_free(xks_aes_gcm_key *key);

/* ciphertext has plaintext.len bytes and may be the plaintext's own memory. The caller answers for the IV never repeating.
 * XKS_BAD_INPUT for an IV that is not 12 or 16 bytes. */
XKS_MUST_CHECK xks_status xks_aes_gcm_encrypt(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span plaintext,
                                              uint8_t *ciphertext, uint8_t tag[16]);
/* XKS_NOT_AUTHENTIC: plaintext is wiped. XKS_BAD_INPUT for an IV that is not 12 or 16 bytes or a tag that is not 16. */
XKS_MUST_CHECK xks_status xks_aes_gcm_decrypt(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span ciphertext,
                                              xks_span tag, uint8_t *plaintext);

#endif
