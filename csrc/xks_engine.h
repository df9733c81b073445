/* SPDX-License-Identifier: Apache-2.0 */
/* xks_engine.h - the PKCS#11 key source: jobs in, answered jobs out, one eventfd wake for many.
 *
 * Layer:   top (may include xks_router, xks_p11_*, xks_ckr, xks_job and everything below).
 * Memory:  the engine owns its modules, partitions, threads and key tables. Configuration is copied in. A submitted job is the
 *          engine's until a job with its `owner` comes out of _drain: the same one, or one that stands in for it (a hedge that
 *          won; a timeout while the job is inside a token). What comes out is the caller's to release.
 * Threads: one loop thread calls _submit, _flush, _drain, _outstanding, _partition_status and _totals. _wait_settled,
 *          _wait_keys and _unsettled may be called from another thread, all else from any one thread at a time.
 *          Each partition has one keeper thread (login, keys, session copies, self-test, probes) and `sessions` session
 *          workers, each with a session of its own and one blocked call at most. A thread that hangs in a token is written off and
 *          replaced, up to as many again.
 *          No call into a token is made with a mutex held, and none on the loop thread.
 * Time:    every job is answered by its deadline, give or take the interval between two calls of _drain: call it at least every
 *          XKS_TICK_NS while _outstanding says that jobs are out. What comes back later is wiped.
 * Fork:    the engine refuses to work in a child.
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

/* How often _drain must be called while jobs are out. */
#define XKS_TICK_NS 4000000

/* The first pause between attempts to bring a partition up. */
#define XKS_RECOVERY_PAUSE_NS 100000000

/* Durations of calls are counted in buckets: four per doubling, from 1 us; the last counts all above. */
#define XKS_LATENCY_BUCKETS 80
/* Different CK_RVs counted per partition; what does not fit is counted as XKS_OTHER_CKR. */
#define XKS_COUNTED_CKRS 16
#define XKS_OTHER_CKR 4294967295

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
    bool remote;                    /* at another site than this proxy: used when the local partitions have no room */
} xks_partition_config;

typedef struct xks_engine_config {
    uint32_t max_queued;            /* jobs waiting for a partition with room before submit answers XKS_BUSY */
    uint64_t probe_interval_ns;     /* health probe of each partition */
    double retry_budget;            /* retries per job, on average, after a partition's fault */
    double hedge_budget;            /* second calls per job, on average, beside one that is slow */
    uint64_t seed;                  /* of the router's ties */
    uint64_t recovery_pause_ns;     /* the first pause between attempts to bring a partition up; 0: XKS_RECOVERY_PAUSE_NS */
} xks_engine_config;

/* Where a CDIV's check decrypt runs. */
typedef enum xks_verify_policy {
    XKS_VERIFY_SAME = 0, /* on the partition that encrypted */
    XKS_VERIFY_OTHER = 1 /* on another one of the group, so that each data key proves that both hold the same key; on the same one
                            while no other can */
} xks_verify_policy;

typedef enum xks_partition_state {
    XKS_PARTITION_STARTING = 0,
    XKS_PARTITION_READY = 1,
    XKS_PARTITION_RECOVERING = 2, /* an attempt failed, or it served before; the keeper tries again by itself */
    XKS_PARTITION_REFUSED = 3     /* a refused PIN, or a token that must not be used (IV reuse): never tried again */
} xks_partition_state;

typedef struct xks_ckr_count {
    uint32_t ckr;
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
    bool message_api;               /* PKCS#11 3.0 message-based encryption is used */
    bool in_service;                /* the router gives it work: ready, breaker closed */
    uint32_t lost_threads;          /* hung in a call for longer than a second */
    uint32_t limit;                 /* calls that may be in flight */
    double concurrency;             /* calls that it works on at once without queueing, estimated */
    uint64_t median_ns;             /* of a call, tracked by the router */
    uint64_t p95_ns;
    uint64_t oldest_call_ns;        /* age of the oldest call in flight; 0: none */
    double slow_start;              /* factor on its score while it comes back; 1: over */
    char route_reason[24];          /* why a job would or would not go there now: "eligible", "out_of_service", "full", ... */
    uint64_t firsts;                /* calls handed over, by purpose */
    uint64_t retries;
    uint64_t hedges;
    uint64_t checks;
    uint64_t faults;                /* of the partition */
    uint64_t opens;                 /* of the breaker */
    char last_open_reason[512];     /* why the breaker last opened, kept after it closed; "": never */
    int64_t last_open_unix_s;
    uint32_t keys_refused;          /* not used here for what they are: another key, several, no AES-256, not readable */
    char key_problem[512];          /* the last of them: which and what to do; "" when there is none */
    xks_ckr_count errors[XKS_COUNTED_CKRS]; /* failed calls by CK_RV; a count of 0 ends them */
    uint64_t latency_counts[XKS_LATENCY_BUCKETS]; /* calls served, by duration */
} xks_partition_status;

