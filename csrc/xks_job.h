/* SPDX-License-Identifier: Apache-2.0 */
/* xks_job.h - one cryptographic operation on its way through a key source.
 *
 * Layer:   below every key source (xks_local, xks_engine), above the protocol pieces.
 * Memory:  a job carries its inputs and outputs in one allocation of its own, so that neither a closed connection nor a hung
 *          token leaves anyone with a dangling pointer. _release wipes what was used.
 * Threads: a pool belongs to one thread (the event loop), which takes and releases every job. Between submit and completion
 *          a job belongs to the key source; only `owner` stays the loop's.
 *
 * Layout of the allocation:
 *   xks_job | composed AAD: 3 + aad_capacity + 20 | input: input_capacity | output: input_capacity + 32
 *   (output has room for a tag and a 16-byte IV behind the text, which some tokens put there).
 */
#ifndef XKS_JOB_H
#define XKS_JOB_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

typedef enum xks_operation { XKS_ENCRYPT = 1, XKS_DECRYPT = 2 } xks_operation;

typedef struct xks_job {
    /* --- the submitter fills these in --- */
    struct xks_job *next;      /* free for whoever holds the job */
    void *owner;               /* the submitter's cookie; the key source never looks at it */
    uint64_t deadline_ns;      /* CLOCK_MONOTONIC; not started after it */
    uint32_t key;              /* key index of the engine; unused by xks_local */
    uint8_t operation;         /* xks_operation */
    uint8_t want_cdiv;         /* ENCRYPT: compute the CDIV, then decrypt and compare before the result is given out */
    uint8_t metadata_len;      /* 0..20 */
    uint8_t iv_len;            /* DECRYPT: 12 or 16. ENCRYPT: set by the key source */
    uint8_t metadata[20];
    uint8_t iv[16];
    uint8_t tag[16];           /* DECRYPT: in. ENCRYPT: out */
    uint8_t *aad;              /* composed AAD; the request's own AAD stands at aad + 2 */
    size_t aad_len;            /* of the composed AAD */
    size_t aad_capacity;       /* bytes that may stand at aad + 2, metadata and its length byte not counted */
    uint8_t *input;            /* plaintext or ciphertext */
    size_t input_len;
    size_t input_capacity;
    /* --- the key source fills these in --- */
    uint8_t *output;           /* ciphertext or plaintext; output_len == input_len on XKS_OK */
    size_t output_len;
    size_t output_capacity;
    uint8_t cdiv[32];
    xks_status status;
    uint32_t partition;        /* index; UINT32_MAX: none was reached */
    unsigned long ckr;         /* last CK_RV of a token, 0 when none was involved */
    const char *failed_call;   /* "C_Encrypt", ...; static string or NULL */
    uint64_t submitted_ns;
    uint64_t started_ns;       /* 0: never started */
    uint64_t finished_ns;
    uint32_t attempts;         /* calls made for it, repairs counted */
} xks_job;

typedef struct xks_job_pool xks_job_pool;

XKS_MUST_CHECK xks_status xks_job_pool_new(xks_job_pool **out);
void xks_job_pool_free(xks_job_pool *pool);

/* A zeroed job with room for these many bytes. XKS_TOO_LONG over 1 MiB, XKS_SYSTEM when memory is out. */
XKS_MUST_CHECK xks_status xks_job_take(xks_job_pool *pool, size_t aad_capacity, size_t input_capacity, xks_job **out);
void xks_job_release(xks_job_pool *pool, xks_job *job);

/* Shape the composed AAD from the aad_len bytes that stand at job->aad + 2 and job->metadata. */
XKS_MUST_CHECK xks_status xks_job_compose_aad(xks_job *job, size_t aad_len);

/* Fill in job->cdiv from the job's AAD, metadata, IV, output and tag. */
void xks_job_compute_cdiv(xks_job *job);

#endif
