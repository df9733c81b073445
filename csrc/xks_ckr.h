/* SPDX-License-Identifier: Apache-2.0 */
/* xks_ckr.h - what a CK_RV means for us.
 *
 * Layer:   p11 (may include xks_pkcs11.h and primitives).
 * Threads: pure functions of their arguments.
 * Source:  PKCS#11 3.1; which vendor returns what was measured or read, see the classes below.
 */
#ifndef XKS_CKR_H
#define XKS_CKR_H

#include "xks_ckr_name.h"
#include "xks_pkcs11.h"

typedef enum xks_ckr_class {
    XKS_CKR_OK,
    XKS_CKR_BAD_CIPHERTEXT,  /* says plainly that the caller's ciphertext, tag, IV or AAD is wrong */
    XKS_CKR_AMBIGUOUS,       /* on decrypt some tokens mean a wrong tag by it (SoftHSM, nShield): a canary decides */
    XKS_CKR_NOT_PERMITTED,   /* the key's attributes forbid the operation */
    XKS_CKR_STALE_SESSION,   /* close the session, open another, try again */
    XKS_CKR_STALE_LOGIN,     /* log in again and find every handle anew, then try again */
    XKS_CKR_STALE_KEY,       /* find the key anew, then try again; the login may be stale too */
    XKS_CKR_MODULE_GONE,     /* the module is not initialised (any more): all its partitions are out */
    XKS_CKR_CONFIG,          /* the operator must mend it; trying again may lock the token */
    XKS_CKR_PARTITION_FAULT  /* the token or what leads to it failed */
} xks_ckr_class;

xks_ckr_class xks_ckr_classify(CK_RV rv);

#endif
