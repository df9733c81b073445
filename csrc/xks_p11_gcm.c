/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_gcm.h"

#include <stdlib.h>
#include <string.h>

#define TAG_BYTES 16
#define IV_BYTES 12
#define LONG_IV_BYTES 16
#define OUT_ROOM 32

void xks_p11_scratch_free(xks_p11_scratch *scratch)
{
    xks_wipe(scratch->data, scratch->capacity);
    free(scratch->data);
    scratch->data = NULL;
    scratch->capacity = 0;
}

static CK_RV fail(xks_p11_failure *failure, CK_RV rv, const char *call)
{
    failure->rv = rv;
    failure->call = call;
    failure->broken = false;
    return rv;
}

/* The token said CKR_OK and did not do what it says: reported as a fault of the device. */
static CK_RV broken(xks_p11_failure *failure, const char *what)
{
    (void)fail(failure, CKR_DEVICE_ERROR, what);
    failure->broken = true;
    return CKR_DEVICE_ERROR;
}

static bool scratch_reserve(xks_p11_scratch *scratch, size_t needed)
{
    if (scratch->capacity >= needed) {
        return true;
    }
    uint8_t *data = malloc(needed);
    if (data == NULL) {
        return false;
    }
    xks_p11_scratch_free(scratch);
    scratch->data = data;
    scratch->capacity = needed;
    return true;
}

static size_t appended_iv_bytes(xks_iv_mode mode)
{
    return mode == XKS_IV_APPENDED_16 ? LONG_IV_BYTES : mode == XKS_IV_APPENDED_12 ? IV_BYTES : 0;
}

static bool is_zero(const uint8_t *data, size_t len)
{
    uint8_t any = 0;
    for (size_t i = 0; i < len; i++) {
        any |= data[i];
    }
    return any == 0;
}

/* ulIvBits is always set: with 0 NSS refuses, and a Luna encrypts what it then cannot decrypt. */
static CK_GCM_PARAMS parameters(const uint8_t *iv, size_t iv_len, xks_span aad)
{
    CK_GCM_PARAMS params = {
        .pIv = (CK_BYTE_PTR)(uintptr_t)iv,
        .ulIvLen = (CK_ULONG)iv_len,
        .ulIvBits = (CK_ULONG)iv_len * 8,
        .pAAD = (CK_BYTE_PTR)(uintptr_t)aad.data,
        .ulAADLen = (CK_ULONG)aad.len,
        .ulTagBits = TAG_BYTES * 8,
    };
    return params;
}

/* What the session's open message operation asks for before another call. */
static CK_RV make_ready(const xks_p11_gcm *gcm, xks_p11_direction direction, bool *by_message, xks_p11_failure *failure)
{
    *by_message = false;
    if (gcm->messages == NULL) {
        return CKR_OK;
    }
    CK_RV rv = xks_p11_message_ready(gcm->module, gcm->session, gcm->messages, gcm->key, direction, by_message);
    return rv == CKR_OK ? CKR_OK
                        : fail(failure, rv, direction == XKS_P11_ENCRYPTS ? "C_MessageEncryptInit" : "C_MessageDecryptInit");
}

static CK_RV decrypt_in_two_calls(const xks_p11_gcm *gcm, xks_p11_scratch *scratch, CK_GCM_PARAMS *params, xks_span ciphertext,
                                  xks_span tag, uint8_t *out, CK_ULONG *out_len, const char **call)
{
    CK_MECHANISM mechanism = {CKM_AES_GCM, params, sizeof *params};
    *call = "malloc";
    if (!scratch_reserve(scratch, ciphertext.len + TAG_BYTES)) {
        return CKR_HOST_MEMORY;
    }
    if (ciphertext.len > 0) {
        memcpy(scratch->data, ciphertext.data, ciphertext.len);
    }
    memcpy(scratch->data + ciphertext.len, tag.data, TAG_BYTES);
    *call = "C_DecryptInit";
    CK_RV rv = gcm->module->f->C_DecryptInit(gcm->session, &mechanism, gcm->key);
    if (rv != CKR_OK) {
        return rv;
    }
    *call = "C_Decrypt";
    return gcm->module->f->C_Decrypt(gcm->session, scratch->data, (CK_ULONG)(ciphertext.len + TAG_BYTES), out, out_len);
}

