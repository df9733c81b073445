/* SPDX-License-Identifier: Apache-2.0 */
/* xks_engine_internal.h - what the files of the engine share.
 *
 *   xks_engine.c           the handle: modules, partitions, groups, start and stop
 *   xks_engine_keys.c      the key tables
 *   xks_engine_status.c    what the keepers and the router know, for who asks
 *   xks_engine_dispatch.c  the loop thread's side: submit, flush, drain; deadlines and hedges
 *   xks_engine_place.c     where a job goes: to a partition, into its group's queue, or back; the breaker
 *   xks_engine_settle.c    what becomes of a job that came back: answers, retries, checks on another partition
 *   xks_engine_queue.c     between the loop and the workers: a partition's queue, its idle workers, the completion list
 *   xks_engine_worker.c    one thread per session: a job at a time, repairs of its own session
 *   xks_engine_keeper.c    one thread per partition: probes, recovery, looking after keys and sessions
 *   xks_engine_bring_up.c  the keeper's way to a partition that may serve: token, login, self-test
 *   xks_engine_module.c    the gate of a module: who is inside, loading it, resetting it, numbers that it gives out again
 *   xks_engine_lookup.c    the keeper's work on keys: finding, copying, revalidating
 *   xks_engine_identity.c  the keeper's proofs that a key is the one that its label has stood for since it was first seen
 *   xks_engine_verdict.c   what is written down of a key, tried again, and told to who asks
 *
 * Locks: engine->lock guards the key table; partition->lock guards all of a partition that is marked so; done_lock the completion list;
 * module->lock who is inside a module and who may reset it. Order: engine->lock, module->lock, partition->lock, done_lock. No lock is
 * held across a call into a token. The loop thread's own state needs none.
 *
 * Epochs: each login of the keeper makes partition->epoch grow, and every handle of an older epoch is forgotten. A worker notes the
 * epoch when it takes a job; a token that calls the login stale makes the worker ask for recovery of *that* epoch, so that many workers
 * cause one recovery. An epoch below valid_epoch is over though no login has followed yet: no worker begins a call for it.
 *
 * Numbers: a module may give the number of a session or an object that is gone to another, of another token even. So a worker's result
 * counts only if the key's handle and the epoch are still what they were when it took the job; who gets a session's number looks whether
 * another of our threads holds the same; and before a keeper opens a session for a new login, every handle is forgotten and the workers are out.
 *
 * Service: a partition is in service while its state is READY. The router's breaker takes it out by asking the keeper for recovery; the
 * keeper's probes bring it back. `down` is set once an attempt has failed: jobs wait for a partition that is out but not down, since
 * it may be back within moments.
 *
 * Generations: an index of the key table is given to another key only when no copy of the former is left, and each key has a generation
 * of its own that its jobs carry. A job can thus never meet another key's handle.
 */
#ifndef XKS_ENGINE_INTERNAL_H
#define XKS_ENGINE_INTERNAL_H

#include "xks_engine.h"
#include "xks_engine_key_types.h"
#include "xks_p11_gcm.h"
#include "xks_p11_key.h"
#include "xks_p11_self_test.h"
#include "xks_p11_token.h"
#include "xks_reference_store.h"
#include "xks_router.h"
#include <pthread.h>
#include <stdatomic.h>

#define XKS_MAX_MODULES 64
#define XKS_MAX_VARIABLES 64
#define XKS_MAX_PARTITIONS XKS_ROUTER_MAX_PARTITIONS
#define XKS_MAX_GROUPS 256
#define XKS_MAX_SESSIONS 256
/* A token whose call is shorter than this is not worth a thread per job: waking one costs about as much. */
#define XKS_FAST_CALL_NS 50000
/* The loop is woken for finished jobs at the latest this long after the first of them: about what a wake-up costs. */
#define XKS_HELD_WAKE_NS 50000
/* A fast worker without progress for this long is taken for blocked. */
#define XKS_STALLED_NS 1000000

