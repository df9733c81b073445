/* SPDX-License-Identifier: Apache-2.0 */
/* Partitions, calls in flight, breaker, budgets. */
#include "xks_router_internal.h"
#include <stdlib.h>

#define IN_FLIGHT_COST 0.02
#define START_DEAR_AGE_NS (20 * XKS_MS_NS)
#define START_STALL_AGE_NS (60 * XKS_MS_NS)

static void start_partition(router_partition *p, router_call *calls)
{
    p->oldest_ns = XKS_NO_CALL;
    p->concurrency = p->per_concurrency = 1;
    p->dear_age_ns = START_DEAR_AGE_NS;
    p->stall_age_ns = START_STALL_AGE_NS;
    p->quickest_ns = p->window_quickest_ns = UINT64_MAX;
    p->head = p->tail = p->oldest = XKS_NO_SLOT;
    p->calls = calls;
    for (uint16_t i = 0; i < XKS_ROUTER_MAX_CALLS; i++) {
        calls[i].newer = i + 1 < XKS_ROUTER_MAX_CALLS ? (uint16_t)(i + 1) : XKS_NO_SLOT;
    }
}

xks_status xks_router_new(const xks_router_config *config, xks_router **out)
{
    *out = NULL;
    if (config->partitions < 1 || config->partitions > XKS_ROUTER_MAX_PARTITIONS || !(config->retry_budget >= 0) ||
        !(config->retry_budget <= 1) || !(config->hedge_budget >= 0) || !(config->hedge_budget <= 1)) {
        return XKS_BAD_INPUT;
    }
    size_t count = config->partitions;
    size_t calls_at = sizeof(xks_router) + count * sizeof(router_partition);
    xks_router *router = calloc(1, calls_at + count * XKS_ROUTER_MAX_CALLS * sizeof(router_call));
    if (router == NULL) {
        return XKS_SYSTEM;
    }
    router_call *calls = (router_call *)(void *)((char *)router + calls_at);
    router->count = config->partitions;
    router->known = UINT64_MAX >> (XKS_ROUTER_MAX_PARTITIONS - config->partitions);
    router->chance = config->seed;
    router->retry_budget = config->retry_budget;
    router->hedge_budget = config->hedge_budget;
    for (size_t i = 0; i < count; i++) {
        start_partition(&router->partitions[i], calls + i * XKS_ROUTER_MAX_CALLS);
    }
    *out = router;
    return XKS_OK;
}

void xks_router_free(xks_router *router)
{
    free(router);
}

