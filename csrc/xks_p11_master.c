/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_master.h"

#include "xks_ckr.h"
#include "xks_p11_gcm.h"
#include "xks_p11_key.h"
#include "xks_p11_login.h"
#include <stdio.h>
#include <string.h>

#define DATA_KEY_BYTES XKS_SECRET_SLOT_BYTES
#define TAG_BYTES 16
#define SHORT_IV_BYTES 12
#define LONG_IV_BYTES 16
#define GCM_ROOM 32 /* what xks_p11_gcm asks for beyond the text */
#define HEADER_BYTES 5
#define MAX_CONTEXT_BYTES 256
#define SHOWN_CHARS 128

_Static_assert(LONG_IV_BYTES + DATA_KEY_BYTES + TAG_BYTES == XKS_WRAPPED_DATA_KEY_MAX_BYTES, "the layout of a wrapped data key");

static const uint8_t HEADER[HEADER_BYTES] = {'X', 'K', 'S', 'T', 1};

/* A logged-in session, the master key in it, and the AAD. */
typedef struct master {
    xks_p11_login login;
    xks_p11_gcm gcm;
    xks_random_pool random;
    xks_p11_scratch scratch;
    uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES];
    size_t aad_len;
} master;

static int shown(size_t label_len)
{
    return (int)(label_len < SHOWN_CHARS ? label_len : SHOWN_CHARS);
}

static xks_status find_key(master *m, const char *label, size_t label_len, char *error)
{
    xks_p11_key key;
    const char *problem = NULL;
    switch (xks_p11_key_find(&m->login.module, m->login.session, label, label_len, &key)) {
    case XKS_P11_KEY_FOUND:
        problem = key.can_encrypt && key.can_decrypt ? NULL : "may not both encrypt and decrypt: a master key does both";
        break;
    case XKS_P11_KEY_ABSENT:
        problem = "is not there: make it with CKA_ENCRYPT and CKA_DECRYPT, not extractable, and see that the HSM's backup holds it";
        break;
    case XKS_P11_KEY_AMBIGUOUS:
        problem = "is there several times: give each its own label";
        break;
    case XKS_P11_KEY_WRONG_TYPE:
        problem = "is not AES with 256 bits: choose another label";
        break;
    case XKS_P11_KEY_UNREADABLE:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_FindObjects: %s (0x%lx)", xks_ckr_name(key.rv), key.rv);
        return XKS_UNAVAILABLE;
    }
    if (problem != NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the master key '%.*s' on token '%s' %s", shown(label_len), label, m->login.info.label,
                 problem);
        return XKS_CONFIG;
    }
    m->gcm = (xks_p11_gcm){&m->login.module, m->login.session, key.use, m->login.profile->iv_mode, NULL};
    return XKS_OK;
}

static void master_close(master *m)
{
    xks_p11_scratch_free(&m->scratch);
    xks_random_pool_wipe(&m->random);
    xks_p11_login_close(&m->login);
}

static xks_status master_open(const xks_provision_target *target, const char *label, size_t label_len, const char *context,
                              size_t context_len, master *m, char *error)
{
    if (context_len == 0 || context_len > MAX_CONTEXT_BYTES) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "a context has 1 to %d bytes", MAX_CONTEXT_BYTES);
        return XKS_BAD_INPUT;
    }
    m->scratch = (xks_p11_scratch){NULL, 0};
    memcpy(m->aad, HEADER, HEADER_BYTES);
    memcpy(m->aad + HEADER_BYTES, context, context_len);
    m->aad_len = HEADER_BYTES + context_len;
    xks_status status = xks_p11_login_open(target, true, &m->login, error);
    if (status != XKS_OK) {
        return status;
    }
    xks_random_pool_init(&m->random);
    status = find_key(m, label, label_len, error);
    if (status != XKS_OK) {
        master_close(m);
    }
    return status;
}

