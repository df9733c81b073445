/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens: latencies, how many calls are served at once, hangs, and the histogram of it all. */
#include "shim_fixture.h"

/* The least time of five calls, so that a busy machine does not count. */
static uint64_t time_of(fixture *t, CK_RV (*call)(fixture *))
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t begin = now_ns();
        CHECK_RV(CKR_OK, call(t));
        uint64_t took = now_ns() - begin;
        least = took < least ? took : least;
    }
    return least;
}

static CK_RV one_round_trip(fixture *t)
{
    return round_trip(t, t->session, t->key);
}

static CK_RV one_find(fixture *t)
{
    return find_key(t, t->session) == t->key ? CKR_OK : CKR_GENERAL_ERROR;
}

static CK_RV one_open(fixture *t)
{
    return t->f->C_CloseSession(open_session(t, 0));
}

static CK_RV one_get_attribute(fixture *t)
{
    CK_BBOOL value;
    CK_ATTRIBUTE attribute = {CKA_ENCRYPT, &value, 1};
    return t->f->C_GetAttributeValue(t->session, t->key, &attribute, 1);
}

static CK_RV one_random(fixture *t)
{
    CK_BYTE bytes[8];
    return t->f->C_GenerateRandom(t->session, bytes, sizeof bytes);
}

static void each_class_of_functions_has_its_own_latency(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    const struct {
        xksfault_class class;
        CK_RV (*call)(fixture *);
    } cases[] = {
        {XKS_FAULT_ENCRYPT, one_round_trip},      {XKS_FAULT_DECRYPT, one_round_trip}, {XKS_FAULT_ENCRYPT_INIT, one_round_trip},
        {XKS_FAULT_DECRYPT_INIT, one_round_trip}, {XKS_FAULT_FIND, one_find},          {XKS_FAULT_OPEN_SESSION, one_open},
        {XKS_FAULT_GET_ATTRIBUTE, one_get_attribute}, {XKS_FAULT_GENERATE, one_random}, {XKS_FAULT_OTHER, one_session_info},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK(time_of(&t, cases[i].call) < 19 * MS);
        set_latency(&t, 0, cases[i].class, XKS_FAULT_FIXED, 20 * MS);
        uint64_t took = time_of(&t, cases[i].call);
        CHECK(took >= 20 * MS && took < 60 * MS);
        set_latency(&t, 0, cases[i].class, XKS_FAULT_NONE, 0);
    }
    stop(&t);
}

static void multiplier_and_network_lengthen_a_latency_and_nothing_else(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    set(&t.control->slots[0].multiplier_permille, 10000);
    set(&t.control->slots[0].network_ns, 15 * MS);
    CHECK(time_of(&t, one_round_trip) < 10 * MS);
    set_latency(&t, 0, XKS_FAULT_ENCRYPT, XKS_FAULT_FIXED, 2 * MS);
    uint64_t took = time_of(&t, one_round_trip);
    CHECK(took >= 35 * MS && took < 50 * MS);
    set(&t.control->slots[0].multiplier_permille, 500);
    set(&t.control->slots[0].network_ns, 0);
    took = time_of(&t, one_round_trip);
    CHECK(took >= 1 * MS && took < 10 * MS);
    stop(&t);
}

/* Each distribution against its own mean, from 400 calls of about 100 us. */
static void distributions_have_their_means(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    set(&t.control->seed, 7);
    xksfault_latency *latency = &t.control->slots[0].latency[XKS_FAULT_OTHER];
    const struct {
        xksfault_distribution kind;
        uint64_t a_ns, b, c_ns, least_mean_ns, most_mean_ns;
    } cases[] = {
        {XKS_FAULT_FIXED, 100000, 0, 0, 100000, 900000},
        {XKS_FAULT_EXP, 200000, 0, 0, 160000, 900000},
        {XKS_FAULT_LOGNORMAL, 100000, 1000000, 0, 130000, 900000}, /* mean = median * e^0.5 */
        {XKS_FAULT_BIMODAL, 10000, 100000, 2000000, 120000, 900000}, /* 0.1 * 2 ms + 0.9 * 10 us = 209 us */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        set(&latency->a_ns, cases[i].a_ns);
        set(&latency->b, cases[i].b);
        set(&latency->c_ns, cases[i].c_ns);
        set(&latency->kind, cases[i].kind);
        uint64_t begin = now_ns();
        for (int n = 0; n < 400; n++) {
            CHECK_RV(CKR_OK, one_session_info(&t));
        }
        uint64_t mean = (now_ns() - begin) / 400;
        CHECK(mean >= cases[i].least_mean_ns && mean <= cases[i].most_mean_ns);
    }
    stop(&t);
}

typedef struct worker {
    fixture *t;
    CK_SLOT_ID slot;
    int calls;
    CK_RV rv; /* of the last call */
    pthread_t thread;
} worker;

static void *work(void *context)
{
    worker *w = context;
    CK_SESSION_HANDLE session = open_session(w->t, w->slot);
    CK_OBJECT_HANDLE key = find_key(w->t, session);
    CK_BYTE iv[12], out[80];
    for (int i = 0; i < w->calls && w->rv == CKR_OK; i++) {
        CK_ULONG len = sizeof out;
        w->rv = encrypt(w->t, session, key, iv, out, &len);
    }
    (void)w->t->f->C_CloseSession(session);
    return NULL;
}

