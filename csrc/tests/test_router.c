/* SPDX-License-Identifier: Apache-2.0 */
/* The router, rule by rule. Time is a number that the tests move. */
#include "check.h"
#include "xks_router.h"

#define MS UINT64_C(1000000)
#define SECOND UINT64_C(1000000000)
#define START (100 * SECOND)

static xks_router *router;
static uint64_t now;

static void begin_test(uint32_t partitions, uint32_t sessions)
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

static xks_route_request request_for(uint64_t members, xks_route_purpose purpose)
{
    return (xks_route_request){.members = members, .usable = members, .remaining_ns = 200 * MS, .purpose = purpose};
}

static xks_route_verdict pick(const xks_route_request *request, uint32_t *partition)
{
    return xks_router_pick(router, request, now, partition);
}

static uint32_t chosen(const xks_route_request *request)
{
    uint32_t partition;
    CHECK_STATUS(XKS_ROUTE_CHOSEN, pick(request, &partition));
    return partition;
}

static uint32_t first(uint64_t members)
{
    const xks_route_request request = request_for(members, XKS_ROUTE_FIRST);
    return chosen(&request);
}

static xks_route_verdict verdict(uint64_t members, xks_route_purpose purpose)
{
    uint32_t partition;
    const xks_route_request request = request_for(members, purpose);
    return pick(&request, &partition);
}

static uint32_t begin(uint32_t partition)
{
    return xks_router_begin(router, partition, XKS_ROUTE_FIRST, now);
}

/* A call alone in the partition, that takes took_ns of the clock. */
static bool call(uint32_t partition, xks_call_result result, uint64_t took_ns)
{
    uint32_t handed = begin(partition);
    now += took_ns;
    return xks_router_end(router, partition, handed, result, took_ns, now);
}

static void serve(uint32_t partition, uint32_t times, uint64_t took_ns)
{
    while (times-- > 0) {
        CHECK(!call(partition, XKS_CALL_SERVED, took_ns));
    }
}

static xks_route_view view(uint32_t partition)
{
    xks_route_view out;
    xks_router_view(router, partition, now, &out);
    return out;
}

/* How often each partition is chosen when nothing happens in between. */
static void shares(uint64_t members, uint32_t picks, uint32_t counts[64])
{
    memset(counts, 0, 64 * sizeof *counts);
    while (picks-- > 0) {
        counts[first(members)]++;
    }
}

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

/* --- breaker */

static void three_faults_in_a_row_open_the_breaker_once(void)
{
    begin_test(2, 8);
    CHECK(!call(0, XKS_CALL_FAULT, MS) && !call(0, XKS_CALL_FAULT, MS));
    serve(0, 1, MS);
    CHECK(!call(0, XKS_CALL_FAULT, MS) && !call(0, XKS_CALL_FAULT, MS));
    CHECK(!call(0, XKS_CALL_NOT_MADE, 0));
    CHECK(view(0).faults_in_row == 2 && view(0).opens == 0);
    CHECK(call(0, XKS_CALL_FAULT, MS));
    CHECK(!call(0, XKS_CALL_FAULT, MS));
    CHECK(view(0).opens == 1 && view(0).faults == 6);
    xks_router_set_in_service(router, 0, false, now);
    for (int i = 0; i < 50; i++) {
        CHECK(first(3) == 1);
    }
    xks_router_set_in_service(router, 0, true, now);
    CHECK(view(0).faults_in_row == 0);
    CHECK(!call(0, XKS_CALL_FAULT, MS) && !call(0, XKS_CALL_FAULT, MS) && call(0, XKS_CALL_FAULT, MS));
    CHECK(view(0).opens == 2);
}

static void a_partition_out_of_service_has_no_breaker_to_open(void)
{
    begin_test(1, 8);
    xks_router_set_in_service(router, 0, false, now);
    (void)begin(0);
    for (int i = 0; i < 5; i++) {
        CHECK(!call(0, XKS_CALL_FAULT, MS));
    }
    now += 2 * SECOND;
    CHECK(xks_router_overdue(router, now) == 0);
    CHECK(view(0).opens == 0 && view(0).written_off == 1);
}

static void faults_say_nothing_of_latency(void)
{
    begin_test(1, 8);
    serve(0, 50, MS);
    call(0, XKS_CALL_FAULT, 1000);
    call(0, XKS_CALL_NOT_MADE, 0);
    CHECK(view(0).median_ns == MS);
}

