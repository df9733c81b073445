/* SPDX-License-Identifier: Apache-2.0 */
/* The engine with several partitions, over the fault shim: what fails, hangs, restarts, lies or is the wrong key must cost no job.
 *
 * The partitions are virtual slots of the shim, all before one NSS token (so that they hold the same keys), or each before a SoftHSM
 * token of its own. CHAOS_SECONDS (5) says how long the last test goes on.
 */
#include "engine_fixture.h"
#include "shim/xksfault_control.h"
#include <dirent.h>
#include <fcntl.h>

#define MS(n) ((uint64_t)(n) * 1000000U)
#define CKR_DEVICE_ERROR 0x30UL
#define CKR_GENERAL_ERROR 0x5UL
#define MAX_OUT 512

typedef struct ha {
    fixture f;
    xksfault_control *control;
    uint32_t partitions[16];
    uint32_t count;
    uint32_t key;
    uint64_t submitted, ok, refused, wrong;
    uint64_t worked_on_twice; /* answered jobs that a second call may have worked on */
    uint64_t by_status[16];
    uint64_t deadline_ns; /* of each job; long, since a busy machine is not what is tested */
    uint32_t out; /* submitted, not answered */
} ha;

static void set(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}

static uint64_t get(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}

static xksfault_control *make_control(const token *t, uint64_t slots)
{
    char path[96];
    snprintf(path, sizeof path, "%s/control-%d", t->directory, (int)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(xksfault_control)) == 0);
    xksfault_control *control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(control != MAP_FAILED);
    close(fd);
    control->magic = XKS_FAULT_MAGIC;
    control->version = XKS_FAULT_VERSION;
    control->size = sizeof *control;
    control->slot_count = slots;
    control->flags = XKS_FAULT_STRICT | XKS_FAULT_CHECK_IVS;
    for (uint64_t i = 0; i < slots; i++) {
        control->slots[i].login_mode = XKS_FAULT_LOGIN_ANY_PIN;
        snprintf(control->slots[i].real_label, sizeof control->slots[i].real_label, "%s", t->label);
    }
    setenv("XKSFAULT_CONTROL", path, 1);
    setenv("XKSFAULT_MODULE", t->path, 1);
    return control;
}

/* Every operation of the slot takes this long, by whichever calls it is done. */
static void take_time(xksfault_control *control, uint32_t slot, uint64_t ns)
{
    static const xksfault_class CLASSES[] = {XKS_FAULT_ENCRYPT, XKS_FAULT_DECRYPT, XKS_FAULT_MESSAGE_ENCRYPT, XKS_FAULT_MESSAGE_DECRYPT};
    for (size_t i = 0; i < 4; i++) {
        control->slots[slot].latency[CLASSES[i]] = (xksfault_latency){XKS_FAULT_FIXED, ns, 0, 0};
    }
}

/* For slots that take any PIN; goes with the process. */
static xks_secret *any_pin(void)
{
    xks_secret *pin;
    CHECK_STATUS(XKS_OK, xks_secret_from_bytes((const uint8_t *)"1234", 4, &pin));
    return pin;
}

static void start_engine_for(ha *h, const token *t, uint32_t count, uint32_t sessions, xks_verify_policy verify, const char *label)
{
    static const char *const LABELS[] = {"p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"};
    xks_engine_config config = {.max_queued = 4096, .probe_interval_ns = SECONDS(1), .retry_budget = 0.2, .hedge_budget = 0.05, .seed = 7};
    xks_secret *pin = any_pin();
    uint32_t module;
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &h->f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(h->f.engine, XKS_SHIM, t->parameters[0] != '\0' ? t->parameters : NULL, &module, error));
    for (uint32_t i = 0; i < count; i++) {
        xks_partition_config partition = {.name = LABELS[i], .module = module, .token_label = LABELS[i], .slot = XKS_NO_SLOT,
                                          .pin = pin, .profile = t->profile, .sessions = sessions};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(h->f.engine, &partition, &h->partitions[i], error));
    }
    h->count = count;
    h->deadline_ns = SECONDS(2);
    CHECK_STATUS(XKS_OK, xks_engine_add_group(h->f.engine, h->partitions, count, verify, &h->f.group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(h->f.engine, error));
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&h->f.pool));
    h->key = add_key(&h->f, label);
}