/* What became of the jobs of an engine. */
typedef struct xks_engine_totals {
    uint64_t jobs;               /* submitted, refused ones included */
    uint64_t answered;
    uint64_t refused_busy;       /* at once: they could not have been answered in time */
    uint64_t refused_unavailable;
    uint64_t timeouts;           /* their deadline passed */
    uint64_t retries;
    uint64_t hedges;
    uint64_t hedge_wins;
    uint64_t late_results_wiped;
    uint64_t checks_elsewhere;   /* check decrypts on another partition */
    uint64_t failed_checks;
    uint32_t waiting;            /* for a partition with room */
    uint32_t in_flight;
} xks_engine_totals;

typedef enum xks_key_state {
    XKS_KEY_PENDING = 0,
    XKS_KEY_USABLE = 1,
    XKS_KEY_ABSENT = 2,
    XKS_KEY_AMBIGUOUS = 3,  /* several secret keys carry the label */
    XKS_KEY_WRONG_TYPE = 4, /* not AES, or not 256 bits */
    XKS_KEY_FAILED = 5,     /* the token refused to tell; the keeper tries again */
    XKS_KEY_DIFFERENT = 6   /* it is not the key that this label has stood for since it was first seen */
} xks_key_state;

typedef struct xks_key_status {
    xks_key_state state;
    bool can_encrypt;
    bool can_decrypt;
    bool extractable;
    bool session_copy;      /* operations use a session-object copy */
    bool proven;            /* it opened its reference, or made it */
    char reason[512];
} xks_key_status;

/* A change that an operator should hear of: a key that was used is not any more, is another one, or is used again. */
#define XKS_KEY_NEWS 16
typedef struct xks_key_news {
    uint32_t partition;
    xks_key_state state;
    char text[512];         /* which key, and what to do */
} xks_key_news;

XKS_MUST_CHECK xks_status xks_engine_new(const xks_engine_config *config, xks_engine **out, char *error);
/* Ask every thread to end, and wait for at most patience_ns. The number of threads that have not ended, which are inside a call of a module;
 * it may be called again to wait for longer. A process that ends while one of them is in C_Login may leave a software token half written. */
uint32_t xks_engine_stop(xks_engine *engine, uint64_t patience_ns);
/* Stops first when it runs. Workers hung inside a token are left behind with what they hold; their number is returned. */
uint32_t xks_engine_free(xks_engine *engine);

/* Before the _add_module of the module that reads this variable of the environment; it is set in this process whenever that module is
 * initialised. Modules that want different values of one variable are initialised one after the other. */
XKS_MUST_CHECK xks_status xks_engine_add_variable(xks_engine *engine, const char *name, const char *value, char *error);
/* Before _start. path: the shared library; parameters: LibraryParameters, or NULL. The keepers load and initialise it, and try again while
 * that fails: see the reason of the partitions. */
XKS_MUST_CHECK xks_status xks_engine_add_module(xks_engine *engine, const char *path, const char *parameters,
                                                uint32_t *module, char *error);
XKS_MUST_CHECK xks_status xks_engine_add_partition(xks_engine *engine, const xks_partition_config *config,
                                                   uint32_t *partition, char *error);
XKS_MUST_CHECK xks_status xks_engine_add_group(xks_engine *engine, const uint32_t *partitions, size_t partition_count,
                                               xks_verify_policy verify, uint32_t *group, char *error);

/* Before _start. Keep what keys are proven against in this file, for all processes that name it: xks_reference_store.h. Without it each
 * process takes the first key that it sees under a label for the right one. */
