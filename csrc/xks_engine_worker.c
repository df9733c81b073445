/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include <stdlib.h>
#include <string.h>

#define MAX_ATTEMPTS 4
#define FAULTS_UNTIL_RECOVERY 3
#define OUT_ROOM 32

/* A job in a worker's hands, with what the worker took from the partition under its lock. */
typedef struct taken {
    xks_job *job;
    xks_p11_key key;
    xks_p11_canary canary;
    CK_RV tag_failure;
    uint32_t epoch;
} taken;

typedef enum outcome {
    DONE,            /* job->status is final */
    REOPEN_AND_RETRY, /* the session is stale */
    RECOVER_AND_RETRY /* login or handle is stale */
} outcome;

static void close_session(engine_worker *worker)
{
    engine_partition *partition = worker->partition;
    if (worker->session_open) {
        (void)partition->module->f->C_CloseSession(worker->session);
        worker->session_open = false;
        pthread_mutex_lock(&partition->lock);
        partition->sessions_open--;
        pthread_mutex_unlock(&partition->lock);
    }
}

static CK_RV open_session(engine_worker *worker, uint32_t epoch)
{
    engine_partition *partition = worker->partition;
    if (worker->session_open && worker->session_epoch == epoch) {
        return CKR_OK;
    }
    close_session(worker);
    CK_RV rv = partition->module->f->C_OpenSession(partition->slot, CKF_SERIAL_SESSION, NULL, NULL, &worker->session);
    if (rv == CKR_OK) {
        worker->session_open = true;
        worker->session_epoch = epoch;
        pthread_mutex_lock(&partition->lock);
        partition->sessions_open++;
        pthread_mutex_unlock(&partition->lock);
    }
    return rv;
}

static void finish(xks_job *job, xks_status status, const xks_p11_failure *failure)
{
    job->status = status;
    job->ckr = failure->rv;
    job->failed_call = failure->call;
    if (status != XKS_OK) {
        xks_wipe(job->output, job->output_capacity);
        job->output_len = 0;
    }
}

/* What a failed call means for the job. garbage_possible: a decrypt of what a caller sent, where a wrong tag is no fault. */
static outcome judge(engine_worker *worker, const xks_p11_gcm *gcm, taken *t, const xks_p11_failure *failure,
                     bool garbage_possible)
{
    xks_job *job = t->job;
    xks_p11_failure canary_failure = {0};
    xks_ckr_class class = xks_ckr_classify(failure->rv);
    if (garbage_possible && (class == XKS_CKR_BAD_CIPHERTEXT || failure->rv == t->tag_failure)) {
        /* A code that says "bad ciphertext" and nothing else is believed. One that the token also uses for its own faults is believed
         * only if the token decrypts the canary right after: a dead device must not look like a caller's bad ciphertext. */
        if (class == XKS_CKR_BAD_CIPHERTEXT || xks_p11_canary_check(gcm, &worker->check, &t->canary, &canary_failure) == CKR_OK) {
            finish(job, XKS_NOT_AUTHENTIC, failure);
            return DONE;
        }
        finish(job, XKS_UNAVAILABLE, &canary_failure);
        return DONE;
    }
    switch (class) {
    case XKS_CKR_NOT_PERMITTED:
        finish(job, XKS_NOT_PERMITTED, failure);
        return DONE;
    case XKS_CKR_STALE_SESSION:
        finish(job, XKS_UNAVAILABLE, failure);
        return REOPEN_AND_RETRY;
    case XKS_CKR_STALE_LOGIN:
        finish(job, XKS_UNAVAILABLE, failure);
        return RECOVER_AND_RETRY;
    default:
        finish(job, XKS_UNAVAILABLE, failure);
        return DONE;
    }
}

