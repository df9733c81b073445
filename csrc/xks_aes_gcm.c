/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_aes_gcm.h"

#include <limits.h>
#include <openssl/evp.h>
#include <stdlib.h>

/* Two contexts, because libcrypto runs the key schedule again when a context changes its direction. */
struct xks_aes_gcm_key {
    EVP_CIPHER *cipher;
    EVP_CIPHER_CTX *encrypting;
    EVP_CIPHER_CTX *decrypting;
    size_t encrypting_iv_len; /* the IV length each context is set to */
    size_t decrypting_iv_len;
};

xks_status xks_aes_gcm_key_new(const uint8_t key[32], xks_aes_gcm_key **out)
{
    xks_aes_gcm_key *made = calloc(1, sizeof *made);
    *out = NULL;
    if (made == NULL) {
        return XKS_SYSTEM;
    }
    made->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    made->encrypting = EVP_CIPHER_CTX_new();
    made->decrypting = EVP_CIPHER_CTX_new();
    made->encrypting_iv_len = XKS_GCM_IV_BYTES;
    made->decrypting_iv_len = XKS_GCM_IV_BYTES;
    if (made->cipher == NULL || made->encrypting == NULL || made->decrypting == NULL ||
        EVP_EncryptInit_ex2(made->encrypting, made->cipher, key, NULL, NULL) != 1 ||
        EVP_DecryptInit_ex2(made->decrypting, made->cipher, key, NULL, NULL) != 1) {
        xks_aes_gcm_key_free(made);
        return XKS_SYSTEM;
    }
    *out = made;
    return XKS_OK;
}

void xks_aes_gcm_key_free(xks_aes_gcm_key *key)
{
    if (key == NULL) {
        return;
    }
    EVP_CIPHER_CTX_free(key->encrypting); /* libcrypto wipes the key schedules */
    EVP_CIPHER_CTX_free(key->decrypting);
    EVP_CIPHER_free(key->cipher);
    free(key);
}

/* Set the IV, and its length only when it differs from the last one. */
static bool set_iv(EVP_CIPHER_CTX *context, size_t *iv_len, xks_span iv)
{
    if (*iv_len != iv.len) {
        if (EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_IVLEN, (int)iv.len, NULL) != 1) {
            return false;
        }
        *iv_len = iv.len;
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
    if (!set_iv(key->encrypting, &key->encrypting_iv_len, iv)) {
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
    if (!set_iv(key->decrypting, &key->decrypting_iv_len, iv) ||
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
