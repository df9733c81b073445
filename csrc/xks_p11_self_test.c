/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_self_test.h"

#include "xks_ckr.h"
#include <stdio.h>
#include <string.h>

/* What goes wrong so often in a row is the token's way, and no passing fault. */
#define SAME_RESULTS 5

static const uint8_t TEXT[XKS_CANARY_BYTES] = {'x', 'k', 's', 'f', 'a', 's', 't', ' ', 's', 'e', 'l', 'f', 't', 'e', 's', 't'};
static const uint8_t AAD[3] = {0, 0, 0};

/* XKS_FINAL: the token must not be used. */
static xks_status refuse(const char *what, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES,
             "self-test: %s: the token is not used. Check the profile of the partition against the token's documentation", what);
    return XKS_FINAL;
}

static xks_status call_failed(const xks_p11_failure *failure, char *error)
{
    if (failure->broken) {
        (void)refuse(failure->call, error);
        return XKS_CONFIG; /* a wrong byte may be a passing fault */
    }
    snprintf(error, XKS_ERROR_TEXT_BYTES, "self-test: %s: %s (0x%lx)", failure->call, xks_ckr_name(failure->rv), failure->rv);
    return xks_ckr_classify(failure->rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}

CK_RV xks_p11_canary_make(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_canary *canary, xks_p11_failure *failure)
{
    uint8_t out[XKS_CANARY_BYTES + 32];
    CK_RV rv = xks_p11_gcm_encrypt(gcm, random, (xks_span){AAD, sizeof AAD}, (xks_span){TEXT, sizeof TEXT}, out, canary->iv,
                                   &canary->iv_len, canary->tag, failure);
    memcpy(canary->ciphertext, out, XKS_CANARY_BYTES);
    canary->key = gcm->key;
    return rv;
}

CK_RV xks_p11_canary_repeat(const xks_p11_gcm *gcm, const xks_p11_canary *canary, bool *same, xks_p11_failure *failure)
{
    uint8_t out[XKS_CANARY_BYTES + 32], tag[16];
    CK_RV rv = xks_p11_gcm_encrypt_again(gcm, canary->iv, canary->iv_len, (xks_span){AAD, sizeof AAD},
                                         (xks_span){TEXT, sizeof TEXT}, out, tag, failure);
    *same = rv == CKR_OK && memcmp(out, canary->ciphertext, XKS_CANARY_BYTES) == 0 && memcmp(tag, canary->tag, sizeof tag) == 0;
    return rv;
}

CK_RV xks_p11_canary_check(const xks_p11_gcm *gcm, xks_p11_scratch *scratch, const xks_p11_canary *canary,
                           xks_p11_failure *failure)
{
    uint8_t out[XKS_CANARY_BYTES + 32];
    xks_p11_gcm with_health_key = *gcm;
    with_health_key.key = canary->key;
    CK_RV rv = xks_p11_gcm_decrypt(&with_health_key, scratch, (xks_span){canary->iv, canary->iv_len}, (xks_span){AAD, sizeof AAD},
                                   (xks_span){canary->ciphertext, XKS_CANARY_BYTES}, (xks_span){canary->tag, 16}, out, failure);
    if (rv == CKR_OK && memcmp(out, TEXT, sizeof TEXT) != 0) {
        *failure = (xks_p11_failure){CKR_DEVICE_ERROR, "C_Decrypt returned wrong bytes", true};
        return CKR_DEVICE_ERROR;
    }
    return rv;
}

xks_status xks_p11_self_test(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_scratch *scratch, xks_p11_canary *canary,
                             CK_RV *tag_failure, char *error)
{
    xks_p11_failure failure;
    xks_p11_canary first;
    int tries = 1;
    while (xks_p11_canary_make(gcm, random, &first, &failure) != CKR_OK) {
        if (!failure.broken) {
            return call_failed(&failure, error);
        }
        if (tries++ == SAME_RESULTS) { /* an IV that stays zero, a length that stays wrong: it does not do what the profile says */
            return refuse(failure.call, error);
        }
    }
    if (xks_p11_canary_make(gcm, random, canary, &failure) != CKR_OK) {
        return call_failed(&failure, error);
    }
    if (first.iv_len == canary->iv_len && memcmp(first.iv, canary->iv, canary->iv_len) == 0) {
        return refuse("two encryptions had the same IV", error);
    }
    if (memcmp(first.ciphertext, canary->ciphertext, XKS_CANARY_BYTES) == 0) {
        return refuse("two encryptions with different IVs gave the same ciphertext", error);
    }
    if (xks_p11_canary_check(gcm, scratch, &first, &failure) != CKR_OK ||
        xks_p11_canary_check(gcm, scratch, canary, &failure) != CKR_OK) {
        return call_failed(&failure, error);
    }
    first.tag[0] ^= 1;
    *tag_failure = xks_p11_canary_check(gcm, scratch, &first, &failure);
    if (*tag_failure == CKR_OK) {
        return refuse("a ciphertext with a wrong tag was accepted", error);
    }
    return XKS_OK;
}

/* Two in a row, since the second is the one that goes by message. */
static CK_RV twice(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_scratch *scratch, const xks_p11_canary *check,
                   xks_p11_canary *made)
{
    xks_p11_failure failure;
    CK_RV rv = CKR_OK;
    for (int i = 0; i < 2; i++) {
        rv = check != NULL ? xks_p11_canary_check(gcm, scratch, check, &failure) : xks_p11_canary_make(gcm, random, made, &failure);
        if (rv != CKR_OK) {
            break;
        }
    }
    return rv;
}

bool xks_p11_message_self_test(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_scratch *scratch)
{
    xks_p11_messages messages = {0};
    xks_p11_gcm by_message = *gcm, by_calls = *gcm;
    xks_p11_canary sealed_by_calls, sealed_by_message;
    xks_p11_failure failure;
    by_message.messages = &messages;
    by_calls.messages = NULL;
    if (gcm->module->f3 == NULL || gcm->iv_mode != XKS_IV_CALLER ||
        xks_p11_canary_make(&by_calls, random, &sealed_by_calls, &failure) != CKR_OK) {
        return false;
    }
    bool ok = twice(&by_message, random, scratch, NULL, &sealed_by_message) == CKR_OK && messages.open == XKS_P11_ENCRYPTS &&
              twice(&by_message, random, scratch, &sealed_by_calls, NULL) == CKR_OK && messages.open == XKS_P11_DECRYPTS &&
              xks_p11_canary_check(&by_message, scratch, &sealed_by_message, &failure) == CKR_OK;
    if (!ok) {
        return false;
    }
    xks_p11_canary tampered = sealed_by_message;
    tampered.tag[15] ^= 1;
    ok = xks_p11_canary_check(&by_message, scratch, &tampered, &failure) != CKR_OK &&
         xks_p11_canary_check(&by_message, scratch, &sealed_by_message, &failure) == CKR_OK &&
         xks_p11_message_close(gcm->module, gcm->session, &messages) == CKR_OK;
    return ok && xks_p11_canary_check(&by_calls, scratch, &sealed_by_message, &failure) == CKR_OK;
}