/* Decrypt what was just encrypted and compare, so that the CDIV is an assurance. */
static outcome prove_ciphertext(engine_worker *worker, const xks_p11_gcm *gcm, taken *t)
{
    xks_job *job = t->job;
    xks_p11_failure failure = {0};
    static const char MISMATCH[] = "check decrypt gave other bytes";
    size_t needed = job->input_len + OUT_ROOM;
    if (worker->check.capacity < needed) {
        uint8_t *data = malloc(needed);
        if (data == NULL) {
            failure = (xks_p11_failure){CKR_HOST_MEMORY, "malloc", false};
            finish(job, XKS_SYSTEM, &failure);
            return DONE;
        }
        xks_p11_scratch_free(&worker->check);
        worker->check = (xks_p11_scratch){data, needed};
    }
    xks_job_compute_cdiv(job);
    CK_RV rv = xks_p11_gcm_decrypt(gcm, &worker->scratch, (xks_span){job->iv, job->iv_len}, (xks_span){job->aad, job->aad_len},
                                   (xks_span){job->output, job->output_len}, (xks_span){job->tag, sizeof job->tag},
                                   worker->check.data, &failure);
    if (rv != CKR_OK) {
        return judge(worker, gcm, t, &failure, false);
    }
    bool equal = xks_equal_constant_time(worker->check.data, job->input, job->input_len);
    xks_wipe(worker->check.data, job->input_len);
    if (!equal) {
        failure = (xks_p11_failure){CKR_DEVICE_ERROR, MISMATCH, false};
        finish(job, XKS_BUG, &failure);
        return DONE;
    }
    finish(job, XKS_OK, &failure);
    return DONE;
}

