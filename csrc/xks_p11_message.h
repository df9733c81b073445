/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_message.h - AES-256-GCM by PKCS#11 3.0's message-based calls: one Init for many messages, one call for each.
 *
 * Layer:   p11.
 * Threads: a session and its state belong to the calling thread.
 * Rule:    an open message operation holds its session for one key and one direction, and leaving it costs a call. So it is opened when
 *          two jobs in a row want the same key and direction, and closed when another comes: with many keys in turn nothing is lost,
 *          with one key a job costs one call instead of two.
 */
#ifndef XKS_P11_MESSAGE_H
#define XKS_P11_MESSAGE_H

#include "xks_p11_module.h"
#include "xks_status.h"
#include <stdbool.h>

typedef enum xks_p11_direction { XKS_P11_NO_DIRECTION = 0, XKS_P11_ENCRYPTS = 1, XKS_P11_DECRYPTS = 2 } xks_p11_direction;

/* What a session is used for. Zeroed: nothing yet. */
typedef struct xks_p11_messages {
    xks_p11_direction open;     /* a message operation is open for open_key */
    CK_OBJECT_HANDLE open_key;
    xks_p11_direction last;     /* what the last call wanted */
    CK_OBJECT_HANDLE last_key;
} xks_p11_messages;

/* Make the session ready for one more call: *by_message says whether it is to be a message call. Opens or closes as the rule says. */
XKS_MUST_CHECK CK_RV xks_p11_message_ready(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_messages *messages,
                                           CK_OBJECT_HANDLE key, xks_p11_direction direction, bool *by_message);

/* End what is open, so that the session may be used by two-call operations. */
XKS_MUST_CHECK CK_RV xks_p11_message_close(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_messages *messages);

/* One message. iv_len bytes of IV are the caller's. *out_len is capacity in, length out; the tag is 16 bytes. */
XKS_MUST_CHECK CK_RV xks_p11_message_encrypt(const xks_p11_module *module, CK_SESSION_HANDLE session, const CK_GCM_PARAMS *params,
                                             const CK_BYTE *text, CK_ULONG len, CK_BYTE *out, CK_ULONG *out_len, CK_BYTE tag[16]);
XKS_MUST_CHECK CK_RV xks_p11_message_decrypt(const xks_p11_module *module, CK_SESSION_HANDLE session, const CK_GCM_PARAMS *params,
                                             const CK_BYTE *text, CK_ULONG len, CK_BYTE *out, CK_ULONG *out_len,
                                             const CK_BYTE tag[16]);

#endif
