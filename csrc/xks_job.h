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
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Why a partition could not do a job, as its worker found out. */
typedef enum xks_job_fate {
    XKS_FATE_NONE = 0,
    XKS_FATE_FAULT = 1,     /* the partition's fault */
    XKS_FATE_STALE = 2,     /* the token forgot session, login or handle: being repaired, the job may go anywhere again */
    XKS_FATE_AMBIGUOUS = 3, /* the code may mean a bad ciphertext, and the partition is alive: another partition decides */
    XKS_FATE_NOT_MADE = 4   /* the token was never called */
} xks_job_fate;

typedef enum xks_operation { XKS_ENCRYPT = 1, XKS_DECRYPT = 2 } xks_operation;

/* The engine's own marks on a job, written by its loop side only; see xks_engine_internal.h. */
typedef struct xks_job_route {
    struct xks_job *list_prev; /* of the list that the job is in: calls in flight, or waiting */
    struct xks_job *list_next;
    struct xks_job *partner;   /* the other one of a hedged pair, while both are out */
    struct xks_job *check_of;  /* this is the check decrypt of that job */
    void *waits_in;            /* the group in which it waits; NULL: it does not */
    uint64_t tried;            /* partitions that had it, by bit */
    uint64_t avoided;          /* and those that a check decrypt shall leave to others if it can */
    uint64_t handed_over_ns;
    uint32_t call;             /* the router's number of the call */
    uint32_t key_generation;
    uint8_t purpose;           /* xks_route_purpose */
    uint8_t hand_overs;
    uint8_t repairs;           /* hand-overs because the token had forgotten a session, login or handle */
    uint8_t failed_checks;
    uint8_t calls;             /* hand-overs, its hedges' included, in which a token may have worked */
    uint32_t first_doubt;      /* the partition whose check decrypt failed */
    bool abandoned;            /* its owner has been answered: wipe it when it comes back */
    bool ambiguous;            /* a partition failed in a way that may be the caller's ciphertext's fault */
    bool check_elsewhere;      /* the CDIV's check decrypt is for another partition */
} xks_job_route;

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
    uint32_t attempts;         /* calls made for it on this partition, repairs counted */
    xks_job_fate fate;         /* for XKS_UNAVAILABLE: whose doing it was */
    xks_job_route route;
} xks_job;

typedef struct xks_job_pool xks_job_pool;

XKS_MUST_CHECK xks_status xks_job_pool_new(xks_job_pool **out);
void xks_job_pool_free(xks_job_pool *pool);

/* A zeroed job with room for these many bytes. XKS_TOO_LONG over 1 MiB, XKS_SYSTEM when memory is out. */
XKS_MUST_CHECK xks_status xks_job_take(xks_job_pool *pool, size_t aad_capacity, size_t input_capacity, xks_job **out);
void xks_job_release(xks_job_pool *pool, xks_job *job);

/* A job with the same request (operation, key, deadline, metadata, AAD, input; for DECRYPT IV and tag) and nothing of its results or its
 * owner. The job may be in a key source's hands meanwhile: only what is not written there is read. */
XKS_MUST_CHECK xks_status xks_job_clone(xks_job_pool *pool, const xks_job *job, xks_job **out);

/* Shape the composed AAD from the aad_len bytes that stand at job->aad + 2 and job->metadata. */
XKS_MUST_CHECK xks_status xks_job_compose_aad(xks_job *job, size_t aad_len);

/* The same as AWS's sample proxy composes it; aad_present: false when the request had no AAD. Needs an aad_capacity of at least
 * XKS_SAMPLE_DIGEST_BYTES. */
XKS_MUST_CHECK xks_status xks_job_compose_sample_aad(xks_job *job, size_t aad_len, bool aad_present);

/* Fill in job->cdiv from the job's AAD, metadata, IV, output and tag. */
void xks_job_compute_cdiv(xks_job *job);

#endif
