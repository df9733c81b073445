/* SPDX-License-Identifier: Apache-2.0 */
/* What the router learns from calls: medians, p95, concurrency, limits, rates.
 *
 * Quantiles are tracked in steps: up by a share when a sample is above, down when it is below, in the ratio that balances at the
 * quantile. Steps of the median are larger for samples that are off by a factor of two, so that a partition that turns slow is known
 * within some calls while the noise of a steady one stays at a few per cent.
 *
 * Concurrency is what queueing shows: with q calls in flight and room for c, a call takes q/c times as long as alone. Each call that
 * began with c or more in flight moves c by one per cent towards where half of the calls take longer than that.
 */
#include "xks_router_internal.h"

#define MEDIAN_STEP 0.015
#define MEDIAN_LEAP 0.05 /* when the sample is off by LEAP_RATIO */
#define LEAP_RATIO 2.0
#define P95_STEP_UP 0.095
#define P95_STEP_DOWN 0.005
#define P95_OF_FIRST 2.0 /* a first sample is taken for half the p95 */
#define CONCURRENCY_STEP 0.01
#define START_CONCURRENCY 30
#define MIN_CONCURRENCY 2
#define SHORTEST_AGE 1.5 /* p95s: what is unusual, see unusual_age_ns */
#define DEAR_AGE 6
#define MIN_DEAR_AGE_NS (2 * XKS_MS_NS) /* shorter waits are queues of fast tokens and scheduling, not slowness */
#define STALL_AGE 8
#define MIN_STALL_AGE_NS (15 * XKS_MS_NS)
#define MAX_STALL_AGE_NS (60 * XKS_MS_NS)
#define HEDGE_AGE 3
#define MIN_HEDGE_NS (8 * XKS_MS_NS)
#define MAX_HEDGE_NS (60 * XKS_MS_NS)
#define WINDOW_NS (100 * XKS_MS_NS)
#define COMPARE_NS (10 * XKS_MS_NS)
/* A thread's hand-over and return take tens of us: work for this long waits in front of a token that is faster. */
#define PREFETCH_NS UINT64_C(200000)
#define MAX_PREFETCH 256
/* What would queue inside a token for longer than this waits outside, where it can still go elsewhere or be refused in time. */
#define INSIDE_NS ((double)(40 * XKS_MS_NS))

static double within(double value, double least, double most)
{
    return value < least ? least : value > most ? most : value;
}

static double median_step(double median, double sample)
{
    double up = sample > LEAP_RATIO * median ? MEDIAN_LEAP : MEDIAN_STEP;
    double down = sample * LEAP_RATIO < median ? MEDIAN_LEAP : MEDIAN_STEP;
    return median * (1 + (sample > median ? up : sample < median ? -down : 0));
}

static void set_concurrency(router_partition *p, double value)
{
    double most = p->sessions > 1 ? (double)p->sessions : 1;
    p->concurrency = within(value, most < MIN_CONCURRENCY ? most : MIN_CONCURRENCY, most);
    p->per_concurrency = 1 / p->concurrency;
}

void xks_router_set_limit(router_partition *p)
{
    uint64_t quickest = p->quickest_ns < p->window_quickest_ns ? p->quickest_ns : p->window_quickest_ns;
    uint32_t limit = p->sessions;
    if (limit > 0 && quickest < PREFETCH_NS && p->pace_ns > 0) {
        double ahead = (double)(PREFETCH_NS - quickest) / p->pace_ns;
        limit += ahead < MAX_PREFETCH ? (uint32_t)ahead + 1 : MAX_PREFETCH;
    }
    if (p->concurrency_known && p->median_ns > 0) {
        double inside = within(p->concurrency * (1 + INSIDE_NS / p->median_ns), MIN_CONCURRENCY, XKS_ROUTER_MAX_CALLS);
        limit = limit < (uint32_t)inside ? limit : (uint32_t)inside;
    }
    uint32_t slots = XKS_ROUTER_MAX_CALLS - p->written_off;
    p->limit = limit < slots ? limit : slots;
    if (p->concurrency_known) {
        set_concurrency(p, p->concurrency);
    } else {
        set_concurrency(p, START_CONCURRENCY);
    }
}

