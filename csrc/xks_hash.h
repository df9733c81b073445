/* SPDX-License-Identifier: Apache-2.0 */
/* xks_hash.h - SHA-256 and HMAC-SHA-256 with precomputed key states.
 *
 * Layer:   primitive over libcrypto (its low-level SHA256_* functions: EVP costs more than the hash at our sizes).
 * Memory:  allocates nothing; states are plain values in the caller's storage.
 * Threads: pure functions of their arguments.
 * Source:  FIPS 180-4, RFC 2104.
 */
#ifndef XKS_HASH_H
#define XKS_HASH_H

#include <stddef.h>
#include <stdint.h>

#define XKS_SHA256_BYTES 32

/* A running SHA-256. Opaque; sized to hold libcrypto's SHA256_CTX (checked at compile time in xks_hash.c). */
typedef struct xks_sha256 {
    uint32_t opaque[28];
} xks_sha256;

void xks_sha256_init(xks_sha256 *hash);
void xks_sha256_update(xks_sha256 *hash, const void *data, size_t len);
void xks_sha256_final(xks_sha256 *hash, uint8_t digest[32]);
void xks_sha256_once(const void *data, size_t len, uint8_t digest[32]);

/* The two SHA-256 states after the padded key: a MAC under a known key then costs no key schedule. Only the chaining values are
 * kept: there is one of these for each day of each credential. Secret: wipe with xks_wipe(key, sizeof *key). */
typedef struct xks_hmac_key {
    uint32_t inner[8];
    uint32_t outer[8];
} xks_hmac_key;

void xks_hmac_key_init(xks_hmac_key *key, const uint8_t *secret, size_t secret_len);
void xks_hmac_once(const xks_hmac_key *key, const void *data, size_t len, uint8_t mac[32]);

#endif
