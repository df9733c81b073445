/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include <stdlib.h>
#include <string.h>

#define MAX_ATTEMPTS 4
#define OUT_ROOM 32
/* After the token had no session for a worker: how long until one tries again. */
#define REST_NS 10000000000U
#define SHORT_REST_NS 200000000U

/* A job in a worker's hands, with what the worker took from the partition under its lock. */
typedef struct taken {
    xks_job *job;
    CK_OBJECT_HANDLE key;
    xks_p11_canary canary;
    CK_RV tag_failure;
    uint32_t epoch;
    bool by_message;
} taken;

/* --- the worker's session */

/* Give the session up. It is closed unless its number may be somebody else's by now: of an epoch that the token has forgotten, or when the
 * token says that it knows no such session. From here on its number is not ours, so that who gets it next finds no other holder. */
static void end_session(engine_worker *worker, bool known_to_token)
{
    engine_partition *partition = worker->partition;
    if (!worker->session_open) {
        return;
    }
    pthread_mutex_lock(&partition->lock);
    partition->sessions_open--;
    worker->session_open = false;
    bool close = known_to_token && worker->session_epoch >= partition->valid_epoch && !partition->frozen;
    partition->running_workers += close ? 1 : 0; /* no reset of the module while it is closed */
    pthread_mutex_unlock(&partition->lock);
    if (close) {
        (void)partition->p11->f->C_CloseSession(worker->session);
        pthread_mutex_lock(&partition->lock);
        partition->running_workers--;
        pthread_mutex_unlock(&partition->lock);
    }
    worker->messages = (xks_p11_messages){0};
}

/* Whether calls of this epoch may begin. partition->lock is held. */
static bool is_current_locked(const engine_partition *partition, uint32_t epoch)
{
    return partition->epoch == epoch && epoch >= partition->valid_epoch && epoch != 0 && !partition->logging_in && !partition->frozen;
}

/* CKR_USER_NOT_LOGGED_IN also when the epoch is over. */
static CK_RV open_session(engine_worker *worker, uint32_t epoch)
{
    engine_partition *partition = worker->partition;
    CK_SESSION_HANDLE session;
    if (worker->session_open && worker->session_epoch == epoch) {
        return CKR_OK;
    }
    end_session(worker, true);
    pthread_mutex_lock(&partition->lock);
    bool current = is_current_locked(partition, epoch);
    CK_SLOT_ID slot = partition->slot;
    pthread_mutex_unlock(&partition->lock);
    if (!current) {
        return CKR_USER_NOT_LOGGED_IN;
    }
    atomic_fetch_add(&partition->module->opening, 1);
    CK_RV rv = partition->p11->f->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&partition->lock);
        worker->session = session;
        worker->session_open = true;
        worker->session_epoch = epoch;
        worker->slot = slot;
        partition->sessions_open++;
        pthread_mutex_unlock(&partition->lock);
        xks_engine_note_session(partition, session, worker);
    }
    atomic_fetch_sub(&partition->module->opening, 1);
    return rv;
}

/* Whether the session's number is still of our own slot. Asked only while another session is opened, whose number nobody has noted yet. */
static bool is_own_session(const engine_worker *worker)
{
    const engine_partition *partition = worker->partition;
    CK_SESSION_INFO info;
    return atomic_load(&partition->module->opening) == 0 ||
           (worker->session_open && partition->p11->f->C_GetSessionInfo(worker->session, &info) == CKR_OK && info.slotID == worker->slot);
}

/* --- one job */

static void finish(xks_job *job, xks_status status, xks_job_fate fate, const xks_p11_failure *failure)
{
    job->status = status;
    job->fate = fate;
    job->ckr = failure->rv;
    job->failed_call = failure->call;
    if (status != XKS_OK) {
        xks_wipe(job->output, job->output_capacity);
        job->output_len = 0;
    }
}

/* A decrypt of what a caller sent failed by a code that may mean a wrong tag. A code that says "bad ciphertext" and nothing else is
 * believed. Another, learnt or not, is held against the canary: a dead device must not look like a caller's bad ciphertext. */
