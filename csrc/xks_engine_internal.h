/* SPDX-License-Identifier: Apache-2.0 */
/* xks_engine_internal.h - what the three files of the engine share.
 *
 *   xks_engine.c         the handle, its tables, submit and drain (the loop thread's side)
 *   xks_engine_keeper.c  one thread per partition: login, self-test, keys, probes, recovery
 *   xks_engine_worker.c  one thread per session: a job at a time, completions, repairs of its own session
 *
 * Locks: engine->lock guards the key and group tables; partition->lock guards all of a partition that is marked so; done_lock the
 * completion list. Order: engine->lock before partition->lock; done_lock is innermost. No lock is held across a call into a token.
 *
 * Epochs: the keeper logs in, finds keys and makes copies; each time it does, partition->epoch grows. A worker notes the epoch when it
 * takes a job's handle; a token that calls the handle or the login stale makes the worker ask for recovery of *that* epoch, once.
 */
#ifndef XKS_ENGINE_INTERNAL_H
#define XKS_ENGINE_INTERNAL_H

#include "xks_engine.h"
#include "xks_p11_gcm.h"
#include "xks_p11_key.h"
#include "xks_p11_self_test.h"
#include "xks_p11_token.h"
#include <pthread.h>
#include <stdatomic.h>

#define XKS_MAX_MODULES 64
#define XKS_MAX_PARTITIONS 64
#define XKS_MAX_GROUPS 256
#define XKS_MAX_SESSIONS 256
/* A token whose call is shorter than this is not worth a thread per job: waking one costs more. */
#define XKS_FAST_CALL_NS 20000
/* The loop is woken for finished jobs at the latest this long after the first of them: about what a wake-up costs. */
#define XKS_HELD_WAKE_NS 50000
/* A fast worker without progress for this long is taken for blocked. */
#define XKS_STALLED_NS 1000000

/* A key of the engine: what to look for. */
typedef struct engine_key {
    char *label;
    size_t label_len;
    uint32_t group;
    uint32_t references; /* 0: free */
} engine_key;

/* The same key as one partition knows it. */
typedef struct partition_key {
    xks_p11_key key;
    xks_key_state state;
    bool wanted; /* the partition belongs to the key's group */
    CK_RV rv;    /* for XKS_KEY_FAILED */
} partition_key;

typedef struct engine_worker {
    struct engine_partition *partition;
    pthread_t thread;
    bool started;
    CK_SESSION_HANDLE session;
    bool session_open;
    uint32_t session_epoch;
    xks_random_pool random;
    xks_p11_scratch scratch;
    xks_p11_scratch check; /* plaintext of a check decrypt */
} engine_worker;

typedef struct engine_partition {
    xks_engine *engine;
    uint32_t index;
    /* --- fixed after _start */
    char *name;
    xks_p11_module *module;
    char *token_label;
    char *token_serial;
    uint64_t slot_wanted;
    const xks_secret *pin;
    const xks_p11_profile *profile;
    uint32_t sessions;
    char *health_label;
    engine_worker *workers;
    pthread_t keeper;
    bool keeper_started;
    /* --- guarded by lock */
    pthread_mutex_t lock;
    pthread_cond_t work;      /* workers wait for jobs or for READY */
    pthread_cond_t attention; /* the keeper waits for what is to do */
    _Atomic int state;        /* xks_partition_state; also read without the lock, as a hint */
    char reason[XKS_ERROR_TEXT_BYTES];
    xks_p11_token_info info;
    CK_SLOT_ID slot;
    uint32_t epoch;
    bool recovery_wanted;
    bool keys_pending;
    xks_job *queue_head;
    xks_job *queue_tail;
    uint32_t queued;
    _Atomic uint32_t in_flight;
    uint32_t idle_workers;
    uint32_t running_workers;
    uint32_t sessions_open;
    uint64_t last_progress_ns;
    uint64_t service_ns; /* tracked time of one job */
    uint32_t faults_in_row;
    uint64_t operations;
    uint64_t failures;
    xks_ckr_count errors[XKS_MAX_ERROR_CODES];
    uint64_t latency_counts[XKS_LATENCY_BUCKETS];
    uint64_t last_probe_ns;
    uint64_t last_good_probe_ns;
    uint64_t probe_duration_ns;
    partition_key *keys; /* by key index */
    uint32_t key_capacity;
    CK_RV tag_failure;
    xks_p11_canary canary;
    /* --- the keeper's own */
    CK_SESSION_HANDLE keeper_session;
    bool keeper_session_open;
    xks_random_pool random;
    xks_p11_scratch scratch;
} engine_partition;

typedef struct engine_group {
    uint32_t *partitions;
    uint32_t count;
    uint32_t turn; /* the loop thread's */
} engine_group;

struct xks_engine {
    int64_t pid;
    xks_engine_config config;
    xks_p11_module modules[XKS_MAX_MODULES];
    uint32_t module_count;
    engine_partition *partitions[XKS_MAX_PARTITIONS];
    uint32_t partition_count;
    engine_group groups[XKS_MAX_GROUPS];
    uint32_t group_count;
    bool started;
    _Atomic bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t settled; /* a partition's state or keys changed */
    engine_key *keys;
    uint32_t key_capacity;
    _Atomic uint32_t queued; /* over all partitions */
    uint64_t dirty;          /* the loop thread's: partitions with jobs submitted since the last flush, by bit */
    /* --- completions */
    int eventfd;
    pthread_mutex_t done_lock;
    xks_job *done_head;
    xks_job *done_tail;
    uint64_t first_unsignalled_ns;
    bool signalled;
};

/* The latency bucket of a duration. */
uint32_t xks_engine_latency_bucket(uint64_t ns);

void *xks_engine_keeper_main(void *partition);
void *xks_engine_worker_main(void *worker);

/* Append to the completion list; wake the loop unless `more_soon` says that another completion follows within moments. */
void xks_engine_complete(xks_engine *engine, xks_job *job, bool more_soon);

/* Everybody who waits for the engine to settle looks again. */
void xks_engine_announce(xks_engine *engine);

/* Complete, as XKS_TIMEOUT, jobs past their deadline; with `all` every job, as `status`. */
void xks_engine_purge_locked(engine_partition *partition, bool all, xks_status status);

#endif