static void learn_concurrency(router_partition *p, double in_flight, double took)
{
    if (p->base_ns <= 0) {
        p->base_ns = took;
    } else if (2 * in_flight <= p->concurrency || in_flight <= 1) {
        p->base_ns = median_step(p->base_ns, took);
    }
    if (in_flight >= p->concurrency) {
        double step = took > p->base_ns * in_flight * p->per_concurrency ? 1 - CONCURRENCY_STEP : 1 + CONCURRENCY_STEP;
        set_concurrency(p, p->concurrency * step);
        p->concurrency_known = true;
    }
}

static void learn_median(router_partition *p, uint64_t began, double in_flight, double took, uint64_t now)
{
    double alone = in_flight > p->concurrency ? took * p->concurrency / in_flight : took;
    bool on_trial, was_idle = began > p->sampled_ns + XKS_FADE_AFTER_NS;
    double expected = router_expected_ns(p, now, &on_trial);
    if (p->median_ns <= 0 || (was_idle && (alone > LEAP_RATIO * expected || alone * LEAP_RATIO < expected))) {
        p->median_ns = alone; /* the only news in a long time weighs more than what is known */
    } else {
        /* A trial that came back slow confirms what was known before it faded. */
        double confirmed = alone < p->median_ns ? alone : p->median_ns, next = median_step(expected, alone);
        p->median_ns = on_trial && confirmed > next ? confirmed : next;
    }
    p->sampled_ns = now;
}

/* An age that calls do not have: the p95 and `spreads` times its distance from the median, from 1.5 to `spreads` + 1 times the p95.
 * Where calls all take about the same, as to a distant HSM, a late one is noticed sooner than by multiples of the p95. */
static uint64_t unusual_age_ns(const router_partition *p, double spreads, uint64_t least_ns, uint64_t most_ns)
{
    double age = p->p95_ns + spreads * (p->p95_ns - p->median_ns);
    age = age < SHORTEST_AGE * p->p95_ns ? SHORTEST_AGE * p->p95_ns : age;
    return (uint64_t)within(age, (double)least_ns, (double)most_ns);
}

static void learn_p95(router_partition *p, double took)
{
    if (p->p95_ns <= 0) {
        p->p95_ns = P95_OF_FIRST * took;
    } else {
        p->p95_ns *= took > p->p95_ns ? 1 + P95_STEP_UP : 1 - P95_STEP_DOWN;
    }
    if (p->p95_ns < p->median_ns) {
        p->p95_ns = p->median_ns;
    }
    p->dear_age_ns = unusual_age_ns(p, DEAR_AGE, MIN_DEAR_AGE_NS, XKS_HANG_NS);
    p->stall_age_ns = unusual_age_ns(p, STALL_AGE, MIN_STALL_AGE_NS, MAX_STALL_AGE_NS);
}

/* The time between returns, where the later call was waiting or worked on already when the earlier returned. */
static void learn_pace(router_partition *p, uint64_t began, uint64_t took)
{
    uint64_t returned = began + took;
    if (returned > p->returned_ns) {
        double gap = (double)(returned - (p->returned_ns > began ? p->returned_ns : began));
        p->pace_ns = p->pace_ns > 0 ? median_step(p->pace_ns, gap) : gap;
        p->pace_ns = p->pace_ns < 1 ? 1 : p->pace_ns;
        p->returned_ns = returned;
    }
    if (took < p->window_quickest_ns) {
        p->window_quickest_ns = took;
    }
}

static void count_return(router_partition *p, uint64_t now)
{
    p->window_ended++;
    if (now - p->window_began_ns < WINDOW_NS) {
        return;
    }
    double rate = (double)p->window_ended / (double)(now - p->window_began_ns);
    p->rate_per_ns = p->rate_per_ns > 0 ? (p->rate_per_ns + rate) / 2 : rate;
    p->window_began_ns = now;
    p->window_ended = 0;
    if (p->window_quickest_ns != UINT64_MAX) {
        p->quickest_ns = p->window_quickest_ns;
        p->window_quickest_ns = UINT64_MAX;
    }
    xks_router_set_limit(p);
}

