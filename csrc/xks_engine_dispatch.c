/* SPDX-License-Identifier: Apache-2.0 */
/* The loop thread's side of the engine. A job is at any time in one of four places: waiting in its group until a partition has room; in
 * flight (`calls`); held by its check decrypt (`check_of` of that job names it); or `answered`, for _drain to hand out. */
#include "xks_engine_internal.h"

#include "xks_clock.h"
#include <string.h>

/* A job is let wait if wait and call will take at most this part of the time it has left, so that what is estimated too low is still
 * answered in time: one that is not has cost the HSM a call for nothing. */
#define WAIT_PART 0.7
/* Members whose oldest call is out for longer than this do not answer: it is the HSM that is late, not we that are overloaded. */
#define SILENT_NS 60000000U
#define LOOK_FOR_LOST_NS 100000000U

/* --- time */

static void hedge(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_job *second;
    xks_status why;
    uint32_t index;
    if (xks_engine_choose(engine, job, XKS_ROUTE_HEDGE, now, &index, &why) != PLACED || xks_job_clone(engine->pool, job, &second) != XKS_OK) {
        return;
    }
    second->owner = job->owner;
    second->submitted_ns = job->submitted_ns;
    second->route.tried = job->route.tried;
    second->route.avoided = job->route.avoided;
    second->route.key_generation = job->route.key_generation;
    second->route.check_elsewhere = job->route.check_elsewhere;
    second->route.check_of = job->route.check_of;
    second->route.hand_overs = job->route.hand_overs;
    second->route.calls = job->route.calls++;
    second->route.partner = job;
    job->route.partner = second;
    engine->totals.hedges++;
    xks_engine_hand_over(engine, index, second, XKS_ROUTE_HEDGE, now);
}

/* Calls that are out: answer what is past its deadline, hedge what is slow. New calls are appended behind the last one looked at. */
static void look_at_calls(xks_engine *engine, uint64_t now)
{
    xks_job *last = engine->calls_tail;
    for (xks_job *job = engine->calls_head, *next; job != NULL; job = next) {
        next = job == last ? NULL : job->route.list_next;
        if (job->route.abandoned) {
            continue;
        }
        if (now >= job->deadline_ns) {
            xks_engine_answer_for(engine, job, now);
        } else if (job->route.partner == NULL && engine->partition_count > 1 &&
                   now - job->route.handed_over_ns >= xks_router_hedge_delay_ns(engine->router, job->partition)) {
            hedge(engine, job, now);
        }
    }
}

/* Jobs that wait go on, oldest first, as far as there is room. */
static void look_at_waiting(xks_engine *engine, uint64_t now)
{
    for (uint32_t g = 0; g < engine->group_count && engine->waiting > 0; g++) {
        engine_group *group = &engine->groups[g];
        placement placed = PLACED;
        xks_job *last = group->waiting_tail;
        for (xks_job *job = group->waiting_head, *next; job != NULL && placed != WAITS_FOR_ROOM; job = next) {
            xks_status why;
            next = job == last ? NULL : job->route.list_next;
            placed = xks_engine_place(engine, job, (xks_route_purpose)job->route.purpose, now, &why);
            if (placed == REFUSED) {
                xks_engine_leave_waiting(engine, job);
                job->status = why;
                xks_engine_answer(engine, job, now);
            }
        }
    }
}

static void expire_waiting(xks_engine *engine, uint64_t now)
{
    for (uint32_t g = 0; g < engine->group_count && engine->waiting > 0; g++) {
        for (xks_job *job = engine->groups[g].waiting_head, *next; job != NULL; job = next) {
            next = job->route.list_next;
            if (now >= job->deadline_ns) {
                xks_engine_leave_waiting(engine, job);
                job->status = XKS_TIMEOUT;
                xks_engine_answer(engine, job, now);
            }
        }
    }
}

static void look_for_lost(xks_engine *engine, uint64_t now)
{
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        xks_engine_replace_lost_locked(partition, now);
        xks_engine_purge_locked(partition, false, NULL, CKR_OK);
        pthread_mutex_unlock(&partition->lock);
    }
}

static void tick(xks_engine *engine, uint64_t now)
{
    if (now - engine->ticked_ns < XKS_TICK_NS / 2) {
        return;
    }
    engine->ticked_ns = now;
    for (uint64_t overdue = xks_router_overdue(engine->router, now); overdue != 0; overdue &= overdue - 1) {
        xks_engine_open_breaker(engine, (uint32_t)__builtin_ctzll(overdue), "a call has not returned for over a second", true, now);
    }
    expire_waiting(engine, now);
    look_at_calls(engine, now);
    if (now - engine->looked_for_lost_ns > LOOK_FOR_LOST_NS) {
        engine->looked_for_lost_ns = now;
        look_for_lost(engine, now);
    }
}

/* --- what the loop calls */

/* Whether the members that could serve do not answer: then the HSM is late, and not we are overloaded. */
static bool is_silent(xks_engine *engine, uint64_t members, uint64_t now)
{
    for (members &= engine->in_service; members != 0; members &= members - 1) {
        xks_route_view view;
        xks_router_view(engine->router, (uint32_t)__builtin_ctzll(members), now, &view);
        if (view.oldest_call_ns < SILENT_NS || view.oldest_call_ns < 8 * view.p95_ns) {
            return false;
        }
    }
    return true;
}

