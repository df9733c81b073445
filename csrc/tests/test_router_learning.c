/* SPDX-License-Identifier: Apache-2.0 */
/* What the router learns from calls: how many a partition works on at once, and how long one waits. */
#include "router_fixture.h"

/* --- what is learnt */

/* `count` calls always in flight, of a token that works on `servers` at once for service_ns each, in order. */
static void saturate(uint32_t partition, uint32_t in_flight, uint32_t servers, uint64_t service_ns, uint32_t rounds)
{
    uint32_t calls[1024], head = 0;
    uint64_t begun[1024], free_at[64] = {0};
    uint64_t returns[1024];
    for (uint32_t i = 0; i < in_flight + rounds; i++) {
        uint32_t at = i % in_flight;
        if (i >= in_flight) {
            now = returns[at] > now ? returns[at] : now;
            xks_router_end(router, partition, calls[at], XKS_CALL_SERVED, returns[at] - begun[at], now);
            head++;
        }
        uint64_t *server = &free_at[i % servers];
        *server = (*server > now ? *server : now) + service_ns;
        calls[at] = begin(partition);
        begun[at] = now;
        returns[at] = *server;
    }
    for (uint32_t i = head; i < in_flight + rounds; i++) {
        uint32_t at = i % in_flight;
        now = returns[at] > now ? returns[at] : now;
        xks_router_end(router, partition, calls[at], XKS_CALL_SERVED, returns[at] - begun[at], now);
    }
}

static void concurrency_is_learnt_from_queueing(void)
{
    begin_test(1, 32);
    serve(0, 50, MS);
    CHECK(view(0).concurrency > 29.9 && view(0).concurrency < 30.1);
    saturate(0, 32, 4, MS, 2000);
    CHECK(view(0).concurrency > 3 && view(0).concurrency < 6);
    saturate(0, 32, 24, MS, 20000);
    CHECK(view(0).concurrency > 18 && view(0).concurrency <= 32);
    begin_test(1, 1);
    serve(0, 50, MS);
    CHECK(view(0).concurrency <= 1);
    xks_router_set_sessions(router, 0, 16);
    CHECK(view(0).concurrency <= 2);
}

static void sessions_that_open_one_by_one_are_taken_for_concurrent(void)
{
    begin_test(1, 1);
    for (uint32_t i = 1; i <= 64; i++) {
        xks_router_set_sessions(router, 0, i);
        CHECK(view(0).concurrency >= (i < 30 ? i : 30) - 0.01);
    }
    CHECK(view(0).concurrency < 30.1);
}

static void a_fast_token_gets_a_queue_in_front_of_its_thread(void)
{
    begin_test(3, 4);
    serve(0, 20000, 15000);
    CHECK(view(0).limit > 4 + 8 && view(0).limit < 4 + 20);
    serve(1, 400000, 500);
    CHECK(view(1).limit == 4 + 256);
    serve(2, 2000, MS);
    CHECK(view(2).limit == 4);
    serve(2, 2000, 250000);
    CHECK(view(2).limit == 4);
}

static void a_queue_in_front_of_a_fast_token_is_not_slowness(void)
{
    begin_test(2, 4);
    for (int i = 0; i < 20; i++) {
        saturate(0, 12, 1, 15000, 1000);
        serve(1, 1, 15000);
    }
    CHECK(view(0).median_ns < 110000);
    uint32_t counts[64];
    shares(3, 200, counts);
    CHECK(counts[0] > 50 && counts[1] > 50);
}

static void waiting_is_told_by_what_returns(void)
{
    begin_test(2, 8);
    CHECK(xks_router_wait_ns(router, 3, 0, now) == 0);
    CHECK(xks_router_wait_ns(router, 3, 15, now) == 0);
    saturate(0, 8, 4, MS, 2000);
    saturate(1, 8, 4, MS, 2000);
    for (int i = 0; i < 8; i++) {
        (void)begin(0);
        (void)begin(1);
    }
    uint64_t wait = xks_router_wait_ns(router, 3, 799, now); /* 8 calls per ms */
    CHECK(wait > 70 * MS && wait < 130 * MS);
    wait = xks_router_wait_ns(router, 1, 799, now);
    CHECK(wait > 140 * MS && wait < 260 * MS);
    now += 30 * MS;
    wait = xks_router_wait_ns(router, 3, 799, now); /* both stand still: it may pass */
    CHECK(wait > 70 * MS && wait < 130 * MS);
    xks_router_set_in_service(router, 0, false, now);
    xks_router_set_in_service(router, 1, false, now);
    CHECK(xks_router_wait_ns(router, 3, 0, now) == UINT64_MAX);
    CHECK(xks_router_wait_ns(router, 0, 0, now) == UINT64_MAX);
}

static void a_stalled_partition_is_not_counted_on_for_waiting(void)
{
    begin_test(2, 4);
    saturate(0, 4, 4, MS, 1000);
    saturate(1, 4, 4, MS, 1000);
    for (int i = 0; i < 4; i++) {
        (void)begin(0);
    }
    now += 30 * MS;
    for (int i = 0; i < 4; i++) {
        (void)begin(1);
    }
    uint64_t wait = xks_router_wait_ns(router, 3, 99, now);
    CHECK(wait > 20 * MS && wait < 30 * MS);
}

int main(void)
{
    RUN(concurrency_is_learnt_from_queueing);
    RUN(sessions_that_open_one_by_one_are_taken_for_concurrent);
    RUN(a_fast_token_gets_a_queue_in_front_of_its_thread);
    RUN(a_queue_in_front_of_a_fast_token_is_not_slowness);
    RUN(waiting_is_told_by_what_returns);
    RUN(a_stalled_partition_is_not_counted_on_for_waiting);
    xks_router_free(router);
    return 0;
}