typedef struct job_queue {
    xks_job *head, *tail;
} job_queue;

/* A variable of the environment that a module reads when it is initialised. */
typedef struct module_variable {
    char *name, *value;
} module_variable;

/* A module of the engine. */
typedef struct engine_module {
    xks_p11_module p11; /* written by who changes the module */
    module_variable variables[XKS_MAX_VARIABLES]; /* fixed after _start */
    uint32_t variable_count;
    bool reads_environment; /* guarded by engine->lock */
    pthread_mutex_t lock;
    /* --- guarded by lock */
    pthread_cond_t changed;
    uint32_t inside; /* keepers */
    bool open;       /* loaded and initialised */
    bool changing;   /* being loaded, initialised or reset: nobody may be inside */
    /* --- */
    _Atomic uint32_t opening; /* sessions that are being opened, until their numbers have been noted */
} engine_module;

typedef struct engine_worker {
    struct engine_partition *partition;
    pthread_t thread;
    /* --- guarded by the partition's lock */
    pthread_cond_t wake;
    struct engine_worker *next_idle;
    bool started, idle, woken, lost, exited;
    bool joined;             /* by the thread that stops the engine */
    bool resting;            /* the token has no session for it */
    uint64_t busy_since_ns;  /* 0: not inside a token */
    CK_SESSION_HANDLE session; /* written by the worker alone, under the lock */
    bool session_open;
    uint32_t session_epoch;
    CK_SLOT_ID slot;           /* of the session */
    /* --- the worker's own */
    xks_random_pool random;
    xks_p11_scratch scratch;
    xks_p11_scratch check; /* plaintext of a check decrypt */
    xks_p11_messages messages;
} engine_worker;

/* What the loop thread counts of a partition. */
typedef struct partition_counters {
    xks_ckr_count errors[XKS_COUNTED_CKRS];
    uint64_t latency[XKS_LATENCY_BUCKETS];
} partition_counters;