static void start_engine(ha *h, const token *t, uint32_t count, uint32_t sessions, xks_verify_policy verify)
{
    start_engine_for(h, t, count, sessions, verify, "both");
}

static ha start_ha(const token *t, uint32_t count, uint32_t sessions, xks_verify_policy verify)
{
    ha h = {0};
    h.control = make_control(t, count);
    start_engine(&h, t, count, sessions, verify);
    return h;
}

static void stop_ha(ha *h)
{
    CHECK(h->out == 0);
    for (uint32_t i = 0; i < h->count; i++) {
        set(&h->control->slots[i].hang, 0);
    }
    stop(&h->f);
    for (uint32_t i = 0; i < h->count; i++) {
        CHECK(get(&h->control->counters[i].sessions_open) == 0 && get(&h->control->counters[i].in_flight) == 0);
    }
    CHECK(get(&h->control->shared_sessions) == 0 && get(&h->control->iv_repeats) == 0 && get(&h->control->small_buffers) == 0);
}

static xks_partition_status status_of(ha *h, uint32_t partition)
{
    xks_partition_status status;
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(h->f.engine, h->partitions[partition], &status));
    return status;
}

/* Take what is answered: right answers are counted, wrong ones too, and each owner is answered once. */
static void take(ha *h)
{
    for (xks_job *job = xks_engine_drain(h->f.engine), *next; job != NULL; job = next) {
        next = job->next;
        CHECK(job->owner == h && h->out > 0);
        h->out--;
        h->by_status[job->status]++;
        if (job->status == XKS_OK) {
            h->ok++;
            CHECK(job->route.calls >= 1);
            h->worked_on_twice += job->route.calls > 1 ? 1 : 0;
            CHECK(job->finished_ns <= job->deadline_ns); /* no answer after the deadline */
            if (job->operation == XKS_DECRYPT) {
                h->wrong += job->output_len != job->input_len || (job->output_len > 0 && job->output[0] != 'p') ? 1 : 0;
            }
        } else {
            CHECK(job->output_len == 0);
        }
        xks_job_release(h->f.pool, job);
    }
}

static void pump_until(ha *h, uint64_t until_ns)
{
    uint64_t now;
    while ((now = xks_monotonic_ns()) < until_ns) {
        struct pollfd wait = {.fd = xks_engine_eventfd(h->f.engine), .events = POLLIN};
        uint64_t left_ms = (until_ns - now) / 1000000U;
        (void)poll(&wait, 1, left_ms < 4 ? (int)left_ms : 4);
        take(h);
    }
}

static void pump_until_answered(ha *h)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    while (h->out > 0) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(h, xks_monotonic_ns() + MS(1));
    }
}

/* Encrypts for this long, one every ms and every fourth with a CDIV. */
static void load(ha *h, uint64_t duration_ns)
{
    uint64_t due = xks_monotonic_ns(), end = due + duration_ns;
    for (; due < end; due += MS(1)) {
        pump_until(h, due);
        if (h->out >= MAX_OUT) {
            continue;
        }
        xks_job *job = job_for(&h->f, h->key, XKS_ENCRYPT, 8, 48);
        job->owner = h;
        job->want_cdiv = h->submitted % 4 == 0;
        job->deadline_ns = xks_monotonic_ns() + h->deadline_ns;
        h->submitted++;
        if (xks_engine_submit(h->f.engine, job) != XKS_OK) {
            h->refused++;
            xks_job_release(h->f.pool, job);
            continue;
        }
        h->out++;
        xks_engine_flush(h->f.engine);
    }
}

