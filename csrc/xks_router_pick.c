/* SPDX-License-Identifier: Apache-2.0 */
/* Eligibility, score, choice, explanation. */
#include "xks_router_internal.h"

#define IN_FLIGHT_COST 0.02
#define EQUAL_MEDIAN_NS 100000.0 /* below about what handing a call to a thread costs, all are equal */
#define DEADLINE_MEDIANS 3
#define FIND_OUT_NS (50 * XKS_MS_NS) /* a call with less time left is no way to find out whether a partition is still slow */
#define LOCAL_PATIENCE 5 /* the local site is kept until it scores so many times worse than another */

/* What one look at the candidates found. Sets are subsets of `pool` but for `pool` itself. */
typedef struct survey {
    uint64_t pool;    /* in service, with the key, not tried unless all are */
    uint64_t roomy;   /* below their limit */
    uint64_t slow;    /* of the roomy: 3 medians are more than the time that remains */
    uint64_t stalled; /* of the roomy: the oldest call is out too long */
    uint64_t spare;   /* of the roomy: fewer in flight than twice what they work on at once */
    uint64_t chosen_from;
    double best_ns; /* the least expected time of those chosen from */
    double expected_ns[XKS_ROUTER_MAX_PARTITIONS];
    uint64_t on_trial;
} survey;

static bool is_lenient(xks_route_purpose purpose)
{
    return purpose == XKS_ROUTE_FIRST || purpose == XKS_ROUTE_CHECK;
}

static void look(xks_router *router, const xks_route_request *request, uint64_t usable, uint64_t now, survey *s)
{
    uint64_t spare_for_stalled = 0, too_late = 0, idle = 0;
    bool is_hedge = request->purpose == XKS_ROUTE_HEDGE;
    double remaining = (double)request->remaining_ns;
    s->pool = usable & ~request->tried;
    if (s->pool == 0 && !is_hedge) {
        s->pool = usable;
    }
    s->roomy = s->slow = s->stalled = s->spare = s->on_trial = 0;
    for (uint64_t left = s->pool; left != 0; left &= left - 1) {
        uint32_t i = router_first(left);
        const router_partition *p = &router->partitions[i];
        uint64_t bit = left & -left;
        bool on_trial;
        if (p->in_flight >= p->limit) {
            continue;
        }
        double expected = router_expected_ns(p, now, &on_trial), in_flight = p->in_flight;
        s->expected_ns[i] = expected;
        s->roomy |= bit;
        s->slow |= DEADLINE_MEDIANS * expected > remaining ? bit : 0;
        too_late |= expected > remaining ? bit : 0;
        idle |= p->in_flight == 0 && request->remaining_ns >= FIND_OUT_NS ? bit : 0;
        s->on_trial |= on_trial ? bit : 0;
        s->stalled |= p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->stall_age_ns ? bit : 0;
        s->spare |= in_flight < 2 * p->concurrency ? bit : 0;
        spare_for_stalled |= in_flight < 2 * p->concurrency + 2 ? bit : 0;
    }
    s->chosen_from = s->roomy & ~s->slow;
    if (s->chosen_from == 0 && is_lenient(request->purpose)) {
        s->chosen_from = s->roomy & ~too_late;
        if (s->chosen_from == 0) {
            s->chosen_from = idle; /* one call at a time finds out whether it still takes so long: else nobody would, ever */
        }
    }
    if (is_hedge) {
        s->chosen_from &= s->spare & ~s->stalled;
    } else if ((s->chosen_from & ~s->stalled & spare_for_stalled) != 0) {
        s->chosen_from &= ~s->stalled;
    }
    s->best_ns = EQUAL_MEDIAN_NS;
    double best = 0;
    for (uint64_t left = s->chosen_from; left != 0; left &= left - 1) {
        double expected = s->expected_ns[router_first(left)];
        best = best <= 0 || expected < best ? expected : best;
    }
    s->best_ns = best * XKS_EQUAL_MEDIANS > EQUAL_MEDIAN_NS ? best * XKS_EQUAL_MEDIANS : EQUAL_MEDIAN_NS;
}

