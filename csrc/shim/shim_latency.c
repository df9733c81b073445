/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_latency.h"

#include <errno.h>
#include <math.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <time.h>

#define NS_PER_S 1000000000U
#define PPM 1000000U
#define LONGEST_QUEUE_NS (3600U * (uint64_t)NS_PER_S)

uint64_t shim_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void prepare(shim_thread *thread)
{
    uint64_t seed = word(&shim()->control->seed);
    uint64_t number = atomic_fetch_add(&shim()->thread_count, 1);
    if (seed == 0 && getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) {
        seed = shim_now_ns();
    }
    thread->random = seed + number * 0xD1342543DE82EF95U;
    prctl(PR_SET_TIMERSLACK, 1UL);
    thread->ready = true;
}

/* SplitMix64. Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014. */
uint64_t shim_random(void)
{
    shim_thread *thread = shim_this_thread();
    if (!thread->ready) {
        prepare(thread);
    }
    uint64_t z = thread->random += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

bool shim_chance(uint64_t ppm)
{
    return ppm != 0 && (ppm >= PPM || shim_random() % PPM < ppm);
}

/* In (0, 1]. */
static double uniform(void)
{
    return ((double)(shim_random() >> 11) + 1.0) / 9007199254740992.0;
}

static double draw_ns(const xksfault_latency *latency)
{
    double a_ns = (double)word(&latency->a_ns);
    switch ((xksfault_distribution)word(&latency->kind)) {
    case XKS_FAULT_FIXED:
        return a_ns;
    case XKS_FAULT_EXP:
        return -a_ns * log(uniform());
    case XKS_FAULT_LOGNORMAL: {
        double sigma = (double)word(&latency->b) / PPM;
        return a_ns * exp(sigma * sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()));
    }
    case XKS_FAULT_BIMODAL:
        return shim_chance(word(&latency->b)) ? (double)word(&latency->c_ns) : a_ns;
    case XKS_FAULT_NONE:
        break;
    }
    return 0.0;
}

/* The earliest free server works from max(now, free) on. An impossible time is of a file from before a reboot: it counts as free. */
static uint64_t queue(uint64_t *free_ns, uint64_t servers, uint64_t now_ns, uint64_t service_ns)
{
    for (;;) {
        uint64_t first = 0, earliest = UINT64_MAX;
        for (uint64_t i = 0; i < servers; i++) {
            uint64_t at_ns = word(&free_ns[i]);
            if (at_ns < earliest) {
                earliest = at_ns;
                first = i;
            }
        }
        uint64_t begin_ns = earliest > now_ns && earliest - now_ns < LONGEST_QUEUE_NS ? earliest : now_ns;
        if (__atomic_compare_exchange_n(&free_ns[first], &earliest, begin_ns + service_ns, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            return begin_ns + service_ns;
        }
    }
}

uint64_t shim_end_of_call(uint32_t slot, xksfault_class class, uint64_t now_ns)
{
    xksfault_slot *settings = shim_settings(slot);
    const xksfault_latency *latency = &settings->latency[class];
    if (word(&latency->kind) == XKS_FAULT_NONE) {
        return now_ns;
    }
    uint64_t permille = word(&settings->multiplier_permille);
    double ns = draw_ns(latency) * (permille == 0 ? 1.0 : (double)permille / 1000.0);
    uint64_t service_ns = ns < (double)LONGEST_QUEUE_NS ? (uint64_t)ns : LONGEST_QUEUE_NS;
    uint64_t servers = word(&settings->servers);
    uint64_t end_ns = now_ns + service_ns;
    if (servers != 0) {
        servers = servers < XKS_FAULT_SERVERS ? servers : XKS_FAULT_SERVERS;
        end_ns = queue(shim_counters(slot)->server_free_ns, servers, now_ns, service_ns);
    }
    return end_ns + word(&settings->network_ns);
}

void shim_sleep_until(uint64_t at_ns)
{
    shim_thread *thread = shim_this_thread();
    if (!thread->ready) {
        prepare(thread);
    }
    struct timespec at = {.tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = (long)(at_ns % NS_PER_S)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {
    }
}

uint32_t shim_histogram_bucket(uint64_t elapsed_ns)
{
    if (elapsed_ns < (1U << XKS_FAULT_HISTOGRAM_FIRST_BIT)) {
        return 0;
    }
    uint32_t bit = 63U - (uint32_t)__builtin_clzll(elapsed_ns);
    uint32_t step = (uint32_t)(elapsed_ns >> (bit - 4)) & (XKS_FAULT_HISTOGRAM_STEPS - 1);
    uint32_t bucket = (bit - XKS_FAULT_HISTOGRAM_FIRST_BIT) * XKS_FAULT_HISTOGRAM_STEPS + step;
    return bucket < XKS_FAULT_HISTOGRAM_BUCKETS ? bucket : XKS_FAULT_HISTOGRAM_BUCKETS - 1;
}

void shim_histogram_add(uint32_t slot, uint64_t elapsed_ns)
{
    word_add(&shim_counters(slot)->histogram[shim_histogram_bucket(elapsed_ns)], 1);
}
