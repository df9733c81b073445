/* SPDX-License-Identifier: Apache-2.0 */
/* ha_fixture.h - an engine with several partitions over the fault shim, and load on it.
 *
 * The partitions are virtual slots of the shim, all before one NSS token (so that they hold the same keys), or each before a SoftHSM
 * token of its own.
 */
#ifndef HA_FIXTURE_H
#define HA_FIXTURE_H

#include "engine_fixture.h"
#include "shim/xksfault_control.h"
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

static inline void set(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}

static inline uint64_t get(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}

static inline xksfault_control *make_control(const token *t, uint64_t slots)
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
static inline void take_time(xksfault_control *control, uint32_t slot, uint64_t ns)
{
    static const xksfault_class CLASSES[] = {XKS_FAULT_ENCRYPT, XKS_FAULT_DECRYPT, XKS_FAULT_MESSAGE_ENCRYPT, XKS_FAULT_MESSAGE_DECRYPT};
    for (size_t i = 0; i < 4; i++) {
        control->slots[slot].latency[CLASSES[i]] = (xksfault_latency){XKS_FAULT_FIXED, ns, 0, 0};
    }
}

/* For slots that take any PIN; goes with the process. */
static inline xks_secret *any_pin(void)
{
    xks_secret *pin;
    CHECK_STATUS(XKS_OK, xks_secret_from_bytes((const uint8_t *)"1234", 4, &pin));
    return pin;
}

static inline void start_engine_for(ha *h, const token *t, uint32_t count, uint32_t sessions, xks_verify_policy verify, const char *label)
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

static inline void start_engine(ha *h, const token *t, uint32_t count, uint32_t sessions, xks_verify_policy verify)
{
    start_engine_for(h, t, count, sessions, verify, "both");
}

static inline ha start_ha(const token *t, uint32_t count, uint32_t sessions, xks_verify_policy verify)
{
    ha h = {0};
    h.control = make_control(t, count);
    start_engine(&h, t, count, sessions, verify);
    return h;
}

static inline void stop_ha(ha *h)
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

static inline xks_partition_status status_of(ha *h, uint32_t partition)
{
    xks_partition_status status;
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(h->f.engine, h->partitions[partition], &status));
    return status;
}

/* Take what is answered: right answers are counted, wrong ones too, and each owner is answered once. */
static inline void take(ha *h)
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

static inline void pump_until(ha *h, uint64_t until_ns)
{
    uint64_t now;
    while ((now = xks_monotonic_ns()) < until_ns) {
        struct pollfd wait = {.fd = xks_engine_eventfd(h->f.engine), .events = POLLIN};
        uint64_t left_ms = (until_ns - now) / 1000000U;
        (void)poll(&wait, 1, left_ms < 4 ? (int)left_ms : 4);
        take(h);
    }
}

static inline void pump_until_answered(ha *h)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    while (h->out > 0) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(h, xks_monotonic_ns() + MS(1));
    }
}

/* Encrypts for this long, one every ms and every fourth with a CDIV. */
static inline void load(ha *h, uint64_t duration_ns)
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

static inline void expect_all_ok(ha *h)
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

static inline void expect_in_service(ha *h, uint32_t partition, bool expected)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(10);
    while (status_of(h, partition).in_service != expected) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(h, xks_monotonic_ns() + MS(2));
    }
}

/* Load until the partition's breaker has opened. */
static inline void load_until_out(ha *h, uint32_t partition)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(10);
    while (status_of(h, partition).in_service) {
        CHECK(xks_monotonic_ns() < give_up);
        load(h, MS(50));
    }
}

#endif
