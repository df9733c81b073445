/* SPDX-License-Identifier: Apache-2.0 */
/* xks_router_internal.h - what the three files of the router share.
 *
 *   xks_router.c           partitions, calls in flight, breaker, budgets
 *   xks_router_pick.c      eligibility, score, choice, explanation
 *   xks_router_estimate.c  medians, p95, concurrency, limits, waiting times
 */
#ifndef XKS_ROUTER_INTERNAL_H
#define XKS_ROUTER_INTERNAL_H

#include "xks_router.h"

#define XKS_MS_NS UINT64_C(1000000)
#define XKS_SECOND_NS UINT64_C(1000000000)
#define XKS_NO_SLOT UINT16_MAX
#define XKS_NO_CALL UINT64_MAX /* as the beginning of the oldest call */

#define XKS_BUDGET_BURST 10                /* and the sessions of all partitions */
#define XKS_FAULTS_TO_OPEN 3               /* in a row */
#define XKS_SLOW_START_NS (2 * XKS_SECOND_NS)
#define XKS_SLOW_START_FACTOR 5.0          /* at its begin */
#define XKS_DEADLINE_NS (200 * XKS_MS_NS)  /* that a view assumes */
#define XKS_EQUAL_MEDIANS 1.4              /* a median up to so many times the best is as good */
#define XKS_FADE_AFTER_NS (100 * XKS_MS_NS) /* a median without a sample for longer fades */

/* A call handed over, in its partition's list from the oldest to the newest. */
typedef struct router_call {
    uint64_t began_ns;
    uint16_t older, newer; /* newer: of a free slot, the next free one */
    uint16_t in_flight;    /* calls in flight when it began, itself among them */
    bool out, written_off;
} router_call;

typedef struct router_partition {
    /* Read by every pick, and kept ready by xks_router_note when a call begins or ends. */
    uint64_t calm_until_ns; /* until then, neither the age of a call nor slow start matter */
    double expected_ns;     /* see router_expected_ns, at most 10 ms old */
    double pressure;        /* the factor by which calls in flight raise the score */
    uint64_t oldest_ns;     /* beginning of the oldest call in flight, XKS_NO_CALL without one */
    double median_ns;       /* of a call that does not queue, 0 before the first */
    uint64_t sampled_ns;    /* the last change of median_ns */
    double target_ns;       /* median of the group's medians, to which an old one fades; 0: unknown */
    uint64_t slow_until_ns; /* end of the slow start; 0: none */
    uint64_t dear_age_ns;   /* older than this, the age of a call is a cost */
    uint64_t stall_age_ns;  /* older than this, the partition is avoided */
    double concurrency, per_concurrency; /* and its inverse */
    uint32_t in_flight;     /* not those written off */
    uint32_t limit;
    uint32_t faults_in_row;
    /* Read and written when a call ends. */
    double p95_ns;
    double base_ns;        /* median of the calls that began with the partition at most half busy */
    double pace_ns;        /* median time between returns while calls wait */
    uint64_t returned_ns;  /* the latest return of a call */
    uint64_t window_began_ns;
    uint64_t quickest_ns, window_quickest_ns; /* call of the last window, of this one; UINT64_MAX: none */
    uint32_t window_ended; /* calls */
    double rate_per_ns;    /* of returns, moving average over windows */
    bool concurrency_known;
    /* Seldom. */
    bool in_service, was_in_service, opened;
    uint32_t sessions, written_off;
    uint64_t opened_ns, written_off_ns, served_ns; /* last times */
    uint16_t head, tail, oldest, free; /* call slots; oldest: the first that is not written off */
    uint64_t handed[4];    /* by purpose */
    uint64_t served, faults, opens;
    router_call *calls;    /* XKS_ROUTER_MAX_CALLS of them */
} router_partition;

/* When the medians of a group were last compared; direct-mapped by its members. */
typedef struct router_group {
    uint64_t members;
    uint64_t compared_ns;
} router_group;
#define XKS_GROUP_SLOTS 16

struct xks_router {
    uint32_t count;
    uint64_t known;   /* the partitions there are */
    uint64_t serving; /* in service, with sessions */
    uint64_t roomy;   /* below their limit */
    uint64_t spare;   /* fewer in flight than twice what they work on at once */
    uint64_t on_trial; /* avoided for a median that has faded: one call at a time */
    uint64_t ample;   /* fewer than two more than that: enough to avoid others that stall */
    uint64_t chance;
    uint64_t sessions; /* of all partitions */
    double retry_budget, hedge_budget;
    double retries_spent, hedges_spent; /* not yet earned back by first attempts */
    router_group groups[XKS_GROUP_SLOTS];
    router_partition partitions[];
};

static inline uint64_t router_bit(uint32_t partition)
{
    return UINT64_C(1) << partition;
}

/* The lowest member of a set, which is not empty. */
static inline uint32_t router_first(uint64_t set)
{
    return (uint32_t)__builtin_ctzll(set);
}

/* The unqueued call time to expect: the tracked median, faded towards the group's with a time constant of a second when it is worse
 * and old. `*on_trial` says that it was avoided for its median before that faded: then one call at a time finds out. */
static inline double router_expected_ns(const router_partition *p, uint64_t now, bool *on_trial)
{
    *on_trial = false;
    if (p->median_ns <= 0) {
        return p->target_ns > 0 ? p->target_ns : (double)XKS_MS_NS; /* no call yet: as the others */
    }
    if (p->median_ns <= p->target_ns || p->target_ns <= 0 || now <= p->sampled_ns + XKS_FADE_AFTER_NS) {
        return p->median_ns;
    }
    /* exp(-x) within some per cent: the first terms of exp(x / 4), inverted, to the fourth power. */
    double x = (double)(now - p->sampled_ns - XKS_FADE_AFTER_NS) / (4.0 * (double)XKS_SECOND_NS);
    double root = 1 / (1 + x * (1 + x * (0.5 + x * (1.0 / 6)))), left = root * root * root * root;
    *on_trial = p->median_ns > XKS_EQUAL_MEDIANS * p->target_ns;
    return p->target_ns + (p->median_ns - p->target_ns) * left;
}

/* Calls in flight, limits, ages or medians of the partition changed: makes ready what _pick reads. */
void xks_router_note(xks_router *router, uint32_t partition, uint64_t now);
/* A call that began at began_ns with in_flight calls in the partition took took_ns. */
void xks_router_learn(router_partition *p, uint64_t began_ns, uint32_t in_flight, uint64_t took_ns, uint64_t now);
/* Sessions or what is known of the token changed. */
void xks_router_set_limit(router_partition *p);
/* At most every 10 ms: what the members' medians fade to, and how far they have. */
void xks_router_compare(xks_router *router, uint64_t members, uint64_t now);

#endif
