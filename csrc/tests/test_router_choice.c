/* SPDX-License-Identifier: Apache-2.0 */
/* Which partition the router chooses: who may be chosen, who is quickest, which site. */
#include "router_fixture.h"

/* --- eligibility */

static void a_configuration_out_of_range_is_refused(void)
{
    xks_router *out;
    const xks_router_config bad[] = {
        {1, 0, 0.2, 0.05}, {1, 65, 0.2, 0.05}, {1, 1, -0.1, 0.05}, {1, 1, 1.1, 0.05}, {1, 1, 0.2, -1}, {1, 1, 0.2, 0.0 / 0.0 + 2},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_STATUS(XKS_BAD_INPUT, xks_router_new(&bad[i], &out));
        CHECK(out == NULL);
    }
    const xks_router_config good = {1, 64, 0, 1};
    CHECK_STATUS(XKS_OK, xks_router_new(&good, &out));
    xks_router_free(out);
    xks_router_free(NULL);
}

static void only_members_that_serve_and_have_the_key_are_chosen(void)
{
    uint32_t counts[64];
    begin_test(5, 4);
    shares(0x1F, 500, counts);
    for (int i = 0; i < 5; i++) {
        CHECK(counts[i] > 50);
    }
    xks_router_set_in_service(router, 1, false, now);
    xks_route_request request = request_for(0x0F, XKS_ROUTE_FIRST);
    request.usable = 0x17; /* not on 3; 4 is no member */
    for (int i = 0; i < 200; i++) {
        uint32_t got = chosen(&request);
        CHECK(got == 0 || got == 2);
    }
    CHECK(xks_router_explain(router, &request, 0, now) == XKS_REASON_ELIGIBLE);
    CHECK(xks_router_explain(router, &request, 1, now) == XKS_REASON_OUT_OF_SERVICE);
    CHECK(xks_router_explain(router, &request, 3, now) == XKS_REASON_NO_KEY);
    CHECK(xks_router_explain(router, &request, 4, now) == XKS_REASON_OUT_OF_SERVICE);
}

static void a_key_usable_nowhere_is_told_from_a_group_that_is_out(void)
{
    uint32_t partition;
    begin_test(2, 4);
    xks_route_request request = request_for(3, XKS_ROUTE_FIRST);
    request.usable = 0;
    CHECK_STATUS(XKS_ROUTE_NO_KEY, pick(&request, &partition));
    xks_router_set_in_service(router, 0, false, now);
    xks_router_set_in_service(router, 1, false, now);
    CHECK_STATUS(XKS_ROUTE_OUT, pick(&request, &partition));
    CHECK_STATUS(XKS_ROUTE_OUT, verdict(0, XKS_ROUTE_FIRST));
    CHECK_STATUS(XKS_ROUTE_OUT, verdict((uint64_t)1 << 63, XKS_ROUTE_FIRST));
}

static void a_partition_takes_calls_up_to_its_sessions(void)
{
    uint32_t calls[8], count = 0;
    begin_test(2, 4);
    while (verdict(3, XKS_ROUTE_FIRST) == XKS_ROUTE_CHOSEN) {
        CHECK(count < 8);
        uint32_t partition = first(3);
        calls[count++] = begin(partition) | partition << 16;
    }
    CHECK(count == 8);
    CHECK_STATUS(XKS_ROUTE_FULL, verdict(3, XKS_ROUTE_FIRST));
    now += MS;
    CHECK(!xks_router_end(router, calls[5] >> 16, calls[5] & 0xFFFF, XKS_CALL_SERVED, MS, now));
    CHECK(first(3) == calls[5] >> 16);
    xks_router_set_sessions(router, calls[5] >> 16, 3);
    CHECK_STATUS(XKS_ROUTE_FULL, verdict(3, XKS_ROUTE_FIRST));
    xks_router_set_sessions(router, 0, 0);
    xks_router_set_sessions(router, 1, 0);
    CHECK_STATUS(XKS_ROUTE_OUT, verdict(3, XKS_ROUTE_FIRST));
}

static void a_call_ends_once(void)
{
    begin_test(1, 4);
    uint32_t handed = begin(0);
    xks_router_end(router, 0, handed, XKS_CALL_SERVED, MS, now);
    xks_router_end(router, 0, handed, XKS_CALL_SERVED, MS, now);
    xks_router_end(router, 0, 5000, XKS_CALL_FAULT, MS, now);
    CHECK(view(0).in_flight == 0 && view(0).served == 1 && view(0).faults == 0);
}

