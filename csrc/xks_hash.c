/* SPDX-License-Identifier: Apache-2.0 */
/* The low-level functions are deprecated in OpenSSL 3 in favour of EVP, whose context handling costs more than hashing a
 * request does; they stay exported for the life of libcrypto.so.3. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "xks_hash.h"

#include "xks_bytes.h"
#include <openssl/sha.h>
#include <string.h>

_Static_assert(sizeof(SHA256_CTX) <= sizeof(xks_sha256), "xks_sha256 must hold libcrypto's SHA256_CTX");
_Static_assert(_Alignof(SHA256_CTX) <= _Alignof(xks_sha256), "xks_sha256 must be aligned as SHA256_CTX is");
_Static_assert(sizeof ((SHA256_CTX *)0)->h == sizeof ((xks_hmac_key *)0)->inner, "a chaining value has eight words of 32 bits");

#define BLOCK_BYTES 64

static SHA256_CTX *context(xks_sha256 *hash)
{
    return (SHA256_CTX *)(void *)hash->opaque;
}

void xks_sha256_init(xks_sha256 *hash)
{
    (void)SHA256_Init(context(hash));
}

void xks_sha256_update(xks_sha256 *hash, const void *data, size_t len)
{
    if (len > 0) {
        (void)SHA256_Update(context(hash), data, len);
    }
}

void xks_sha256_final(xks_sha256 *hash, uint8_t digest[32])
{
    (void)SHA256_Final(digest, context(hash));
}

void xks_sha256_once(const void *data, size_t len, uint8_t digest[32])
{
    xks_sha256 hash;
    xks_sha256_init(&hash);
    xks_sha256_update(&hash, data, len);
    xks_sha256_final(&hash, digest);
}

/* The chaining value after one block. */
static void absorb_block(const uint8_t block[BLOCK_BYTES], uint32_t state[8])
{
    xks_sha256 hash;
    xks_sha256_init(&hash);
    xks_sha256_update(&hash, block, BLOCK_BYTES);
    memcpy(state, context(&hash)->h, sizeof context(&hash)->h);
    xks_wipe(&hash, sizeof hash);
}

/* The hash as it was after that block. */
static void resume(xks_sha256 *hash, const uint32_t state[8])
{
    SHA256_CTX *resumed = context(hash);
    memcpy(resumed->h, state, sizeof resumed->h);
    resumed->Nl = BLOCK_BYTES * 8;
    resumed->Nh = 0;
    resumed->num = 0;
    resumed->md_len = XKS_SHA256_BYTES;
}

void xks_hmac_key_init(xks_hmac_key *key, const uint8_t *secret, size_t secret_len)
{
    uint8_t block[BLOCK_BYTES] = {0};
    if (secret_len > BLOCK_BYTES) {
        xks_sha256_once(secret, secret_len, block);
    } else if (secret_len > 0) {
        memcpy(block, secret, secret_len);
    }
    for (size_t i = 0; i < BLOCK_BYTES; i++) {
        block[i] ^= 0x36;
    }
    absorb_block(block, key->inner);
    for (size_t i = 0; i < BLOCK_BYTES; i++) {
        block[i] ^= 0x36 ^ 0x5C;
    }
    absorb_block(block, key->outer);
    xks_wipe(block, sizeof block);
}

void xks_hmac_once(const xks_hmac_key *key, const void *data, size_t len, uint8_t mac[32])
{
    uint8_t inner[XKS_SHA256_BYTES];
    xks_sha256 hash;
    resume(&hash, key->inner);
    xks_sha256_update(&hash, data, len);
    xks_sha256_final(&hash, inner);
    resume(&hash, key->outer);
    xks_sha256_update(&hash, inner, sizeof inner);
    xks_sha256_final(&hash, mac);
}