static void expect_all_ok(ha *h)
{
    pump_until_answered(h);
    if (h->ok != h->submitted) {
        for (int i = 0; i < 16; i++) {
            fprintf(stderr, "%s%d: %lu", i ? ", " : "by status: ", i, (unsigned long)h->by_status[i]);
        }
        fprintf(stderr, "; refused %lu of %lu\n", (unsigned long)h->refused, (unsigned long)h->submitted);
        for (uint32_t i = 0; i < h->count; i++) {
            xks_partition_status p = status_of(h, i);
            fprintf(stderr, "p%u: state %d %s in_flight %u limit %u sessions %u lost %u median %lu p95 %lu oldest %lu opens %lu %s | %s\n", i, p.state,
                    p.route_reason, p.in_flight, p.limit, p.sessions_open, p.lost_threads, p.median_ns, p.p95_ns, p.oldest_call_ns,
                    p.opens, p.last_open_reason, p.reason);
        }
    }
    CHECK(h->ok == h->submitted && h->wrong == 0);
}

static void expect_in_service(ha *h, uint32_t partition, bool expected)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(10);
    while (status_of(h, partition).in_service != expected) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(h, xks_monotonic_ns() + MS(2));
    }
}

/* Load until the partition's breaker has opened. */
static void load_until_out(ha *h, uint32_t partition)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(10);
    while (status_of(h, partition).in_service) {
        CHECK(xks_monotonic_ns() < give_up);
        load(h, MS(50));
    }
}

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
    CHECK(h.worked_on_twice >= 1); /* the retries */
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
    uint64_t at_most = status.lost_threads + 1; /* the keeper's probe hangs as well; nobody in the place of a lost thread does */
    load(&h, MS(500));
    CHECK(get(&h.control->counters[0].hung) <= at_most);
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
        set(&h.control->slots[0].login_epoch, round);
        load(&h, MS(150));
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

/* --- lies */

/* Of three partitions two flip bits of ciphertexts, one of plaintexts. */
static void lie(xksfault_control *control, uint64_t encrypt_ppm, uint64_t decrypt_ppm)
{
    set(&control->slots[0].flip_encrypt_ppm, encrypt_ppm);
    set(&control->slots[1].flip_decrypt_ppm, decrypt_ppm);
    set(&control->slots[2].flip_encrypt_ppm, encrypt_ppm);
}

static void bits_that_flip_never_leave_with_a_cdiv(const token *t, xks_verify_policy verify)
{
    ha h = start_ha(t, 3, 4, verify);
    lie(h.control, 200000, 100000);
    uint64_t answered = 0, wrong = 0, end = xks_monotonic_ns() + SECONDS(2);
    while (xks_monotonic_ns() < end) {
        xks_job *sealed = job_for(&h.f, h.key, XKS_ENCRYPT, 8, 48);
        sealed->want_cdiv = true;
        sealed->deadline_ns = xks_monotonic_ns() + MS(500);
        if (xks_engine_submit(h.f.engine, sealed) != XKS_OK) {
            xks_job_release(h.f.pool, sealed);
            continue;
        }
        xks_engine_flush(h.f.engine);
        sealed = await(&h.f, 1);
        if (sealed->status == XKS_OK) {
            /* The shim's faults are off for the judge: what left must open. */
            lie(h.control, 0, 0);
            xks_job *opened = job_for(&h.f, h.key, XKS_DECRYPT, 8, 48);
            memcpy(opened->input, sealed->output, 48);
            memcpy(opened->iv, sealed->iv, sealed->iv_len);
            memcpy(opened->tag, sealed->tag, 16);
            opened->iv_len = sealed->iv_len;
            CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, opened));
            xks_engine_flush(h.f.engine);
            opened = await(&h.f, 1);
            answered++;
            wrong += opened->status != XKS_OK || memcmp(opened->output, sealed->input, 48) != 0 ? 1 : 0;
            xks_job_release(h.f.pool, opened);
            lie(h.control, 200000, 100000);
        }
        xks_job_release(h.f.pool, sealed);
    }
    CHECK(answered > 100 && wrong == 0);
    uint64_t found = 0;
    for (uint32_t i = 0; i < 3; i++) {
        found += status_of(&h, i).faults + status_of(&h, i).opens;
    }
    CHECK(found > 0);
    xks_engine_totals totals;
    xks_engine_totals_read(h.f.engine, &totals);
    CHECK((totals.checks_elsewhere > 0) == (verify == XKS_VERIFY_OTHER));
    stop_ha(&h);
}

