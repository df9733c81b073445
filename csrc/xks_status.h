/* SPDX-License-Identifier: Apache-2.0 */
/* xks_status.h - what a fallible function tells its caller.
 *
 * Layer:   primitive.
 * Source:  the classes are ours; each value names what the caller can do next.
 */
#ifndef XKS_STATUS_H
#define XKS_STATUS_H

#if defined(__GNUC__)
#define XKS_MUST_CHECK __attribute__((warn_unused_result))
#else
#define XKS_MUST_CHECK
#endif

typedef enum xks_status {
    XKS_OK = 0,
    XKS_BAD_INPUT = 1,     /* the bytes are malformed: refuse them, do not retry */
    XKS_TOO_LONG = 2,      /* over a limit: refuse */
    XKS_NO_SPACE = 3,      /* the output buffer is too small: a caller's bug or retry with more */
    XKS_NOT_AUTHENTIC = 4, /* signature or tag does not match: refuse, never say why to the peer */
    XKS_NOT_FOUND = 5,     /* no such key, slot, file */
    XKS_NOT_PERMITTED = 6, /* the key or token forbids this operation */
    XKS_TIMEOUT = 7,       /* the deadline passed before a result was there */
    XKS_BUSY = 8,          /* a bound is reached: shed the request */
    XKS_UNAVAILABLE = 9,   /* the token or device failed: another partition may serve */
    XKS_CONFIG = 10,       /* the operator must mend something: see the error text */
    XKS_SYSTEM = 11,       /* the operating system or libcrypto refused: see the error text */
    XKS_WANT_MORE = 12,    /* not an error: more input is needed */
    XKS_CLOSED = 13,       /* the peer closed in good order */
    XKS_BUG = 14,          /* an invariant of ours does not hold */
    XKS_FINAL = 15         /* the token refused the PIN, or must not be used at all: nobody may try again before an operator has acted */
} xks_status;

/* The largest error text any function here writes, with its NUL. Texts hold names, paths and codes, never secrets. */
#define XKS_ERROR_TEXT_BYTES 512

#endif