static void a_call_out_for_a_second_opens_the_breaker_and_is_written_off(void)
{
    begin_test(2, 8);
    uint32_t hung = begin(0);
    now += MS;
    uint32_t behind = begin(0);
    (void)begin(1);
    now = START + SECOND;
    CHECK(xks_router_overdue(router, now) == 0);
    now++;
    CHECK(xks_router_overdue(router, now) == 1);
    CHECK(view(0).opens == 1 && view(0).written_off == 1 && view(0).in_flight == 1);
    xks_router_set_in_service(router, 0, false, now);
    now += MS; /* of one hang one opening, and all of its calls */
    CHECK(xks_router_overdue(router, now) == 2);
    CHECK(view(0).opens == 1 && view(0).written_off == 2 && view(0).in_flight == 0 && view(1).opens == 1);
    CHECK(view(0).oldest_call_ns == SECOND + MS + 1);
    CHECK(!xks_router_end(router, 0, behind, XKS_CALL_SERVED, now - START, now));
    CHECK(!xks_router_end(router, 0, hung, XKS_CALL_FAULT, now - START, now));
    CHECK(view(0).written_off == 0 && view(0).in_flight == 0 && view(0).oldest_call_ns == 0 && view(0).median_ns == 0);
}

static void calls_from_before_an_opening_do_not_open_again(void)
{
    begin_test(1, 8);
    (void)begin(0);
    now += 900 * MS;
    (void)begin(0);
    now += 101 * MS;
    CHECK(xks_router_overdue(router, now) == 1);
    xks_router_set_in_service(router, 0, false, now);
    now += 500 * MS;
    xks_router_set_in_service(router, 0, true, now);
    uint32_t later = begin(0);
    now += 500 * MS;
    CHECK(xks_router_overdue(router, now) == 0);
    CHECK(view(0).written_off == 2 && view(0).in_flight == 1);
    now += 501 * MS;
    CHECK(xks_router_overdue(router, now) == 1);
    CHECK(view(0).opens == 2);
    xks_router_end(router, 0, later, XKS_CALL_SERVED, 0, now);
}

static void a_slow_start_falls_from_five_to_one_in_two_seconds(void)
{
    uint32_t counts[64];
    begin_test(2, 32);
    serve(0, 100, MS);
    serve(1, 100, MS);
    CHECK(view(0).slow_start <= 1); /* not the first time */
    xks_router_set_in_service(router, 0, false, now);
    xks_router_set_in_service(router, 0, true, now);
    CHECK(view(0).slow_start > 4.99);
    shares(3, 100, counts);
    CHECK(counts[1] == 100);
    now += SECOND;
    CHECK(view(0).slow_start > 2.99 && view(0).slow_start < 3.01);
    xks_router_set_in_service(router, 0, true, now); /* no change, no new start */
    now += SECOND;
    CHECK(view(0).slow_start <= 1);
    shares(3, 100, counts);
    CHECK(counts[0] > 20 && counts[1] > 20);
}

/* --- panic */

static void when_all_are_out_failing_members_are_still_asked_in_turn(void)
{
    begin_test(3, 4);
    for (uint32_t i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++) {
            call(i, XKS_CALL_FAULT, MS);
        }
        xks_router_set_in_service(router, i, false, now);
    }
    uint32_t counts[3] = {0};
    for (int i = 0; i < 30; i++) {
        uint32_t partition = first(7);
        counts[partition]++;
        CHECK(!call(partition, XKS_CALL_FAULT, MS));
    }
    CHECK(counts[0] == 10 && counts[1] == 10 && counts[2] == 10);
    serve(1, 1, MS); /* the first that works is found */
    for (int i = 0; i < 30; i++) {
        CHECK(first(7) == 1);
    }
    CHECK_STATUS(XKS_ROUTE_OUT, verdict(7, XKS_ROUTE_HEDGE));
}