static void bits_that_flip_are_found_by_the_partition_itself(const token *t)
{
    bits_that_flip_never_leave_with_a_cdiv(t, XKS_VERIFY_SAME);
}

static void bits_that_flip_are_found_by_another_partition(const token *t)
{
    bits_that_flip_never_leave_with_a_cdiv(t, XKS_VERIFY_OTHER);
}

static void garbage_from_a_caller_opens_no_breaker(const token *t)
{
    static const uint64_t CODES[] = {0, CKR_GENERAL_ERROR, 0x6, CKR_DEVICE_ERROR};
    for (size_t c = 0; c < 4; c++) {
        ha h = {0};
        int status;
        pid_t pid = fork(); /* a module has one state per process */
        if (pid == 0) {
            h.control = make_control(t, 2);
            h.control->slots[0].tag_rv = h.control->slots[1].tag_rv = CODES[c];
            start_engine(&h, t, 2, 4, XKS_VERIFY_SAME);
            for (int i = 0; i < 300; i++) {
                xks_job *job = job_for(&h.f, h.key, XKS_DECRYPT, 8, 48);
                job->iv_len = 12;
                job->owner = &h;
                CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, job));
                xks_engine_flush(h.f.engine);
                h.out++;
                pump_until_answered(&h);
            }
            CHECK(h.by_status[XKS_NOT_AUTHENTIC] == 300 && status_of(&h, 0).opens == 0 && status_of(&h, 1).opens == 0);
            stop_ha(&h);
            exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
}

static void a_code_that_was_not_learnt_is_settled_by_another_partition(const token *t)
{
    ha h = start_ha(t, 2, 4, XKS_VERIFY_SAME);
    set(&h.control->slots[0].tag_rv, CKR_GENERAL_ERROR); /* after the self-test has learnt another */
    set(&h.control->slots[1].tag_rv, CKR_GENERAL_ERROR);
    for (int i = 0; i < 50; i++) {
        xks_job *job = job_for(&h.f, h.key, XKS_DECRYPT, 8, 48);
        job->iv_len = 12;
        job->owner = &h;
        CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, job));
        xks_engine_flush(h.f.engine);
        h.out++;
        pump_until_answered(&h);
    }
    /* The retry budget bounds how many of them get their second opinion; no breaker opens over any of them. */
    CHECK(h.by_status[XKS_NOT_AUTHENTIC] >= 10 && h.by_status[XKS_NOT_AUTHENTIC] + h.by_status[XKS_UNAVAILABLE] == 50);
    CHECK(status_of(&h, 0).opens == 0 && status_of(&h, 1).opens == 0);
    stop_ha(&h);
}

/* --- keys and tokens that are not what they should be; each slot before a SoftHSM token of its own */

static void an_own_key_of_this_label_is_not_used(const token *t, const char *label)
{
    ha h = {0};
    h.control = make_control(t, 2);
    h.control->flags = 0; /* an encrypt-only key is proven by encrypting the same text again under the same IV */
    for (int i = 0; i < 2; i++) {
        h.control->slots[i].login_mode = XKS_FAULT_LOGIN_AS_REAL;
        snprintf(h.control->slots[i].real_label, sizeof h.control->slots[i].real_label, "t%d", i);
    }
    start_engine_for(&h, t, 2, 2, XKS_VERIFY_SAME, label);
    xks_key_status status[2];
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_STATUS(XKS_OK, xks_engine_key_status(h.f.engine, h.key, h.partitions[i], &status[i]));
    }
    bool first = status[0].state == XKS_KEY_USABLE;
    CHECK(status[first ? 0 : 1].state == XKS_KEY_USABLE && status[first ? 0 : 1].proven);
    CHECK(status[first ? 1 : 0].state == XKS_KEY_DIFFERENT && strstr(status[first ? 1 : 0].reason, "another key") != NULL);
    for (int i = 0; i < 50; i++) {
        xks_job *job = job_for(&h.f, h.key, XKS_ENCRYPT, 8, 48);
        job->owner = &h;
        CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, job));
        xks_engine_flush(h.f.engine);
        h.out++;
        h.submitted++;
        pump_until_answered(&h);
    }
    expect_all_ok(&h);
    CHECK(status_of(&h, first ? 1 : 0).firsts == 0);
    stop_ha(&h);
}

