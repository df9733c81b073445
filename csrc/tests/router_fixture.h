/* SPDX-License-Identifier: Apache-2.0 */
/* router_fixture.h - a router whose time is a number that the tests move, and the few things that they do with it. */
#ifndef ROUTER_FIXTURE_H
#define ROUTER_FIXTURE_H

#include "check.h"
#include "xks_router.h"

#define MS UINT64_C(1000000)
#define SECOND UINT64_C(1000000000)
#define START (100 * SECOND)

static xks_router *router;
static uint64_t now;

static inline void begin_test(uint32_t partitions, uint32_t sessions)
{
    const xks_router_config config = {.seed = 7, .partitions = partitions, .retry_budget = 0.2, .hedge_budget = 0.05};
    xks_router_free(router);
    CHECK_STATUS(XKS_OK, xks_router_new(&config, &router));
    now = START;
    for (uint32_t i = 0; i < partitions; i++) {
        xks_router_set_sessions(router, i, sessions);
        xks_router_set_in_service(router, i, true, now);
    }
}

static inline xks_route_request request_for(uint64_t members, xks_route_purpose purpose)
{
    return (xks_route_request){.members = members, .usable = members, .remaining_ns = 200 * MS, .purpose = purpose};
}

static inline xks_route_verdict pick(const xks_route_request *request, uint32_t *partition)
{
    return xks_router_pick(router, request, now, partition);
}

static inline uint32_t chosen(const xks_route_request *request)
{
    uint32_t partition;
    CHECK_STATUS(XKS_ROUTE_CHOSEN, pick(request, &partition));
    return partition;
}

static inline uint32_t first(uint64_t members)
{
    const xks_route_request request = request_for(members, XKS_ROUTE_FIRST);
    return chosen(&request);
}

static inline xks_route_verdict verdict(uint64_t members, xks_route_purpose purpose)
{
    uint32_t partition;
    const xks_route_request request = request_for(members, purpose);
    return pick(&request, &partition);
}

static inline uint32_t begin(uint32_t partition)
{
    return xks_router_begin(router, partition, XKS_ROUTE_FIRST, now);
}

/* A call alone in the partition, that takes took_ns of the clock. */
static inline bool call(uint32_t partition, xks_call_result result, uint64_t took_ns)
{
    uint32_t handed = begin(partition);
    now += took_ns;
    return xks_router_end(router, partition, handed, result, took_ns, now);
}

static inline void serve(uint32_t partition, uint32_t times, uint64_t took_ns)
{
    while (times-- > 0) {
        CHECK(!call(partition, XKS_CALL_SERVED, took_ns));
    }
}

static inline xks_route_view view(uint32_t partition)
{
    xks_route_view out;
    xks_router_view(router, partition, now, &out);
    return out;
}

/* How often each partition is chosen when nothing happens in between. */
static inline void shares(uint64_t members, uint32_t picks, uint32_t counts[64])
{
    memset(counts, 0, 64 * sizeof *counts);
    while (picks-- > 0) {
        counts[first(members)]++;
    }
}

#endif