static void when_all_are_out_one_that_hangs_is_not_asked(void)
{
    begin_test(2, 4);
    uint32_t hung = begin(0);
    now += SECOND + 1;
    CHECK(xks_router_overdue(router, now) == 1);
    xks_router_set_in_service(router, 0, false, now);
    xks_router_set_in_service(router, 1, false, now);
    CHECK(first(3) == 1);
    xks_router_set_sessions(router, 1, 0);
    CHECK_STATUS(XKS_ROUTE_OUT, verdict(3, XKS_ROUTE_FIRST));
    CHECK_STATUS(XKS_ROUTE_OUT, verdict(1, XKS_ROUTE_FIRST));
    xks_router_end(router, 0, hung, XKS_CALL_SERVED, SECOND + 1, now);
    CHECK(first(3) == 0);
    for (int i = 0; i < 4; i++) {
        (void)begin(0);
    }
    CHECK_STATUS(XKS_ROUTE_FULL, verdict(3, XKS_ROUTE_FIRST));
}

static void one_member_in_service_ends_the_panic(void)
{
    begin_test(2, 4);
    xks_router_set_in_service(router, 0, false, now);
    for (int i = 0; i < 4; i++) {
        CHECK(first(3) == 1);
        (void)begin(1);
    }
    CHECK_STATUS(XKS_ROUTE_FULL, verdict(3, XKS_ROUTE_FIRST));
}

/* --- retries, hedges, checks */

static void a_retry_goes_to_an_untried_partition_while_one_serves(void)
{
    uint32_t partition;
    begin_test(2, 4);
    xks_route_request request = request_for(3, XKS_ROUTE_RETRY);
    request.tried = 1;
    for (int i = 0; i < 20; i++) {
        CHECK(chosen(&request) == 1);
    }
    CHECK(xks_router_explain(router, &request, 0, now) == XKS_REASON_TRIED);
    for (int i = 0; i < 4; i++) {
        (void)begin(1);
    }
    CHECK_STATUS(XKS_ROUTE_FULL, pick(&request, &partition)); /* it serves: wait for it */
    xks_router_set_in_service(router, 1, false, now);
    CHECK(chosen(&request) == 0);
    request.members = request.usable = 1;
    CHECK(chosen(&request) == 0);
    request = request_for(3, XKS_ROUTE_CHECK);
    request.tried = 1;
    xks_router_set_in_service(router, 1, true, now);
    CHECK_STATUS(XKS_ROUTE_FULL, pick(&request, &partition));
}

static void a_hedge_goes_to_another_partition_with_capacity_to_spare(void)
{
    uint32_t partition;
    begin_test(2, 4);
    xks_route_request request = request_for(3, XKS_ROUTE_HEDGE);
    request.tried = 1;
    CHECK(chosen(&request) == 1);
    request.tried = 3;
    CHECK_STATUS(XKS_ROUTE_OUT, pick(&request, &partition));
    request.tried = 1;
    xks_router_set_in_service(router, 1, false, now);
    CHECK_STATUS(XKS_ROUTE_OUT, pick(&request, &partition));

    begin_test(2, 64);
    for (int i = 0; i < 59; i++) {
        (void)begin(1);
    }
    CHECK(chosen(&request) == 1);
    (void)begin(1);
    CHECK_STATUS(XKS_ROUTE_FULL, pick(&request, &partition)); /* 2 x 30 in flight */
    CHECK(xks_router_explain(router, &request, 1, now) == XKS_REASON_BUSY);
    request.purpose = XKS_ROUTE_FIRST;
    CHECK(chosen(&request) == 1);

    begin_test(2, 64);
    request.purpose = XKS_ROUTE_HEDGE;
    (void)begin(1);
    now += 100 * MS; /* stalled itself */
    CHECK_STATUS(XKS_ROUTE_FULL, pick(&request, &partition));
}