static void no_partition_holds_more_calls_than_there_are_slots(void)
{
    begin_test(1, 5000);
    uint32_t count = 0;
    for (; verdict(1, XKS_ROUTE_FIRST) == XKS_ROUTE_CHOSEN; count++) {
        CHECK(begin(0) < XKS_ROUTER_MAX_CALLS);
    }
    CHECK(count == XKS_ROUTER_MAX_CALLS);
    CHECK(begin(0) >= XKS_ROUTER_MAX_CALLS);
    CHECK(view(0).in_flight == XKS_ROUTER_MAX_CALLS);
}

static void too_little_time_is_late(void)
{
    uint32_t partition;
    begin_test(2, 4);
    serve(1, 300, 10 * MS);
    serve(0, 300, 20 * MS);
    xks_route_request request = request_for(3, XKS_ROUTE_RETRY);
    request.remaining_ns = 35 * MS; /* 3 medians of 1, not of 0 */
    CHECK(chosen(&request) == 1);
    CHECK(xks_router_explain(router, &request, 0, now) == XKS_REASON_TOO_SLOW);
    request.remaining_ns = 25 * MS;
    CHECK_STATUS(XKS_ROUTE_LATE, pick(&request, &partition));
    request.purpose = XKS_ROUTE_HEDGE;
    CHECK_STATUS(XKS_ROUTE_LATE, pick(&request, &partition));
    request.purpose = XKS_ROUTE_FIRST; /* better tried than refused */
    CHECK(chosen(&request) == 1);
    request.purpose = XKS_ROUTE_CHECK;
    CHECK(chosen(&request) == 1);
    request.remaining_ns = 9 * MS;
    CHECK_STATUS(XKS_ROUTE_LATE, pick(&request, &partition));
    request.purpose = XKS_ROUTE_FIRST;
    CHECK_STATUS(XKS_ROUTE_LATE, pick(&request, &partition));
}

static void a_partition_that_was_too_slow_is_tried_one_call_at_a_time(void)
{
    uint32_t partition;
    begin_test(1, 4);
    serve(0, 1, 600 * MS);
    xks_route_request request = request_for(1, XKS_ROUTE_FIRST);
    request.remaining_ns = 200 * MS;
    CHECK(chosen(&request) == 0);
    uint32_t call = begin(0);
    CHECK_STATUS(XKS_ROUTE_LATE, pick(&request, &partition));
    CHECK(!xks_router_end(router, 0, call, XKS_CALL_SERVED, MS, now));
    CHECK(chosen(&request) == 0);
    request.remaining_ns = 49 * MS;
    CHECK_STATUS(XKS_ROUTE_LATE, pick(&request, &partition));
}

/* --- score */

static void equally_fast_partitions_share_by_calls_in_flight(void)
{
    begin_test(4, 32);
    for (uint32_t i = 0; i < 4; i++) {
        serve(i, 100, MS + i * MS / 10);
    }
    uint32_t counts[64] = {0};
    for (int i = 0; i < 40; i++) {
        uint32_t partition = first(0xF);
        counts[partition]++;
        (void)begin(partition);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(counts[i] == 10);
    }
}

static void fast_tokens_share_by_calls_in_flight_whatever_they_took(void)
{
    begin_test(2, 8);
    serve(0, 500, 90000);
    serve(1, 500, 15000);
    CHECK(first(3) < 2);
    uint32_t handed = begin(1);
    CHECK(first(3) == 0);
    (void)begin(0);
    (void)begin(0);
    CHECK(first(3) == 1);
    xks_router_end(router, 1, handed, XKS_CALL_SERVED, 15000, now);
}

static void a_slow_partition_is_left_to_itself(void)
{
    uint32_t counts[64];
    begin_test(3, 32);
    serve(0, 100, MS);
    serve(1, 100, MS);
    serve(2, 100, MS);
    serve(2, 20, 10 * MS);
    shares(7, 300, counts);
    CHECK(counts[2] == 0 && counts[0] > 100 && counts[1] > 100);
    for (int i = 0; i < 16; i++) { /* until the others are busy enough */
        (void)begin(0);
        (void)begin(1);
    }
    CHECK(first(7) != 2);
    for (int i = 0; i < 16; i++) {
        (void)begin(0);
        (void)begin(1);
    }
    CHECK(first(7) == 2);
}

