/* SPDX-License-Identifier: Apache-2.0 */
/* The loop thread's side of the engine. A job is at any time in one of four places: `waiting` in its group until a partition has room;
 * in flight (`calls`); held by its check decrypt (`check_of` of that job names it); or `answered`, for _drain to hand out. Of a hedged
 * pair one is the job and the other its partner: whichever comes back first with an answer takes the owner, the other is abandoned. */
#include "xks_engine_internal.h"

#include "xks_bytes.h"
#include "xks_ckr_name.h"
#include "xks_clock.h"
#include <stdio.h>
#include <string.h>

#define MAX_HAND_OVERS 3 /* of one job because of faults: the first and two retries */
#define MAX_REPAIRS 6    /* hand-overs because the token had forgotten something */
/* A job is let wait for at most this part of the time it has left, so that what is estimated too low is still answered in time. */
#define WAIT_PART 0.6
/* Members whose oldest call is out for longer than this do not answer: it is the HSM that is late, not we that are overloaded. */
#define SILENT_NS 60000000U
#define LOOK_FOR_LOST_NS 100000000U

typedef enum placement {
    PLACED,
    WAITS_FOR_ROOM,
    WAITS_FOR_REPAIR, /* of a key, a login, a partition */
    REFUSED
} placement;

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

static void list_remove(xks_job **head, xks_job **tail, xks_job *job)
{
    xks_job_route *route = &job->route;
    *(route->list_prev != NULL ? &route->list_prev->route.list_next : head) = route->list_next;
    *(route->list_next != NULL ? &route->list_next->route.list_prev : tail) = route->list_prev;
    route->list_prev = route->list_next = NULL;
}

static engine_group *group_of(xks_engine *engine, const xks_job *job)
{
    if (job->key >= atomic_load(&engine->key_capacity)) {
        return NULL;
    }
    const engine_key *key = xks_engine_key_at(engine, job->key);
    uint32_t group_plus_one = atomic_load(&key->group_plus_one);
    return group_plus_one == 0 ? NULL : &engine->groups[group_plus_one - 1];
}

/* --- what changed outside the loop */

static void look_at_changes(xks_engine *engine, uint64_t now)
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

static void open_breaker(xks_engine *engine, uint32_t index, const char *reason, bool hangs, uint64_t now)
{
    engine_partition *partition = engine->partitions[index];
    pthread_mutex_lock(&partition->lock);
    atomic_store(&partition->hangs, hangs);
    atomic_store(&partition->down, true); /* what made it open is an attempt that failed */
    xks_engine_ask_recovery_locked(partition, 0, true, reason);
    pthread_mutex_unlock(&partition->lock);
    look_at_changes(engine, now);
}

static void open_after_fault(xks_engine *engine, const xks_job *job, const char *what, uint64_t now)
{
    char reason[XKS_ERROR_TEXT_BYTES];
    snprintf(reason, sizeof reason, "%s: %s: %s (0x%lx)", what, job->failed_call != NULL ? job->failed_call : "a call",
             xks_ckr_name(job->ckr), job->ckr);
    open_breaker(engine, job->partition, reason, false, now);
}

/* Whether a member that is out may be back within moments: its keeper has not failed yet. */
static bool recovers_soon(const xks_engine *engine, uint64_t members)
{
    for (uint64_t out = members & ~engine->in_service; out != 0; out &= out - 1) {
        const engine_partition *partition = engine->partitions[__builtin_ctzll(out)];
        int state = atomic_load(&partition->state);
        if ((state == XKS_PARTITION_RECOVERING && !atomic_load(&partition->down)) || state == XKS_PARTITION_STARTING) {
            return true;
        }
    }
    return false;
}

