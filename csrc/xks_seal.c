/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_seal.h"

#include "xks_aes_gcm.h"
#include "xks_bytes.h"
#include "xks_hex.h"
#include <openssl/rand.h>
#include <string.h>

#define HEADER_BYTES 5
#define IV_AT HEADER_BYTES
#define CIPHERTEXT_AT (IV_AT + XKS_GCM_IV_BYTES)
#define TAG_AT (CIPHERTEXT_AT + XKS_AES256_KEY_BYTES)
#define MAX_CONTEXT_BYTES 1024

_Static_assert(TAG_AT + XKS_GCM_TAG_BYTES == XKS_SEALED_KEY_BYTES, "the layout of a sealed key");

static const uint8_t HEADER[HEADER_BYTES] = {'X', 'K', 'S', 'L', 1};

/* The master key from its 32 bytes or 64 hexadecimal digits. */
static xks_status master_key_new(const xks_secret *master, xks_aes_gcm_key **out)
{
    uint8_t key[XKS_AES256_KEY_BYTES];
    size_t len;
    const uint8_t *bytes = xks_secret_view(master, &len);
    xks_status status = XKS_CONFIG;
    *out = NULL;
    if (len == sizeof key) {
        status = xks_aes_gcm_key_new(bytes, out);
    } else if (len == 2 * sizeof key && xks_hex_decode((const char *)bytes, len, key) == XKS_OK) {
        status = xks_aes_gcm_key_new(key, out);
    }
    xks_wipe(key, sizeof key);
    return status;
}

static xks_status compose_context(const char *context, size_t context_len, uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES])
{
    if (context_len == 0 || context_len > MAX_CONTEXT_BYTES) {
        return XKS_BAD_INPUT;
    }
    memcpy(aad, HEADER, HEADER_BYTES);
    memcpy(aad + HEADER_BYTES, context, context_len);
    return XKS_OK;
}

xks_status xks_seal_new_key(const xks_secret *master, const char *context, size_t context_len, uint8_t sealed[65])
{
    uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES];
    uint8_t key[XKS_AES256_KEY_BYTES] = {0};
    xks_aes_gcm_key *sealing = NULL;
    xks_status status = compose_context(context, context_len, aad);
    if (status != XKS_OK) {
        return status;
    }
    status = master_key_new(master, &sealing);
    if (status != XKS_OK) {
        return status;
    }
    if (RAND_priv_bytes(key, sizeof key) != 1 || RAND_bytes(sealed + IV_AT, XKS_GCM_IV_BYTES) != 1) {
        status = XKS_SYSTEM;
        goto out;
    }
    memcpy(sealed, HEADER, HEADER_BYTES);
    status = xks_aes_gcm_encrypt(sealing, (xks_span){sealed + IV_AT, XKS_GCM_IV_BYTES}, (xks_span){aad, HEADER_BYTES + context_len},
                                 (xks_span){key, sizeof key}, sealed + CIPHERTEXT_AT, sealed + TAG_AT);
out:
    xks_wipe(key, sizeof key);
    xks_aes_gcm_key_free(sealing);
    return status;
}

xks_status xks_seal_open(const xks_secret *master, const char *context, size_t context_len, const uint8_t *sealed,
                         size_t sealed_len, xks_secret_pages *pages, uint32_t slot)
{
    uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES];
    uint8_t key[XKS_AES256_KEY_BYTES];
    xks_aes_gcm_key *sealing = NULL;
    if (sealed_len != XKS_SEALED_KEY_BYTES || memcmp(sealed, HEADER, HEADER_BYTES) != 0) {
        return XKS_BAD_INPUT;
    }
    xks_status status = compose_context(context, context_len, aad);
    if (status != XKS_OK) {
        return status;
    }
    status = master_key_new(master, &sealing);
    if (status != XKS_OK) {
        return status;
    }
    status = xks_aes_gcm_decrypt(sealing, (xks_span){sealed + IV_AT, XKS_GCM_IV_BYTES}, (xks_span){aad, HEADER_BYTES + context_len},
                                 (xks_span){sealed + CIPHERTEXT_AT, sizeof key}, (xks_span){sealed + TAG_AT, XKS_GCM_TAG_BYTES}, key);
    if (status == XKS_OK) {
        status = xks_secret_pages_write(pages, slot, key);
    }
    xks_wipe(key, sizeof key);
    xks_aes_gcm_key_free(sealing);
    return status;
}
