/* SPDX-License-Identifier: Apache-2.0 */
/* The engine with several partitions: what fails, hangs, restarts or runs out of sessions must cost no job.
 *
 * CHAOS_SECONDS (5) says how long the last test goes on.
 */
#include "ha_fixture.h"
#include <dirent.h>

/* --- one of two */

static void a_partition_that_errs_costs_no_job_and_its_breaker_opens_and_closes(const token *t)
{
    ha h = start_ha(t, 2, 8, XKS_VERIFY_SAME);
    load(&h, MS(200));
    set(&h.control->slots[1].error_ppm, 1000000);
    set(&h.control->slots[1].error_rv, CKR_DEVICE_ERROR);
    load_until_out(&h, 1);
    load(&h, MS(300));
    xks_partition_status status = status_of(&h, 1);
    CHECK(!status.in_service && status.opens == 1 && status.state == XKS_PARTITION_RECOVERING);
    CHECK(strstr(status.last_open_reason, "CKR_DEVICE_ERROR") != NULL && status.last_open_unix_s > 0);
    /* By three jobs in a row, or by the health probe when that came first. */
    CHECK(status.errors[0].count == 0 || status.errors[0].ckr == CKR_DEVICE_ERROR);
    CHECK(status.faults <= 3 + status.limit); /* what was in flight when it opened fails too */
    set(&h.control->slots[1].error_rv, 0);
    expect_in_service(&h, 1, true);
    load(&h, MS(500));
    expect_all_ok(&h);
    CHECK(h.worked_on_twice >= 1 || status.errors[0].count == 0); /* the retries of jobs that it failed */
    CHECK(status_of(&h, 0).opens == 0);
    stop_ha(&h);
}

static void a_partition_that_hangs_costs_no_job_and_threads_are_replaced(const token *t)
{
    ha h = start_ha(t, 2, 4, XKS_VERIFY_SAME);
    load(&h, MS(300));
    set(&h.control->slots[0].hang, 1);
    load_until_out(&h, 0);
    load(&h, MS(300)); /* lost threads are looked for ten times a second */
    xks_partition_status status = status_of(&h, 0);
    CHECK(!status.in_service && status.lost_threads >= 1 && status.lost_threads <= 4 && status.opens == 1);
    load(&h, MS(500));
    CHECK(get(&h.control->counters[0].hung) <= 4 + 1); /* each session and the keeper's probe, nobody in the place of a lost thread */
    xks_engine_totals totals;
    xks_engine_totals_read(h.f.engine, &totals);
    CHECK(totals.hedges >= 1 && totals.hedge_wins >= 1);
    set(&h.control->slots[0].hang, 0);
    expect_in_service(&h, 0, true);
    load(&h, MS(500));
    expect_all_ok(&h);
    CHECK(h.worked_on_twice >= totals.hedge_wins);
    CHECK(status_of(&h, 0).lost_threads == 0);
    stop_ha(&h);
}

static void a_partition_that_restarts_costs_no_job_and_one_login(const token *t)
{
    ha h = start_ha(t, 2, 8, XKS_VERIFY_SAME);
    load(&h, MS(200));
    uint64_t logins = get(&h.control->counters[1].logins);
    set(&h.control->slots[1].dead_rv, CKR_DEVICE_ERROR);
    load(&h, MS(500));
    set(&h.control->slots[1].epoch, 1);
    set(&h.control->slots[1].dead_rv, 0);
    expect_in_service(&h, 1, true);
    load(&h, MS(500));
    expect_all_ok(&h);
    CHECK(get(&h.control->counters[1].logins) == logins + 1);
    stop_ha(&h);
}

static void sessions_and_logins_lost_are_repaired_even_with_one_partition(const token *t)
{
    ha h = start_ha(t, 1, 8, XKS_VERIFY_SAME);
    for (uint64_t round = 1; round <= 5; round++) {
        set(&h.control->slots[0].epoch, round);
        load(&h, MS(150));
        expect_in_service(&h, 0, true); /* a token that forgets again during the repair is one that is down */
        set(&h.control->slots[0].login_epoch, round);
        load(&h, MS(150));
        expect_in_service(&h, 0, true);
    }
    expect_all_ok(&h);
    CHECK(get(&h.control->counters[0].logins) <= 11 && status_of(&h, 0).opens == 0);
    stop_ha(&h);
}