static void an_old_slow_median_fades_and_is_tried_one_call_at_a_time(void)
{
    begin_test(3, 32);
    for (uint32_t i = 0; i < 3; i++) {
        serve(i, 200, i == 2 ? 10 * MS : MS);
    }
    now += 50 * MS;
    CHECK(view(2).median_ns == 10 * MS);
    uint32_t handed = 0;
    for (int i = 0; i < 5000 && handed == 0; i++) { /* the others serve; five seconds */
        serve(0, 1, MS / 2);
        serve(1, 1, MS / 2);
        handed = first(7) == 2 ? 1 : 0;
    }
    CHECK(handed == 1);
    CHECK(view(2).median_ns < 2 * MS);
    handed = begin(2);
    uint32_t others[8];
    for (int i = 0; i < 8; i++) {
        others[i] = first(7);
        CHECK(others[i] != 2);
        others[i] |= begin(others[i]) << 8;
    }
    for (int i = 0; i < 8; i++) {
        xks_router_end(router, others[i] & 0xFF, others[i] >> 8, XKS_CALL_SERVED, MS, now);
    }
    now += 10 * MS; /* the trial was slow: what was known stands again */
    xks_router_end(router, 2, handed, XKS_CALL_SERVED, 10 * MS, now);
    CHECK(view(2).median_ns > 9 * MS);
    CHECK(first(7) != 2);
}

/* Partition 1 took 10 ms, 0 takes 1 ms and served alone for so long that the median of 1 has faded to nearly that. */
static void let_fade(void)
{
    begin_test(2, 32);
    serve(0, 200, MS);
    serve(1, 200, 10 * MS);
    for (int i = 0; i < 4000; i++) {
        serve(0, 1, MS);
        (void)first(3);
    }
}

static void a_trial_confirms_what_was_known_or_corrects_it(void)
{
    let_fade();
    CHECK(view(1).median_ns < 13 * MS / 10);
    serve(1, 1, 20 * MS);
    CHECK(view(1).median_ns > 9 * MS);
    let_fade();
    serve(1, 1, 2 * MS); /* slow, and not as slow as it was */
    CHECK(view(1).median_ns > 19 * MS / 10 && view(1).median_ns < 21 * MS / 10);
    let_fade();
    serve(1, 1, MS);
    CHECK(view(1).median_ns < 13 * MS / 10);
}

static void the_only_news_in_a_long_time_is_believed(void)
{
    begin_test(2, 32);
    serve(0, 100, MS);
    serve(1, 100, MS);
    CHECK(first(3) < 2);
    serve(1, 1, 8 * MS); /* one of many is noise */
    CHECK(view(1).median_ns < 11 * MS / 10);
    now += SECOND;
    serve(1, 1, 8 * MS);
    CHECK(view(1).median_ns == 8 * MS);
}

static void a_partition_that_turned_fast_comes_back(void)
{
    begin_test(2, 32);
    serve(0, 200, 10 * MS);
    for (int i = 0; i < 5000; i++) {
        serve(1, 1, MS);
        uint32_t partition = first(3);
        if (partition == 0) {
            break;
        }
    }
    serve(0, 1, MS);
    CHECK(view(0).median_ns < 3 * MS);
    serve(0, 60, MS);
    CHECK(view(0).median_ns < 11 * MS / 10);
}

static void an_idle_group_keeps_what_it_knows(void)
{
    begin_test(2, 4);
    serve(0, 100, MS);
    serve(1, 100, MS);
    now += 3600 * SECOND;
    CHECK(first(3) < 2);
    CHECK(view(0).median_ns == MS && view(1).median_ns == MS);
}

static void the_oldest_call_costs_by_its_age_when_that_is_unusual(void)
{
    uint32_t counts[64];
    begin_test(2, 32);
    serve(0, 300, MS);
    serve(1, 300, MS);
    (void)begin(0);
    (void)begin(1);
    (void)begin(1);
    now += MS; /* usual: the fewest in flight */
    shares(3, 100, counts);
    CHECK(counts[0] == 100);
    now += 9 * MS;
    (void)begin(1);
    uint32_t handed = begin(1);
    shares(3, 100, counts);
    CHECK(view(0).oldest_call_ns == 10 * MS && view(1).oldest_call_ns == 10 * MS);
    CHECK(counts[0] == 100); /* both have one, and 0 fewer in flight */
    xks_router_end(router, 1, handed, XKS_CALL_SERVED, MS, now);
    begin_test(2, 32);
    serve(0, 300, MS);
    serve(1, 300, MS);
    (void)begin(0);
    now += 10 * MS;
    for (int i = 0; i < 8; i++) {
        CHECK(first(3) == 1);
        (void)begin(1);
    }
}

