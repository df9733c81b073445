/* SPDX-License-Identifier: Apache-2.0 */
/* xks_tls.h - server-side TLS over memory: bytes in, bytes out, no sockets.
 *
 * Layer:   protocol over libssl.
 * Memory:  a context owns certificate and key; a connection holds a reference to its context, so a context may be freed
 *          (reloaded) while connections live. Input is borrowed for the call; output belongs to the connection until cleared.
 * Threads: a context and its connections belong to one thread.
 * Source:  XKS Proxy API spec v1.0.3, API content type: TLS 1.2 or later with
 *          TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256 (1.3),
 *          ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES256-GCM-SHA384 (1.2). Nothing else is offered.
 *          No renegotiation, no compression, no session tickets or cache, no early data; ALPN answers http/1.1.
 *          Groups X25519, P-256, P-384. A peer that floods us with key updates is a protocol error.
 */
#ifndef XKS_TLS_H
#define XKS_TLS_H

#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct xks_tls_context xks_tls_context;
typedef struct xks_tls xks_tls;

typedef struct xks_tls_config {
    const char *certificate_file;   /* PEM, leaf first, then the chain */
    const char *private_key_file;   /* PEM, not readable by group or others */
    const char *client_ca_file;     /* PEM; NULL = no client certificate is asked for */
    const char *client_common_name; /* required with client_ca_file: the only subject CN accepted */
} xks_tls_config;

/* XKS_CONFIG with a text that names the file and what is wrong (unreadable, no certificate, key does not match or needs a
 * passphrase, expired key usage, permissions); error has XKS_ERROR_TEXT_BYTES. */
XKS_MUST_CHECK xks_status xks_tls_context_new(const xks_tls_config *config, xks_tls_context **out, char *error);
void xks_tls_context_free(xks_tls_context *context);

XKS_MUST_CHECK xks_status xks_tls_new(xks_tls_context *context, xks_tls **out);
void xks_tls_free(xks_tls *tls);

/* Hand over ciphertext from the peer. The bytes must stay valid until _read (or _handshake) answers XKS_WANT_MORE or fails. */
void xks_tls_input(xks_tls *tls, const uint8_t *data, size_t len);

/* Advance the handshake with the input at hand. XKS_OK: done. XKS_WANT_MORE: wait for the peer. XKS_NOT_AUTHENTIC: the client
 * certificate was refused. XKS_BAD_INPUT: anything else; an alert is in the output. */
XKS_MUST_CHECK xks_status xks_tls_handshake(xks_tls *tls);

/* Plaintext into out. XKS_OK: *out_len > 0 bytes, call again. XKS_WANT_MORE: the input is used up. XKS_CLOSED: close_notify.
 * XKS_BAD_INPUT: protocol error; an alert is in the output. */
XKS_MUST_CHECK xks_status xks_tls_read(xks_tls *tls, uint8_t *out, size_t capacity, size_t *out_len);

/* Encrypt len bytes to the output. Only after the handshake. */
XKS_MUST_CHECK xks_status xks_tls_write(xks_tls *tls, const uint8_t *data, size_t len);

/* Put close_notify into the output. */
void xks_tls_shutdown(xks_tls *tls);

/* Ciphertext that waits to be sent; borrowed until the next call with this connection. */
const uint8_t *xks_tls_output(const xks_tls *tls, size_t *len);
void xks_tls_output_clear(xks_tls *tls);

/* Why the last call failed, in words for the log; "" when it did not. For a refused client certificate: which rule and the
 * subject that was shown. */
const char *xks_tls_error(const xks_tls *tls);
/* "TLSv1.3", and the suite's IANA name; static strings. */
const char *xks_tls_version(const xks_tls *tls);
const char *xks_tls_suite(const xks_tls *tls);

#endif