static bool any_hangs(const xks_engine *engine, uint64_t members)
{
    for (; members != 0; members &= members - 1) {
        if (atomic_load(&engine->partitions[__builtin_ctzll(members)]->hangs)) {
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

static void leave_waiting(xks_engine *engine, xks_job *job)
{
    engine_group *group = job->route.waits_in;
    list_remove(&group->waiting_head, &group->waiting_tail, job);
    job->route.waits_in = NULL;
    group->waiting--;
    engine->waiting--;
}

static void hand_over(xks_engine *engine, uint32_t index, xks_job *job, xks_route_purpose purpose, uint64_t now)
{
    engine_partition *partition = engine->partitions[index];
    if (job->route.waits_in != NULL) {
        leave_waiting(engine, job);
    }
    job->status = XKS_OK;
    job->fate = XKS_FATE_NONE;
    job->ckr = 0;
    job->failed_call = NULL;
    job->started_ns = job->finished_ns = 0;
    job->attempts = 0;
    job->partition = index;
    job->route.tried |= xks_partition_bit(partition);
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

/* Which partition takes the job (PLACED: *index), or what it waits for, or why not (REFUSED: *why). */
static placement choose(xks_engine *engine, const xks_job *job, xks_route_purpose purpose, uint64_t now, uint32_t *index,
                        xks_status *why)
{
    const engine_group *group = group_of(engine, job);
    uint64_t pending;
    *why = XKS_NOT_FOUND;
    if (group == NULL) {
        return REFUSED;
    }
    xks_route_request request = {
        .members = group->members,
        .usable = usable_members(engine, group->members, job->key, &pending),
        .tried = job->route.tried,
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
        return recovers_soon(engine, pending) ? WAITS_FOR_REPAIR : REFUSED;
    case XKS_ROUTE_OUT:
        *why = any_hangs(engine, group->members) ? XKS_TIMEOUT : XKS_UNAVAILABLE;
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

static placement place(xks_engine *engine, xks_job *job, xks_route_purpose purpose, uint64_t now, xks_status *why)
{
    uint32_t index;
    placement placed = choose(engine, job, purpose, now, &index, why);
    if (placed == PLACED) {
        hand_over(engine, index, job, purpose, now);
    }
    return placed;
}

/* Until a partition has room, or has been repaired. A job that had its turn already goes before all others. */
static void wait(xks_engine *engine, xks_job *job, xks_route_purpose purpose)
{
    engine_group *group = group_of(engine, job);
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

/* --- answering */

static void conclude_check(xks_engine *engine, xks_job *check, uint64_t now);

/* The job has its status: for _drain to hand out, or for the job that it checks. */
static void answer(xks_engine *engine, xks_job *job, uint64_t now)
{
    if (job->finished_ns == 0) {
        job->finished_ns = now;
    }
    if (job->status != XKS_OK) {
        xks_wipe(job->output, job->output_capacity);
        job->output_len = 0;
    }
    if (job->route.check_of != NULL) {
        conclude_check(engine, job, now);
        return;
    }
    engine->totals.answered++;
    engine->totals.timeouts += job->status == XKS_TIMEOUT ? 1 : 0;
    engine->unanswered--;
    xks_engine_push(&engine->answered, job);
}

/* Its owner has been answered, or will be by another: it is wiped when it comes back. */
static void abandon(xks_job *job)
{
    job->route.abandoned = true;
    job->route.partner = NULL;
    job->route.check_of = NULL;
    job->owner = NULL;
}

/* --- check decrypts elsewhere */

static void start_check(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_job *check;
    xks_status why;
    if (xks_job_take(engine->pool, job->aad_capacity, job->output_len, &check) != XKS_OK) {
        job->status = XKS_SYSTEM;
        answer(engine, job, now);
        return;
    }
    check->operation = XKS_DECRYPT;
    check->key = job->key;
    check->deadline_ns = job->deadline_ns;
    check->iv_len = job->iv_len;
    memcpy(check->iv, job->iv, sizeof check->iv);
    memcpy(check->tag, job->tag, sizeof check->tag);
    memcpy(check->aad, job->aad, job->aad_len);
    check->aad_len = job->aad_len;
    memcpy(check->input, job->output, job->output_len);
    check->input_len = job->output_len;
    check->metadata_len = job->metadata_len;
    check->route.check_of = job;
    check->route.key_generation = job->route.key_generation;
    /* The first check is for another partition; a second one, which tells whose fault it was, for any but the one that doubts. */
    check->route.tried = (uint64_t)1 << (job->route.failed_checks == 0 ? job->partition : job->route.first_doubt);
    engine->totals.checks_elsewhere++;
    switch (place(engine, check, XKS_ROUTE_CHECK, now, &why)) {
    case PLACED:
        break;
    case WAITS_FOR_ROOM:
    case WAITS_FOR_REPAIR:
        wait(engine, check, XKS_ROUTE_CHECK);
        break;
    case REFUSED:
        check->status = why;
        answer(engine, check, now);
        break;
    }
}

/* A partition holds another key than the rest of its group, or answers wrongly: its keeper proves the key again before it is used. */
static void doubt_key(xks_engine *engine, uint32_t index, uint32_t key)
{
    engine_partition *partition = engine->partitions[index];
    pthread_mutex_lock(&partition->lock);
    if (xks_partition_key_at(partition, key)->wanted) {
        xks_engine_set_key_locked(partition, key, XKS_KEY_PENDING);
        xks_engine_list_key_locked(partition, key, URGENT_KEYS);
    }
    pthread_mutex_unlock(&partition->lock);
}

static void retry_after_fault(xks_engine *engine, xks_job *job, uint64_t now);

/* The check decrypt of a CDIV came back. When it fails, another check tells whose fault it was: the ciphertext's, and so the encrypting
 * partition's, or the checking one's. */
static void conclude_check(xks_engine *engine, xks_job *check, uint64_t now)
{
    xks_job *job = check->route.check_of;
    uint32_t checked_on = check->partition;
    bool decrypted = check->status == XKS_OK;
    bool proven = decrypted && check->output_len == job->input_len &&
                  xks_equal_constant_time(check->output, job->input, job->input_len);
    bool contradicted = (decrypted && !proven) || check->status == XKS_NOT_AUTHENTIC;
    xks_status status = check->status;
    unsigned long ckr = check->ckr;
    const char *call = check->failed_call;
    xks_job_release(engine->pool, check);
    if (proven) {
        if (job->route.failed_checks > 0) {
            doubt_key(engine, job->route.first_doubt, job->key);
        }
        answer(engine, job, now);
        return;
    }
    engine->totals.failed_checks++;
    if (contradicted && job->route.failed_checks == 0) {
        job->route.failed_checks = 1;
        job->route.first_doubt = checked_on;
        start_check(engine, job, now); /* again, wherever the router says: the partition that encrypted is as good a judge */
        return;
    }
    if (contradicted) {
        job->ckr = ckr;
        job->failed_call = "check decrypt of its ciphertext";
        job->status = XKS_UNAVAILABLE;
        open_after_fault(engine, job, "a ciphertext was refused twice", now);
        retry_after_fault(engine, job, now);
        return;
    }
    job->status = status;
    job->ckr = ckr;
    job->failed_call = call;
    answer(engine, job, now);
}

/* --- what came back */

static void retry_after_fault(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_status why;
    bool again = ++job->route.hand_overs < MAX_HAND_OVERS && now < job->deadline_ns;
    xks_route_purpose purpose = job->route.check_of != NULL ? XKS_ROUTE_CHECK : XKS_ROUTE_RETRY;
    job->route.failed_checks = 0;
    switch (again ? place(engine, job, purpose, now, &why) : REFUSED) {
    case PLACED:
        engine->totals.retries++;
        break;
    case WAITS_FOR_ROOM:
    case WAITS_FOR_REPAIR:
        engine->totals.retries++;
        wait(engine, job, purpose);
        break;
    case REFUSED:
        job->status = XKS_UNAVAILABLE;
        answer(engine, job, now);
        break;
    }
}

static void go_again(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_status why = XKS_TIMEOUT;
    xks_route_purpose purpose = job->route.check_of != NULL ? XKS_ROUTE_CHECK : XKS_ROUTE_FIRST;
    bool again = ++job->route.repairs <= MAX_REPAIRS && now < job->deadline_ns;
    job->route.tried = 0; /* what was forgotten is being repaired: no reason to avoid anyone */
    switch (again ? place(engine, job, purpose, now, &why) : REFUSED) {
    case PLACED:
        break;
    case WAITS_FOR_ROOM:
    case WAITS_FOR_REPAIR:
        wait(engine, job, purpose);
        break;
    case REFUSED:
        job->status = again || now >= job->deadline_ns ? why : XKS_UNAVAILABLE;
        answer(engine, job, now);
        break;
    }
}

static void settle_unavailable(xks_engine *engine, xks_job *job, uint64_t now)
{
    switch (job->fate) {
    case XKS_FATE_STALE:
    case XKS_FATE_NOT_MADE:
        go_again(engine, job, now);
        return;
    case XKS_FATE_AMBIGUOUS:
        /* The same on two partitions that are both alive: the ciphertext is bad. With one partition nobody can tell. */
        if (job->route.ambiguous && __builtin_popcountll(job->route.tried) > 1) {
            job->status = XKS_NOT_AUTHENTIC;
            answer(engine, job, now);
            return;
        }
        job->route.ambiguous = true;
        retry_after_fault(engine, job, now);
        return;
    case XKS_FATE_NONE:
    case XKS_FATE_FAULT:
        break;
    }
    retry_after_fault(engine, job, now);
}

/* The job has come back from a partition, its call is booked, and it has an owner or checks another. */
static void settle(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_job *partner = job->route.partner;
    if (job->status == XKS_UNAVAILABLE && partner != NULL) {
        partner->route.partner = NULL; /* the other one goes on alone, with the owner */
        partner->owner = job->owner;
        partner->route.check_of = job->route.check_of;
        partner->route.tried |= job->route.tried;
        job->route.check_of = NULL;
        xks_job_release(engine->pool, job);
        return;
    }
    if (partner != NULL) {
        engine->totals.hedge_wins += job->route.purpose == XKS_ROUTE_HEDGE ? 1 : 0;
        abandon(partner);
        job->route.partner = NULL;
    }
    if (job->status == XKS_UNAVAILABLE) {
        settle_unavailable(engine, job, now);
        return;
    }
    if (job->status == XKS_OK && job->finished_ns > job->deadline_ns) {
        job->status = XKS_TIMEOUT;
    }
    if (job->status == XKS_OK && job->route.check_elsewhere) {
        start_check(engine, job, now);
        return;
    }
    answer(engine, job, now);
}

/* Tell the router and the counters how a call ended. */
static void book(xks_engine *engine, xks_job *job, uint64_t now)
{
    engine_partition *partition = engine->partitions[job->partition];
    xks_call_result result = XKS_CALL_SERVED;
    if (job->status == XKS_UNAVAILABLE && job->fate == XKS_FATE_FAULT) {
        result = XKS_CALL_FAULT;
    } else if (job->started_ns == 0 || (job->status == XKS_UNAVAILABLE && job->fate != XKS_FATE_AMBIGUOUS)) {
        result = XKS_CALL_NOT_MADE;
    }
    list_remove(&engine->calls_head, &engine->calls_tail, job);
    engine->calls--;
    uint64_t took = result == XKS_CALL_NOT_MADE ? 0 : job->finished_ns - job->route.handed_over_ns;
    xks_engine_count_call(partition, job);
    if (xks_router_end(engine->router, job->partition, job->route.call, result, took, now)) {
        open_after_fault(engine, job, "faults in a row, the last", now);
    }
}

static void come_back(xks_engine *engine, xks_job *job, uint64_t now)
{
    book(engine, job, now);
    if (job->route.abandoned) {
        engine->totals.late_results_wiped++;
        xks_job_release(engine->pool, job);
        return;
    }
    settle(engine, job, now);
}

/* --- time */

/* Answer for a job that is inside a token: another job with its owner stands in for it. */
static bool answer_for(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_job *stand_in;
    if (xks_job_take(engine->pool, 0, 0, &stand_in) != XKS_OK) {
        return false; /* the next tick tries again */
    }
    stand_in->owner = job->owner;
    stand_in->deadline_ns = job->deadline_ns;
    stand_in->key = job->key;
    stand_in->operation = job->operation;
    stand_in->partition = job->partition;
    stand_in->submitted_ns = job->submitted_ns;
    stand_in->route.check_of = job->route.check_of;
    stand_in->status = XKS_TIMEOUT;
    if (job->route.partner != NULL) {
        abandon(job->route.partner);
    }
    abandon(job);
    answer(engine, stand_in, now);
    return true;
}

static void hedge(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_job *second;
    xks_status why;
    uint32_t index;
    if (choose(engine, job, XKS_ROUTE_HEDGE, now, &index, &why) != PLACED || xks_job_clone(engine->pool, job, &second) != XKS_OK) {
        return;
    }
    second->owner = job->owner;
    second->submitted_ns = job->submitted_ns;
    second->route.tried = job->route.tried;
    second->route.key_generation = job->route.key_generation;
    second->route.check_elsewhere = job->route.check_elsewhere;
    second->route.check_of = job->route.check_of;
    second->route.hand_overs = job->route.hand_overs;
    second->route.partner = job;
    job->route.partner = second;
    engine->totals.hedges++;
    hand_over(engine, index, second, XKS_ROUTE_HEDGE, now);
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
            (void)answer_for(engine, job, now);
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
            placed = place(engine, job, (xks_route_purpose)job->route.purpose, now, &why);
            if (placed == REFUSED) {
                leave_waiting(engine, job);
                job->status = why;
                answer(engine, job, now);
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
                leave_waiting(engine, job);
                job->status = XKS_TIMEOUT;
                answer(engine, job, now);
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
        open_breaker(engine, (uint32_t)__builtin_ctzll(overdue), "a call has not returned for over a second", true, now);
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
    engine_group *group = group_of(engine, job);
    double longest = WAIT_PART * (double)(job->deadline_ns - now);
    if (engine->waiting >= engine->config.max_queued) {
        return XKS_BUSY;
    }
    if (placed == WAITS_FOR_ROOM &&
        (double)xks_router_wait_ns(engine->router, group->members, group->waiting, now) > longest) {
        return is_silent(engine, group->members, now) ? XKS_TIMEOUT : XKS_BUSY;
    }
    wait(engine, job, XKS_ROUTE_FIRST);
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
    look_at_changes(engine, now);
    const engine_group *group = group_of(engine, job);
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
    placement placed = place(engine, job, XKS_ROUTE_FIRST, now, &status);
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
    if (partition->queued == 0 || partition->service_ns >= XKS_FAST_CALL_NS) {
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
    look_at_changes(engine, now);
    for (; job != NULL; job = next) {
        next = job->next;
        come_back(engine, job, now);
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