static void a_stalled_partition_is_avoided_while_others_have_spare_capacity(void)
{
    begin_test(2, 8);
    serve(0, 300, MS);
    serve(1, 300, MS);
    uint32_t handed = begin(0);
    now += 20 * MS;
    xks_route_request request = request_for(3, XKS_ROUTE_FIRST);
    CHECK(xks_router_explain(router, &request, 0, now) == XKS_REASON_STALLED);
    CHECK(view(0).reason == XKS_REASON_STALLED && view(1).reason == XKS_REASON_ELIGIBLE);
    for (int i = 0; i < 8; i++) {
        CHECK(first(3) == 1);
        (void)begin(1);
    }
    CHECK(first(3) == 0); /* the other is full */
    CHECK(xks_router_explain(router, &request, 0, now) == XKS_REASON_ELIGIBLE);
    xks_router_end(router, 0, handed, XKS_CALL_SERVED, 20 * MS, now);
    CHECK(view(0).oldest_call_ns == 0 && view(0).reason == XKS_REASON_ELIGIBLE);
    CHECK(view(0).in_service && view(0).opens == 0);
}

static void ties_are_drawn_and_equal_seeds_draw_equally(void)
{
    uint32_t counts[64], sequence[200];
    begin_test(8, 4);
    for (int i = 0; i < 200; i++) {
        sequence[i] = first(0xFF);
    }
    begin_test(8, 4);
    for (int i = 0; i < 200; i++) {
        CHECK(first(0xFF) == sequence[i]);
    }
    shares(0x81, 1000, counts); /* far apart, and still even */
    CHECK(counts[0] > 400 && counts[7] > 400);
}

/* --- sites */

static void the_local_site_is_kept_until_it_is_busy_stalled_slow_or_out(void)
{
    begin_test(2, 32);
    serve(0, 300, 3 * MS);
    serve(1, 300, MS);
    xks_route_request request = request_for(3, XKS_ROUTE_FIRST);
    CHECK(chosen(&request) == 1);
    request.local = 1;
    CHECK(chosen(&request) == 0);
    CHECK(xks_router_explain(router, &request, 1, now) == XKS_REASON_REMOTE);
    uint32_t handed = begin(0);
    now += 50 * MS; /* stalled */
    CHECK(chosen(&request) == 1);
    xks_router_end(router, 0, handed, XKS_CALL_SERVED, 3 * MS, now);
    CHECK(chosen(&request) == 0);
    xks_router_set_in_service(router, 0, false, now);
    CHECK(chosen(&request) == 1);
    xks_router_set_in_service(router, 0, true, now);
    now += 3 * SECOND;
    serve(1, 1, MS);
    serve(0, 40, 30 * MS); /* far slower */
    CHECK(chosen(&request) == 1);

    begin_test(2, 4);
    CHECK(chosen(&request) == 0);
    for (int i = 0; i < 4; i++) {
        CHECK(chosen(&request) == 0);
        (void)begin(0);
    }
    CHECK(chosen(&request) == 1); /* full */
}

static void the_local_site_spills_over_at_twice_what_it_works_on_at_once(void)
{
    begin_test(2, 64);
    serve(0, 100, MS);
    serve(1, 100, MS);
    xks_route_request request = request_for(3, XKS_ROUTE_FIRST);
    request.local = 1;
    uint32_t local = 0;
    for (; chosen(&request) == 0; local++) {
        CHECK(local < 64);
        (void)begin(0);
    }
    CHECK(local == 60); /* it begins with 30 */
}

int main(void)
{
    RUN(a_configuration_out_of_range_is_refused);
    RUN(only_members_that_serve_and_have_the_key_are_chosen);
    RUN(a_key_usable_nowhere_is_told_from_a_group_that_is_out);
    RUN(a_partition_takes_calls_up_to_its_sessions);
    RUN(a_call_ends_once);
    RUN(no_partition_holds_more_calls_than_there_are_slots);
    RUN(too_little_time_is_late);
    RUN(a_partition_that_was_too_slow_is_tried_one_call_at_a_time);
    RUN(equally_fast_partitions_share_by_calls_in_flight);
    RUN(fast_tokens_share_by_calls_in_flight_whatever_they_took);
    RUN(a_slow_partition_is_left_to_itself);
    RUN(an_old_slow_median_fades_and_is_tried_one_call_at_a_time);
    RUN(a_trial_confirms_what_was_known_or_corrects_it);
    RUN(the_only_news_in_a_long_time_is_believed);
    RUN(a_partition_that_turned_fast_comes_back);
    RUN(an_idle_group_keeps_what_it_knows);
    RUN(the_oldest_call_costs_by_its_age_when_that_is_unusual);
    RUN(a_stalled_partition_is_avoided_while_others_have_spare_capacity);
    RUN(ties_are_drawn_and_equal_seeds_draw_equally);
    RUN(the_local_site_is_kept_until_it_is_busy_stalled_slow_or_out);
    RUN(the_local_site_spills_over_at_twice_what_it_works_on_at_once);
    xks_router_free(router);
    return 0;
}
