/* SPDX-License-Identifier: Apache-2.0 */
/* xks_api.h - the function table that Cython calls: the request path's one door into C.
 *
 * Layer:   top. The table exists so that the C is linked once, into the cffi module, and the Cython modules reach it by pointer.
 * ABI:     abi grows with every change of this struct or of a struct it hands out; a caller checks it before the first use.
 */
#ifndef XKS_API_H
#define XKS_API_H

#include "xks_aes_gcm.h"
#include "xks_ckr_name.h"
#include "xks_engine.h"
#include "xks_job.h"
#include "xks_metadata.h"
#include "xks_random.h"
#include "xks_secret.h"
#include "xks_sigv4.h"
#include "xks_status.h"
#include "xks_tls.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XKS_API_ABI 5

typedef struct xks_api {
    uint32_t abi;
    const char *version; /* of the package */

    uint64_t (*monotonic_ns)(void);
    int64_t (*unix_seconds)(void);
    void (*wipe)(void *data, size_t len);

    size_t (*base64_encoded_len)(size_t len);
    void (*base64_encode)(const uint8_t *data, size_t len, char *out);
    xks_status (*base64_decode)(const char *text, size_t text_len, uint8_t *out, size_t out_capacity, size_t *out_len);

    xks_status (*json_check_members)(const char *text, size_t text_len);
    xks_status (*sigv4_verify)(const xks_sigv4_keyring *keyring, const xks_sigv4_request *request, int64_t now_unix_seconds,
                               uint32_t *credential, xks_sigv4_reason *reason);

    xks_status (*job_take)(xks_job_pool *pool, size_t aad_capacity, size_t input_capacity, xks_job **out);
    void (*job_release)(xks_job_pool *pool, xks_job *job);
    xks_status (*job_compose_aad)(xks_job *job, size_t aad_len);
    xks_status (*job_compose_sample_aad)(xks_job *job, size_t aad_len, bool aad_present);
    void (*metadata_write)(uint32_t version, uint8_t out[5]);
    xks_status (*metadata_read)(const uint8_t *metadata, size_t len, uint32_t *version);

    const uint8_t *(*secret_pages_view)(const xks_secret_pages *pages, uint32_t slot);
    xks_status (*aes_gcm_key_new)(const uint8_t key[32], xks_aes_gcm_key **out);
    void (*aes_gcm_key_free)(xks_aes_gcm_key *key);
    xks_status (*aes_gcm_encrypt)(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span plaintext, uint8_t *ciphertext,
                                  uint8_t tag[16]);
    xks_status (*aes_gcm_decrypt)(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span ciphertext, xks_span tag,
                                  uint8_t *plaintext);
    void (*local_run)(xks_aes_gcm_key *key, xks_random_pool *random, xks_job *job);

    xks_status (*engine_key_verdict)(xks_engine *engine, uint32_t key);
    xks_status (*engine_submit)(xks_engine *engine, xks_job *job);
    void (*engine_flush)(xks_engine *engine);
    xks_job *(*engine_drain)(xks_engine *engine);
    uint32_t (*engine_outstanding)(const xks_engine *engine);
    const char *(*ckr_name)(unsigned long ckr);

    xks_status (*tls_new)(xks_tls_context *context, xks_tls **out);
    void (*tls_free)(xks_tls *tls);
    void (*tls_input)(xks_tls *tls, const uint8_t *data, size_t len);
    xks_status (*tls_handshake)(xks_tls *tls);
    xks_status (*tls_read)(xks_tls *tls, uint8_t *out, size_t capacity, size_t *out_len);
    xks_status (*tls_write)(xks_tls *tls, const uint8_t *data, size_t len);
    void (*tls_shutdown)(xks_tls *tls);
    const uint8_t *(*tls_output)(const xks_tls *tls, size_t *len);
    void (*tls_output_clear)(xks_tls *tls);
    const char *(*tls_error)(const xks_tls *tls);
} xks_api;

/* The table; static, never freed. */
const xks_api *xks_api_get(void);

#endif