static outcome run(engine_worker *worker, taken *t)
{
    engine_partition *partition = worker->partition;
    xks_job *job = t->job;
    xks_p11_failure failure = {0};
    CK_RV rv = open_session(worker, t->epoch);
    if (rv != CKR_OK) {
        failure = (xks_p11_failure){rv, "C_OpenSession", false};
        return judge(worker, NULL, t, &failure, false);
    }
    xks_p11_gcm gcm = {partition->module, worker->session, t->key.use, partition->profile->iv_mode};
    xks_span aad = {job->aad, job->aad_len};
    xks_span input = {job->input, job->input_len};
    if (job->operation == XKS_ENCRYPT) {
        rv = xks_p11_gcm_encrypt(&gcm, &worker->random, aad, input, job->output, job->iv, &job->iv_len, job->tag, &failure);
        if (rv != CKR_OK) {
            return judge(worker, &gcm, t, &failure, false);
        }
        job->output_len = job->input_len;
        if (job->want_cdiv) {
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
    finish(job, XKS_OK, &failure);
    return DONE;
}

/* --- the queue; all with partition->lock held */

static void ask_for_recovery_locked(engine_partition *partition, uint32_t epoch)
{
    if (partition->epoch == epoch && atomic_load(&partition->state) == XKS_PARTITION_READY) {
        atomic_store(&partition->state, XKS_PARTITION_RECOVERING);
        partition->recovery_wanted = true;
        pthread_cond_signal(&partition->attention);
    }
}

static void put_back_locked(engine_partition *partition, xks_job *job)
{
    job->next = partition->queue_head;
    partition->queue_head = job;
    if (partition->queue_tail == NULL) {
        partition->queue_tail = job;
    }
    partition->queued++;
    atomic_fetch_add(&partition->engine->queued, 1);
}

static bool take_locked(engine_partition *partition, taken *t)
{
    xks_job *job = partition->queue_head;
    if (job == NULL || atomic_load(&partition->state) != XKS_PARTITION_READY) {
        return false;
    }
    partition->queue_head = job->next;
    if (partition->queue_head == NULL) {
        partition->queue_tail = NULL;
    }
    job->next = NULL;
    partition->queued--;
    atomic_fetch_sub(&partition->engine->queued, 1);
    t->job = job;
    t->epoch = partition->epoch;
    t->tag_failure = partition->tag_failure;
    t->canary = partition->canary;
    t->key.use = 0;
    if (job->key < partition->key_capacity && partition->keys[job->key].state == XKS_KEY_USABLE) {
        t->key = partition->keys[job->key].key;
    } else {
        job->status = XKS_NOT_FOUND;
    }
    return true;
}

static void count_error_locked(engine_partition *partition, uint32_t ckr)
{
    uint32_t i = 0;
    while (i < XKS_MAX_ERROR_CODES - 1 && partition->errors[i].count > 0 && partition->errors[i].ckr != ckr) {
        i++;
    }
    partition->errors[i].ckr = i < XKS_MAX_ERROR_CODES - 1 ? ckr : UINT32_MAX;
    partition->errors[i].count++;
}

/* Book what a finished job tells about the partition. */
static void account_locked(engine_partition *partition, const xks_job *job, uint32_t epoch)
{
    partition->operations++;
    partition->last_progress_ns = job->finished_ns;
    if (job->started_ns != 0) {
        int64_t difference = (int64_t)(job->finished_ns - job->started_ns) - (int64_t)partition->service_ns;
        partition->service_ns = (uint64_t)((int64_t)partition->service_ns + difference / 8);
        partition->latency_counts[xks_engine_latency_bucket(job->finished_ns - job->started_ns)]++;
    }
    if (job->status != XKS_OK && job->ckr != CKR_OK) {
        count_error_locked(partition, (uint32_t)job->ckr);
    }
    if (job->status == XKS_UNAVAILABLE) {
        partition->failures++;
        if (++partition->faults_in_row >= FAULTS_UNTIL_RECOVERY) {
            ask_for_recovery_locked(partition, epoch);
        }
    } else if (job->status == XKS_OK) {
        partition->faults_in_row = 0;
    }
}

/* Run one taken job to its end, or hand it back for another attempt. Returns with partition->lock held. */
static void serve(engine_worker *worker, taken *t)
{
    engine_partition *partition = worker->partition;
    xks_job *job = t->job;
    outcome result = DONE;
    uint64_t now = xks_monotonic_ns();
    if (job->status == XKS_NOT_FOUND) {
        job->finished_ns = now;
    } else if (now > job->deadline_ns) {
        job->status = XKS_TIMEOUT;
        job->finished_ns = now;
    } else {
        job->started_ns = now;
        do {
            job->attempts++;
            result = run(worker, t);
            if (result == REOPEN_AND_RETRY) {
                close_session(worker);
            }
        } while (result == REOPEN_AND_RETRY && job->attempts < MAX_ATTEMPTS && xks_monotonic_ns() < job->deadline_ns);
        job->finished_ns = xks_monotonic_ns();
    }
    pthread_mutex_lock(&partition->lock);
    if (result == RECOVER_AND_RETRY && job->attempts < MAX_ATTEMPTS && job->finished_ns < job->deadline_ns) {
        ask_for_recovery_locked(partition, t->epoch);
        job->status = XKS_OK;
        put_back_locked(partition, job);
        return;
    }
    account_locked(partition, job, t->epoch);
    atomic_fetch_sub(&partition->in_flight, 1);
    bool more_soon = partition->queued > 0 && partition->service_ns < XKS_FAST_CALL_NS &&
                     atomic_load(&partition->state) == XKS_PARTITION_READY;
    pthread_mutex_unlock(&partition->lock);
    xks_engine_complete(partition->engine, job, more_soon);
    pthread_mutex_lock(&partition->lock);
}

void *xks_engine_worker_main(void *argument)
{
    engine_worker *worker = argument;
    engine_partition *partition = worker->partition;
    taken t;
    xks_random_pool_init(&worker->random);
    pthread_mutex_lock(&partition->lock);
    while (!atomic_load(&partition->engine->stopping)) {
        if (!take_locked(partition, &t)) {
            partition->idle_workers++;
            pthread_cond_wait(&partition->work, &partition->lock);
            partition->idle_workers--;
            continue;
        }
        partition->running_workers++;
        pthread_mutex_unlock(&partition->lock);
        serve(worker, &t);
        partition->running_workers--;
    }
    pthread_mutex_unlock(&partition->lock);
    close_session(worker);
    xks_p11_scratch_free(&worker->scratch);
    xks_p11_scratch_free(&worker->check);
    xks_random_pool_wipe(&worker->random);
    return NULL;
}