static xks_status failed(const xks_p11_failure *failure, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s (0x%lx)", failure->call, xks_ckr_name(failure->rv), failure->rv);
    return xks_ckr_classify(failure->rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}

/* IV | ciphertext | tag of 32 bytes. */
static CK_RV wrap(master *m, const uint8_t data_key[DATA_KEY_BYTES], uint8_t wrapped[64], size_t *wrapped_len, xks_p11_failure *failure)
{
    uint8_t out[DATA_KEY_BYTES + GCM_ROOM], iv[LONG_IV_BYTES], tag[TAG_BYTES], iv_len = 0;
    CK_RV rv = xks_p11_gcm_encrypt(&m->gcm, &m->random, (xks_span){m->aad, m->aad_len}, (xks_span){data_key, DATA_KEY_BYTES}, out, iv,
                                   &iv_len, tag, failure);
    if (rv == CKR_OK) {
        memcpy(wrapped, iv, iv_len);
        memcpy(wrapped + iv_len, out, DATA_KEY_BYTES);
        memcpy(wrapped + iv_len + DATA_KEY_BYTES, tag, TAG_BYTES);
        *wrapped_len = (size_t)iv_len + DATA_KEY_BYTES + TAG_BYTES;
    }
    xks_wipe(out, sizeof out);
    return rv;
}

/* out: wiped by the caller. */
static CK_RV unwrap(master *m, const uint8_t *wrapped, size_t wrapped_len, uint8_t out[DATA_KEY_BYTES + GCM_ROOM],
                    xks_p11_failure *failure)
{
    size_t iv_len = wrapped_len - DATA_KEY_BYTES - TAG_BYTES;
    return xks_p11_gcm_decrypt(&m->gcm, &m->scratch, (xks_span){wrapped, iv_len}, (xks_span){m->aad, m->aad_len},
                               (xks_span){wrapped + iv_len, DATA_KEY_BYTES}, (xks_span){wrapped + iv_len + DATA_KEY_BYTES, TAG_BYTES},
                               out, failure);
}

/* Whether the token opens what it wraps itself, so that a failure before it was about the bytes. */
static bool works(master *m)
{
    static const uint8_t TEXT[DATA_KEY_BYTES] = {0};
    uint8_t wrapped[XKS_WRAPPED_DATA_KEY_MAX_BYTES], out[DATA_KEY_BYTES + GCM_ROOM];
    size_t wrapped_len;
    xks_p11_failure failure;
    return wrap(m, TEXT, wrapped, &wrapped_len, &failure) == CKR_OK && unwrap(m, wrapped, wrapped_len, out, &failure) == CKR_OK;
}

xks_status xks_master_wrap(const xks_provision_target *target, const char *label, size_t label_len, const char *context,
                           size_t context_len, const xks_secret_pages *pages, uint32_t slot, uint8_t wrapped[64], size_t *wrapped_len,
                           char *error)
{
    master m;
    xks_p11_failure failure;
    const uint8_t *data_key = xks_secret_pages_view(pages, slot);
    *wrapped_len = 0;
    if (data_key == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "there is no secret slot %u", slot);
        return XKS_BAD_INPUT;
    }
    xks_status status = master_open(target, label, label_len, context, context_len, &m, error);
    if (status != XKS_OK) {
        return status;
    }
    if (wrap(&m, data_key, wrapped, wrapped_len, &failure) != CKR_OK) {
        status = failed(&failure, error);
    }
    master_close(&m);
    return status;
}

xks_status xks_master_unwrap(const xks_provision_target *target, const char *label, size_t label_len, const char *context,
                             size_t context_len, const uint8_t *wrapped, size_t wrapped_len, xks_secret_pages *pages, uint32_t slot,
                             char *error)
{
    master m;
    uint8_t out[DATA_KEY_BYTES + GCM_ROOM];
    xks_p11_failure failure;
    if (wrapped_len != SHORT_IV_BYTES + DATA_KEY_BYTES + TAG_BYTES && wrapped_len != LONG_IV_BYTES + DATA_KEY_BYTES + TAG_BYTES) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "a data key wrapped in a token has 60 or 64 bytes, this one has %zu", wrapped_len);
        return XKS_BAD_INPUT;
    }
    xks_status status = master_open(target, label, label_len, context, context_len, &m, error);
    if (status != XKS_OK) {
        return status;
    }
    if (unwrap(&m, wrapped, wrapped_len, out, &failure) == CKR_OK) {
        status = xks_secret_pages_write(pages, slot, out);
        if (status != XKS_OK) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "secret slot %u cannot be written", slot);
        }
    } else {
        xks_ckr_class class = xks_ckr_classify(failure.rv);
        bool about_the_bytes = class == XKS_CKR_BAD_CIPHERTEXT || (class == XKS_CKR_AMBIGUOUS && works(&m));
        status = failed(&failure, error);
        if (!failure.broken && about_the_bytes) {
            snprintf(error, XKS_ERROR_TEXT_BYTES,
                     "the key '%.*s' on token '%s' does not open the data key (%s: %s): another key of this label wrapped it, or it was "
                     "changed",
                     shown(label_len), label, m.login.info.label, failure.call, xks_ckr_name(failure.rv));
            status = XKS_NOT_AUTHENTIC;
        }
    }
    xks_wipe(out, sizeof out);
    master_close(&m);
    return status;
}
