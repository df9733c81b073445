/* SPDX-License-Identifier: Apache-2.0 */
/* xks_seal.h - secrets at rest: AES-256-GCM under a master key or a data key.
 *
 * Layer:   crypto (over xks_aes_gcm, xks_secret, xks_subkey, xks_sigv4).
 * Layout:  format 1  "XKSL" | u8 1 | 12 bytes IV | 32 bytes ciphertext | 16 bytes tag            a key; encrypted under `key` itself
 *          format 2  "XKSL" | u8 2 | 12 bytes IV | n * 64 bytes ciphertext | 16 bytes tag        any secret; encrypted under the
 *                    subkey "seal" of `key`. Plaintext: u16be length | secret | zeros, so that the length of a PIN does not show.
 * AAD:     the five header bytes, then context: the name of what is sealed. What is moved to another name does not open.
 * Memory:  plaintexts are on the stack and wiped, or in an xks_secret.
 * Threads: pure functions of their arguments.
 */
#ifndef XKS_SEAL_H
#define XKS_SEAL_H

#include "xks_secret.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_SEALED_KEY_BYTES 65
#define XKS_SEAL_MAX_SECRET_BYTES 1024
#define XKS_SEAL_MAX_BYTES 1121

/* Format 1: a new random key, sealed. The master key must be 32 bytes, or 64 hexadecimal digits; else XKS_CONFIG. */
XKS_MUST_CHECK xks_status xks_seal_new_key(const xks_secret *master, const char *context, size_t context_len,
                                           uint8_t sealed[65]);
/* Opens a 32-byte key of either format into a slot. XKS_NOT_AUTHENTIC: other master key, other context, or edited bytes. */
XKS_MUST_CHECK xks_status xks_seal_open(const xks_secret *master, const char *context, size_t context_len,
                                        const uint8_t *sealed, size_t sealed_len, xks_secret_pages *pages, uint32_t slot);

/* The same for `count` keys at once, each into its slot; contexts and sealed texts stand one after the other.
 * results[i]: an xks_status. XKS_OK when all are; else the first that is not, and the others are opened all the same. */
XKS_MUST_CHECK xks_status xks_seal_open_all(const xks_secret *master, size_t count, const char *contexts,
                                            const uint32_t *context_lens, const uint8_t *sealed, const uint32_t *sealed_lens,
                                            xks_secret_pages *pages, const uint32_t *slots, uint8_t *results);

/* Format 2: a secret of 1 to XKS_SEAL_MAX_SECRET_BYTES bytes (longer: XKS_TOO_LONG) under a key of 32 bytes (else XKS_CONFIG). */
XKS_MUST_CHECK xks_status xks_seal_secret(const xks_secret *key, const char *context, size_t context_len, const xks_secret *secret,
                                          uint8_t sealed[1121], size_t *sealed_len);
/* Opens either format. */
XKS_MUST_CHECK xks_status xks_seal_open_secret(const xks_secret *key, const char *context, size_t context_len,
                                               const uint8_t *sealed, size_t sealed_len, xks_secret **out);

/* The same, for a secret access key whose text AWS must be given: it may be revealed once. */
XKS_MUST_CHECK xks_status xks_seal_open_text(const xks_secret *key, const char *context, size_t context_len, const uint8_t *sealed,
                                             size_t sealed_len, xks_secret **out);

/* From one key and name to another, as format 2: how secrets come under a new data key. */
XKS_MUST_CHECK xks_status xks_seal_move(const xks_secret *old_key, const char *old_context, size_t old_context_len,
                                        const uint8_t *old_sealed, size_t old_sealed_len, const xks_secret *new_key,
                                        const char *new_context, size_t new_context_len, uint8_t sealed[1121], size_t *sealed_len);

/* SigV4 signing keys of a sealed secret access key for day_count days ("YYYYMMDD" one after the other, 8 characters each), into
 * consecutive slots from first_slot. The secret itself is gone when this returns. */
XKS_MUST_CHECK xks_status xks_seal_derive_signing_keys(const xks_secret *key, const char *context, size_t context_len,
                                                       const uint8_t *sealed, size_t sealed_len, const char *days,
                                                       size_t day_count, const char *region, size_t region_len,
                                                       xks_secret_pages *pages, uint32_t first_slot);

#endif