/* A job that finds no room: let it wait if it will be answered in time, as far as one can know. */
static xks_status admit(xks_engine *engine, xks_job *job, placement placed, uint64_t now)
{
    engine_group *group = xks_engine_group_of(engine, job);
    double longest = WAIT_PART * (double)(job->deadline_ns - now);
    if (engine->waiting >= engine->config.max_queued) {
        return XKS_BUSY;
    }
    double wait = (double)xks_router_wait_ns(engine->router, group->members, group->waiting, now);
    if (placed == WAITS_FOR_ROOM && wait + (double)xks_router_call_ns(engine->router, group->members, now) > longest) {
        return is_silent(engine, group->members, now) ? XKS_TIMEOUT : XKS_BUSY;
    }
    xks_engine_wait(engine, job, XKS_ROUTE_FIRST);
    return XKS_OK;
}

xks_status xks_engine_submit(xks_engine *engine, xks_job *job)
{
    uint64_t now = xks_monotonic_ns();
    xks_status status = XKS_NOT_FOUND;
    if (*engine->ours == 0 || !engine->started) {
        return XKS_UNAVAILABLE;
    }
    engine->totals.jobs++;
    xks_engine_look_at_changes(engine, now);
    const engine_group *group = xks_engine_group_of(engine, job);
    memset(&job->route, 0, sizeof job->route);
    job->submitted_ns = now;
    if (group == NULL) {
        return XKS_NOT_FOUND;
    }
    if (now >= job->deadline_ns) {
        engine->totals.timeouts++;
        return XKS_TIMEOUT;
    }
    job->route.key_generation = atomic_load(&xks_engine_key_at(engine, job->key)->generation);
    job->route.check_elsewhere = job->want_cdiv && job->operation == XKS_ENCRYPT && group->verify == XKS_VERIFY_OTHER &&
                                 group->count > 1;
    if (engine->waiting + atomic_load_explicit(&engine->queued, memory_order_relaxed) >= engine->config.max_queued) {
        engine->totals.refused_busy++;
        return XKS_BUSY;
    }
    placement placed = xks_engine_place(engine, job, XKS_ROUTE_FIRST, now, &status);
    if (placed != REFUSED) {
        status = placed == PLACED ? XKS_OK : admit(engine, job, placed, now);
    }
    engine->unanswered += status == XKS_OK ? 1 : 0;
    engine->totals.refused_busy += status == XKS_BUSY ? 1 : 0;
    engine->totals.timeouts += status == XKS_TIMEOUT ? 1 : 0;
    engine->totals.refused_unavailable += status == XKS_UNAVAILABLE ? 1 : 0;
    return status;
}

/* How many idle workers to wake for what is queued: one per job on a slow token. A fast one, whose call is shorter than a wake-up, gets
 * one worker for all: it comes back for more before a second could start (measured on SoftHSM2: 8 % less CPU than one per 50 us of
 * work). Only when that one makes no progress is another woken. */
static uint32_t workers_to_wake_locked(const engine_partition *partition)
{
    if (partition->queued == 0 || partition->quick_ns >= XKS_FAST_CALL_NS) {
        return partition->queued;
    }
    bool progressing = xks_monotonic_ns() - partition->last_progress_ns < XKS_STALLED_NS;
    return partition->running_workers > 0 && progressing ? 0 : 1;
}

void xks_engine_flush(xks_engine *engine)
{
    uint64_t still_queued = 0;
    for (; engine->dirty != 0; engine->dirty &= engine->dirty - 1) {
        engine_partition *partition = engine->partitions[__builtin_ctzll(engine->dirty)];
        pthread_mutex_lock(&partition->lock);
        xks_engine_append(&partition->queue, &partition->outbox);
        partition->queued += partition->outbox_count;
        for (uint32_t wake = workers_to_wake_locked(partition); wake > 0 && xks_engine_wake_worker_locked(partition); wake--) {
        }
        still_queued |= partition->queued > 0 ? xks_partition_bit(partition) : 0;
        pthread_mutex_unlock(&partition->lock);
        partition->outbox_count = 0;
    }
    engine->dirty = still_queued; /* looked at again by the next flush: the one worker of a fast token may have been stopped by it */
}

xks_job *xks_engine_drain(xks_engine *engine)
{
    if (!engine->started) {
        return NULL;
    }
    xks_job *job = xks_engine_take_completions(engine), *next;
    uint64_t now = xks_monotonic_ns();
    xks_engine_look_at_changes(engine, now);
    for (; job != NULL; job = next) {
        next = job->next;
        xks_engine_come_back(engine, job, now);
    }
    if (engine->unanswered > 0 || engine->calls > 0) {
        tick(engine, now);
        look_at_waiting(engine, now);
        xks_engine_flush(engine);
    }
    xks_job *answered = engine->answered.head;
    engine->answered = (job_queue){NULL, NULL};
    return answered;
}

uint32_t xks_engine_outstanding(const xks_engine *engine)
{
    return engine->unanswered + engine->calls;
}
