# SPDX-License-Identifier: Apache-2.0
# The C types and the function table as Cython sees them. Declarations only, all from csrc/*.h; the table's address comes from
# xksfast.native.loader at import time, so nothing of the C is linked a second time.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "xks_aad.h" nogil:
    cdef enum:
        XKS_SAMPLE_DIGEST_BYTES


cdef extern from "xks_api.h" nogil:
    cdef enum:
        XKS_API_ABI
        XKS_TICK_NS
        XKS_SIGV4_MAX_HEADERS
        XKS_METADATA_BYTES

    ctypedef enum xks_status:
        XKS_OK
        XKS_BAD_INPUT
        XKS_TOO_LONG
        XKS_NO_SPACE
        XKS_NOT_AUTHENTIC
        XKS_NOT_FOUND
        XKS_NOT_PERMITTED
        XKS_TIMEOUT
        XKS_BUSY
        XKS_UNAVAILABLE
        XKS_CONFIG
        XKS_SYSTEM
        XKS_WANT_MORE
        XKS_CLOSED
        XKS_BUG
        XKS_FINAL

    ctypedef struct xks_span:
        const uint8_t *data
        size_t len

    ctypedef struct xks_header:
        xks_span name
        xks_span value

    ctypedef struct xks_sigv4_request:
        xks_span method
        xks_span path
        const xks_header *headers
        size_t header_count
        xks_span body

    ctypedef enum xks_sigv4_reason:
        XKS_SIGV4_ACCEPTED

    ctypedef enum xks_operation:
        XKS_ENCRYPT
        XKS_DECRYPT

    ctypedef struct xks_sigv4_keyring
    ctypedef struct xks_aes_gcm_key
    ctypedef struct xks_secret_pages
    ctypedef struct xks_random_pool
    ctypedef struct xks_job_pool
    ctypedef struct xks_engine
    ctypedef struct xks_tls_context
    ctypedef struct xks_tls

    ctypedef struct xks_job_route:
        uint8_t calls

    ctypedef struct xks_job:
        xks_job *next
        void *owner
        uint64_t deadline_ns
        uint32_t key
        uint8_t operation
        uint8_t want_cdiv
        uint8_t metadata_len
        uint8_t iv_len
        uint8_t metadata[20]
        uint8_t iv[16]
        uint8_t tag[16]
        uint8_t *aad
        size_t aad_len
        size_t aad_capacity
        uint8_t *input
        size_t input_len
        size_t input_capacity
        uint8_t *output
        size_t output_len
        uint8_t cdiv[32]
        xks_status status
        uint32_t partition
        unsigned long ckr
        const char *failed_call
        uint64_t submitted_ns
        uint64_t started_ns
        uint64_t finished_ns
        uint32_t attempts
        xks_job_route route

    ctypedef struct xks_api:
        uint32_t abi
        const char *version
        uint64_t (*monotonic_ns)() noexcept
        int64_t (*unix_seconds)() noexcept
        void (*wipe)(void *data, size_t len) noexcept
        size_t (*base64_encoded_len)(size_t len) noexcept
        void (*base64_encode)(const uint8_t *data, size_t len, char *out) noexcept
        xks_status (*base64_decode)(const char *text, size_t text_len, uint8_t *out, size_t out_capacity,
                                    size_t *out_len) noexcept
        xks_status (*json_check_members)(const char *text, size_t text_len) noexcept
        xks_status (*sigv4_verify)(const xks_sigv4_keyring *keyring, const xks_sigv4_request *request,
                                   int64_t now_unix_seconds, uint32_t *credential, xks_sigv4_reason *reason) noexcept
        xks_status (*job_take)(xks_job_pool *pool, size_t aad_capacity, size_t input_capacity, xks_job **out) noexcept
        void (*job_release)(xks_job_pool *pool, xks_job *job) noexcept
        xks_status (*job_compose_aad)(xks_job *job, size_t aad_len) noexcept
        xks_status (*job_compose_sample_aad)(xks_job *job, size_t aad_len, bint aad_present) noexcept
        void (*metadata_write)(uint32_t version, uint8_t *out) noexcept
        xks_status (*metadata_read)(const uint8_t *metadata, size_t len, uint32_t *version) noexcept
        const uint8_t *(*secret_pages_view)(const xks_secret_pages *pages, uint32_t slot) noexcept
        xks_status (*aes_gcm_key_new)(const uint8_t *key, xks_aes_gcm_key **out) noexcept
        void (*aes_gcm_key_free)(xks_aes_gcm_key *key) noexcept
        xks_status (*aes_gcm_encrypt)(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span plaintext, uint8_t *ciphertext,
                                      uint8_t *tag) noexcept
        xks_status (*aes_gcm_decrypt)(xks_aes_gcm_key *key, xks_span iv, xks_span aad, xks_span ciphertext, xks_span tag,
                                      uint8_t *plaintext) noexcept
        void (*local_run)(xks_aes_gcm_key *key, xks_random_pool *random, xks_job *job) noexcept
        xks_status (*engine_key_verdict)(xks_engine *engine, uint32_t key) noexcept
        xks_status (*engine_submit)(xks_engine *engine, xks_job *job) noexcept
        void (*engine_flush)(xks_engine *engine) noexcept
        xks_job *(*engine_drain)(xks_engine *engine) noexcept
        uint32_t (*engine_outstanding)(const xks_engine *engine) noexcept
        const char *(*ckr_name)(unsigned long ckr) noexcept
        xks_status (*tls_new)(xks_tls_context *context, xks_tls **out) noexcept
        void (*tls_free)(xks_tls *tls) noexcept
        void (*tls_input)(xks_tls *tls, const uint8_t *data, size_t len) noexcept
        xks_status (*tls_handshake)(xks_tls *tls) noexcept
        xks_status (*tls_read)(xks_tls *tls, uint8_t *out, size_t capacity, size_t *out_len) noexcept
        xks_status (*tls_write)(xks_tls *tls, const uint8_t *data, size_t len) noexcept
        void (*tls_shutdown)(xks_tls *tls) noexcept
        const uint8_t *(*tls_output)(const xks_tls *tls, size_t *len) noexcept
        void (*tls_output_clear)(xks_tls *tls) noexcept
        const char *(*tls_error)(const xks_tls *tls) noexcept