void xks_router_learn(router_partition *p, uint64_t began_ns, uint32_t in_flight, uint64_t took_ns, uint64_t now)
{
    double took = took_ns > 0 ? (double)took_ns : 1;
    learn_concurrency(p, in_flight, took);
    learn_median(p, began_ns, in_flight, took, now);
    learn_p95(p, took);
    learn_pace(p, began_ns, took_ns);
    count_return(p, now);
}

void xks_router_compare(xks_router *router, uint64_t members, uint64_t now)
{
    router_group *group = &router->groups[(members * UINT64_C(0x9E3779B97F4A7C15)) >> 60];
    double sorted[XKS_ROUTER_MAX_PARTITIONS];
    uint32_t count = 0;
    if (group->members == members && now - group->compared_ns < COMPARE_NS) {
        return;
    }
    group->members = members;
    group->compared_ns = now;
    for (uint64_t left = members & router->serving; left != 0; left &= left - 1) {
        double median = router->partitions[router_first(left)].median_ns;
        uint32_t at = count;
        if (median <= 0) {
            continue;
        }
        for (; at > 0 && sorted[at - 1] > median; at--) {
            sorted[at] = sorted[at - 1];
        }
        sorted[at] = median;
        count++;
    }
    if (count > 0) { /* of an even number the lower one: of two partitions the slower fades to the faster */
        for (uint64_t left = members; left != 0; left &= left - 1) {
            router->partitions[router_first(left)].target_ns = sorted[(count - 1) / 2];
            xks_router_note(router, router_first(left), now);
        }
    }
}

uint64_t xks_router_hedge_delay_ns(const xks_router *router, uint32_t partition)
{
    const router_partition *p = &router->partitions[partition];
    if (p->p95_ns <= 0) {
        return MAX_HEDGE_NS;
    }
    return unusual_age_ns(p, HEDGE_AGE, MIN_HEDGE_NS, MAX_HEDGE_NS);
}

/* Calls per ns that the partition can return: what it works on at once over the time of one, or what it was seen to return. */
static double capacity_per_ns(const router_partition *p, uint64_t now)
{
    bool on_trial;
    double at_once = p->concurrency < (double)p->limit ? p->concurrency : (double)p->limit;
    double capacity = at_once / router_expected_ns(p, now, &on_trial);
    bool fresh = now - p->window_began_ns < 2 * WINDOW_NS;
    return fresh && p->rate_per_ns > capacity ? p->rate_per_ns : capacity;
}

uint64_t xks_router_wait_ns(xks_router *router, uint64_t members, uint32_t waiting, uint64_t now)
{
    uint64_t serving = members & router->serving, room = 0;
    double capacity = 0, stalled_capacity = 0;
    for (uint64_t left = serving; left != 0; left &= left - 1) {
        const router_partition *p = &router->partitions[router_first(left)];
        bool stalled = p->oldest_ns != XKS_NO_CALL && now - p->oldest_ns > p->stall_age_ns;
        *(stalled ? &stalled_capacity : &capacity) += capacity_per_ns(p, now);
        room += p->in_flight < p->limit ? p->limit - p->in_flight : 0;
    }
    if (serving == 0) {
        return UINT64_MAX;
    }
    if (room > waiting) {
        return 0;
    }
    return (uint64_t)((double)(waiting + 1 - room) / (capacity > 0 ? capacity : stalled_capacity));
}

uint64_t xks_router_call_ns(xks_router *router, uint64_t members, uint64_t now)
{
    double longest = 0;
    for (uint64_t left = members & router->serving; left != 0; left &= left - 1) {
        const router_partition *p = &router->partitions[router_first(left)];
        bool on_trial;
        double queue = (double)p->limit * p->per_concurrency;
        double call = router_expected_ns(p, now, &on_trial) * (queue > 1 ? queue : 1);
        longest = call > longest ? call : longest;
    }
    return (uint64_t)longest;
}
