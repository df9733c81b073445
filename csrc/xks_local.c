/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_local.h"

#include "xks_bytes.h"

/* The CDIV is an assurance that a later decrypt gives the same plaintext: so decrypt, and compare the bytes. The CDIV is computed
 * first, so that it covers what was produced and not what may have changed since. */
static xks_status prove_ciphertext(xks_aes_gcm_key *key, xks_job *job)
{
    xks_span iv = {job->iv, job->iv_len};
    xks_span aad = {job->aad, job->aad_len};
    xks_span ciphertext = {job->output, job->output_len};
    xks_span tag = {job->tag, sizeof job->tag};
    uint8_t check[8192];
    if (job->input_len > sizeof check) {
        return XKS_TOO_LONG;
    }
    xks_job_compute_cdiv(job);
    xks_status status = xks_aes_gcm_decrypt(key, iv, aad, ciphertext, tag, check);
    if (status == XKS_OK && !xks_equal_constant_time(check, job->input, job->input_len)) {
        status = XKS_BUG;
    }
    xks_wipe(check, job->input_len);
    return status == XKS_OK ? XKS_OK : XKS_BUG;
}

static xks_status encrypt(xks_aes_gcm_key *key, xks_random_pool *random, xks_job *job)
{
    xks_status status = xks_random_draw(random, job->iv, XKS_GCM_IV_BYTES);
    if (status != XKS_OK) {
        return status;
    }
    job->iv_len = XKS_GCM_IV_BYTES;
    xks_span iv = {job->iv, job->iv_len};
    xks_span aad = {job->aad, job->aad_len};
    xks_span plaintext = {job->input, job->input_len};
    status = xks_aes_gcm_encrypt(key, iv, aad, plaintext, job->output, job->tag);
    if (status != XKS_OK) {
        return status;
    }
    job->output_len = job->input_len;
    return job->want_cdiv ? prove_ciphertext(key, job) : XKS_OK;
}

static xks_status decrypt(xks_aes_gcm_key *key, xks_job *job)
{
    xks_span iv = {job->iv, job->iv_len};
    xks_span aad = {job->aad, job->aad_len};
    xks_span ciphertext = {job->input, job->input_len};
    xks_span tag = {job->tag, sizeof job->tag};
    xks_status status = xks_aes_gcm_decrypt(key, iv, aad, ciphertext, tag, job->output);
    job->output_len = status == XKS_OK ? job->input_len : 0;
    return status;
}

void xks_local_run(xks_aes_gcm_key *key, xks_random_pool *random, xks_job *job)
{
    job->attempts = 1;
    job->status = job->operation == XKS_ENCRYPT ? encrypt(key, random, job) : decrypt(key, job);
    if (job->status != XKS_OK) {
        xks_wipe(job->output, job->input_len);
        job->output_len = 0;
    }
}
