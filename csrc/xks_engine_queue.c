/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_clock.h"
#include <unistd.h>

void xks_engine_push(job_queue *queue, xks_job *job)
{
    job->next = NULL;
    if (queue->tail != NULL) {
        queue->tail->next = job;
    } else {
        queue->head = job;
    }
    queue->tail = job;
}

xks_job *xks_engine_pop(job_queue *queue)
{
    xks_job *job = queue->head;
    if (job != NULL) {
        queue->head = job->next;
        queue->tail = queue->head == NULL ? NULL : queue->tail;
        job->next = NULL;
    }
    return job;
}

void xks_engine_append(job_queue *queue, job_queue *more)
{
    if (more->head == NULL) {
        return;
    }
    if (queue->tail != NULL) {
        queue->tail->next = more->head;
    } else {
        queue->head = more->head;
    }
    queue->tail = more->tail;
    *more = (job_queue){NULL, NULL};
}

/* --- completions */

void xks_engine_wake_loop(xks_engine *engine)
{
    uint64_t one = 1;
    atomic_fetch_add(&engine->signals_sent, 1);
    ssize_t written = write(engine->eventfd, &one, sizeof one);
    (void)written; /* full means that the loop has been woken and has not come yet */
}

void xks_engine_complete(xks_engine *engine, xks_job *job, bool more_soon)
{
    bool wake = false;
    pthread_mutex_lock(&engine->done_lock);
    if (engine->done.head == NULL) {
        engine->first_unsignalled_ns = job->finished_ns;
    }
    xks_engine_push(&engine->done, job);
    if (!engine->signalled && (!more_soon || job->finished_ns - engine->first_unsignalled_ns > XKS_HELD_WAKE_NS)) {
        engine->signalled = true;
        wake = true;
    }
    pthread_mutex_unlock(&engine->done_lock);
    if (wake) {
        xks_engine_wake_loop(engine);
    }
}

/* The signal is read before the list is taken: a completion in between leaves a signal that wakes the loop once for nothing. The other way
 * round its signal would be eaten, and the loop not woken for it. */
xks_job *xks_engine_take_completions(xks_engine *engine)
{
    uint64_t count;
    /* A signal that was counted but not written yet is read by a later call: were it not, the descriptor would stay readable. */
    if (atomic_load(&engine->signals_sent) != engine->signals_seen && read(engine->eventfd, &count, sizeof count) == sizeof count) {
        engine->signals_seen += count;
    }
    pthread_mutex_lock(&engine->done_lock);
    xks_job *first = engine->done.head;
    engine->done = (job_queue){NULL, NULL};
    engine->signalled = false;
    pthread_mutex_unlock(&engine->done_lock);
    return first;
}

/* --- idle workers */

bool xks_engine_wake_worker_locked(engine_partition *partition)
{
    engine_worker *worker = partition->idle;
    if (worker == NULL) {
        return false;
    }
    partition->idle = worker->next_idle;
    worker->idle = false;
    worker->woken = true;
    pthread_cond_signal(&worker->wake);
    return true;
}

bool xks_engine_end_rest_locked(engine_partition *partition)
{
    for (uint32_t i = 0; i < 2 * partition->sessions; i++) {
        engine_worker *worker = &partition->workers[i];
        if (worker->resting) {
            worker->resting = false;
            worker->woken = true;
            pthread_cond_signal(&worker->wake);
            return true;
        }
    }
    return false;
}

void xks_engine_wake_all_workers_locked(engine_partition *partition)
{
    while (xks_engine_wake_worker_locked(partition)) {
    }
    while (xks_engine_end_rest_locked(partition)) {
    }
}

/* --- what is taken away from workers */

void xks_engine_purge_locked(engine_partition *partition, bool all, const char *call, CK_RV rv)
{
    uint64_t now = xks_monotonic_ns();
    job_queue kept = {NULL, NULL};
    xks_job *job;
    while ((job = xks_engine_pop(&partition->queue)) != NULL) {
        bool expired = now > job->deadline_ns;
        if (!all && !expired) {
            xks_engine_push(&kept, job);
            continue;
        }
        partition->queued--;
        atomic_fetch_sub_explicit(&partition->engine->queued, 1, memory_order_relaxed);
        job->status = expired ? XKS_TIMEOUT : XKS_UNAVAILABLE;
        job->fate = expired || rv == CKR_OK ? XKS_FATE_NOT_MADE : XKS_FATE_FAULT;
        job->ckr = rv;
        job->failed_call = call;
        job->finished_ns = now;
        xks_engine_complete(partition->engine, job, false);
    }
    partition->queue = kept;
}

void xks_engine_count_sessions_locked(engine_partition *partition)
{
    uint32_t wanted = partition->sessions < partition->session_limit ? partition->sessions : partition->session_limit;
    uint32_t room = 2 * partition->sessions > partition->lost ? 2 * partition->sessions - partition->lost : 0;
    uint32_t usable = wanted < room ? wanted : room;
    if (atomic_exchange(&partition->usable_sessions, usable) != usable) {
        atomic_fetch_add(&partition->engine->changes, 1);
    }
}

void xks_engine_replace_lost_locked(engine_partition *partition, uint64_t now)
{
    for (uint32_t i = 0; i < 2 * partition->sessions; i++) {
        engine_worker *worker = &partition->workers[i];
        if (worker->started && !worker->exited && !worker->lost && worker->busy_since_ns != 0 &&
            now > worker->busy_since_ns + XKS_HANG_NS) {
            worker->lost = true;
            partition->lost++;
        }
    }
    if (atomic_load(&partition->hangs)) { /* a new thread would hang while it opens its session */
        xks_engine_count_sessions_locked(partition);
        return;
    }
    while (partition->threads - partition->lost < partition->sessions && partition->threads < 2 * partition->sessions &&
           xks_engine_start_worker_locked(partition)) {
    }
    xks_engine_count_sessions_locked(partition);
}