static void put(uint64_t *set, uint32_t partition, bool member)
{
    *set = (*set & ~router_bit(partition)) | (uint64_t)member << partition;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* What calls in flight decide. */
static void note_load(xks_router *router, uint32_t partition, router_partition *p)
{
    double in_flight = p->in_flight, over = in_flight + 1 - p->concurrency;
    put(&router->roomy, partition, p->in_flight < p->limit);
    put(&router->spare, partition, in_flight < 2 * p->concurrency);
    put(&router->ample, partition, in_flight < 2 * p->concurrency + 2);
    p->pressure = (1 + (over > 0 ? over : 0) * p->per_concurrency) * (1 + IN_FLIGHT_COST * in_flight);
    p->pressure *= (router->on_trial & router_bit(partition)) != 0 ? 1 + in_flight : 1;
}

static void note_calm(router_partition *p)
{
    uint64_t of_age = p->oldest_ns != XKS_NO_CALL ? p->oldest_ns + earlier(p->dear_age_ns, p->stall_age_ns) : UINT64_MAX;
    p->calm_until_ns = p->slow_until_ns != 0 ? 0 : of_age;
}

void xks_router_note(xks_router *router, uint32_t partition, uint64_t now)
{
    router_partition *p = &router->partitions[partition];
    bool on_trial;
    p->expected_ns = router_expected_ns(p, now, &on_trial);
    p->slow_until_ns = p->slow_until_ns > now ? p->slow_until_ns : 0;
    put(&router->serving, partition, p->in_service && p->sessions > 0);
    put(&router->on_trial, partition, on_trial);
    note_load(router, partition, p);
    note_calm(p);
}

void xks_router_set_sessions(xks_router *router, uint32_t partition, uint32_t sessions)
{
    router_partition *p = &router->partitions[partition];
    sessions = sessions < XKS_ROUTER_MAX_CALLS ? sessions : XKS_ROUTER_MAX_CALLS;
    router->sessions += sessions;
    router->sessions -= p->sessions;
    p->sessions = sessions;
    xks_router_set_limit(p);
    put(&router->serving, partition, p->in_service && p->sessions > 0);
    note_load(router, partition, p);
}

void xks_router_set_in_service(xks_router *router, uint32_t partition, bool in_service, uint64_t now)
{
    router_partition *p = &router->partitions[partition];
    if (in_service && !p->in_service) {
        p->slow_until_ns = p->was_in_service ? now + XKS_SLOW_START_NS : 0;
        p->was_in_service = true;
        p->opened = false;
        p->faults_in_row = 0;
    }
    p->in_service = in_service;
    xks_router_note(router, partition, now);
}

static bool open_breaker(router_partition *p, uint64_t now)
{
    if (!p->in_service || p->opened) {
        return false;
    }
    p->opened = true;
    p->opened_ns = now;
    p->opens++;
    return true;
}

/* --- calls */

static void note_oldest(router_partition *p, uint16_t slot)
{
    p->oldest = slot;
    p->oldest_ns = slot != XKS_NO_SLOT ? p->calls[slot].began_ns : XKS_NO_CALL;
}

static void account(xks_router *router, xks_route_purpose purpose)
{
    if (purpose == XKS_ROUTE_FIRST) {
        router->retries_spent -= router->retry_budget < router->retries_spent ? router->retry_budget : router->retries_spent;
        router->hedges_spent -= router->hedge_budget < router->hedges_spent ? router->hedge_budget : router->hedges_spent;
    } else if (purpose == XKS_ROUTE_RETRY) {
        router->retries_spent += 1;
    } else if (purpose == XKS_ROUTE_HEDGE) {
        router->hedges_spent += 1;
    }
}

uint32_t xks_router_begin(xks_router *router, uint32_t partition, xks_route_purpose purpose, uint64_t now)
{
    router_partition *p = &router->partitions[partition];
    uint16_t slot = p->free;
    if (slot == XKS_NO_SLOT) {
        return XKS_NO_SLOT;
    }
    router_call *call = &p->calls[slot];
    p->free = call->newer;
    p->in_flight++;
    *call = (router_call){now, p->tail, XKS_NO_SLOT, (uint16_t)p->in_flight, true, false};
    if (p->tail != XKS_NO_SLOT) {
        p->calls[p->tail].newer = slot;
    } else {
        p->head = slot;
    }
    p->tail = slot;
    if (p->oldest == XKS_NO_SLOT) {
        note_oldest(p, slot);
        note_calm(p);
    }
    p->handed[purpose]++;
    account(router, purpose);
    note_load(router, partition, p);
    return slot;
}

static void take_out(router_partition *p, uint16_t slot)
{
    router_call *call = &p->calls[slot];
    if (call->written_off) {
        p->written_off--;
        xks_router_set_limit(p);
    } else {
        p->in_flight--;
    }
    if (p->oldest == slot) {
        note_oldest(p, call->newer);
    }
    *(call->older != XKS_NO_SLOT ? &p->calls[call->older].newer : &p->head) = call->newer;
    *(call->newer != XKS_NO_SLOT ? &p->calls[call->newer].older : &p->tail) = call->older;
    call->out = false;
    call->newer = p->free;
    p->free = slot;
}

bool xks_router_end(xks_router *router, uint32_t partition, uint32_t call, xks_call_result result, uint64_t took_ns, uint64_t now)
{
    router_partition *p = &router->partitions[partition];
    if (call >= XKS_ROUTER_MAX_CALLS || !p->calls[call].out) {
        return false;
    }
    const router_call ended = p->calls[call];
    bool opens = false;
    take_out(p, (uint16_t)call);
    if (result == XKS_CALL_FAULT) {
        p->faults++;
        p->faults_in_row++;
        opens = p->faults_in_row >= XKS_FAULTS_TO_OPEN && open_breaker(p, now);
    } else if (result == XKS_CALL_SERVED) {
        p->served++;
        p->faults_in_row = 0;
        if (!ended.written_off) { /* else its age told its time already, which says nothing of the next call's */
            p->served_ns = now;
            xks_router_learn(p, ended.began_ns, ended.in_flight, took_ns, now);
        }
    }
    xks_router_note(router, partition, now);
    return opens;
}

uint64_t xks_router_overdue(xks_router *router, uint64_t now)
{
    uint64_t told = 0;
    for (uint32_t i = 0; i < router->count; i++) {
        router_partition *p = &router->partitions[i];
        if (p->oldest_ns == XKS_NO_CALL || now - p->oldest_ns <= XKS_HANG_NS) {
            continue;
        }
        do {
            if (p->oldest_ns >= p->opened_ns && open_breaker(p, now)) {
                told |= router_bit(i);
            }
            p->calls[p->oldest].written_off = true;
            p->in_flight--;
            p->written_off++;
            p->written_off_ns = now;
            note_oldest(p, p->calls[p->oldest].newer);
        } while (p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > XKS_HANG_NS);
        xks_router_set_limit(p);
        xks_router_note(router, i, now);
    }
    return told;
}
