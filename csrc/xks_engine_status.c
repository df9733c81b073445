/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_ckr_name.h"
#include "xks_clock.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* A partition that has not answered by then is not waited for while others can serve in its place. */
#define START_PATIENCE_NS 2000000000U
/* How often to look whether that is so: nothing is announced by a partition that does not answer. */
#define SETTLE_LOOK_NS 100000000U

/* --- waiting until the engine has settled */

void xks_engine_announce(xks_engine *engine)
{
    atomic_fetch_add(&engine->changes, 1);
    xks_engine_wake_loop(engine);
    pthread_mutex_lock(&engine->lock);
    pthread_cond_broadcast(&engine->settled);
    pthread_mutex_unlock(&engine->lock);
}

/* Whether every group of the partition, which is STARTING, has a member that serves. */
static bool is_replaced(const xks_engine *engine, const engine_partition *partition)
{
    bool replaced = true;
    for (uint32_t g = 0; g < engine->group_count && replaced; g++) {
        uint64_t members = engine->groups[g].members;
        bool concerned = (members & xks_partition_bit(partition)) != 0;
        for (replaced = !concerned; members != 0 && !replaced; members &= members - 1) {
            replaced = atomic_load(&engine->partitions[__builtin_ctzll(members)]->state) == XKS_PARTITION_READY;
        }
    }
    return replaced;
}

uint64_t xks_engine_unsettled(xks_engine *engine)
{
    uint64_t unsettled = 0;
    bool late = xks_monotonic_ns() > engine->started_ns + START_PATIENCE_NS;
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        int state = atomic_load(&partition->state);
        uint32_t pending = partition->keys_by_state[XKS_KEY_PENDING];
        pthread_mutex_unlock(&partition->lock);
        if (state == XKS_PARTITION_STARTING) {
            unsettled += late && is_replaced(engine, partition) ? 0 : 1;
        } else if (state == XKS_PARTITION_READY) {
            unsettled += pending;
        }
    }
    return unsettled;
}

xks_status xks_engine_wait_settled(xks_engine *engine, uint64_t timeout_ns)
{
    uint64_t until_ns = xks_monotonic_ns() + timeout_ns;
    xks_status status = XKS_OK;
    pthread_mutex_lock(&engine->lock);
    while (xks_engine_unsettled(engine) > 0 && status == XKS_OK) {
        uint64_t now = xks_monotonic_ns(), at_ns = now + SETTLE_LOOK_NS < until_ns ? now + SETTLE_LOOK_NS : until_ns;
        struct timespec at = {(time_t)(at_ns / 1000000000U), (long)(at_ns % 1000000000U)};
        (void)pthread_cond_timedwait(&engine->settled, &engine->lock, &at);
        status = xks_monotonic_ns() >= until_ns ? XKS_TIMEOUT : XKS_OK;
    }
    if (status == XKS_TIMEOUT && xks_engine_unsettled(engine) == 0) {
        status = XKS_OK;
    }
    pthread_mutex_unlock(&engine->lock);
    return status;
}

/* engine->lock is held. */
static bool key_settled_locked(const xks_engine *engine, uint32_t key)
{
    bool pending = false, ready = false, starting = false;
    uint32_t group_plus_one = key < engine->keys_used ? atomic_load(&xks_engine_key_at(engine, key)->group_plus_one) : 0;
    uint64_t members = group_plus_one == 0 ? 0 : engine->groups[group_plus_one - 1].members;
    for (; members != 0; members &= members - 1) {
        engine_partition *partition = engine->partitions[__builtin_ctzll(members)];
        pthread_mutex_lock(&partition->lock);
        int state = atomic_load(&partition->state);
        starting = starting || state == XKS_PARTITION_STARTING;
        ready = ready || state == XKS_PARTITION_READY;
        pending = pending || (state == XKS_PARTITION_READY &&
                              atomic_load(&xks_partition_key_at(partition, key)->state) == XKS_KEY_PENDING);
        pthread_mutex_unlock(&partition->lock);
    }
    return !pending && (ready || !starting);
}

xks_status xks_engine_wait_keys(xks_engine *engine, const uint32_t *keys, size_t key_count, uint64_t timeout_ns, size_t *settled)
{
    uint64_t until_ns = xks_monotonic_ns() + timeout_ns;
    struct timespec until = {(time_t)(until_ns / 1000000000U), (long)(until_ns % 1000000000U)};
    xks_status status = XKS_OK;
    *settled = 0;
    pthread_mutex_lock(&engine->lock);
    while (*settled < key_count && status == XKS_OK) {
        if (key_settled_locked(engine, keys[*settled])) {
            ++*settled;
        } else if (pthread_cond_timedwait(&engine->settled, &engine->lock, &until) == ETIMEDOUT) {
            status = XKS_TIMEOUT;
        }
    }
    pthread_mutex_unlock(&engine->lock);
    return status;
}

/* --- counting calls; the loop thread's */

/* A bucket is found by the position of the highest bit and the two bits below it. */
static uint32_t bucket_of(uint64_t duration_ns)
{
    uint64_t us4 = duration_ns / 256; /* quarters of about a microsecond */
    if (us4 < 4) {
        return 0;
    }
    uint32_t exponent = 63U - (uint32_t)__builtin_clzll(us4);
    uint32_t bucket = (exponent - 2) * 4 + (uint32_t)((us4 >> (exponent - 2)) & 3) + 1;
    return bucket < XKS_LATENCY_BUCKETS ? bucket : XKS_LATENCY_BUCKETS - 1;
}