XKS_MUST_CHECK xks_status xks_engine_keep_references(xks_engine *engine, const char *path, char *error);
/* Before _start. The name of a group, which stays the same over restarts. A group without one has no reference in the file. */
XKS_MUST_CHECK xks_status xks_engine_name_group(xks_engine *engine, uint32_t group, const char *name, char *error);

/* Starts keepers and workers, returns without waiting for the tokens. */
XKS_MUST_CHECK xks_status xks_engine_start(xks_engine *engine, char *error);

/* Make a key known by its CKA_LABEL (1..255 bytes): the keepers of the group's partitions look for it. Asking again for a known
 * pair gives the same index and counts; the last _key_remove forgets it. */
XKS_MUST_CHECK xks_status xks_engine_key_add(xks_engine *engine, uint32_t group, const char *label, size_t label_len,
                                             uint32_t *key, char *error);
void xks_engine_key_remove(xks_engine *engine, uint32_t key);

/* Blocks until no partition is STARTING and none that is READY has a PENDING key, or XKS_TIMEOUT. A partition that has not answered its first
 * attempt two seconds after the start is waited for no longer when every group that it belongs to has another that is READY. Not for the loop
 * thread. */
XKS_MUST_CHECK xks_status xks_engine_wait_settled(xks_engine *engine, uint64_t timeout_ns);

/* The same for some keys alone: until each has been looked at by those partitions of its group that are READY; while none is READY yet,
 * by those that are STARTING. *settled: how many have been, from the first on; while it grows, waiting on is worth while. */
XKS_MUST_CHECK xks_status xks_engine_wait_keys(xks_engine *engine, const uint32_t *keys, size_t key_count, uint64_t timeout_ns,
                                               size_t *settled);

/* What _wait_settled waits for: partitions that are STARTING and keys that are PENDING. While it falls, waiting on is worth while. */
uint64_t xks_engine_unsettled(xks_engine *engine);

/* No token is called by these: they copy what the keepers and the router know. */
XKS_MUST_CHECK xks_status xks_engine_partition_status(xks_engine *engine, uint32_t partition, xks_partition_status *out);
XKS_MUST_CHECK xks_status xks_engine_key_status(xks_engine *engine, uint32_t key, uint32_t partition, xks_key_status *out);
/* Whether a partition can use the key, or may soon (XKS_OK); else as _submit, without the time. */
XKS_MUST_CHECK xks_status xks_engine_key_verdict(xks_engine *engine, uint32_t key);
/* Move what has changed since the last call into `out`, oldest first; how many. *lost: how many more there was no room for. */
size_t xks_engine_take_key_news(xks_engine *engine, xks_key_news out[XKS_KEY_NEWS], uint32_t *lost);
void xks_engine_totals_read(const xks_engine *engine, xks_engine_totals *out);

/* The bound of a latency bucket in ns: it counts what took at most this long, and longer than the bound before. */
uint64_t xks_engine_latency_bound_ns(uint32_t bucket);

/* The descriptor that becomes readable when completions wait. Owned by the engine. */
int xks_engine_eventfd(const xks_engine *engine);

/* Send a job on its way; workers are woken by the next _flush. On anything but XKS_OK the job stays the caller's:
 * XKS_BUSY       too many wait, or it could not be answered in time: we are overloaded
 * XKS_TIMEOUT    the deadline is too near, or the HSM does not answer at all
 * XKS_UNAVAILABLE no partition of the key's group is in service, or what one knows of the key cannot be learnt now
 * XKS_CONFIG     what partitions have under the key's label is not the key
 * XKS_NOT_FOUND  every partition of the group is in service and has no such key */
XKS_MUST_CHECK xks_status xks_engine_submit(xks_engine *engine, xks_job *job);
void xks_engine_flush(xks_engine *engine);

/* All answered jobs, oldest first, linked by next; NULL when there are none. Also clears the eventfd, moves waiting jobs on, retries,
 * hedges, and answers what is past its deadline. */
xks_job *xks_engine_drain(xks_engine *engine);

/* Jobs that are not answered yet, and calls whose job was answered without them. While it is not 0, drain every XKS_TICK_NS. */
uint32_t xks_engine_outstanding(const xks_engine *engine);

#endif
