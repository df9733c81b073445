/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_aes_gcm.h"

#include <limits.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

/* One context for each direction, because libcrypto runs the key schedule again when a context changes its direction. Each takes some
 * thirty times the room of the key and is made with the first use: a worker may hold a hundred thousand keys, few of them in use. */
struct xks_aes_gcm_key {
    uint8_t bytes[XKS_AES256_KEY_BYTES];
    EVP_CIPHER_CTX *encrypting; /* NULL: not used yet */
    EVP_CIPHER_CTX *decrypting;
    uint8_t encrypting_iv_len; /* the IV length each context is set to */
    uint8_t decrypting_iv_len;
};

xks_status xks_aes_gcm_key_new(const uint8_t key[32], xks_aes_gcm_key **out)
{
    *out = calloc(1, sizeof **out);
    if (*out == NULL) {
        return XKS_SYSTEM;
    }
    memcpy((*out)->bytes, key, sizeof (*out)->bytes);
    return XKS_OK;
}

void xks_aes_gcm_key_free(xks_aes_gcm_key *key)
{
    if (key == NULL) {
        return;
    }
    EVP_CIPHER_CTX_free(key->encrypting); /* libcrypto wipes the key schedules */
    EVP_CIPHER_CTX_free(key->decrypting);
    xks_wipe(key, sizeof *key);
    free(key);
}

/* The context of one direction, made when there is none yet. */
static bool open_context(const xks_aes_gcm_key *key, int encrypts, EVP_CIPHER_CTX **context, uint8_t *iv_len)
{
    if (*context != NULL) {
        return true;
    }
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
    bool ok = cipher != NULL && made != NULL && EVP_CipherInit_ex2(made, cipher, key->bytes, NULL, encrypts, NULL) == 1;
    EVP_CIPHER_free(cipher); /* the context has a reference of its own */
    if (!ok) {
        EVP_CIPHER_CTX_free(made);
        return false;
    }
    *context = made;
    *iv_len = XKS_GCM_IV_BYTES;
    return true;
}

/* Set the IV, and its length only when it differs from the last one. */
static bool set_iv(EVP_CIPHER_CTX *context, uint8_t *iv_len, xks_span iv)
{
    if (*iv_len != iv.len) {
        if (EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_IVLEN, (int)iv.len, NULL) != 1) {
            return false;
        }
        *iv_len = (uint8_t)iv.len;
    }
    return EVP_CipherInit_ex2(context, NULL, NULL, iv.data, -1, NULL) == 1;
}

static bool iv_length_allowed(xks_span iv)
{
    return iv.len == XKS_GCM_IV_BYTES || iv.len == XKS_GCM_LONG_IV_BYTES;
}

xks_status xks_aes_gcm_encrypt(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span plaintext, uint8_t *ciphertext,
                               uint8_t tag[16])
{
    int written = 0;
    if (!iv_length_allowed(iv)) {
        return XKS_BAD_INPUT;
    }
    if (aad.len > INT_MAX || plaintext.len > INT_MAX) {
        return XKS_TOO_LONG;
    }
    if (!open_context(key, 1, &key->encrypting, &key->encrypting_iv_len) ||
        !set_iv(key->encrypting, &key->encrypting_iv_len, iv)) {
        return XKS_SYSTEM;
    }
    if (aad.len > 0 && EVP_EncryptUpdate(key->encrypting, NULL, &written, aad.data, (int)aad.len) != 1) {
        return XKS_SYSTEM;
    }
    if (plaintext.len > 0 &&
        EVP_EncryptUpdate(key->encrypting, ciphertext, &written, plaintext.data, (int)plaintext.len) != 1) {
        return XKS_SYSTEM;
    }
    if (EVP_EncryptFinal_ex(key->encrypting, tag, &written) != 1 ||
        EVP_CIPHER_CTX_ctrl(key->encrypting, EVP_CTRL_AEAD_GET_TAG, XKS_GCM_TAG_BYTES, tag) != 1) {
        return XKS_SYSTEM;
    }
    return XKS_OK;
}

xks_status xks_aes_gcm_decrypt(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span ciphertext, xks_span tag,
                               uint8_t *plaintext)
{
    xks_status status = XKS_SYSTEM;
    uint8_t unused[16];
    int written = 0;
    if (!iv_length_allowed(iv) || tag.len != XKS_GCM_TAG_BYTES) {
        return XKS_BAD_INPUT;
    }
    if (aad.len > INT_MAX || ciphertext.len > INT_MAX) {
        return XKS_TOO_LONG;
    }
    if (!open_context(key, 0, &key->decrypting, &key->decrypting_iv_len) ||
        !set_iv(key->decrypting, &key->decrypting_iv_len, iv) ||
        EVP_CIPHER_CTX_ctrl(key->decrypting, EVP_CTRL_AEAD_SET_TAG, XKS_GCM_TAG_BYTES, (void *)(uintptr_t)tag.data) != 1) {
        goto out;
    }
    if (aad.len > 0 && EVP_DecryptUpdate(key->decrypting, NULL, &written, aad.data, (int)aad.len) != 1) {
        goto out;
    }
    if (ciphertext.len > 0 &&
        EVP_DecryptUpdate(key->decrypting, plaintext, &written, ciphertext.data, (int)ciphertext.len) != 1) {
        goto out;
    }
    status = EVP_DecryptFinal_ex(key->decrypting, unused, &written) == 1 ? XKS_OK : XKS_NOT_AUTHENTIC;
out:
    if (status != XKS_OK) {
        xks_wipe(plaintext, ciphertext.len); /* GCM hands out plaintext before it has seen the tag */
    }
    return status;
}
