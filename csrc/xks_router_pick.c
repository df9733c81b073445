/* SPDX-License-Identifier: Apache-2.0 */
/* Eligibility, score, choice, explanation. */
#include "xks_router_internal.h"

#define EQUAL_MEDIAN_NS 100000.0 /* below about what handing a call to a thread costs, all are equal */
#define DEADLINE_MEDIANS 3
#define FIND_OUT_NS (50 * XKS_MS_NS) /* a call with less time left is no way to find out whether a partition is still slow */
#define LOCAL_PATIENCE 5 /* the local site is kept until it scores so many times worse than another */

/* What one look at the candidates found. */
typedef struct survey {
    uint64_t pool;        /* in service, with the key, not tried unless all are */
    uint64_t roomy;       /* of the pool: below their limit */
    uint64_t slow;        /* of the roomy: 3 medians are more than the time that remains */
    uint64_t stalled;     /* of the roomy: the oldest call is out too long */
    uint64_t chosen_from; /* of the roomy */
    double level_ns;      /* expected times up to this are equal */
} survey;

static bool is_lenient(xks_route_purpose purpose)
{
    return purpose == XKS_ROUTE_FIRST || purpose == XKS_ROUTE_CHECK;
}

/* The roomy that are stalled, and those that are too slow for the time that remains. */
static void look_closer(const xks_router *router, uint64_t now, double remaining, survey *s, uint64_t *too_late)
{
    for (uint64_t left = s->roomy; left != 0; left &= left - 1) {
        uint32_t i = router_first(left);
        const router_partition *p = &router->partitions[i];
        bool stalled = p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->stall_age_ns;
        s->stalled |= (uint64_t)stalled << i;
        s->slow |= (uint64_t)(DEADLINE_MEDIANS * p->expected_ns > remaining) << i;
        *too_late |= (uint64_t)(p->expected_ns > remaining) << i;
    }
}

static uint64_t idle_of(const xks_router *router, uint64_t partitions)
{
    uint64_t idle = 0;
    for (; partitions != 0; partitions &= partitions - 1) {
        uint32_t i = router_first(partitions);
        idle |= (uint64_t)(router->partitions[i].in_flight == 0) << i;
    }
    return idle;
}

static double least_expected_ns(const xks_router *router, uint64_t partitions)
{
    double least = (double)UINT64_MAX;
    for (; partitions != 0; partitions &= partitions - 1) {
        double expected = router->partitions[router_first(partitions)].expected_ns;
        least = expected < least ? expected : least;
    }
    return least;
}

static void look(const xks_router *router, const xks_route_request *request, uint64_t usable, uint64_t now, survey *s)
{
    uint64_t too_late = 0, calm_until = UINT64_MAX;
    bool is_hedge = request->purpose == XKS_ROUTE_HEDGE;
    double remaining = (double)request->remaining_ns, least = (double)UINT64_MAX, most = 0;
    s->pool = usable & ~request->tried;
    if (s->pool == 0 && !is_hedge) {
        s->pool = usable;
    }
    s->roomy = s->pool & router->roomy;
    s->slow = s->stalled = 0;
    for (uint64_t left = s->roomy; left != 0; left &= left - 1) {
        const router_partition *p = &router->partitions[router_first(left)];
        calm_until = p->calm_until_ns < calm_until ? p->calm_until_ns : calm_until;
        least = p->expected_ns < least ? p->expected_ns : least;
        most = p->expected_ns > most ? p->expected_ns : most;
    }
    s->chosen_from = s->roomy;
    if (now > calm_until || DEADLINE_MEDIANS * most > remaining) { /* seldom */
        look_closer(router, now, remaining, s, &too_late);
        s->chosen_from = s->roomy & ~s->slow;
        if (s->chosen_from == 0 && is_lenient(request->purpose)) {
            s->chosen_from = s->roomy & ~too_late;
            if (s->chosen_from == 0 && request->remaining_ns >= FIND_OUT_NS) {
                s->chosen_from = idle_of(router, s->roomy); /* one call finds out whether it still takes so long: else nobody would */
            }
        }
        if ((s->chosen_from & router->ample & ~s->stalled) != 0) {
            s->chosen_from &= ~s->stalled;
        }
    }
    if (is_hedge) {
        s->chosen_from &= router->spare & ~s->stalled;
    }
    if (s->chosen_from != s->roomy) {
        least = least_expected_ns(router, s->chosen_from);
    }
    s->level_ns = least * XKS_EQUAL_MEDIANS > EQUAL_MEDIAN_NS ? least * XKS_EQUAL_MEDIANS : EQUAL_MEDIAN_NS;
}