static void judge_decrypt(engine_worker *worker, const xks_p11_gcm *gcm, taken *t, const xks_p11_failure *failure)
{
    xks_p11_failure canary_failure = {0};
    xks_p11_gcm plain = *gcm;
    if (xks_ckr_classify(failure->rv) == XKS_CKR_BAD_CIPHERTEXT) {
        finish(t->job, XKS_NOT_AUTHENTIC, XKS_FATE_NONE, failure);
    } else if (xks_p11_canary_check(&plain, &worker->check, &t->canary, &canary_failure) != CKR_OK) {
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_FAULT, &canary_failure);
    } else if (failure->rv == t->tag_failure) {
        finish(t->job, XKS_NOT_AUTHENTIC, XKS_FATE_NONE, failure);
    } else {
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_AMBIGUOUS, failure);
    }
}

/* The token called a key's handle stale: that one key is looked for anew, before all others. */
static void doubt_key(engine_partition *partition, const taken *t)
{
    pthread_mutex_lock(&partition->lock);
    partition_key *known = xks_partition_key_at(partition, t->job->key);
    if (known->wanted && known->use == t->key && partition->epoch == t->epoch) {
        partition->login_in_doubt = true;
        known->use = 0; /* whatever is answered for calls with it counts no more: the number may be another key's by now */
        known->copied = false;
        xks_engine_set_key_locked(partition, t->job->key, XKS_KEY_PENDING);
        xks_engine_list_key_locked(partition, t->job->key, URGENT_KEYS);
    }
    pthread_mutex_unlock(&partition->lock);
}

/* What a failed call means for the job and the partition. True when the job may be tried once more on another session of ours. */
static bool judge(engine_worker *worker, const xks_p11_gcm *gcm, taken *t, const xks_p11_failure *failure, bool callers_ciphertext)
{
    engine_partition *partition = worker->partition;
    xks_ckr_class class = failure->broken ? XKS_CKR_PARTITION_FAULT : xks_ckr_classify(failure->rv);
    if (callers_ciphertext && !failure->broken &&
        (class == XKS_CKR_BAD_CIPHERTEXT || class == XKS_CKR_AMBIGUOUS || failure->rv == t->tag_failure)) {
        judge_decrypt(worker, gcm, t, failure);
        return false;
    }
    if (failure->rv == CKR_SESSION_COUNT) { /* ours was closed as stale, and somebody else was faster: no fault, the job goes elsewhere */
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_NOT_MADE, failure);
        return false;
    }
    switch (class) {
    case XKS_CKR_NOT_PERMITTED:
        finish(t->job, XKS_NOT_PERMITTED, XKS_FATE_NONE, failure);
        return false;
    case XKS_CKR_STALE_SESSION:
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_STALE, failure);
        if (!xks_engine_is_session_gone(failure->rv)) {
            return true;
        }
        pthread_mutex_lock(&partition->lock);
        if (is_current_locked(partition, t->epoch)) {
            xks_engine_lose_handles_locked(partition);
            xks_engine_ask_recovery_locked(partition, t->epoch, false, failure->call);
        }
        pthread_mutex_unlock(&partition->lock);
        return false;
    case XKS_CKR_STALE_KEY:
        doubt_key(partition, t);
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_STALE, failure);
        return false;
    case XKS_CKR_MODULE_GONE:
    case XKS_CKR_STALE_LOGIN:
        pthread_mutex_lock(&partition->lock);
        partition->module_gone = partition->module_gone || class == XKS_CKR_MODULE_GONE;
        xks_engine_ask_recovery_locked(partition, t->epoch, false, failure->call);
        pthread_mutex_unlock(&partition->lock);
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_STALE, failure);
        return false;
    default:
        finish(t->job, XKS_UNAVAILABLE, XKS_FATE_FAULT, failure);
        return false;
    }
}

