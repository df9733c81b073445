/* SPDX-License-Identifier: Apache-2.0 */
/* Where a job goes: to a partition, into its group's queue, or back. */
#include "xks_engine_internal.h"

#include "xks_ckr_name.h"
#include "xks_clock.h"
#include <stdio.h>

/* --- lists through route.list_prev and list_next */

static void list_append(xks_job **head, xks_job **tail, xks_job *job)
{
    job->route.list_prev = *tail;
    job->route.list_next = NULL;
    if (*tail != NULL) {
        (*tail)->route.list_next = job;
    } else {
        *head = job;
    }
    *tail = job;
}

static void list_prepend(xks_job **head, xks_job **tail, xks_job *job)
{
    job->route.list_prev = NULL;
    job->route.list_next = *head;
    if (*head != NULL) {
        (*head)->route.list_prev = job;
    } else {
        *tail = job;
    }
    *head = job;
}

void xks_engine_list_remove(xks_job **head, xks_job **tail, xks_job *job)
{
    xks_job_route *route = &job->route;
    *(route->list_prev != NULL ? &route->list_prev->route.list_next : head) = route->list_next;
    *(route->list_next != NULL ? &route->list_next->route.list_prev : tail) = route->list_prev;
    route->list_prev = route->list_next = NULL;
}

engine_group *xks_engine_group_of(xks_engine *engine, const xks_job *job)
{
    if (job->key >= atomic_load(&engine->key_capacity)) {
        return NULL;
    }
    const engine_key *key = xks_engine_key_at(engine, job->key);
    uint32_t group_plus_one = atomic_load(&key->group_plus_one);
    return group_plus_one == 0 ? NULL : &engine->groups[group_plus_one - 1];
}

/* --- what changed outside the loop */

void xks_engine_look_at_changes(xks_engine *engine, uint64_t now)
{
    uint64_t changes = atomic_load(&engine->changes);
    if (changes == engine->seen_changes) {
        return;
    }
    engine->seen_changes = changes;
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        bool serves = atomic_load(&partition->state) == XKS_PARTITION_READY;
        xks_router_set_sessions(engine->router, i, atomic_load(&partition->usable_sessions));
        if (serves != ((engine->in_service & xks_partition_bit(partition)) != 0)) {
            xks_router_set_in_service(engine->router, i, serves, now);
            engine->in_service ^= xks_partition_bit(partition);
        }
    }
}

void xks_engine_open_breaker(xks_engine *engine, uint32_t index, const char *reason, bool hangs, uint64_t now)
{
    engine_partition *partition = engine->partitions[index];
    pthread_mutex_lock(&partition->lock);
    atomic_store(&partition->hangs, hangs);
    atomic_store(&partition->down, true); /* what made it open is an attempt that failed */
    xks_engine_ask_recovery_locked(partition, 0, true, reason);
    pthread_mutex_unlock(&partition->lock);
    xks_engine_look_at_changes(engine, now);
}

void xks_engine_open_after_fault(xks_engine *engine, const xks_job *job, const char *what, uint64_t now)
{
    char reason[XKS_ERROR_TEXT_BYTES];
    snprintf(reason, sizeof reason, "%s: %s: %s (0x%lx)", what, job->failed_call != NULL ? job->failed_call : "a call",
             xks_ckr_name(job->ckr), job->ckr);
    xks_engine_open_breaker(engine, job->partition, reason, false, now);
}

/* Whether a member that is out may be back within moments: its keeper has not failed yet, or it is READY since the loop last looked. */
static bool recovers_soon(const xks_engine *engine, uint64_t members)
{
    for (uint64_t out = members & ~engine->in_service; out != 0; out &= out - 1) {
        const engine_partition *partition = engine->partitions[__builtin_ctzll(out)];
        int state = atomic_load(&partition->state);
        if ((state == XKS_PARTITION_RECOVERING && !atomic_load(&partition->down)) || state == XKS_PARTITION_STARTING ||
            state == XKS_PARTITION_READY) {
            return true;
        }
    }
    return false;
}

/* --- placing */

/* The members on which the key is usable now; *pending those that will know soon. */
static uint64_t usable_members(const xks_engine *engine, uint64_t members, uint32_t key, uint64_t *pending)
{
    uint64_t usable = 0;
    *pending = 0;
    for (; members != 0; members &= members - 1) {
        uint32_t index = (uint32_t)__builtin_ctzll(members);
        uint8_t state = atomic_load_explicit(&xks_partition_key_at(engine->partitions[index], key)->state, memory_order_acquire);
        usable |= (uint64_t)(state == XKS_KEY_USABLE) << index;
        *pending |= (uint64_t)(state == XKS_KEY_PENDING) << index;
    }
    return usable;
}

