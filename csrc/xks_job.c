/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_job.h"

#include "xks_aad.h"
#include "xks_bytes.h"
#include <stdlib.h>
#include <string.h>

#define LARGEST_BYTES (1024U * 1024U)
/* Jobs of KMS's usual sizes (data keys, small AADs) fit; larger ones are allocated and freed each time. */
#define SMALL_BYTES 2048U
#define KEPT_JOBS 1024U
#define TAIL_BYTES 32U /* a tag and a 16-byte IV behind the output */

struct xks_job_pool {
    xks_job *kept; /* linked by next, each with SMALL_BYTES behind it */
    size_t kept_count;
};

xks_status xks_job_pool_new(xks_job_pool **out)
{
    *out = calloc(1, sizeof **out);
    return *out == NULL ? XKS_SYSTEM : XKS_OK;
}

void xks_job_pool_free(xks_job_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    while (pool->kept != NULL) {
        xks_job *next = pool->kept->next;
        free(pool->kept);
        pool->kept = next;
    }
    free(pool);
}

static size_t buffer_bytes(size_t aad_capacity, size_t input_capacity)
{
    return XKS_AAD_OVERHEAD_BYTES + aad_capacity + XKS_MAX_METADATA_BYTES + input_capacity + input_capacity + TAIL_BYTES;
}

xks_status xks_job_take(xks_job_pool *pool, size_t aad_capacity, size_t input_capacity, xks_job **out)
{
    *out = NULL;
    if (aad_capacity > LARGEST_BYTES || input_capacity > LARGEST_BYTES) {
        return XKS_TOO_LONG;
    }
    size_t needed = buffer_bytes(aad_capacity, input_capacity);
    xks_job *job = NULL;
    if (needed <= SMALL_BYTES && pool->kept != NULL) {
        job = pool->kept;
        pool->kept = job->next;
        pool->kept_count--;
    } else {
        job = malloc(sizeof *job + (needed <= SMALL_BYTES ? SMALL_BYTES : needed));
        if (job == NULL) {
            return XKS_SYSTEM;
        }
    }
    memset(job, 0, sizeof *job);
    job->aad = (uint8_t *)(job + 1);
    job->aad_capacity = aad_capacity;
    job->input = job->aad + XKS_AAD_OVERHEAD_BYTES + aad_capacity + XKS_MAX_METADATA_BYTES;
    job->input_capacity = input_capacity;
    job->output = job->input + input_capacity;
    job->output_capacity = input_capacity + TAIL_BYTES;
    job->partition = UINT32_MAX;
    *out = job;
    return XKS_OK;
}

void xks_job_release(xks_job_pool *pool, xks_job *job)
{
    if (job == NULL) {
        return;
    }
    size_t needed = buffer_bytes(job->aad_capacity, job->input_capacity);
    xks_wipe(job->aad, needed);
    xks_wipe(job, sizeof *job);
    if (needed <= SMALL_BYTES && pool->kept_count < KEPT_JOBS) {
        job->next = pool->kept;
        pool->kept = job;
        pool->kept_count++;
    } else {
        free(job);
    }
}

xks_status xks_job_clone(xks_job_pool *pool, const xks_job *job, xks_job **out)
{
    xks_status status = xks_job_take(pool, job->aad_capacity, job->input_capacity, out);
    if (status != XKS_OK) {
        return status;
    }
    xks_job *clone = *out;
    clone->deadline_ns = job->deadline_ns;
    clone->key = job->key;
    clone->operation = job->operation;
    clone->want_cdiv = job->want_cdiv;
    clone->metadata_len = job->metadata_len;
    memcpy(clone->metadata, job->metadata, sizeof clone->metadata);
    if (job->operation == XKS_DECRYPT) { /* of an encryption they are results, which a session worker may be writing just now */
        clone->iv_len = job->iv_len;
        memcpy(clone->iv, job->iv, sizeof clone->iv);
        memcpy(clone->tag, job->tag, sizeof clone->tag);
    }
    memcpy(clone->aad, job->aad, job->aad_len);
    clone->aad_len = job->aad_len;
    memcpy(clone->input, job->input, job->input_len);
    clone->input_len = job->input_len;
    return XKS_OK;
}

static size_t composed_capacity(const xks_job *job)
{
    return XKS_AAD_OVERHEAD_BYTES + job->aad_capacity + XKS_MAX_METADATA_BYTES;
}

xks_status xks_job_compose_aad(xks_job *job, size_t aad_len)
{
    if (aad_len > job->aad_capacity) {
        return XKS_TOO_LONG;
    }
    xks_span aad = {job->aad + 2, aad_len};
    xks_span metadata = {job->metadata, job->metadata_len};
    return xks_aad_compose(aad, metadata, job->aad, composed_capacity(job), &job->aad_len);
}

xks_status xks_job_compose_sample_aad(xks_job *job, size_t aad_len, bool aad_present)
{
    if (aad_len > job->aad_capacity) {
        return XKS_TOO_LONG;
    }
    xks_span aad = {aad_present ? job->aad + 2 : NULL, aad_len};
    xks_span metadata = {job->metadata, job->metadata_len};
    return xks_aad_compose_sample(aad, metadata, job->aad, composed_capacity(job), &job->aad_len);
}

void xks_job_compute_cdiv(xks_job *job)
{
    size_t request_aad_len = job->aad_len - XKS_AAD_OVERHEAD_BYTES - job->metadata_len;
    xks_span aad = {job->aad + 2, request_aad_len};
    xks_span metadata = {job->metadata, job->metadata_len};
    xks_span iv = {job->iv, job->iv_len};
    xks_span ciphertext = {job->output, job->output_len};
    xks_span tag = {job->tag, sizeof job->tag};
    xks_cdiv(aad, metadata, iv, ciphertext, tag, job->cdiv);
}
