/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_self_test.h - what a partition must prove before it serves, and the canary that it proves it with later.
 *
 * Layer:   p11.
 * Threads: the session belongs to the calling thread; a finished canary is immutable.
 */
#ifndef XKS_P11_SELF_TEST_H
#define XKS_P11_SELF_TEST_H

#include "xks_p11_gcm.h"

#define XKS_CANARY_BYTES 16

/* A ciphertext under the health check key that is known to decrypt. */
typedef struct xks_p11_canary {
    CK_OBJECT_HANDLE key;
    uint8_t iv[16];
    uint8_t iv_len;
    uint8_t tag[16];
    uint8_t ciphertext[XKS_CANARY_BYTES];
} xks_p11_canary;

/* Encrypts twice and requires two IVs and two ciphertexts; decrypts and compares; tampers once and learns the code by which this
 * token says "wrong tag". XKS_FINAL when the token would reuse IVs or accepts a tampered ciphertext: it must not serve.
 * XKS_UNAVAILABLE when a call failed. */
XKS_MUST_CHECK xks_status xks_p11_self_test(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_scratch *scratch,
                                            xks_p11_canary *canary, CK_RV *tag_failure, char *error);

/* Encrypt the known text with gcm->key. */
XKS_MUST_CHECK CK_RV xks_p11_canary_make(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_canary *canary,
                                         xks_p11_failure *failure);

/* Whether gcm->key gives the canary when it encrypts the known text again: for a key that may not decrypt. Result in *same. */
XKS_MUST_CHECK CK_RV xks_p11_canary_repeat(const xks_p11_gcm *gcm, const xks_p11_canary *canary, bool *same, xks_p11_failure *failure);

/* Whether message-based calls do what the two-call ones do, both ways, and refuse a tampered tag. False: do not use them. */
bool xks_p11_message_self_test(const xks_p11_gcm *gcm, xks_random_pool *random, xks_p11_scratch *scratch);

/* Decrypt the canary: CKR_OK when the partition does cryptography. */
XKS_MUST_CHECK CK_RV xks_p11_canary_check(const xks_p11_gcm *gcm, xks_p11_scratch *scratch, const xks_p11_canary *canary,
                                          xks_p11_failure *failure);

#endif