static void run_workers(fixture *t, worker *workers, size_t count, int calls)
{
    for (size_t i = 0; i < count; i++) {
        workers[i] = (worker){.t = t, .calls = calls};
        CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    }
}

static void join_workers(worker *workers, size_t count, CK_RV expected)
{
    for (size_t i = 0; i < count; i++) {
        CHECK(pthread_join(workers[i].thread, NULL) == 0);
        CHECK_RV(expected, workers[i].rv);
    }
}

/* Three calls by each of eight threads; the least time of so many tries: a busy machine only adds. */
static uint64_t time_of_workers(fixture *t, int tries)
{
    worker workers[8];
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < tries; i++) {
        uint64_t begin = now_ns();
        run_workers(t, workers, 8, 3);
        join_workers(workers, 8, CKR_OK);
        uint64_t took = now_ns() - begin;
        least = took < least ? took : least;
    }
    return least;
}

static void servers_limit_the_throughput(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    set_latency(&t, 0, XKS_FAULT_ENCRYPT, XKS_FAULT_FIXED, 50 * MS);
    CHECK(time_of_workers(&t, 5) < 500 * MS); /* 150 ms of work, side by side */
    set(&t.control->slots[0].servers, 2);
    CHECK(time_of_workers(&t, 1) >= 600 * MS); /* 1200 ms of work for two */
    CHECK(get(&t.control->counters[0].max_in_flight) == 8);
    stop(&t);
}

static void a_global_lock_lets_one_call_in_at_a_time(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    set_latency(&t, 0, XKS_FAULT_ENCRYPT, XKS_FAULT_FIXED, 30 * MS);
    CHECK(time_of_workers(&t, 5) < 500 * MS);
    set(&t.control->flags, XKS_FAULT_GLOBAL_LOCK);
    CHECK(time_of_workers(&t, 1) >= 720 * MS);
    stop(&t);
}

static void await_word(const uint64_t *at, uint64_t expected)
{
    uint64_t give_up = now_ns() + 10000ULL * MS;
    while (get(at) != expected) {
        CHECK(now_ns() < give_up);
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
}

static void a_hang_holds_every_call_until_it_is_released(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    worker workers[4];
    CK_SESSION_HANDLE other = open_session(&t, 1);
    set(&t.control->slots[0].hang_classes, 1U << XKS_FAULT_ENCRYPT);
    set(&t.control->slots[0].hang, 1);
    run_workers(&t, workers, 4, 1);
    await_word(&t.control->counters[0].hung, 4);
    CHECK(get(&t.control->counters[0].in_flight) == 4);
    CHECK_RV(CKR_OK, one_session_info(&t)); /* another class goes on, and another slot */
    CHECK_RV(CKR_OK, t.f->C_CloseSession(other));
    uint64_t released = now_ns();
    set(&t.control->slots[0].hang, 0);
    join_workers(workers, 4, CKR_OK);
    CHECK(now_ns() - released < 2000 * MS);
    CHECK(get(&t.control->counters[0].hung) == 0);
    stop(&t);
}

static void a_hang_ends_by_itself_with_its_code(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    worker workers[3];
    set(&t.control->slots[0].hang_max_ms, 60);
    set(&t.control->slots[0].hang_rv, CKR_DEVICE_ERROR);
    set(&t.control->slots[0].hang_classes, 1U << XKS_FAULT_ENCRYPT);
    set(&t.control->slots[0].hang, 1);
    uint64_t begin = now_ns();
    run_workers(&t, workers, 3, 1);
    join_workers(workers, 3, CKR_DEVICE_ERROR);
    uint64_t took = now_ns() - begin;
    CHECK(took >= 60 * MS && took < 5000 * MS);
    set(&t.control->slots[0].hang_rv, CKR_OK);
    begin = now_ns();
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    CHECK(now_ns() - begin >= 60 * MS);
    stop(&t);
}

static void times_are_counted_in_the_histogram(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    set(&t.control->slots[0].latency[XKS_FAULT_ENCRYPT].a_ns, 10 * MS);
    set(&t.control->slots[0].latency[XKS_FAULT_ENCRYPT].kind, XKS_FAULT_FIXED);
    for (int i = 0; i < 5; i++) {
        CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    }
    /* 2^23 ns = 8.4 ms is the start of bucket (23 - 10) * 16 */
    uint64_t fast = 0, slow = 0;
    for (int i = 0; i < XKS_FAULT_HISTOGRAM_BUCKETS; i++) {
        *(i < 13 * 16 ? &fast : &slow) += get(&t.control->counters[0].histogram[i]);
    }
    CHECK(fast + slow == 10 && slow >= 5);
    CHECK(get(&t.control->counters[0].calls[XKS_FAULT_ENCRYPT]) == 5 && get(&t.control->counters[0].in_flight) == 0);
    stop(&t);
}

int main(void)
{
    ON_BOTH(each_class_of_functions_has_its_own_latency);
    ON_BOTH(multiplier_and_network_lengthen_a_latency_and_nothing_else);
    ON("nss", distributions_have_their_means);
    ON_BOTH(servers_limit_the_throughput);
    ON_BOTH(a_global_lock_lets_one_call_in_at_a_time);
    ON_BOTH(a_hang_holds_every_call_until_it_is_released);
    ON_BOTH(a_hang_ends_by_itself_with_its_code);
    ON_BOTH(times_are_counted_in_the_histogram);
    return 0;
}
