/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_gcm.h - AES-256-GCM in a token: one call, every IV mode, no length query.
 *
 * Layer:   p11.
 * Memory:  scratch is the caller's and kept from call to call; it holds plaintext between calls only wiped.
 * Threads: session and scratch belong to the calling thread.
 * Lengths that a token returns are checked, never trusted: NSS reports a wrong one when asked, SoftHSM wants room for the tag on
 * decrypt as well.
 */
#ifndef XKS_P11_GCM_H
#define XKS_P11_GCM_H

#include "xks_bytes.h"
#include "xks_p11_message.h"
#include "xks_p11_module.h"
#include "xks_p11_quirks.h"
#include "xks_random.h"
#include "xks_status.h"

typedef struct xks_p11_scratch {
    uint8_t *data;
    size_t capacity;
} xks_p11_scratch;

void xks_p11_scratch_free(xks_p11_scratch *scratch);

/* Where a call that failed says so. call: the function's name, or what of its result was wrong: then `broken` is set, since the call
 * itself succeeded and no later one would do better. */
typedef struct xks_p11_failure {
    CK_RV rv;
    const char *call;
    bool broken;
} xks_p11_failure;

/* Where to encrypt: a session, a key in it, and how the token makes IVs. */
typedef struct xks_p11_gcm {
    const xks_p11_module *module;
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE key;
    xks_iv_mode iv_mode;
    xks_p11_messages *messages; /* the session's state of message-based calls; NULL: they are not used */
} xks_p11_gcm;

/* out has plaintext.len + 32 bytes; the first plaintext.len are the ciphertext afterwards.
 * CKR_OK, or the token's code in failure. A token that returns another length or a zero IV gives CKR_DEVICE_ERROR. */
XKS_MUST_CHECK CK_RV xks_p11_gcm_encrypt(const xks_p11_gcm *gcm, xks_random_pool *random, xks_span aad, xks_span plaintext,
                                         uint8_t *out, uint8_t iv[16], uint8_t *iv_len, uint8_t tag[16],
                                         xks_p11_failure *failure);

/* The same plaintext and AAD under the IV that they were encrypted under before, for comparing: it gives nothing away. Anything else
 * under that IV would. CKR_FUNCTION_NOT_SUPPORTED where the HSM makes the IVs. */
XKS_MUST_CHECK CK_RV xks_p11_gcm_encrypt_again(const xks_p11_gcm *gcm, const uint8_t iv[16], uint8_t iv_len, xks_span aad,
                                               xks_span plaintext, uint8_t *out, uint8_t tag[16], xks_p11_failure *failure);

/* out has ciphertext.len + 32 bytes. */
XKS_MUST_CHECK CK_RV xks_p11_gcm_decrypt(const xks_p11_gcm *gcm, xks_p11_scratch *scratch, xks_span iv, xks_span aad,
                                         xks_span ciphertext, xks_span tag, uint8_t *out, xks_p11_failure *failure);

#endif
