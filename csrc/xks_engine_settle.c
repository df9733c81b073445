/* SPDX-License-Identifier: Apache-2.0 */
/* What becomes of a job that came back from a partition: it is answered, retried, goes again after a repair, or is checked on another
 * partition. Of a hedged pair one is the job and the other its partner: whichever comes back first with an answer takes the owner, the
 * other is abandoned, and wiped when it comes back. */
#include "xks_engine_internal.h"

#include "xks_bytes.h"
#include "xks_clock.h"
#include <string.h>

#define MAX_HAND_OVERS 3 /* of one job because of faults: the first and two retries */
#define MAX_REPAIRS 20   /* hand-overs because the token had forgotten something */

/* --- answering */

static void conclude_check(xks_engine *engine, xks_job *check, uint64_t now);

/* The job has its status: for _drain to hand out, or for the job that it checks. */
void xks_engine_answer(xks_engine *engine, xks_job *job, uint64_t now)
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
        xks_engine_answer(engine, job, now);
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
    check->route.avoided = (uint64_t)1 << (job->route.failed_checks == 0 ? job->partition : job->route.first_doubt);
    engine->totals.checks_elsewhere++;
    switch (xks_engine_place(engine, check, XKS_ROUTE_CHECK, now, &why)) {
    case PLACED:
        break;
    case WAITS_FOR_ROOM:
    case WAITS_FOR_REPAIR:
        xks_engine_wait(engine, check, XKS_ROUTE_CHECK);
        break;
    case REFUSED:
        check->status = why;
        xks_engine_answer(engine, check, now);
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
    /* That partition has no say. */
    bool cannot = check->status == XKS_NOT_PERMITTED || check->status == XKS_NOT_FOUND || check->status == XKS_CONFIG;
    xks_status status = check->status;
    unsigned long ckr = check->ckr;
    const char *call = check->failed_call;
    xks_job_release(engine->pool, check);
    if (proven) {
        if (job->route.failed_checks > 0) {
            doubt_key(engine, job->route.first_doubt, job->key);
        }
        xks_engine_answer(engine, job, now);
        return;
    }
    engine->totals.failed_checks++;
    if ((contradicted || cannot) && job->route.failed_checks == 0) {
        job->route.failed_checks = 1;
        job->route.first_doubt = checked_on;
        start_check(engine, job, now); /* again, wherever the router says: the partition that encrypted is as good a judge */
        return;
    }
    if (contradicted) {
        job->ckr = ckr;
        job->failed_call = "check decrypt of its ciphertext";
        job->status = XKS_UNAVAILABLE;
        xks_engine_open_after_fault(engine, job, "a ciphertext was refused twice", now);
        retry_after_fault(engine, job, now);
        return;
    }
    job->status = status;
    job->ckr = ckr;
    job->failed_call = call;
    xks_engine_answer(engine, job, now);
}

/* --- what came back */

static void retry_after_fault(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_status why;
    bool again = ++job->route.hand_overs < MAX_HAND_OVERS && now < job->deadline_ns;
    xks_route_purpose purpose = job->route.check_of != NULL ? XKS_ROUTE_CHECK : XKS_ROUTE_RETRY;
    job->route.failed_checks = 0;
    switch (again ? xks_engine_place(engine, job, purpose, now, &why) : REFUSED) {
    case PLACED:
        engine->totals.retries++;
        break;
    case WAITS_FOR_ROOM:
    case WAITS_FOR_REPAIR:
        engine->totals.retries++;
        xks_engine_wait(engine, job, purpose);
        break;
    case REFUSED:
        job->status = XKS_UNAVAILABLE;
        xks_engine_answer(engine, job, now);
        break;
    }
}

static void go_again(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_status why = XKS_TIMEOUT;
    xks_route_purpose purpose = job->route.check_of != NULL ? XKS_ROUTE_CHECK : XKS_ROUTE_FIRST;
    bool again = ++job->route.repairs <= MAX_REPAIRS && now < job->deadline_ns;
    job->route.tried = 0; /* what was forgotten is being repaired: no reason to avoid anyone */
    switch (again ? xks_engine_place(engine, job, purpose, now, &why) : REFUSED) {
    case PLACED:
        break;
    case WAITS_FOR_ROOM:
    case WAITS_FOR_REPAIR:
        xks_engine_wait(engine, job, purpose);
        break;
    case REFUSED:
        job->status = again || now >= job->deadline_ns ? why : XKS_UNAVAILABLE;
        xks_engine_answer(engine, job, now);
        break;
    }
}

static void settle_unavailable(xks_engine *engine, xks_job *job, uint64_t now)
{
    switch (job->fate) {
    case XKS_FATE_STALE:
    case XKS_FATE_NOT_MADE:
        job->route.calls--; /* no key worked */
        go_again(engine, job, now);
        return;
    case XKS_FATE_AMBIGUOUS:
        /* The same on two partitions that are both alive: the ciphertext is bad. With one partition nobody can tell. */
        if (job->route.ambiguous && __builtin_popcountll(job->route.tried) > 1) {
            job->status = XKS_NOT_AUTHENTIC;
            xks_engine_answer(engine, job, now);
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
    if (job->status == XKS_OK && now > job->deadline_ns) {
        job->status = XKS_TIMEOUT; /* nobody waits for it any more */
    }
    if (job->status == XKS_OK && job->route.check_elsewhere) {
        start_check(engine, job, now);
        return;
    }
    xks_engine_answer(engine, job, now);
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
    xks_engine_list_remove(&engine->calls_head, &engine->calls_tail, job);
    engine->calls--;
    uint64_t took = result == XKS_CALL_NOT_MADE ? 0 : job->finished_ns - job->route.handed_over_ns;
    xks_engine_count_call(partition, job);
    if (xks_router_end(engine->router, job->partition, job->route.call, result, took, now)) {
        xks_engine_open_after_fault(engine, job, "faults in a row, the last", now);
    }
}

void xks_engine_come_back(xks_engine *engine, xks_job *job, uint64_t now)
{
    book(engine, job, now);
    if (job->route.abandoned) {
        engine->totals.late_results_wiped++;
        xks_job_release(engine->pool, job);
        return;
    }
    settle(engine, job, now);
}

/* --- what does not come back */

void xks_engine_answer_for(xks_engine *engine, xks_job *job, uint64_t now)
{
    xks_job *stand_in;
    if (xks_job_take(engine->pool, 0, 0, &stand_in) != XKS_OK) {
        return; /* the next tick tries again */
    }
    stand_in->owner = job->owner;
    stand_in->deadline_ns = job->deadline_ns;
    stand_in->key = job->key;
    stand_in->operation = job->operation;
    stand_in->partition = job->partition;
    stand_in->submitted_ns = job->submitted_ns;
    stand_in->route.check_of = job->route.check_of;
    stand_in->route.calls = job->route.calls;
    stand_in->status = XKS_TIMEOUT;
    if (job->route.partner != NULL) {
        abandon(job->route.partner);
    }
    abandon(job);
    xks_engine_answer(engine, stand_in, now);
}