/* Decrypt what was just encrypted and compare, so that the CDIV is an assurance. Result as of judge. */
static bool prove_ciphertext(engine_worker *worker, const xks_p11_gcm *gcm, taken *t)
{
    xks_job *job = t->job;
    xks_p11_failure failure = {0};
    size_t needed = job->input_len + OUT_ROOM;
    if (worker->check.capacity < needed) {
        uint8_t *data = malloc(needed);
        if (data == NULL) {
            failure = (xks_p11_failure){CKR_HOST_MEMORY, "malloc", false};
            finish(job, XKS_SYSTEM, XKS_FATE_NONE, &failure);
            return false;
        }
        xks_p11_scratch_free(&worker->check);
        worker->check = (xks_p11_scratch){data, needed};
    }
    CK_RV rv = xks_p11_gcm_decrypt(gcm, &worker->scratch, (xks_span){job->iv, job->iv_len}, (xks_span){job->aad, job->aad_len},
                                   (xks_span){job->output, job->output_len}, (xks_span){job->tag, sizeof job->tag},
                                   worker->check.data, &failure);
    if (rv != CKR_OK) {
        return judge(worker, gcm, t, &failure, false);
    }
    bool equal = xks_equal_constant_time(worker->check.data, job->input, job->input_len);
    xks_wipe(worker->check.data, job->input_len);
    if (!equal) {
        failure = (xks_p11_failure){CKR_DEVICE_ERROR, "check decrypt gave other bytes", true};
        finish(job, XKS_UNAVAILABLE, XKS_FATE_FAULT, &failure);
        return false;
    }
    finish(job, XKS_OK, XKS_FATE_NONE, &failure);
    return false;
}

/* One attempt at a job. True when it may be tried once more on another session. */
static bool run(engine_worker *worker, taken *t)
{
    engine_partition *partition = worker->partition;
    xks_job *job = t->job;
    xks_p11_failure failure = {0};
    CK_RV rv = open_session(worker, t->epoch);
    if (rv != CKR_OK) {
        failure = (xks_p11_failure){rv, "C_OpenSession", false};
        return judge(worker, NULL, t, &failure, false);
    }
    xks_p11_gcm gcm = {partition->p11, worker->session, t->key, partition->profile->iv_mode, t->by_message ? &worker->messages : NULL};
    xks_span aad = {job->aad, job->aad_len};
    xks_span input = {job->input, job->input_len};
    if (job->operation == XKS_ENCRYPT) {
        rv = xks_p11_gcm_encrypt(&gcm, &worker->random, aad, input, job->output, job->iv, &job->iv_len, job->tag, &failure);
        if (rv != CKR_OK) {
            return judge(worker, &gcm, t, &failure, false);
        }
        job->output_len = job->input_len;
        if (job->want_cdiv) {
            xks_job_compute_cdiv(job);
        }
        if (job->want_cdiv && !job->route.check_elsewhere) {
            return prove_ciphertext(worker, &gcm, t);
        }
    } else {
        rv = xks_p11_gcm_decrypt(&gcm, &worker->scratch, (xks_span){job->iv, job->iv_len}, aad, input,
                                 (xks_span){job->tag, sizeof job->tag}, job->output, &failure);
        if (rv != CKR_OK) {
            return judge(worker, &gcm, t, &failure, true);
        }
        job->output_len = job->input_len;
    }
    finish(job, XKS_OK, XKS_FATE_NONE, &failure);
    return false;
}

/* --- the queue; all with partition->lock held */

static bool take_locked(engine_partition *partition, taken *t)
{
    xks_job *job = xks_engine_pop(&partition->queue);
    if (job == NULL) {
        return false;
    }
    partition->queued--;
    atomic_fetch_sub_explicit(&partition->engine->queued, 1, memory_order_relaxed);
    const partition_key *known = xks_partition_key_at(partition, job->key);
    t->job = job;
    t->epoch = partition->epoch;
    t->tag_failure = partition->tag_failure;
    t->canary = partition->canary;
    t->by_message = partition->message_api;
    t->key = known->use;
    if (known->generation != job->route.key_generation || !known->wanted) {
        job->status = XKS_NOT_FOUND; /* removed since it was submitted */
        job->fate = XKS_FATE_NOT_MADE;
    } else if (atomic_load(&known->state) != XKS_KEY_USABLE || !is_current_locked(partition, partition->epoch)) {
        job->status = XKS_UNAVAILABLE; /* in doubt since it was handed over: it may go elsewhere */
        job->fate = XKS_FATE_STALE;
    }
    return true;
}

