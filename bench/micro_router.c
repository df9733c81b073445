/* SPDX-License-Identifier: Apache-2.0 */
/* micro_router.c - what a routing decision costs: CPU time of pick + begin + end, in a loop without Python. Prints one "name ns" line
 * per case. Each case first proves its answers.
 */
#include "xks_router.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DECISIONS 400000
#define IN_FLIGHT 64 /* calls out at any time */
#define STEP_NS 10000

static double cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "wrong result: %s\n", what);
        exit(1);
    }
}

typedef struct handed {
    uint32_t partition, call;
    uint64_t began_ns;
} handed;

/* Decisions in a steady state; counts[p]: how many went to partition p. The first slow_partitions take ten times as long. */
static double decide(uint32_t partitions, uint32_t slow_partitions, uint32_t decisions, uint64_t counts[64])
{
    const xks_router_config config = {.seed = 3, .partitions = partitions, .retry_budget = 0.2, .hedge_budget = 0.05};
    const uint64_t members = UINT64_MAX >> (64 - partitions);
    const xks_route_request request = {members, members, 0, 0, 200000000, XKS_ROUTE_FIRST};
    static handed ring[IN_FLIGHT];
    xks_router *router;
    uint64_t now = 1000000000, chosen = 0;
    require(xks_router_new(&config, &router) == XKS_OK, "router");
    memset(ring, 0, sizeof ring);
    memset(counts, 0, 64 * sizeof *counts);
    for (uint32_t i = 0; i < partitions; i++) {
        xks_router_set_sessions(router, i, 64);
        xks_router_set_in_service(router, i, true, now);
    }
    double began = cpu_ns();
    for (uint32_t i = 0; i < decisions; i++) {
        handed *slot = &ring[i % IN_FLIGHT];
        now += STEP_NS;
        if (i >= IN_FLIGHT) {
            uint64_t took = (now - slot->began_ns) * (slot->partition < slow_partitions ? 10 : 1);
            (void)xks_router_end(router, slot->partition, slot->call, XKS_CALL_SERVED, took, now);
        }
        chosen += xks_router_pick(router, &request, now, &slot->partition) == XKS_ROUTE_CHOSEN;
        slot->call = xks_router_begin(router, slot->partition, XKS_ROUTE_FIRST, now);
        slot->began_ns = now;
        counts[slot->partition]++;
    }
    double ns = (cpu_ns() - began) / decisions;
    require(chosen == decisions, "a partition for every call");
    xks_router_free(router);
    return ns;
}

static void measure(const char *name, uint32_t partitions, uint32_t slow_partitions)
{
    uint64_t counts[64];
    (void)decide(partitions, slow_partitions, DECISIONS / 4, counts);
    for (uint32_t i = 0; i < partitions; i++) {
        uint64_t even = DECISIONS / 4 / (partitions - slow_partitions);
        if (i < slow_partitions) {
            require(counts[i] < even / 20, "slow partitions are left alone");
        } else {
            require(counts[i] > even * 9 / 10 && counts[i] < even * 11 / 10, "equal partitions share");
        }
    }
    printf("%s %.1f\n", name, decide(partitions, slow_partitions, DECISIONS, counts));
}

int main(void)
{
    measure("decision_of_1", 1, 0);
    measure("decision_of_2", 2, 0);
    measure("decision_of_4", 4, 0);
    measure("decision_of_16", 16, 0);
    measure("decision_of_16_with_4_slow", 16, 4);
    measure("decision_of_64", 64, 0);
    return 0;
}
