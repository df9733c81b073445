/* SPDX-License-Identifier: Apache-2.0 */
/* xks_sigv4.h - verification of AWS Signature Version 4 as KMS signs XKS requests.
 *
 * Layer:   protocol (may include primitives; never p11, never Python.h).
 * Memory:  _verify allocates nothing. A keyring owns its precomputed HMAC states and wipes them.
 * Threads: one thread changes a keyring and verifies with it. While nobody changes it, _verify may run on any thread.
 * Source:  XKS Proxy API spec v1.0.3, Authentication and Appendix A; AWS Signature Version 4.
 *
 * A keyring holds, for one key store, every valid credential with its *derived* signing key for each UTC day that it
 * covers; credentials and days come and go while it is in use. The secrets themselves are not here: xks_sigv4_derive runs in the control process.
 */
#ifndef XKS_SIGV4_H
#define XKS_SIGV4_H

#include "xks_bytes.h"
#include "xks_secret.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_SIGV4_MAX_HEADERS 32
#define XKS_SIGV4_MAX_CREDENTIALS 20
#define XKS_SIGV4_MAX_DAYS 4
#define XKS_SIGV4_MAX_SKEW_S 300

/* Why a request was refused: for the log. The peer is told no more than AuthenticationFailedException. */
typedef enum xks_sigv4_reason {
    XKS_SIGV4_ACCEPTED = 0,
    XKS_SIGV4_NO_AUTHORIZATION = 1,
    XKS_SIGV4_MALFORMED_AUTHORIZATION = 2,
    XKS_SIGV4_WRONG_ALGORITHM = 3,
    XKS_SIGV4_NO_DATE = 4,
    XKS_SIGV4_MALFORMED_DATE = 5,
    XKS_SIGV4_CLOCK_SKEW = 6,
    XKS_SIGV4_SCOPE_DATE = 7,
    XKS_SIGV4_SCOPE_REGION = 8,
    XKS_SIGV4_SCOPE_SERVICE = 9,
    XKS_SIGV4_SCOPE_TERMINATOR = 10,
    XKS_SIGV4_HEADER_NOT_SIGNED = 11,   /* host and x-amz-date must be in SignedHeaders */
    XKS_SIGV4_SIGNED_HEADER_ABSENT = 12, /* SignedHeaders names one that was not sent */
    XKS_SIGV4_UNKNOWN_ACCESS_KEY_ID = 13,
    XKS_SIGV4_NO_KEY_FOR_DAY = 14,
    XKS_SIGV4_WRONG_SIGNATURE = 15,
    XKS_SIGV4_DUPLICATE_HEADER = 16      /* two Authorization or two X-Amz-Date headers */
} xks_sigv4_reason;

typedef struct xks_header {
    xks_span name; /* as received, any case */
    xks_span value; /* without the line's leading and trailing white space */
} xks_header;

typedef struct xks_sigv4_request {
    xks_span method;
    xks_span path; /* as received: signed as it stands, since XKS paths need no escape */
    const xks_header *headers; /* in the order received */
    size_t header_count; /* <= XKS_SIGV4_MAX_HEADERS, else XKS_TOO_LONG */
    xks_span body;
} xks_sigv4_request;

typedef struct xks_sigv4_keyring xks_sigv4_keyring;

/* An empty keyring for one region (1..32 of a-z 0-9 -). It also draws the key against which an unknown access key id is checked. */
XKS_MUST_CHECK xks_status xks_sigv4_keyring_new(const char *region, size_t region_len, xks_sigv4_keyring **out);
void xks_sigv4_keyring_free(xks_sigv4_keyring *keyring);

/* Puts in the signing key of `slot` for one access key id (16..128 of A-Z a-z 0-9) and one day "YYYYMMDD", in place of the one that
 * is there. XKS_TOO_LONG over XKS_SIGV4_MAX_CREDENTIALS or _MAX_DAYS; XKS_BAD_INPUT for an ill-formed id or day or a slot that the pages
 * do not have; XKS_SYSTEM when memory is out. Nothing is changed then. */
XKS_MUST_CHECK xks_status xks_sigv4_keyring_put(xks_sigv4_keyring *keyring, const char *access_key_id,
                                                size_t access_key_id_len, const char day[8],
                                                const xks_secret_pages *pages, uint32_t slot);

/* Wipes the signing keys of a credential for all days but these. days: day_count times 8 characters, any order.
 * XKS_NOT_FOUND: there is no such credential. One without a day stays known, and nothing is authentic with it. */
XKS_MUST_CHECK xks_status xks_sigv4_keyring_keep_days(xks_sigv4_keyring *keyring, const char *access_key_id,
                                                      size_t access_key_id_len, const char *days, size_t day_count);

/* Wipes a credential. *credential was its index: those with a greater one move up. XKS_NOT_FOUND: there is no such credential. */
XKS_MUST_CHECK xks_status xks_sigv4_keyring_remove(xks_sigv4_keyring *keyring, const char *access_key_id,
                                                   size_t access_key_id_len, uint32_t *credential);

/* The signing key of one day, written to `slot`: HMAC chain over day, region, "kms-xks-proxy", "aws4_request". */
XKS_MUST_CHECK xks_status xks_sigv4_derive(xks_span secret_access_key, const char day[8], const char *region, size_t region_len,
                                           xks_secret_pages *pages, uint32_t slot);

/* XKS_OK: authentic, and *credential is its index: in the order of their first _put, from 0. XKS_NOT_AUTHENTIC: *reason says why.
 * The hash and HMAC work is the same for a known and an unknown access key id; comparison is in constant time. */
XKS_MUST_CHECK xks_status xks_sigv4_verify(const xks_sigv4_keyring *keyring, const xks_sigv4_request *request,
                                           int64_t now_unix_seconds, uint32_t *credential, xks_sigv4_reason *reason);

#endif