/* Whether what the token answered was of the job's own key: since the job was taken there was no new login, no reset, and the key's handle
 * has not been given up. Otherwise the numbers that the call was made with may have been another key's already. */
static bool is_own_key_locked(const engine_partition *partition, const taken *t)
{
    const partition_key *known = xks_partition_key_at(partition, t->job->key);
    return known->use == t->key && known->generation == t->job->route.key_generation && is_current_locked(partition, t->epoch);
}

/* The token's answer may be of another key: the job goes again. */
static void disown(xks_job *job)
{
    finish(job, XKS_UNAVAILABLE, XKS_FATE_STALE, &(xks_p11_failure){CKR_SESSION_CLOSED, "a call with handles that are gone", false});
    job->route.calls++; /* a key did work, which a repair is not counted for */
}

/* Book what a finished job tells about the partition. */
static void account_locked(engine_partition *partition, const xks_job *job)
{
    partition->operations++;
    partition->last_progress_ns = job->finished_ns;
    if (job->started_ns != 0) {
        /* The quick ones of ten tell how long the token takes: the others were stopped by the scheduler or met at the token's locks. */
        uint64_t took = job->finished_ns - job->started_ns, known = partition->quick_ns;
        partition->quick_ns = known == 0 ? took : took < known ? known - known / 8 : known + known / 64 + 1;
    }
    partition->failures += job->status == XKS_UNAVAILABLE && job->fate == XKS_FATE_FAULT ? 1 : 0;
}

/* Run one taken job to its end on this partition. Called and returns with partition->lock held. */
static void serve_locked(engine_worker *worker, taken *t)
{
    engine_partition *partition = worker->partition;
    xks_job *job = t->job;
    uint64_t now = xks_monotonic_ns();
    partition->running_workers++;
    worker->busy_since_ns = now;
    pthread_mutex_unlock(&partition->lock);
    if (job->status == XKS_OK && now > job->deadline_ns) {
        job->status = XKS_TIMEOUT;
        job->fate = XKS_FATE_NOT_MADE;
    } else if (job->status == XKS_OK) {
        job->started_ns = now;
        bool again;
        do {
            job->attempts++;
            again = run(worker, t);
            if (again) {
                end_session(worker, true);
            }
        } while (again && job->attempts < MAX_ATTEMPTS && xks_monotonic_ns() < job->deadline_ns);
        if (job->status == XKS_UNAVAILABLE && xks_engine_is_session_gone(job->ckr)) {
            end_session(worker, false);
        } else if (job->status != XKS_UNAVAILABLE && !is_own_session(worker)) {
            disown(job);
        }
    }
    job->finished_ns = xks_monotonic_ns();
    pthread_mutex_lock(&partition->lock);
    partition->running_workers--;
    worker->busy_since_ns = 0;
    if (job->started_ns != 0 && job->status != XKS_UNAVAILABLE && !is_own_key_locked(partition, t)) {
        disown(job);
    }
    account_locked(partition, job);
    bool more_soon = partition->queued > 0 && partition->quick_ns < XKS_FAST_CALL_NS;
    pthread_mutex_unlock(&partition->lock);
    xks_engine_complete(partition->engine, job, more_soon);
    pthread_mutex_lock(&partition->lock);
}

/* --- the thread; all with partition->lock held */

/* The token gave no session. While others have one, this worker rests; if it is the limit of sessions, the pool settles at what is
 * open. When nobody has one, the jobs go elsewhere. */
