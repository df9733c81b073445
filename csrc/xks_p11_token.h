/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_token.h - finding a token and logging in to it.
 *
 * Layer:   p11.
 * Threads: any; one login at a time is the caller's to see to.
 */
#ifndef XKS_P11_TOKEN_H
#define XKS_P11_TOKEN_H

#include "xks_p11_module.h"
#include "xks_p11_quirks.h"
#include "xks_secret.h"
#include "xks_status.h"
#include <stdbool.h>
#include <stdint.h>

/* Which token: exactly one of the three says it. Borrowed strings. */
typedef struct xks_p11_token_name {
    const char *label;
    const char *serial;
    uint64_t slot; /* UINT64_MAX: not used */
} xks_p11_token_name;

/* What C_GetTokenInfo says, padded fields trimmed. */
typedef struct xks_p11_token_info {
    char label[33];
    char manufacturer[33];
    char model[17];
    char serial[17];
    uint8_t firmware_major;
    uint8_t firmware_minor;
} xks_p11_token_info;

/* XKS_CONFIG: no such token, several, or one without AES-GCM; the text lists what there is. XKS_UNAVAILABLE: the module failed. */
XKS_MUST_CHECK xks_status xks_p11_token_find(const xks_p11_module *module, const xks_p11_token_name *name, CK_SLOT_ID *slot,
                                             xks_p11_token_info *info, char *error);

/* The same for a token that was found before, in the slot where it was: no other slot is asked, since another HSM of the same library may
 * not answer. serial: what it was, or NULL. *other: this slot has another token by now, or none. */
XKS_MUST_CHECK xks_status xks_p11_token_look(const xks_p11_module *module, const xks_p11_token_name *name, CK_SLOT_ID slot,
                                             const char *serial, xks_p11_token_info *info, bool *other, char *error);

/* Log the user in on an open session. Already logged in is success. A refused PIN is XKS_FINAL and is never tried again by us:
 * tokens lock after a few. */
XKS_MUST_CHECK xks_status xks_p11_token_login(const xks_p11_module *module, CK_SESSION_HANDLE session, const xks_secret *pin,
                                              const xks_p11_profile *profile, char *error);

#endif