static void budget_is_spent_and_earned(xks_route_purpose purpose, uint32_t firsts_per_call)
{
    uint32_t spent = 0;
    begin_test(2, 5);
    for (; verdict(3, purpose) == XKS_ROUTE_CHOSEN; spent++) {
        uint32_t handed = xks_router_begin(router, 0, purpose, now);
        xks_router_end(router, 0, handed, XKS_CALL_SERVED, MS, now);
        CHECK(spent < 100);
    }
    CHECK(spent == 10 + 2 * 5);
    CHECK_STATUS(XKS_ROUTE_NO_BUDGET, verdict(3, purpose));
    serve(0, firsts_per_call - 1, MS);
    CHECK_STATUS(XKS_ROUTE_NO_BUDGET, verdict(3, purpose));
    serve(0, 2, MS);
    CHECK_STATUS(XKS_ROUTE_CHOSEN, verdict(3, purpose));
    CHECK_STATUS(XKS_ROUTE_CHOSEN, verdict(3, XKS_ROUTE_CHECK));
    uint32_t handed = xks_router_begin(router, 0, purpose, now);
    xks_router_end(router, 0, handed, XKS_CALL_SERVED, MS, now);
    CHECK_STATUS(XKS_ROUTE_NO_BUDGET, verdict(3, purpose));
    for (int i = 0; i < 100; i++) { /* checks earn and spend nothing */
        handed = xks_router_begin(router, 0, XKS_ROUTE_CHECK, now);
        xks_router_end(router, 0, handed, XKS_CALL_SERVED, MS, now);
    }
    CHECK_STATUS(XKS_ROUTE_NO_BUDGET, verdict(3, purpose));
    serve(0, 1000, MS); /* and no more is saved than the burst */
    for (spent = 0; verdict(3, purpose) == XKS_ROUTE_CHOSEN; spent++) {
        handed = xks_router_begin(router, 0, purpose, now);
        xks_router_end(router, 0, handed, XKS_CALL_SERVED, MS, now);
    }
    CHECK(spent == 20);
}

static void retries_keep_to_their_budget(void)
{
    budget_is_spent_and_earned(XKS_ROUTE_RETRY, 5);
}

static void hedges_keep_to_their_budget(void)
{
    budget_is_spent_and_earned(XKS_ROUTE_HEDGE, 20);
}

static void a_budget_of_zero_is_none(void)
{
    const xks_router_config config = {.seed = 1, .partitions = 1};
    xks_router_free(router);
    CHECK_STATUS(XKS_OK, xks_router_new(&config, &router));
    xks_router_set_sessions(router, 0, 4);
    xks_router_set_in_service(router, 0, true, now);
    CHECK_STATUS(XKS_ROUTE_NO_BUDGET, verdict(1, XKS_ROUTE_RETRY));
    CHECK_STATUS(XKS_ROUTE_NO_BUDGET, verdict(1, XKS_ROUTE_HEDGE));
    CHECK_STATUS(XKS_ROUTE_CHOSEN, verdict(1, XKS_ROUTE_FIRST));
}

static void a_hedge_waits_longer_than_calls_take(void)
{
    begin_test(3, 4);
    CHECK(xks_router_hedge_delay_ns(router, 0) == 60 * MS); /* nothing known */
    serve(0, 1000, MS);
    CHECK(xks_router_hedge_delay_ns(router, 0) == 8 * MS);
    serve(1, 1000, 20 * MS);
    CHECK(xks_router_hedge_delay_ns(router, 1) >= 28 * MS && xks_router_hedge_delay_ns(router, 1) <= 40 * MS);
    serve(2, 1000, 300 * MS);
    CHECK(xks_router_hedge_delay_ns(router, 2) == 60 * MS);
}

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
    RUN(three_faults_in_a_row_open_the_breaker_once);
    RUN(a_partition_out_of_service_has_no_breaker_to_open);
    RUN(faults_say_nothing_of_latency);
    RUN(a_call_out_for_a_second_opens_the_breaker_and_is_written_off);
    RUN(calls_from_before_an_opening_do_not_open_again);
    RUN(a_slow_start_falls_from_five_to_one_in_two_seconds);
    RUN(when_all_are_out_failing_members_are_still_asked_in_turn);
    RUN(when_all_are_out_one_that_hangs_is_not_asked);
    RUN(one_member_in_service_ends_the_panic);
    RUN(a_retry_goes_to_an_untried_partition_while_one_serves);
    RUN(a_hedge_goes_to_another_partition_with_capacity_to_spare);
    RUN(retries_keep_to_their_budget);
    RUN(hedges_keep_to_their_budget);
    RUN(a_budget_of_zero_is_none);
    RUN(a_hedge_waits_longer_than_calls_take);
    RUN(concurrency_is_learnt_from_queueing);
    RUN(sessions_that_open_one_by_one_are_taken_for_concurrent);
    RUN(a_fast_token_gets_a_queue_in_front_of_its_thread);
    RUN(a_queue_in_front_of_a_fast_token_is_not_slowness);
    RUN(waiting_is_told_by_what_returns);
    RUN(a_stalled_partition_is_not_counted_on_for_waiting);
    xks_router_free(router);
    return 0;
}