static double slow_start_factor(const router_partition *p, uint64_t now)
{
    if (now >= p->slow_until_ns) {
        return 1;
    }
    return 1 + (XKS_SLOW_START_FACTOR - 1) * (double)(p->slow_until_ns - now) / (double)XKS_SLOW_START_NS;
}

/* expected_ns: the partition's own, or what all that are about equal are taken for. */
static inline double score_of(const router_partition *p, double expected_ns, uint64_t now)
{
    double cost = expected_ns;
    if (now > p->calm_until_ns) {
        if (p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->dear_age_ns) {
            double age = (double)(now - p->oldest_ns);
            cost = age > cost ? age : cost;
        }
        cost *= slow_start_factor(p, now);
    }
    return cost * p->pressure;
}

/* splitmix64: a sequence that only ties move on. */
static uint64_t next_chance(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* One of a set that is not empty, each with the same chance. */
static uint32_t draw(uint64_t set, uint64_t *chance)
{
    if ((set & (set - 1)) != 0) {
        uint64_t skip = (next_chance(chance) >> 32) * (uint64_t)__builtin_popcountll(set) >> 32;
        for (; skip > 0; skip--) {
            set &= set - 1;
        }
    }
    return router_first(set);
}

/* The members of a set that is not empty with the least score. */
static uint64_t best_of(const xks_router *router, uint64_t set, double level_ns, uint64_t now, double *score)
{
    uint64_t best = 0;
    double least = (double)UINT64_MAX;
    for (; set != 0; set &= set - 1) {
        const router_partition *p = &router->partitions[router_first(set)];
        double own = score_of(p, p->expected_ns > level_ns ? p->expected_ns : level_ns, now);
        best = own < least ? 0 : best;
        least = own < least ? own : least;
        best |= own <= least ? set & -set : 0;
    }
    *score = least;
    return best;
}

/* Those of the local site that are kept to while they are not too much slower. */
static uint64_t local_of(const xks_router *router, const xks_route_request *request, const survey *s)
{
    return s->chosen_from & request->local & router->spare & ~s->stalled;
}

static uint32_t choose(xks_router *router, const xks_route_request *request, const survey *s, uint64_t now)
{
    double score, local_score;
    uint64_t local = local_of(router, request, s), best = best_of(router, s->chosen_from, s->level_ns, now, &score);
    if (local != 0) {
        local = best_of(router, local, s->level_ns, now, &local_score);
        best = local_score <= LOCAL_PATIENCE * score ? local : best;
    }
    return draw(best, &router->chance);
}

/* A call was written off, and none handed over with it or later has been served. */
static bool hangs(const router_partition *p, uint64_t now)
{
    return (p->written_off > 0 && p->served_ns <= p->written_off_ns) ||
           (p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns >= XKS_HANG_NS);
}

/* None of the usable members serves. */
static xks_route_verdict panic(xks_router *router, const xks_route_request *request, uint64_t usable, uint64_t now, uint32_t *out)
{
    uint64_t pool = usable & ~request->tried, roomy = 0;
    uint32_t fewest = UINT32_MAX;
    double score;
    bool any_full = false;
    if (request->purpose == XKS_ROUTE_HEDGE) {
        return XKS_ROUTE_OUT;
    }
    for (uint64_t left = pool != 0 ? pool : usable; left != 0; left &= left - 1) {
        const router_partition *p = &router->partitions[router_first(left)];
        if (p->sessions == 0 || hangs(p, now)) {
            continue;
        }
        if (p->in_flight >= p->limit) {
            any_full = true;
        } else if (p->faults_in_row < fewest) {
            fewest = p->faults_in_row;
            roomy = left & -left;
        } else if (p->faults_in_row == fewest) {
            roomy |= left & -left;
        }
    }
    if (roomy == 0) {
        return any_full ? XKS_ROUTE_FULL : XKS_ROUTE_OUT;
    }
    *out = draw(best_of(router, roomy, 0, now, &score), &router->chance);
    return XKS_ROUTE_CHOSEN;
}

static bool has_budget(const xks_router *router, xks_route_purpose purpose)
{
    double most = XKS_BUDGET_BURST + (double)router->sessions;
    if (purpose == XKS_ROUTE_RETRY) {
        return router->retry_budget > 0 && router->retries_spent + 1 <= most;
    }
    return purpose != XKS_ROUTE_HEDGE || (router->hedge_budget > 0 && router->hedges_spent + 1 <= most);
}

/* None of them answers, whether it has room or is full of calls that hang. */
static bool all_stalled(const xks_router *router, uint64_t partitions, uint64_t now)
{
    bool stalled = true;
    for (; partitions != 0 && stalled; partitions &= partitions - 1) {
        const router_partition *p = &router->partitions[router_first(partitions)];
        stalled = p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->stall_age_ns;
    }
    return stalled;
}

/* look(); a check goes to the partition that encrypted as well when no other one answers now. */
static void look_around(xks_router *router, const xks_route_request *request, uint64_t serving, uint64_t now, survey *s)
{
    look(router, request, serving, now, s);
    if (request->purpose == XKS_ROUTE_CHECK && all_stalled(router, s->pool, now)) {
        xks_route_request relaxed = *request;
        relaxed.tried = 0;
        look(router, &relaxed, serving, now, s);
    }
}

xks_route_verdict xks_router_pick(xks_router *router, const xks_route_request *request, uint64_t now, uint32_t *partition)
{
    survey s;
    uint64_t members = request->members & router->known, usable = members & request->usable;
    *partition = 0;
    if (!has_budget(router, request->purpose)) {
        return XKS_ROUTE_NO_BUDGET;
    }
    if (usable == 0) {
        return (members & router->serving) != 0 ? XKS_ROUTE_NO_KEY : XKS_ROUTE_OUT;
    }
    if ((usable & router->serving) == 0) {
        return panic(router, request, usable, now, partition);
    }
    xks_router_compare(router, members, now);
    look_around(router, request, usable & router->serving, now, &s);
    if (s.chosen_from != 0) {
        *partition = choose(router, request, &s, now);
        return XKS_ROUTE_CHOSEN;
    }
    if (s.pool == 0) {
        return XKS_ROUTE_OUT; /* a hedge, and the only other members are out */
    }
    bool all_slow = s.roomy != 0 && (s.roomy & ~s.slow) == 0;
    return all_slow ? XKS_ROUTE_LATE : XKS_ROUTE_FULL;
}

/* --- explaining */

xks_route_reason xks_router_explain(xks_router *router, const xks_route_request *request, uint32_t partition, uint64_t now)
{
    survey s;
    uint64_t members = request->members & router->known, bit = router_bit(partition);
    if ((members & router->serving & bit) == 0) {
        return XKS_REASON_OUT_OF_SERVICE;
    }
    if ((request->usable & bit) == 0) {
        return XKS_REASON_NO_KEY;
    }
    xks_router_compare(router, members, now);
    look_around(router, request, members & request->usable & router->serving, now, &s);
    uint64_t local = local_of(router, request, &s);
    if ((s.pool & bit) == 0) {
        return XKS_REASON_TRIED;
    }
    if ((s.roomy & bit) == 0) {
        return XKS_REASON_FULL;
    }
    if ((s.chosen_from & bit) != 0) {
        return local != 0 && (local & bit) == 0 ? XKS_REASON_REMOTE : XKS_REASON_ELIGIBLE;
    }
    return (s.slow & bit) != 0 ? XKS_REASON_TOO_SLOW : (s.stalled & bit) != 0 ? XKS_REASON_STALLED : XKS_REASON_BUSY;
}

void xks_router_view(xks_router *router, uint32_t partition, uint64_t now, xks_route_view *out)
{
    const router_partition *p = &router->partitions[partition];
    bool on_trial, serves = (router->serving & router_bit(partition)) != 0;
    double expected = router_expected_ns(p, now, &on_trial);
    double faded = expected > EQUAL_MEDIAN_NS ? expected : EQUAL_MEDIAN_NS;
    *out = (xks_route_view){
        .in_service = p->in_service,
        .reason = !serves                                                                ? XKS_REASON_OUT_OF_SERVICE
                  : p->in_flight >= p->limit                                             ? XKS_REASON_FULL
                  : DEADLINE_MEDIANS * expected > (double)XKS_DEADLINE_NS                ? XKS_REASON_TOO_SLOW
                  : p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->stall_age_ns ? XKS_REASON_STALLED
                                                                                         : XKS_REASON_ELIGIBLE,
        .score = score_of(p, faded, now),
        .in_flight = p->in_flight,
        .written_off = p->written_off,
        .limit = p->limit,
        .concurrency = p->concurrency,
        .median_ns = p->median_ns > 0 ? (uint64_t)expected : 0,
        .p95_ns = (uint64_t)p->p95_ns,
        .oldest_call_ns = p->head != XKS_NO_SLOT ? now - p->calls[p->head].began_ns : 0,
        .slow_start = slow_start_factor(p, now),
        .faults_in_row = p->faults_in_row,
        .firsts = p->handed[XKS_ROUTE_FIRST],
        .retries = p->handed[XKS_ROUTE_RETRY],
        .hedges = p->handed[XKS_ROUTE_HEDGE],
        .checks = p->handed[XKS_ROUTE_CHECK],
        .served = p->served,
        .faults = p->faults,
        .opens = p->opens,
    };
}