uint64_t xks_engine_latency_bound_ns(uint32_t bucket)
{
    if (bucket >= XKS_LATENCY_BUCKETS - 1) {
        return UINT64_MAX;
    }
    return bucket == 0 ? 1023 : ((uint64_t)(5 + (bucket - 1) % 4) << ((bucket - 1) / 4)) * 256 - 1;
}

static void count_ckr(partition_counters *counters, unsigned long rv)
{
    uint32_t ckr = rv > UINT32_MAX ? XKS_OTHER_CKR : (uint32_t)rv;
    for (uint32_t i = 0; i < XKS_COUNTED_CKRS; i++) {
        xks_ckr_count *known = &counters->errors[i];
        if (known->count == 0 || known->ckr == ckr || i == XKS_COUNTED_CKRS - 1) {
            known->ckr = known->count == 0 || known->ckr == ckr ? ckr : XKS_OTHER_CKR;
            known->count++;
            return;
        }
    }
}

void xks_engine_count_call(engine_partition *partition, const xks_job *job)
{
    if (job->status == XKS_UNAVAILABLE && job->ckr != 0) { /* not what a caller's bad ciphertext gives */
        count_ckr(&partition->counters, job->ckr);
    }
    if (job->status == XKS_OK) {
        partition->counters.latency[bucket_of(job->finished_ns - job->started_ns)]++;
    }
}

/* --- what the keepers and the router know */

static const char *reason_name(xks_route_reason reason)
{
    switch (reason) {
    case XKS_REASON_ELIGIBLE: return "eligible";
    case XKS_REASON_OUT_OF_SERVICE: return "out_of_service";
    case XKS_REASON_FULL: return "full";
    case XKS_REASON_TOO_SLOW: return "too_slow";
    case XKS_REASON_STALLED: return "stalled";
    case XKS_REASON_REMOTE: return "remote";
    case XKS_REASON_TRIED: return "tried";
    case XKS_REASON_BUSY: return "busy";
    case XKS_REASON_NO_KEY: break;
    }
    return "no_key";
}

static void read_route(xks_engine *engine, uint32_t partition, xks_partition_status *out)
{
    xks_route_view view;
    if (engine->router == NULL) {
        return;
    }
    xks_router_view(engine->router, partition, xks_monotonic_ns(), &view);
    out->in_service = view.in_service;
    out->in_flight = view.in_flight;
    out->limit = view.limit;
    out->concurrency = view.concurrency;
    out->median_ns = view.median_ns;
    out->p95_ns = view.p95_ns;
    out->oldest_call_ns = view.oldest_call_ns;
    out->slow_start = view.slow_start;
    snprintf(out->route_reason, sizeof out->route_reason, "%s", reason_name(view.reason));
    out->firsts = view.firsts;
    out->retries = view.retries;
    out->hedges = view.hedges;
    out->checks = view.checks;
    out->faults = view.faults;
}

xks_status xks_engine_partition_status(xks_engine *engine, uint32_t partition, xks_partition_status *out)
{
    if (partition >= engine->partition_count) {
        return XKS_NOT_FOUND;
    }
    engine_partition *p = engine->partitions[partition];
    memset(out, 0, sizeof *out);
    read_route(engine, partition, out);
    memcpy(out->errors, p->counters.errors, sizeof out->errors);
    memcpy(out->latency_counts, p->counters.latency, sizeof out->latency_counts);
    pthread_mutex_lock(&p->lock);
    out->state = (xks_partition_state)atomic_load(&p->state);
    memcpy(out->reason, p->reason, sizeof out->reason);
    memcpy(out->token_label, p->info.label, sizeof out->token_label);
    memcpy(out->manufacturer, p->info.manufacturer, sizeof out->manufacturer);
    memcpy(out->model, p->info.model, sizeof out->model);
    memcpy(out->serial, p->info.serial, sizeof out->serial);
    out->firmware_major = p->info.firmware_major;
    out->firmware_minor = p->info.firmware_minor;
    out->sessions_open = p->sessions_open;
    out->sessions_wanted = p->sessions;
    out->login_epoch = p->epoch;
    out->operations = p->operations;
    out->failures = p->failures;
    out->last_probe_ns = p->last_probe_ns;
    out->last_good_probe_ns = p->last_good_probe_ns;
    out->probe_duration_ns = p->probe_duration_ns;
    out->tag_failure_ckr = p->tag_failure;
    out->message_api = p->message_api;
    out->lost_threads = p->lost;
    out->opens = p->opens;
    memcpy(out->last_open_reason, p->last_open_reason, sizeof out->last_open_reason);
    out->last_open_unix_s = p->last_open_unix_s;
    out->keys_refused = p->keys_by_state[XKS_KEY_DIFFERENT] + p->keys_by_state[XKS_KEY_AMBIGUOUS] +
                        p->keys_by_state[XKS_KEY_WRONG_TYPE] + p->keys_by_state[XKS_KEY_FAILED];
    memcpy(out->key_problem, out->keys_refused > 0 ? p->key_problem : "", out->keys_refused > 0 ? sizeof out->key_problem : 1);
    snprintf(out->iv_mode, sizeof out->iv_mode, "%s", xks_iv_mode_name(p->profile->iv_mode));
    pthread_mutex_unlock(&p->lock);
    return XKS_OK;
}

void xks_engine_totals_read(const xks_engine *engine, xks_engine_totals *out)
{
    *out = engine->totals;
    out->waiting = engine->waiting;
    out->in_flight = engine->calls;
}