static void an_own_key_under_the_same_label_is_not_used(const token *t)
{
    an_own_key_of_this_label_is_not_used(t, "both");
}

static void an_own_key_that_may_only_encrypt_is_not_used(const token *t)
{
    an_own_key_of_this_label_is_not_used(t, "encrypt");
}

static void the_same_key_that_may_only_encrypt_is_used_on_both(const token *t)
{
    ha h = {0};
    h.control = make_control(t, 2);
    h.control->flags = 0;
    start_engine_for(&h, t, 2, 2, XKS_VERIFY_SAME, "encrypt");
    for (uint32_t i = 0; i < 2; i++) {
        xks_key_status status;
        CHECK_STATUS(XKS_OK, xks_engine_key_status(h.f.engine, h.key, h.partitions[i], &status));
        CHECK(status.state == XKS_KEY_USABLE && status.proven);
    }
    stop_ha(&h);
}

static void two_partitions_that_are_one_token_are_refused(const token *t)
{
    uint32_t module, partitions[2], group, refused = 0;
    xks_engine *engine;
    xks_engine_config config = {.max_queued = 10, .probe_interval_ns = SECONDS(1)};
    xks_partition_status status;
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, t->path, NULL, &module, error));
    for (uint32_t i = 0; i < 2; i++) {
        xks_partition_config partition = {.name = i == 0 ? "one" : "two", .module = module, .token_label = "t0", .slot = XKS_NO_SLOT,
                                          .pin = t->pin, .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, partitions, 2, XKS_VERIFY_SAME, &group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(10)));
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[i], &status));
        refused += status.state == XKS_PARTITION_REFUSED && strstr(status.reason, "is the same token as partition") != NULL ? 1 : 0;
    }
    CHECK(refused == 1);
    CHECK(xks_engine_free(engine) == 0);
}

static void one_file_serves_as_two_modules_with_their_own_state(const token *t)
{
    uint32_t module[2], partitions[2], group;
    xks_engine *engine;
    xks_engine_config config = {.max_queued = 10, .probe_interval_ns = SECONDS(1)};
    xks_partition_status status;
    char conf[96];
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    for (uint32_t i = 0; i < 2; i++) {
        snprintf(conf, sizeof conf, "%s/%s", t->directory, i == 0 ? "conf" : "conf-empty");
        setenv("SOFTHSM2_CONF", conf, 1);
        CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, t->path, NULL, &module[i], error));
        xks_partition_config partition = {.name = i == 0 ? "one" : "two", .module = module[i], .token_label = "t0",
                                          .slot = XKS_NO_SLOT, .pin = t->pin, .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, partitions, 2, XKS_VERIFY_SAME, &group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(10)));
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[0], &status));
    CHECK(status.state == XKS_PARTITION_READY);
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[1], &status));
    CHECK(status.state == XKS_PARTITION_REFUSED && strstr(status.reason, "there is no token") != NULL);
    CHECK(xks_engine_free(engine) == 0);
}

/* --- keys that come and go */