typedef struct engine_partition {
    xks_engine *engine;
    uint32_t index;
    /* --- fixed after _start */
    char *name;
    engine_module *module;
    const xks_p11_module *p11;
    char *token_label;
    char *token_serial;
    uint64_t slot_wanted;
    const xks_secret *pin;
    const xks_p11_profile *profile;
    uint32_t sessions;
    bool remote;
    char *health_label;
    engine_worker *workers; /* 2 x sessions: as many again for lost ones */
    pthread_t keeper;
    bool keeper_started, keeper_joined;
    /* --- the loop thread's own */
    job_queue outbox; /* handed over since the last flush */
    uint32_t outbox_count;
    partition_counters counters;
    /* --- guarded by lock */
    pthread_mutex_t lock;
    pthread_cond_t attention; /* the keeper waits for what is to do */
    _Atomic int state;        /* xks_partition_state; also read without the lock, as a hint */
    _Atomic bool down;        /* not READY, and an attempt to bring it back has failed */
    _Atomic bool hangs;       /* taken out since a call did not return */
    char reason[XKS_ERROR_TEXT_BYTES];
    char last_open_reason[XKS_ERROR_TEXT_BYTES];
    int64_t last_open_unix_s;
    uint64_t opens;           /* of the breaker, whoever asked for it */
    xks_p11_token_info info;
    CK_SLOT_ID slot;
    uint32_t epoch;           /* 0: never logged in */
    uint32_t valid_epoch;     /* sessions of an older epoch are gone in the token: their handles may be somebody else's by now */
    bool recovery_wanted;
    bool recovery_by_breaker; /* rather than by a stale login: pause, then several good probes */
    bool login_in_doubt;      /* a handle was called stale: prove the login before a key is called absent */
    bool module_gone;         /* the module says that it is not initialised, or nothing but resetting it is left to try */
    bool keeper_session_gone; /* with the module's state, or its number is somebody else's by now: not to be used or closed */
    bool logging_in;          /* from the first call for a login until it is done: no worker may begin a call */
    bool frozen;              /* its module is being reset: no worker may enter it */
    CK_SESSION_HANDLE keeper_session; /* written by the keeper alone, under the lock */
    CK_SLOT_ID keeper_slot;   /* where it was opened */
    bool keeper_session_open;
    job_queue queue;
    uint32_t queued;
    engine_worker *idle;      /* last in, first out: warm ones first */
    uint32_t running_workers;
    uint32_t threads;         /* started and not exited */
    uint32_t lost;
    uint32_t sessions_open;
    uint32_t opening;         /* workers that are about to have a session, or to be refused one */
    uint32_t session_limit;   /* what the token allows us; UINT32_MAX: not met yet */
    uint64_t retry_sessions_ns; /* when to try for more */
    _Atomic uint32_t usable_sessions;
    uint64_t last_progress_ns;
    uint64_t quick_ns; /* tracked: about the 11th percentile of the time of one job */
    uint64_t operations;
    uint64_t failures;
    uint64_t last_probe_ns;
    uint64_t last_good_probe_ns;
    uint64_t probe_duration_ns;
    partition_key *keys[XKS_MAX_KEY_CHUNKS]; /* by key index; chunks never move */
    uint32_t keys_by_state[XKS_KEY_STATES];  /* of those wanted */
    uint32_t read_in_epoch;                  /* the token's keys were read as a whole */
    key_list lists[XKS_KEY_LISTS];           /* by key_list_name */
    uint64_t retry_keys_ns;                  /* the first of RETRIED_KEYS is due; 0: there are none */
    char key_problem[XKS_ERROR_TEXT_BYTES];  /* the last key that was refused: which and what to do */
    uint32_t problem_key;
    char reference_problem[XKS_ERROR_TEXT_BYTES]; /* the last one of the file of references; "" while it works */
    CK_RV tag_failure;
    bool message_api;
    xks_p11_canary canary;
    /* --- the keeper's own */
    uint32_t sweep_at;        /* the next key to revalidate */
    held_key *held;           /* looked at, to be written down when their references are on the disk; XKS_MAX_HELD_KEYS of them */
    uint32_t held_count;
    xks_random_pool random;
    xks_p11_scratch scratch;
} engine_partition;

typedef struct engine_group {
    char *name;              /* under which the references of its keys are kept; NULL: this process alone keeps them */
    uint64_t members, local; /* by bit */
    uint32_t count;
    xks_verify_policy verify;
    /* --- the loop thread's own */
    xks_job *waiting_head, *waiting_tail;
    uint32_t waiting;
} engine_group;

struct xks_engine {
    int64_t pid;
    const volatile uint8_t *ours; /* a page that a fork wipes: 0 in a child */
    xks_engine_config config;
    engine_module modules[XKS_MAX_MODULES];
    uint32_t module_count;
    xks_reference_store *references; /* NULL: each process has its own; fixed after _start */
    engine_partition *partitions[XKS_MAX_PARTITIONS];
    uint32_t partition_count;
    engine_group groups[XKS_MAX_GROUPS];
    uint32_t group_count;
    bool started;
    _Atomic bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t settled; /* a partition's state or keys changed */
    pthread_cond_t environment_free;
    uint64_t started_ns;
    engine_key *keys[XKS_MAX_KEY_CHUNKS];
    _Atomic uint32_t key_capacity; /* indices that have a chunk */
    uint32_t keys_used;            /* indices ever given out */
    uint32_t *buckets;             /* bucket_count of them, by hash */
    uint32_t bucket_count;
    key_list retired;              /* indices whose key was removed, oldest first */
    xks_key_news news[XKS_KEY_NEWS]; /* not taken yet, oldest first */
    uint32_t news_count, news_lost;
    _Atomic uint64_t changes;      /* of any partition's state, sessions or keys */
    /* --- the loop thread's own */
    xks_router *router;
    xks_job_pool *pool; /* hedges, checks and stand-ins */
    uint64_t seen_changes;
    uint64_t in_service; /* partitions, by bit */
    uint64_t dirty;      /* partitions with jobs that were handed over, or that wait in their queue, by bit */
    xks_job *calls_head, *calls_tail; /* jobs with a call in flight, oldest first */
    uint32_t calls;
    uint32_t waiting;
    uint32_t unanswered;
    uint64_t ticked_ns, looked_for_lost_ns;
    job_queue answered;
    xks_engine_totals totals;
    _Atomic uint32_t queued; /* handed over, and not taken by a worker yet */
    /* --- completions */
    int eventfd;
    pthread_mutex_t done_lock;
    job_queue done;
    uint64_t first_unsignalled_ns;
    bool signalled;
    _Atomic uint64_t signals_sent; /* writes to eventfd, decided on if not yet made */
    uint64_t signals_seen;         /* the loop thread's */
};