/* A job waits for a key: have the keepers in service look for it before all others. */
static void hurry(xks_engine *engine, uint64_t pending, uint32_t key)
{
    for (pending &= engine->in_service; pending != 0; pending &= pending - 1) {
        engine_partition *partition = engine->partitions[__builtin_ctzll(pending)];
        pthread_mutex_lock(&partition->lock);
        if (xks_partition_key_at(partition, key)->wanted) {
            xks_engine_list_key_locked(partition, key, URGENT_KEYS);
        }
        pthread_mutex_unlock(&partition->lock);
    }
}

void xks_engine_leave_waiting(xks_engine *engine, xks_job *job)
{
    engine_group *group = job->route.waits_in;
    xks_engine_list_remove(&group->waiting_head, &group->waiting_tail, job);
    job->route.waits_in = NULL;
    group->waiting--;
    engine->waiting--;
}

void xks_engine_hand_over(xks_engine *engine, uint32_t index, xks_job *job, xks_route_purpose purpose, uint64_t now)
{
    engine_partition *partition = engine->partitions[index];
    if (job->route.waits_in != NULL) {
        xks_engine_leave_waiting(engine, job);
    }
    job->status = XKS_OK;
    job->fate = XKS_FATE_NONE;
    job->ckr = 0;
    job->failed_call = NULL;
    job->started_ns = job->finished_ns = 0;
    job->attempts = 0;
    job->partition = index;
    job->route.tried |= xks_partition_bit(partition);
    job->route.calls++;
    job->route.handed_over_ns = now;
    job->route.purpose = (uint8_t)purpose;
    job->route.call = xks_router_begin(engine->router, index, purpose, now);
    list_append(&engine->calls_head, &engine->calls_tail, job);
    engine->calls++;
    xks_engine_push(&partition->outbox, job);
    partition->outbox_count++;
    atomic_fetch_add_explicit(&engine->queued, 1, memory_order_relaxed);
    engine->dirty |= xks_partition_bit(partition);
}

placement xks_engine_choose(xks_engine *engine, const xks_job *job, xks_route_purpose purpose, uint64_t now, uint32_t *index,
                        xks_status *why)
{
    const engine_group *group = xks_engine_group_of(engine, job);
    uint64_t pending;
    *why = XKS_NOT_FOUND;
    if (group == NULL) {
        return REFUSED;
    }
    xks_route_request request = {
        .members = group->members,
        .usable = usable_members(engine, group->members, job->key, &pending),
        /* A hedge may go where the check was not wanted: better a proof by the same partition than none in time. */
        .tried = purpose == XKS_ROUTE_HEDGE ? job->route.tried : job->route.tried | job->route.avoided,
        .local = group->local,
        .remaining_ns = job->deadline_ns > now ? job->deadline_ns - now : 0,
        .purpose = purpose,
    };
    switch (xks_router_pick(engine->router, &request, now, index)) {
    case XKS_ROUTE_CHOSEN:
        /* Panic is for members that are down; one whose login is being repaired is worth waiting for. */
        return ((engine->in_service >> *index) & 1) == 0 && recovers_soon(engine, group->members) ? WAITS_FOR_REPAIR : PLACED;
    case XKS_ROUTE_FULL:
        return WAITS_FOR_ROOM;
    case XKS_ROUTE_NO_KEY:
        if ((pending & engine->in_service) != 0) {
            hurry(engine, pending, job->key);
            return WAITS_FOR_REPAIR;
        }
        *why = xks_engine_why_no_key(engine, group, job->key);
        return recovers_soon(engine, pending) ? WAITS_FOR_REPAIR : REFUSED;
    case XKS_ROUTE_OUT:
        *why = xks_engine_any_hangs(engine, group->members) ? XKS_TIMEOUT : XKS_UNAVAILABLE;
        return recovers_soon(engine, group->members) ? WAITS_FOR_REPAIR : REFUSED;
    case XKS_ROUTE_NO_BUDGET:
        *why = XKS_UNAVAILABLE;
        return REFUSED;
    case XKS_ROUTE_LATE:
        break;
    }
    *why = XKS_TIMEOUT;
    return REFUSED;
}

placement xks_engine_place(xks_engine *engine, xks_job *job, xks_route_purpose purpose, uint64_t now, xks_status *why)
{
    uint32_t index;
    placement placed = xks_engine_choose(engine, job, purpose, now, &index, why);
    if (placed == PLACED) {
        xks_engine_hand_over(engine, index, job, purpose, now);
    }
    return placed;
}

void xks_engine_wait(xks_engine *engine, xks_job *job, xks_route_purpose purpose)
{
    engine_group *group = xks_engine_group_of(engine, job);
    job->route.purpose = (uint8_t)purpose;
    job->route.waits_in = group;
    if (purpose == XKS_ROUTE_FIRST && job->route.repairs == 0) {
        list_append(&group->waiting_head, &group->waiting_tail, job);
    } else {
        list_prepend(&group->waiting_head, &group->waiting_tail, job);
    }
    group->waiting++;
    engine->waiting++;
}

