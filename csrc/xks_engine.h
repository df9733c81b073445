/* SPDX-License-Identifier: Apache-2.0 */
/* xks_engine.h - the PKCS#11 key source: jobs in, completion list out, one eventfd wake for many.
 *
 * Layer:   top (may include xks_router, xks_p11_*, xks_ckr, xks_job and everything below).
 * Memory:  the engine owns its modules, partitions, threads and key tables. Configuration is copied in. Jobs are borrowed
 *          between submit and drain.
 * Threads: one loop thread calls _submit, _flush and _drain. All other functions may be called from any other single thread.
 *          Each partition has one keeper thread (login, keys, session copies, self-test, probes) and `sessions` session
 *          workers, each with a session of its own and one blocked call at most.
 *          No call into a token is made with a mutex held, and none on the loop thread.
 * Fork:    the engine remembers its pid and refuses to work in a child.
 */
#ifndef XKS_ENGINE_H
#define XKS_ENGINE_H

#include "xks_job.h"
#include "xks_secret.h"
#include "xks_status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XKS_NO_SLOT UINT64_MAX
#define XKS_LATENCY_BUCKETS 80
#define XKS_MAX_ERROR_CODES 16

typedef struct xks_engine xks_engine;

typedef struct xks_partition_config {
    const char *name;               /* for logs and errors */
    uint32_t module;                /* from xks_engine_add_module */
    const char *token_label;        /* exactly one of label, serial and slot says which token */
    const char *token_serial;
    uint64_t slot;                  /* XKS_NO_SLOT when not used */
    const xks_secret *pin;          /* borrowed until _stop; NULL: no login */
    const char *profile;            /* a name of xks_p11_quirks */
    uint32_t sessions;              /* 1..256 */
    const char *health_check_label; /* NULL: a session key is generated */
} xks_partition_config;

typedef struct xks_engine_config {
    uint32_t max_queued;            /* jobs waiting over all partitions before submit answers XKS_BUSY */
    uint64_t probe_interval_ns;     /* health probe of each partition */
} xks_engine_config;

typedef enum xks_partition_state {
    XKS_PARTITION_STARTING = 0,
    XKS_PARTITION_READY = 1,
    XKS_PARTITION_RECOVERING = 2, /* it served before; the keeper tries again by itself */
    XKS_PARTITION_REFUSED = 3     /* a fault of configuration (wrong PIN, no such token, IV reuse): never tried again */
} xks_partition_state;

typedef struct xks_ckr_count {
    uint32_t ckr;                   /* 0xFFFFFFFF: all that did not fit */
    uint64_t count;
} xks_ckr_count;

typedef struct xks_partition_status {
    xks_partition_state state;
    char reason[512];               /* why it is not ready: call, CKR name, what to do; "" when ready */
    char token_label[33];
    char manufacturer[33];
    char model[17];
    char serial[17];
    uint8_t firmware_major;
    uint8_t firmware_minor;
    uint32_t sessions_open;
    uint32_t sessions_wanted;
    uint32_t in_flight;             /* queued and running jobs */
    uint32_t login_epoch;           /* grows with each login; handles of an older epoch are never used */
    uint64_t operations;
    uint64_t failures;
    uint64_t last_probe_ns;         /* CLOCK_MONOTONIC of the last finished probe; 0: none yet */
    uint64_t last_good_probe_ns;
    uint64_t probe_duration_ns;
    unsigned long tag_failure_ckr;  /* learnt by the self-test */
    char iv_mode[24];               /* "caller", "returned_in_param", "appended_16", ... */
    bool in_service;                /* the router gives it work: ready, breaker closed */
    uint32_t lost_threads;          /* hung in a call for longer than a second */
    uint32_t limit;                 /* calls that may be in flight */
    double concurrency;             /* calls that it works on at once without queueing, estimated */
    uint64_t median_ns;             /* tracked by the router, of a call */
    uint64_t p95_ns;
    uint64_t oldest_call_ns;        /* age of the oldest call in flight; 0: none */
    double slow_start;              /* factor on its score while it comes back; 1: over */
    char route_reason[24];          /* why a job would or would not go there now: "eligible", "out_of_service", "full", "too_slow",
                                     * "stalled", "remote" */
    uint64_t firsts;                /* calls handed over, by purpose */
    uint64_t retries;
    uint64_t hedges;
    uint64_t checks;
    uint64_t faults;                /* partition faults */
    uint64_t opens;                 /* times the breaker opened */
    char last_open_reason[512];     /* why it last opened, kept after it closed; "" when never */
    uint64_t last_open_unix_s;
    xks_ckr_count errors[XKS_MAX_ERROR_CODES];    /* by CK_RV; count 0 ends */
    uint64_t latency_counts[XKS_LATENCY_BUCKETS]; /* calls served, by duration: see xks_engine_latency_bound_ns */
} xks_partition_status;