static inline engine_key *xks_engine_key_at(const xks_engine *engine, uint32_t key)
{
    return &engine->keys[key / XKS_KEYS_PER_CHUNK][key % XKS_KEYS_PER_CHUNK];
}

static inline partition_key *xks_partition_key_at(const engine_partition *partition, uint32_t key)
{
    return &partition->keys[key / XKS_KEYS_PER_CHUNK][key % XKS_KEYS_PER_CHUNK];
}

static inline uint64_t xks_partition_bit(const engine_partition *partition)
{
    return (uint64_t)1 << partition->index;
}

/* --- xks_engine.c */

/* XKS_CONFIG, with the text in `error` (XKS_ERROR_TEXT_BYTES). */
xks_status xks_engine_refuse(char *error, const char *text);
/* A new thread for a lost or a new worker; false when none could be started. partition->lock is held. */
bool xks_engine_start_worker_locked(engine_partition *partition);

/* --- xks_engine_keys.c; partition->lock is held, unless it says otherwise */

/* Set what a partition thinks of a key; keeps keys_by_state right. */
void xks_engine_set_key_locked(engine_partition *partition, uint32_t key, xks_key_state state);
/* Have the keeper look at a key, and wake it. */
void xks_engine_list_key_locked(engine_partition *partition, uint32_t key, key_list_name list);
/* The next key to look at, those first that jobs wait for; XKS_NO_KEY when there is none. */
uint32_t xks_engine_next_listed_locked(engine_partition *partition);
/* Have a key that could not be read looked at again after a pause: longer each time. */
void xks_engine_retry_key_locked(engine_partition *partition, uint32_t key, uint64_t now);
/* List those of them that are due. */
void xks_engine_list_due_keys_locked(engine_partition *partition, uint64_t now);
/* After a login: every handle is forgotten and every wanted key PENDING. */
void xks_engine_forget_handles_locked(engine_partition *partition);
void xks_engine_free_keys(xks_engine *engine);
/* The key of this label after `after` (XKS_NO_KEY: the first), of whatever group; engine->lock is held. */
uint32_t xks_engine_next_of_label_locked(const xks_engine *engine, uint32_t after, const char *label, size_t len);

/* --- xks_engine_verdict.c */

/* Write down what was found, unless the key was removed in between: then its copy goes too, if nothing was known of it, and the result is
 * false. Takes both locks. */
bool xks_engine_publish_key(engine_partition *partition, const wanted_key *wanted, xks_p11_key *key, const key_finding *found);
/* Whether a member is out since a call did not return. */
bool xks_engine_any_hangs(const xks_engine *engine, uint64_t members);
/* Why no member of the group can use the key now: XKS_NOT_FOUND only when all of them serve and say that there is none. The loop
 * thread's. */
xks_status xks_engine_why_no_key(const xks_engine *engine, const engine_group *group, uint32_t key);

/* --- xks_engine_identity.c; the keeper's thread only, no lock held */