static void no_session_locked(engine_worker *worker, CK_RV rv, uint32_t epoch)
{
    engine_partition *partition = worker->partition;
    xks_ckr_class class = xks_ckr_classify(rv);
    if (class == XKS_CKR_MODULE_GONE || class == XKS_CKR_STALE_LOGIN || class == XKS_CKR_STALE_SESSION) {
        partition->module_gone = partition->module_gone || class == XKS_CKR_MODULE_GONE;
        xks_engine_ask_recovery_locked(partition, epoch, false, "C_OpenSession");
    }
    if (partition->sessions_open + partition->opening == 0) {
        xks_engine_purge_locked(partition, true, "C_OpenSession", rv);
        return;
    }
    worker->resting = true;
    partition->retry_sessions_ns = xks_monotonic_ns() + (rv == CKR_SESSION_COUNT ? REST_NS : SHORT_REST_NS);
    if (rv == CKR_SESSION_COUNT) {
        partition->session_limit = partition->sessions_open > 0 ? partition->sessions_open : 1; /* others are about to have theirs */
        xks_engine_count_sessions_locked(partition);
    }
    if (partition->queued > 0) {
        (void)xks_engine_wake_worker_locked(partition);
    }
    pthread_cond_signal(&partition->attention);
}

/* Beyond the limit that was met before: it has risen, so the next worker that rests tries too. */
static void got_session_locked(engine_partition *partition)
{
    if (partition->sessions_open > partition->session_limit) {
        partition->session_limit = partition->sessions_open;
        xks_engine_end_rest_locked(partition);
    }
    xks_engine_count_sessions_locked(partition);
}

/* A session of the present login, opened ahead of the first job, or no use for one. False when the worker is to wait. */
static bool have_session_locked(engine_worker *worker)
{
    engine_partition *partition = worker->partition;
    uint32_t epoch = partition->epoch;
    if (epoch == 0 || worker->resting || atomic_load(&partition->state) == XKS_PARTITION_REFUSED) {
        return false;
    }
    if (!is_current_locked(partition, epoch)) {
        return partition->queued > 0; /* to give the jobs back, without any call */
    }
    if (worker->session_open && worker->session_epoch == epoch) {
        return true;
    }
    worker->busy_since_ns = xks_monotonic_ns();
    partition->running_workers++;
    partition->opening++;
    pthread_mutex_unlock(&partition->lock);
    CK_RV rv = open_session(worker, epoch);
    pthread_mutex_lock(&partition->lock);
    partition->opening--;
    partition->running_workers--;
    worker->busy_since_ns = 0;
    if (rv != CKR_OK) {
        no_session_locked(worker, rv, epoch);
        return false;
    }
    got_session_locked(partition);
    return true;
}

static void wait_locked(engine_worker *worker)
{
    engine_partition *partition = worker->partition;
    worker->woken = false;
    if (!worker->resting) {
        worker->idle = true;
        worker->next_idle = partition->idle;
        partition->idle = worker;
    }
    while (!worker->woken && !atomic_load(&partition->engine->stopping)) {
        pthread_cond_wait(&worker->wake, &partition->lock);
    }
}

/* A thread that was written off and has come back: another took its place, so it leaves; unless that one is missing. */
static bool is_superfluous_locked(engine_worker *worker)
{
    engine_partition *partition = worker->partition;
    if (worker->lost) {
        worker->lost = false;
        partition->lost--;
        xks_engine_count_sessions_locked(partition);
    }
    return partition->threads - partition->lost > partition->sessions;
}

void *xks_engine_worker_main(void *argument)
{
    engine_worker *worker = argument;
    engine_partition *partition = worker->partition;
    taken t;
    xks_random_pool_init(&worker->random);
    pthread_mutex_lock(&partition->lock);
    while (!atomic_load(&partition->engine->stopping) && !is_superfluous_locked(worker)) {
        if (have_session_locked(worker) && take_locked(partition, &t)) {
            serve_locked(worker, &t);
        } else {
            wait_locked(worker); /* a job that came while a session was being opened is seen by the loop's next flush */
        }
    }
    partition->threads--;
    pthread_mutex_unlock(&partition->lock);
    end_session(worker, true);
    xks_p11_scratch_free(&worker->scratch);
    xks_p11_scratch_free(&worker->check);
    xks_random_pool_wipe(&worker->random);
    pthread_mutex_lock(&partition->lock);
    worker->exited = true;
    pthread_mutex_unlock(&partition->lock);
    return NULL;
}