typedef struct xks_engine_totals {
    uint64_t jobs;
    uint64_t answered;
    uint64_t refused_busy;
    uint64_t refused_unavailable;
    uint64_t timeouts;
    uint64_t retries;
    uint64_t hedges;
    uint64_t hedge_wins;
    uint64_t late_results_wiped;
    uint32_t waiting;               /* jobs that wait for a partition with room */
    uint32_t in_flight;
} xks_engine_totals_t;

typedef enum xks_key_state {
    XKS_KEY_PENDING = 0,
    XKS_KEY_USABLE = 1,
    XKS_KEY_ABSENT = 2,
    XKS_KEY_AMBIGUOUS = 3,  /* several secret keys carry the label */
    XKS_KEY_WRONG_TYPE = 4, /* not AES, or not 256 bits */
    XKS_KEY_FAILED = 5      /* the token refused to tell; the keeper tries again */
} xks_key_state;

typedef struct xks_key_status {
    xks_key_state state;
    bool can_encrypt;
    bool can_decrypt;
    bool extractable;
    bool session_copy;      /* operations use a session-object copy */
    char reason[512];
} xks_key_status;

XKS_MUST_CHECK xks_status xks_engine_new(const xks_engine_config *config, xks_engine **out, char *error);
/* Stops first when it runs. Workers hung inside a token are left behind with what they hold; their number is returned. */
uint32_t xks_engine_free(xks_engine *engine);

/* Before _start. Loads and initialises the module: environment variables that it reads must be set before this call, and may be
 * changed for the next module after it. path: the shared library; parameters: LibraryParameters, or NULL. */
XKS_MUST_CHECK xks_status xks_engine_add_module(xks_engine *engine, const char *path, const char *parameters,
                                                uint32_t *module, char *error);
XKS_MUST_CHECK xks_status xks_engine_add_partition(xks_engine *engine, const xks_partition_config *config,
                                                   uint32_t *partition, char *error);
XKS_MUST_CHECK xks_status xks_engine_add_group(xks_engine *engine, const uint32_t *partitions, size_t partition_count,
                                               uint32_t *group, char *error);

/* Starts keepers and workers, returns without waiting for the tokens. */
XKS_MUST_CHECK xks_status xks_engine_start(xks_engine *engine, char *error);

/* Make a key known by its CKA_LABEL (1..255 bytes): the keepers of the group's partitions look for it. Asking again for a known
 * pair gives the same index and counts; the last _key_remove forgets it. */
XKS_MUST_CHECK xks_status xks_engine_key_add(xks_engine *engine, uint32_t group, const char *label, size_t label_len,
                                             uint32_t *key, char *error);
void xks_engine_key_remove(xks_engine *engine, uint32_t key);

/* Blocks until no partition is STARTING and none that is READY has a PENDING key, or XKS_TIMEOUT. Not for the loop thread. */
XKS_MUST_CHECK xks_status xks_engine_wait_settled(xks_engine *engine, uint64_t timeout_ns);

/* No token is called by these: they copy what the keeper knows. */
XKS_MUST_CHECK xks_status xks_engine_partition_status(xks_engine *engine, uint32_t partition, xks_partition_status *out);
XKS_MUST_CHECK xks_status xks_engine_key_status(xks_engine *engine, uint32_t key, uint32_t partition, xks_key_status *out);
void xks_engine_totals(xks_engine *engine, xks_engine_totals_t *out);

/* The longest duration of a latency bucket; UINT64_MAX for the last, which has what is above all others. */
uint64_t xks_engine_latency_bound_ns(uint32_t bucket);

/* The descriptor that becomes readable when completions wait. Owned by the engine. */
int xks_engine_eventfd(const xks_engine *engine);

/* Queue a job; workers are woken by the next _flush. While jobs are out the loop flushes every few milliseconds, too, so that jobs behind
 * a call that hangs find another worker. On anything but XKS_OK the job stays the caller's:
 * XKS_BUSY the queue is full; XKS_UNAVAILABLE no partition of the key's group is ready; XKS_NOT_FOUND no ready partition has the key. */
XKS_MUST_CHECK xks_status xks_engine_submit(xks_engine *engine, xks_job *job);
void xks_engine_flush(xks_engine *engine);

/* All finished jobs, oldest first, linked by next; NULL when there are none. Also clears the eventfd. */
xks_job *xks_engine_drain(xks_engine *engine);

#endif
