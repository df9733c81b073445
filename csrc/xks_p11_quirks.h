/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_quirks.h - what differs from vendor to vendor, as data.
 *
 * Layer:   p11.
 * Threads: static data.
 * What a profile claims is tried by the self-test at start; a token that behaves otherwise is refused.
 */
#ifndef XKS_P11_QUIRKS_H
#define XKS_P11_QUIRKS_H

#include <stdbool.h>
#include <stddef.h>

typedef enum xks_iv_mode {
    XKS_IV_CALLER,            /* we draw a random 12-byte IV */
    XKS_IV_RETURNED_IN_PARAM, /* we pass 12 zero bytes, the HSM writes its IV over them */
    XKS_IV_APPENDED_16,       /* we pass none, the HSM appends 16 bytes behind ciphertext and tag */
    XKS_IV_APPENDED_12
} xks_iv_mode;

typedef struct xks_p11_profile {
    const char *name;
    xks_iv_mode iv_mode;
    bool session_copy;        /* work with a session-object copy of each key: pays where a token object costs file or database
                                 access per operation, and is never tried on HSM hardware unasked */
    bool start_up_login_race; /* C_Login may fail with CKR_USER_PIN_NOT_INITIALIZED while another process starts (SoftHSM 2.6) */
} xks_p11_profile;

/* NULL when there is no profile of that name. */
const xks_p11_profile *xks_p11_profile_find(const char *name);

/* "caller", "returned_in_param", "appended_16", "appended_12". */
const char *xks_iv_mode_name(xks_iv_mode mode);

#endif
