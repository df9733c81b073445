/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_api.h"

#include "xks_base64.h"
#include "xks_bytes.h"
#include "xks_clock.h"
#include "xks_json.h"
#include "xks_local.h"

#ifndef XKS_VERSION
#error "XKS_VERSION must be the version of the package: it is set by the build"
#endif

static const xks_api API = {
    .abi = XKS_API_ABI,
    .version = XKS_VERSION,

    .monotonic_ns = xks_monotonic_ns,
    .unix_seconds = xks_unix_seconds,
    .wipe = xks_wipe,

    .base64_encoded_len = xks_base64_encoded_len,
    .base64_encode = xks_base64_encode,
    .base64_decode = xks_base64_decode,

    .json_check_members = xks_json_check_members,
    .sigv4_verify = xks_sigv4_verify,

    .job_take = xks_job_take,
    .job_release = xks_job_release,
    .job_compose_aad = xks_job_compose_aad,
    .job_compose_sample_aad = xks_job_compose_sample_aad,
    .metadata_write = xks_metadata_write,
    .metadata_read = xks_metadata_read,

    .secret_pages_view = xks_secret_pages_view,
    .aes_gcm_key_new = xks_aes_gcm_key_new,
    .aes_gcm_key_free = xks_aes_gcm_key_free,
    .aes_gcm_encrypt = xks_aes_gcm_encrypt,
    .aes_gcm_decrypt = xks_aes_gcm_decrypt,
    .local_run = xks_local_run,

    .engine_key_verdict = xks_engine_key_verdict,
    .engine_submit = xks_engine_submit,
    .engine_flush = xks_engine_flush,
    .engine_drain = xks_engine_drain,
    .engine_outstanding = xks_engine_outstanding,
    .ckr_name = xks_ckr_name,

    .tls_new = xks_tls_new,
    .tls_free = xks_tls_free,
    .tls_input = xks_tls_input,
    .tls_handshake = xks_tls_handshake,
    .tls_read = xks_tls_read,
    .tls_write = xks_tls_write,
    .tls_shutdown = xks_tls_shutdown,
    .tls_output = xks_tls_output,
    .tls_output_clear = xks_tls_output_clear,
    .tls_error = xks_tls_error,
};

const xks_api *xks_api_get(void)
{
    return &API;
}