/* Whether this is the key that the label stands for; `key` can be used when the state is USABLE. *made: its reference is new and counts
 * when it has been synced. */
key_finding xks_engine_prove_key(engine_partition *partition, const wanted_key *wanted, const xks_p11_key *key, bool *made);
/* The same for one that is used, against its token object. USABLE with rv: it could not be asked now. */
key_finding xks_engine_prove_again(engine_partition *partition, const wanted_key *wanted, const xks_p11_key *key);
/* Write a key down that is USABLE once its new reference is on the disk: by _publish_held, at the latest. */
void xks_engine_hold_key(engine_partition *partition, const wanted_key *wanted, const xks_p11_key *key);
bool xks_engine_is_held(const engine_partition *partition, uint32_t key);
/* Sync new references to the disk and write down the keys that waited for it. */
void xks_engine_publish_held(engine_partition *partition);
/* Whether the code says that what the keeper holds of the token is no longer so: session, login, module. */
bool xks_engine_is_stale(CK_RV rv);

/* --- xks_engine_status.c */

/* Something changed that the loop, or who waits for the engine to settle, must look at. No lock is held. */
void xks_engine_announce(xks_engine *engine);
void xks_engine_count_call(engine_partition *partition, const xks_job *job);

/* --- xks_engine_place.c; the loop thread's */

typedef enum placement {
    PLACED,
    WAITS_FOR_ROOM,
    WAITS_FOR_REPAIR, /* of a key, a login, a partition */
    REFUSED
} placement;

/* Lists through route.list_prev and route.list_next. */
void xks_engine_list_remove(xks_job **head, xks_job **tail, xks_job *job);
/* NULL when the key is not known (any more). */
engine_group *xks_engine_group_of(xks_engine *engine, const xks_job *job);
/* Tell the router which partitions came into service, left it, or have more or fewer sessions. */
void xks_engine_look_at_changes(xks_engine *engine, uint64_t now);
void xks_engine_open_breaker(xks_engine *engine, uint32_t index, const char *reason, bool hangs, uint64_t now);
void xks_engine_open_after_fault(xks_engine *engine, const xks_job *job, const char *what, uint64_t now);
/* Which partition takes the job (PLACED: *index), or what it waits for, or why not (REFUSED: *why). */
placement xks_engine_choose(xks_engine *engine, const xks_job *job, xks_route_purpose purpose, uint64_t now, uint32_t *index,
                            xks_status *why);
void xks_engine_hand_over(xks_engine *engine, uint32_t index, xks_job *job, xks_route_purpose purpose, uint64_t now);
/* Choose, and hand over when a partition was found. */
placement xks_engine_place(xks_engine *engine, xks_job *job, xks_route_purpose purpose, uint64_t now, xks_status *why);
/* Until a partition has room, or has been repaired. A job that had its turn already goes before all others. */
void xks_engine_wait(xks_engine *engine, xks_job *job, xks_route_purpose purpose);
void xks_engine_leave_waiting(xks_engine *engine, xks_job *job);

/* --- xks_engine_settle.c; the loop thread's */

/* A job was completed by a partition. */
void xks_engine_come_back(xks_engine *engine, xks_job *job, uint64_t now);
/* The job has its status: for _drain to hand out, or for the job that it checks. */
void xks_engine_answer(xks_engine *engine, xks_job *job, uint64_t now);
/* Answer for a job that is inside a token, past its deadline: another job with its owner stands in for it. */
void xks_engine_answer_for(xks_engine *engine, xks_job *job, uint64_t now);

/* --- xks_engine_queue.c */