static void an_index_that_is_used_again_never_serves_the_former_key(const token *t)
{
    ha h = start_ha(t, 2, 2, XKS_VERIFY_SAME);
    take_time(h.control, 0, MS(2));
    take_time(h.control, 1, MS(2));
    for (int round = 0; round < 40; round++) {
        uint32_t other;
        xks_job *jobs[6];
        CHECK_STATUS(XKS_OK, xks_engine_key_add(h.f.engine, h.f.group, round % 2 ? "other" : "both2", 5, &other, error));
        CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(5)));
        for (int i = 0; i < 6; i++) {
            jobs[i] = job_for(&h.f, other, XKS_ENCRYPT, 8, 48);
            CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, jobs[i]));
        }
        xks_engine_flush(h.f.engine);
        xks_engine_key_remove(h.f.engine, other); /* while they are queued and running */
        for (xks_job *job = await(&h.f, 6), *next; job != NULL; job = next) {
            next = job->next;
            CHECK(job->status == XKS_OK || job->status == XKS_NOT_FOUND);
            xks_job_release(h.f.pool, job);
        }
    }
    stop_ha(&h);
}

static void a_hundred_keys_are_read_in_bulk(const token *t)
{
    ha h = start_ha(t, 1, 2, XKS_VERIFY_SAME);
    uint32_t keys[100];
    char label[16];
    uint64_t finds = get(&h.control->counters[0].calls[XKS_FAULT_FIND]);
    for (uint32_t i = 0; i < 100; i++) {
        snprintf(label, sizeof label, "many-%u", i);
        CHECK_STATUS(XKS_OK, xks_engine_key_add(h.f.engine, h.f.group, label, strlen(label), &keys[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(10)));
    for (uint32_t i = 0; i < 100; i++) {
        xks_key_status status;
        CHECK_STATUS(XKS_OK, xks_engine_key_status(h.f.engine, keys[i], h.partitions[0], &status));
        CHECK(status.state == (i < 60 ? XKS_KEY_USABLE : XKS_KEY_ABSENT));
    }
    finds = get(&h.control->counters[0].calls[XKS_FAULT_FIND]) - finds;
    CHECK(finds <= 100); /* one for the bulk, one for each that the token has not, some for those asked before there were many */
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
    char label[16], command[96];
    make_key(&t, "both", true, true);
    make_key(&t, "both2", true, true);
    make_key(&t, "other", true, true);
    make_key(&t, "encrypt", true, false);
    for (int i = 0; i < 60; i++) {
        snprintf(label, sizeof label, "many-%d", i);
        make_key(&t, label, true, true);
    }
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
    CASE(bits_that_flip_are_found_by_the_partition_itself);
    CASE(bits_that_flip_are_found_by_another_partition);
    CASE(garbage_from_a_caller_opens_no_breaker);
    CASE(a_code_that_was_not_learnt_is_settled_by_another_partition);
    CASE(an_index_that_is_used_again_never_serves_the_former_key);
    CASE(a_hundred_keys_are_read_in_bulk);
    CASE(the_same_key_that_may_only_encrypt_is_used_on_both);
    CASE(random_faults_lose_no_job_and_leak_nothing);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);

    kind = "softhsm";
    t = make_token(kind);
    make_key(&t, "both", true, true);
    make_key(&t, "encrypt", true, false);
    run("softhsm2-util --init-token --free --label t1 --pin 1234 --so-pin 12345678 >/dev/null");
    t.label = "t1";
    make_key(&t, "both", true, true);
    make_key(&t, "encrypt", true, false);
    t.label = "t0";
    snprintf(command, sizeof command, "mkdir %s/empty", t.directory);
    run(command);
    snprintf(label, sizeof label, "conf-empty");
    char text[256];
    snprintf(text, sizeof text, "echo 'directories.tokendir = %s/empty' > %s/%s", t.directory, t.directory, label);
    run(text);
    CASE(an_own_key_under_the_same_label_is_not_used);
    CASE(an_own_key_that_may_only_encrypt_is_not_used);
    CASE(two_partitions_that_are_one_token_are_refused);
    CASE(one_file_serves_as_two_modules_with_their_own_state);
    xks_secret_free(t.pin);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
