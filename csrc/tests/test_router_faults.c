/* SPDX-License-Identifier: Apache-2.0 */
/* What the router makes of faults: the breaker, panic, retries and hedges within their budgets. */
#include "router_fixture.h"

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

int main(void)
{
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
    xks_router_free(router);
    return 0;
}