static double slow_start_factor(const router_partition *p, uint64_t now)
{
    if (now >= p->slow_until_ns) {
        return 1;
    }
    return 1 + (XKS_SLOW_START_FACTOR - 1) * (double)(p->slow_until_ns - now) / (double)XKS_SLOW_START_NS;
}

static double score_of(const router_partition *p, double expected_ns, bool on_trial, uint64_t now)
{
    double cost = expected_ns, in_flight = p->in_flight, over = in_flight + 1 - p->concurrency;
    if (p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->dear_age_ns) {
        double age = (double)(now - p->oldest_ns);
        cost = age > cost ? age : cost;
    }
    if (over > 0) {
        cost *= 1 + over * p->per_concurrency;
    }
    if (on_trial) {
        cost *= 1 + in_flight;
    }
    return cost * slow_start_factor(p, now) * (1 + IN_FLIGHT_COST * in_flight);
}

/* splitmix64: a sequence that only ties move on. */
static uint64_t next_chance(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* The best so far; equals are drawn from, each with the same chance. */
typedef struct best {
    uint32_t partition, equals;
    double score;
} best;

static void offer(best *so_far, uint32_t partition, double score, uint64_t *chance)
{
    if (so_far->equals == 0 || score < so_far->score) {
        *so_far = (best){partition, 1, score};
    } else if (score <= so_far->score) {
        so_far->equals++;
        if (next_chance(chance) % so_far->equals == 0) {
            so_far->partition = partition;
        }
    }
}

static uint32_t choose(xks_router *router, const xks_route_request *request, const survey *s, uint64_t now)
{
    best any = {0}, local = {0};
    for (uint64_t left = s->chosen_from; left != 0; left &= left - 1) {
        uint32_t i = router_first(left);
        uint64_t bit = left & -left;
        double expected = s->expected_ns[i] > s->best_ns ? s->expected_ns[i] : s->best_ns;
        double score = score_of(&router->partitions[i], expected, (s->on_trial & bit) != 0, now);
        offer(&any, i, score, &router->chance);
        if ((request->local & s->spare & ~s->stalled & bit) != 0) {
            offer(&local, i, score, &router->chance);
        }
    }
    return local.equals > 0 && local.score <= LOCAL_PATIENCE * any.score ? local.partition : any.partition;
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
    best found = {0};
    bool any_full = false;
    uint64_t pool = usable & ~request->tried;
    if (request->purpose == XKS_ROUTE_HEDGE) {
        return XKS_ROUTE_OUT;
    }
    for (uint64_t left = pool != 0 ? pool : usable; left != 0; left &= left - 1) {
        uint32_t i = router_first(left);
        const router_partition *p = &router->partitions[i];
        bool on_trial;
        if (p->sessions == 0 || hangs(p, now)) {
            continue;
        }
        if (p->in_flight >= p->limit) {
            any_full = true;
            continue;
        }
        double score = score_of(p, router_expected_ns(p, now, &on_trial), false, now);
        /* Faults first: a score is below 1e12. */
        offer(&found, i, (double)p->faults_in_row * 1e15 + score, &router->chance);
    }
    *out = found.partition;
    return found.equals > 0 ? XKS_ROUTE_CHOSEN : any_full ? XKS_ROUTE_FULL : XKS_ROUTE_OUT;
}

static bool has_budget(const xks_router *router, xks_route_purpose purpose)
{
    double most = XKS_BUDGET_BURST + (double)router->sessions;
    if (purpose == XKS_ROUTE_RETRY) {
        return router->retry_budget > 0 && router->retries_spent + 1 <= most;
    }
    return purpose != XKS_ROUTE_HEDGE || (router->hedge_budget > 0 && router->hedges_spent + 1 <= most);
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
    look(router, request, usable & router->serving, now, &s);
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
    look(router, request, members & request->usable & router->serving, now, &s);
    uint64_t local = s.chosen_from & request->local & s.spare & ~s.stalled;
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
        .score = score_of(p, faded, on_trial, now),
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