void xks_engine_push(job_queue *queue, xks_job *job);
xks_job *xks_engine_pop(job_queue *queue);
/* Move all of `more` behind `queue`. */
void xks_engine_append(job_queue *queue, job_queue *more);
/* Append to the completion list; wake the loop unless `more_soon` says that another completion follows within moments. */
void xks_engine_complete(xks_engine *engine, xks_job *job, bool more_soon);
/* All completions, oldest first; clears the eventfd. */
xks_job *xks_engine_take_completions(xks_engine *engine);
/* Make the eventfd readable. */
void xks_engine_wake_loop(xks_engine *engine);
/* Wake one idle worker, or all of them. partition->lock is held. */
bool xks_engine_wake_worker_locked(engine_partition *partition);
void xks_engine_wake_all_workers_locked(engine_partition *partition);
/* Have one worker that rests for want of a session try again; false when none rests. partition->lock is held. */
bool xks_engine_end_rest_locked(engine_partition *partition);
/* Complete the queued jobs that are past their deadline; with `all` every one. partition->lock is held. */
void xks_engine_purge_locked(engine_partition *partition, bool all, const char *call, CK_RV rv);
/* Write off workers that hang, start others in their place. Loop thread; partition->lock is held. */
void xks_engine_replace_lost_locked(engine_partition *partition, uint64_t now);
/* What usable_sessions is from the fields it follows; the loop is told of a change. partition->lock is held. */
void xks_engine_count_sessions_locked(engine_partition *partition);

/* --- threads */

void *xks_engine_keeper_main(void *partition);
void *xks_engine_worker_main(void *worker);
/* Take the partition out of service and have the keeper bring it back: for the login of `epoch` (0: whatever it is). */
void xks_engine_ask_recovery_locked(engine_partition *partition, uint32_t epoch, bool by_breaker, const char *reason);

/* --- xks_engine_bring_up.c; the keeper's thread only, no lock held */

void xks_engine_close_keeper_session(engine_partition *partition);
/* One attempt to find the token, log in, prove it, and let the workers in under a new epoch; inside the module. XKS_FINAL: never again. */
xks_status xks_engine_bring_up(engine_partition *partition, char *error);

/* --- xks_engine_module.c; the keeper's thread only, no lock held, unless it says otherwise */

/* Begin a region of calls: waits while the module is loaded or reset. False, and no call may be made: what the keeper held of the module is
 * gone, or the engine stops while the module is being changed. */
bool xks_engine_enter_module(engine_partition *partition);
/* The same for a new login, which needs nothing of before; loads and initialises the module if nobody has. */
xks_status xks_engine_enter_for_login(engine_partition *partition, char *error);
/* The end of the region: what was read in it may be outdated from now on. */
void xks_engine_leave_module(engine_partition *partition);
/* Finalise and initialise the partition's module again, if all its partitions are down and no thread is inside. True when it was done. */
bool xks_engine_reset_module(engine_partition *partition);
/* The token does not know the session. Others of ours may be gone too, and their numbers given out again: nobody opens another before the
 * keeper has logged in again. */
bool xks_engine_is_session_gone(CK_RV rv);
/* The sessions and handles of the present epoch are gone: jobs go elsewhere until the next login. partition->lock is held. */
void xks_engine_lose_handles_locked(engine_partition *partition);
/* A session with this number was just opened, by a worker or by the keeper (NULL): another of the module's partitions or workers that
 * counts the same number as its own has lost it. Any thread of the engine. */
void xks_engine_note_session(engine_partition *partition, CK_SESSION_HANDLE session, const engine_worker *opener);
void xks_engine_free_variables(engine_module *module);

/* --- xks_engine_lookup.c; the keeper's thread only, no lock held */

/* Whether the keeper's session is a logged-in user's, where there is a PIN. CKR_OK, CKR_USER_NOT_LOGGED_IN, or the token's code. */
CK_RV xks_engine_login_check(engine_partition *partition);
/* Look at listed keys for about this long. CKR_OK, or the code by which the token called our session or login stale. */
CK_RV xks_engine_look_for_keys(engine_partition *partition, uint64_t at_most_ns);
/* Revalidate keys from sweep_at on for about this long. Results as above. */
CK_RV xks_engine_sweep_keys(engine_partition *partition, uint64_t at_most_ns);

#endif
