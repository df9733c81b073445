/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_login.h - one module, one token, one logged-in session: what every tool that is not the engine begins with.
 *
 * Layer:   p11.
 * Memory:  the login is the caller's storage and owns copies of the module's path and parameters.
 * Threads: one, and not while an engine of the same process uses the module.
 */
#ifndef XKS_P11_LOGIN_H
#define XKS_P11_LOGIN_H

#include "xks_p11_module.h"
#include "xks_p11_provision.h"
#include "xks_p11_quirks.h"
#include "xks_p11_token.h"
#include "xks_status.h"

typedef struct xks_p11_login {
    xks_p11_module module;
    const xks_p11_profile *profile;
    CK_SLOT_ID slot;
    xks_p11_token_info info;
    CK_SESSION_HANDLE session;
    bool open;
} xks_p11_login;

/* Load, find, open, and log in where target has a PIN. read_write: the session may make token objects.
 * Where the profile says that starting processes disturb each other (SoftHSM 2.6 may miss a token for as long as the module stays
 * initialised), a token that is not there is looked for again after C_Finalize and C_Initialize, for half a second.
 * On failure nothing stays open; error says what is wrong and what to do. */
XKS_MUST_CHECK xks_status xks_p11_login_open(const xks_provision_target *target, bool read_write, xks_p11_login *out, char *error);
void xks_p11_login_close(xks_p11_login *login);

#endif