static void a_slow_partition_gets_little_of_the_load(const token *t)
{
    ha h = start_ha(t, 2, 8, XKS_VERIFY_SAME);
    take_time(h.control, 0, MS(1));
    take_time(h.control, 1, MS(1));
    load(&h, MS(400));
    set(&h.control->slots[0].multiplier_permille, 20000);
    load(&h, MS(200));
    uint64_t before = status_of(&h, 0).firsts, other = status_of(&h, 1).firsts;
    load(&h, MS(600));
    uint64_t slow = status_of(&h, 0).firsts - before, fast = status_of(&h, 1).firsts - other;
    CHECK(slow * 4 < fast);
    expect_all_ok(&h);
    stop_ha(&h);
}

/* --- time */

static void a_job_in_a_hanging_token_is_answered_by_its_deadline_and_its_result_is_wiped(const token *t)
{
    ha h = start_ha(t, 1, 4, XKS_VERIFY_SAME);
    xks_engine_totals totals;
    h.deadline_ns = MS(200);
    set(&h.control->slots[0].hang, 1);
    uint64_t began = xks_monotonic_ns();
    load(&h, MS(5));
    pump_until_answered(&h);
    uint64_t took = xks_monotonic_ns() - began;
    CHECK(h.by_status[XKS_TIMEOUT] == h.submitted && took > MS(190) && took < MS(400));
    set(&h.control->slots[0].hang, 0);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(5);
    do {
        pump_until(&h, xks_monotonic_ns() + MS(2));
        xks_engine_totals_read(h.f.engine, &totals);
        CHECK(xks_monotonic_ns() < give_up);
    } while (xks_engine_outstanding(h.f.engine) > 0);
    CHECK(totals.late_results_wiped >= 1 && totals.timeouts == h.submitted);
    stop_ha(&h);
}

static void when_everything_is_dead_each_job_is_told_at_once(const token *t)
{
    ha h = start_ha(t, 2, 4, XKS_VERIFY_SAME);
    load(&h, MS(100));
    for (int i = 0; i < 2; i++) {
        set(&h.control->slots[i].dead_rv, CKR_DEVICE_ERROR);
    }
    load(&h, MS(300));
    pump_until_answered(&h);
    uint64_t failed = h.submitted - h.ok, slowest = 0;
    CHECK(failed > 200 && h.by_status[XKS_TIMEOUT] == 0);
    for (int i = 0; i < 50; i++) {
        uint64_t began = xks_monotonic_ns();
        load(&h, 1);
        pump_until_answered(&h);
        uint64_t took = xks_monotonic_ns() - began;
        slowest = took > slowest ? took : slowest;
    }
    CHECK(slowest < MS(1000)); /* the machine may be busy: at once, rather than by the deadline */
    for (int i = 0; i < 2; i++) {
        set(&h.control->slots[i].dead_rv, 0);
    }
    expect_in_service(&h, 0, true);
    expect_in_service(&h, 1, true);
    h.submitted = h.ok = 0;
    load(&h, MS(200));
    expect_all_ok(&h);
    stop_ha(&h);
}

/* --- sessions, modules */

static void the_pool_settles_at_what_the_token_allows(const token *t)
{
    ha h = {0};
    h.control = make_control(t, 1);
    h.control->slots[0].max_sessions = 5; /* one is the keeper's */
    take_time(h.control, 0, MS(2));
    start_engine(&h, t, 1, 12, XKS_VERIFY_SAME);
    load(&h, MS(500));
    expect_all_ok(&h);
    xks_partition_status status = status_of(&h, 0);
    CHECK(status.sessions_open == 4 && status.sessions_wanted == 12 && status.limit == 4 && status.opens == 0);
    CHECK(get(&h.control->counters[0].max_in_flight) <= 5);
    stop_ha(&h);
}

static void the_pool_grows_back_when_the_token_allows_more(const token *t)
{
    ha h = {0};
    h.control = make_control(t, 1);
    h.control->slots[0].max_sessions = 3;
    take_time(h.control, 0, MS(1));
    start_engine(&h, t, 1, 6, XKS_VERIFY_SAME);
    load(&h, MS(300));
    CHECK(status_of(&h, 0).sessions_open == 2);
    set(&h.control->slots[0].max_sessions, 0);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30); /* it is tried again after ten seconds */
    while (status_of(&h, 0).sessions_open < 6) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(&h, xks_monotonic_ns() + MS(20));
    }
    expect_all_ok(&h);
    stop_ha(&h);
}

