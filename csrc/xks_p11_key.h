/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_key.h - finding one AES key by its label, checking it, and copying it into the session.
 *
 * Layer:   p11.
 * Threads: the session belongs to the calling thread.
 */
#ifndef XKS_P11_KEY_H
#define XKS_P11_KEY_H

#include "xks_p11_module.h"
#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>

typedef enum xks_p11_key_verdict {
    XKS_P11_KEY_FOUND,
    XKS_P11_KEY_ABSENT,
    XKS_P11_KEY_AMBIGUOUS,
    XKS_P11_KEY_WRONG_TYPE,
    XKS_P11_KEY_UNREADABLE /* a call failed: rv says how */
} xks_p11_key_verdict;

typedef struct xks_p11_key {
    CK_OBJECT_HANDLE source; /* the token object */
    CK_OBJECT_HANDLE use;    /* what operations use: the session copy where there is one, else the source */
    bool copied;
    bool can_encrypt;
    bool can_decrypt;
    bool extractable;
    CK_RV rv;                /* of the call that failed, for XKS_P11_KEY_UNREADABLE */
} xks_p11_key;

/* Look for the one secret key of this label on the token; it must be AES with 256 bits. */
xks_p11_key_verdict xks_p11_key_find(const xks_p11_module *module, CK_SESSION_HANDLE session, const char *label, size_t label_len,
                                     xks_p11_key *key);

/* One secret key by its handle, with its label; *label_len is 0 when it has none or a longer one than capacity. */
xks_p11_key_verdict xks_p11_key_read(const xks_p11_module *module, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, char *label,
                                     size_t capacity, size_t *label_len, xks_p11_key *key);

/* Make operations use a session-object copy, which the session holds: a token that answers from files or a database then works from
 * memory. The copy keeps every attribute; one that would not is destroyed and the token object stays in use. */
void xks_p11_key_copy(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_key *key);

/* Whether the token object is still there with this label and the same rights; XKS_P11_KEY_ABSENT when it is not. */
xks_p11_key_verdict xks_p11_key_still_there(const xks_p11_module *module, CK_SESSION_HANDLE session, const char *label,
                                            size_t label_len, xks_p11_key *key);

/* Destroy the copy, if there is one. */
void xks_p11_key_drop(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_key *key);

#endif