/* iv holds the caller's IV, or is where the HSM's goes. */
static CK_RV encrypt_under(const xks_p11_gcm *gcm, uint8_t iv[16], uint8_t iv_len, xks_span aad, xks_span plaintext, uint8_t *out,
                           uint8_t tag[16], xks_p11_failure *failure)
{
    size_t appended = appended_iv_bytes(gcm->iv_mode);
    CK_GCM_PARAMS params = parameters(appended != 0 ? NULL : iv, appended != 0 ? 0 : iv_len, aad);
    CK_MECHANISM mechanism = {CKM_AES_GCM, &params, sizeof params};
    CK_ULONG out_len = (CK_ULONG)(plaintext.len + OUT_ROOM);
    bool by_message;
    CK_RV rv = make_ready(gcm, XKS_P11_ENCRYPTS, &by_message, failure);
    if (rv != CKR_OK) {
        return rv;
    }
    if (by_message) {
        rv = xks_p11_message_encrypt(gcm->module, gcm->session, &params, plaintext.data, (CK_ULONG)plaintext.len, out, &out_len, tag);
        if (rv != CKR_OK) {
            return fail(failure, rv, "C_EncryptMessage");
        }
        return out_len == plaintext.len ? CKR_OK : broken(failure, "C_EncryptMessage returned a wrong length");
    }
    rv = gcm->module->f->C_EncryptInit(gcm->session, &mechanism, gcm->key);
    if (rv != CKR_OK) {
        return fail(failure, rv, "C_EncryptInit");
    }
    rv = gcm->module->f->C_Encrypt(gcm->session, (CK_BYTE_PTR)(uintptr_t)plaintext.data, (CK_ULONG)plaintext.len, out, &out_len);
    if (rv != CKR_OK) {
        return fail(failure, rv, "C_Encrypt");
    }
    if (out_len != plaintext.len + TAG_BYTES + appended) {
        return broken(failure, "C_Encrypt returned a wrong length");
    }
    memcpy(tag, out + plaintext.len, TAG_BYTES);
    if (appended != 0) {
        memcpy(iv, out + plaintext.len + TAG_BYTES, appended);
    }
    if (is_zero(iv, iv_len)) {
        return broken(failure, "C_Encrypt left the IV zero: everything would be encrypted with the same IV");
    }
    return CKR_OK;
}

CK_RV xks_p11_gcm_encrypt(const xks_p11_gcm *gcm, xks_random_pool *random, xks_span aad, xks_span plaintext, uint8_t *out,
                          uint8_t iv[16], uint8_t *iv_len, uint8_t tag[16], xks_p11_failure *failure)
{
    size_t appended = appended_iv_bytes(gcm->iv_mode);
    *iv_len = (uint8_t)(appended != 0 ? appended : IV_BYTES);
    memset(iv, 0, LONG_IV_BYTES);
    if (gcm->iv_mode == XKS_IV_CALLER && xks_random_draw(random, iv, IV_BYTES) != XKS_OK) {
        return fail(failure, CKR_FUNCTION_FAILED, "random IV");
    }
    return encrypt_under(gcm, iv, *iv_len, aad, plaintext, out, tag, failure);
}

CK_RV xks_p11_gcm_encrypt_again(const xks_p11_gcm *gcm, const uint8_t iv[16], uint8_t iv_len, xks_span aad, xks_span plaintext,
                                uint8_t *out, uint8_t tag[16], xks_p11_failure *failure)
{
    uint8_t copy[LONG_IV_BYTES];
    if (gcm->iv_mode != XKS_IV_CALLER || iv_len > sizeof copy) {
        return fail(failure, CKR_FUNCTION_NOT_SUPPORTED, "encrypting under a given IV");
    }
    memcpy(copy, iv, iv_len);
    return encrypt_under(gcm, copy, iv_len, aad, plaintext, out, tag, failure);
}

CK_RV xks_p11_gcm_decrypt(const xks_p11_gcm *gcm, xks_p11_scratch *scratch, xks_span iv, xks_span aad, xks_span ciphertext,
                          xks_span tag, uint8_t *out, xks_p11_failure *failure)
{
    CK_GCM_PARAMS params = parameters(iv.data, iv.len, aad);
    CK_ULONG out_len = (CK_ULONG)(ciphertext.len + OUT_ROOM);
    const char *call = "C_DecryptMessage";
    bool by_message;
    CK_RV rv = make_ready(gcm, XKS_P11_DECRYPTS, &by_message, failure);
    if (rv != CKR_OK) {
        return rv;
    }
    if (by_message) {
        rv = xks_p11_message_decrypt(gcm->module, gcm->session, &params, ciphertext.data, (CK_ULONG)ciphertext.len, out, &out_len,
                                     tag.data);
    } else {
        rv = decrypt_in_two_calls(gcm, scratch, &params, ciphertext, tag, out, &out_len, &call);
    }
    if (rv != CKR_OK || out_len != ciphertext.len) {
        xks_wipe(out, ciphertext.len + OUT_ROOM);
        return rv != CKR_OK ? fail(failure, rv, call) : broken(failure, "a decrypt returned a wrong length");
    }
    return CKR_OK;
}