static void a_device_that_needs_its_module_reset_gets_it_reset(const token *t)
{
    ha h = start_ha(t, 2, 4, XKS_VERIFY_SAME);
    load(&h, MS(100));
    set(&h.control->slots[0].device_error_epoch, 1);
    set(&h.control->slots[1].device_error_epoch, 1);
    load(&h, MS(300));
    pump_until_answered(&h);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(20);
    while (!status_of(&h, 0).in_service || !status_of(&h, 1).in_service) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(&h, xks_monotonic_ns() + MS(5));
    }
    CHECK(get(&h.control->initialized) >= 2);
    h.submitted = h.ok = 0;
    load(&h, MS(300));
    expect_all_ok(&h);
    stop_ha(&h);
}

/* --- everything at once */

static uint32_t open_descriptors(void)
{
    uint32_t count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

static void random_faults_lose_no_job_and_leak_nothing(const token *t)
{
    const char *seconds = getenv("CHAOS_SECONDS");
    uint64_t end = xks_monotonic_ns() + SECONDS(seconds != NULL ? atoi(seconds) : 5);
    ha h = start_ha(t, 4, 4, XKS_VERIFY_OTHER);
    load(&h, MS(100));
    uint32_t descriptors = open_descriptors();
    srand(1);
    for (uint64_t round = 1; xks_monotonic_ns() < end; round++) {
        xksfault_slot *slot = &h.control->slots[rand() % 4];
        switch (rand() % 8) {
        case 0: set(&slot->hang, 1); break;
        case 1: set(&slot->error_ppm, 1000000); set(&slot->error_rv, CKR_DEVICE_ERROR); break;
        case 2: set(&slot->epoch, round); break;
        case 3: set(&slot->login_epoch, round); break;
        case 4: set(&slot->dead_rv, CKR_DEVICE_ERROR); break;
        case 5: set(&slot->flip_encrypt_ppm, 50000); break;
        case 6: set(&slot->max_sessions, 3); break;
        default: set(&slot->wrong_length_ppm, 50000); break;
        }
        load(&h, MS(50 + rand() % 150));
        for (int i = 0; i < 4 && rand() % 2; i++) {
            xksfault_slot *back = &h.control->slots[i];
            set(&back->hang, 0);
            set(&back->error_rv, 0);
            set(&back->dead_rv, 0);
            set(&back->flip_encrypt_ppm, 0);
            set(&back->max_sessions, 0);
            set(&back->wrong_length_ppm, 0);
        }
    }
    for (int i = 0; i < 4; i++) {
        set(&h.control->slots[i].hang, 0);
        set(&h.control->slots[i].error_rv, 0);
        set(&h.control->slots[i].dead_rv, 0);
        set(&h.control->slots[i].flip_encrypt_ppm, 0);
        set(&h.control->slots[i].max_sessions, 0);
        set(&h.control->slots[i].wrong_length_ppm, 0);
    }
    pump_until_answered(&h); /* no lost job */
    for (uint32_t i = 0; i < 4; i++) {
        expect_in_service(&h, i, true);
    }
    h.submitted = h.ok = h.refused = 0;
    load(&h, MS(500));
    expect_all_ok(&h);
    CHECK(open_descriptors() == descriptors);
    stop_ha(&h);
}

int main(void)
{
    const char *kind = "nss";
    token t = make_token(kind);
    char command[96];
    make_key(&t, "both", true, true);
    CASE(a_partition_that_errs_costs_no_job_and_its_breaker_opens_and_closes);
    CASE(a_partition_that_hangs_costs_no_job_and_threads_are_replaced);
    CASE(a_partition_that_restarts_costs_no_job_and_one_login);
    CASE(sessions_and_logins_lost_are_repaired_even_with_one_partition);
    CASE(a_slow_partition_gets_little_of_the_load);
    CASE(a_job_in_a_hanging_token_is_answered_by_its_deadline_and_its_result_is_wiped);
    CASE(when_everything_is_dead_each_job_is_told_at_once);
    CASE(the_pool_settles_at_what_the_token_allows);
    CASE(the_pool_grows_back_when_the_token_allows_more);
    CASE(a_device_that_needs_its_module_reset_gets_it_reset);
    CASE(random_faults_lose_no_job_and_leak_nothing);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
