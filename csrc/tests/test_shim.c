/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens, SoftHSM2 and NSS softoken: virtual slots, time, hangs, errors, restarts, sessions, logins. */
#include "shim_fixture.h"

static void every_slot_has_its_own_name_and_all_have_the_key(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 3);
    CK_SLOT_ID ids[8];
    CK_ULONG count = 8;
    CK_TOKEN_INFO info[3];
    strcpy(t.control->slots[2].label, "third");
    CHECK_RV(CKR_OK, t.f->C_GetSlotList(CK_TRUE, ids, &count));
    CHECK(count == 3);
    for (CK_ULONG i = 0; i < 3; i++) {
        CK_SESSION_HANDLE session = open_session(&t, ids[i]);
        CHECK_RV(CKR_OK, t.f->C_GetTokenInfo(ids[i], &info[i]));
        if (softhsm && i > 0) {
            CHECK_RV(CKR_OK, login(&t, session));
        }
        CK_OBJECT_HANDLE key = find_key(&t, session);
        CHECK(i == 0 ? key == t.key : key != t.key && key != CK_INVALID_HANDLE);
        CHECK_RV(CKR_OK, round_trip(&t, session, key));
    }
    CHECK(memcmp(info[0].label, "p0      ", 8) == 0 && memcmp(info[1].label, "p1      ", 8) == 0);
    CHECK(memcmp(info[2].label, "third   ", 8) == 0);
    CHECK(memcmp(info[0].serialNumber, info[1].serialNumber, 16) != 0 && memcmp(info[1].serialNumber, info[2].serialNumber, 16) != 0);
    CHECK(memcmp(info[0].manufacturerID, info[1].manufacturerID, 32) == 0);
    CHECK_RV(CKR_SLOT_ID_INVALID, t.f->C_GetTokenInfo(3, &info[0]));
    stop(&t);
}

static void without_virtual_slots_the_real_tokens_are_shown(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 0);
    load(&t);
    CHECK_RV(CKR_OK, initialize(&t));
    CK_SLOT_ID ids[8];
    CK_ULONG count = 8;
    bool found = false;
    CHECK_RV(CKR_OK, t.f->C_GetSlotList(CK_TRUE, ids, &count));
    CHECK(count >= 1);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info;
        CHECK_RV(CKR_OK, t.f->C_GetTokenInfo(ids[i], &info));
        CHECK(memcmp(info.label, "p0 ", 3) != 0);
        found = found || memcmp(info.label, softhsm ? "t0  " : "NSS Generic", softhsm ? 4 : 11) == 0;
    }
    CHECK(found);
    stop(&t);
}

static void a_login_is_of_one_slot(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_UTF8CHAR wrong[] = "9999";
    CK_SESSION_HANDLE other = open_session(&t, 1);
    CK_SESSION_INFO info;
    if (!softhsm) {
        set(&t.control->slots[1].login_mode, XKS_FAULT_LOGIN_ANY_PIN);
    }
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(other, &info));
    CHECK(info.state == CKS_RW_PUBLIC_SESSION && info.slotID == 1);
    CHECK(find_key(&t, other) == CK_INVALID_HANDLE);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    if (softhsm) {
        CHECK_RV(CKR_PIN_INCORRECT, t.f->C_Login(other, CKU_USER, wrong, 4));
        CHECK(find_key(&t, other) == CK_INVALID_HANDLE);
    }
    CHECK_RV(CKR_OK, login(&t, other));
    CHECK_RV(CKR_USER_ALREADY_LOGGED_IN, login(&t, other));
    CK_OBJECT_HANDLE key = find_key(&t, other);
    CHECK_RV(CKR_OK, round_trip(&t, other, key));
    CHECK_RV(CKR_OK, t.f->C_Logout(other));
    CHECK_RV(CKR_USER_NOT_LOGGED_IN, round_trip(&t, other, key));
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    stop(&t);
}

static void closing_the_last_session_of_a_slot_logs_out(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_SESSION_HANDLE second = open_session(&t, 0);
    CHECK_RV(CKR_OK, t.f->C_CloseSession(t.session));
    CHECK(find_key(&t, second) == t.key);
    CHECK_RV(CKR_OK, t.f->C_CloseSession(second));
    CHECK_RV(CKR_SESSION_HANDLE_INVALID, t.f->C_CloseSession(second));
    second = open_session(&t, 0);
    CHECK(find_key(&t, second) == CK_INVALID_HANDLE);
    CHECK_RV(CKR_OK, login(&t, second));
    CHECK(find_key(&t, second) != CK_INVALID_HANDLE);
    stop(&t);
}

static void set_latency(fixture *t, uint32_t slot, xksfault_class class, xksfault_distribution kind, uint64_t a_ns)
{
    set(&t->control->slots[slot].latency[class].a_ns, a_ns);
    set(&t->control->slots[slot].latency[class].kind, kind);
}

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

static CK_RV one_session_info(fixture *t)
{
    CK_SESSION_INFO info;
    return t->f->C_GetSessionInfo(t->session, &info);
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

static void errors_come_at_their_rate_and_leave_the_session_usable(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    xksfault_slot *slot = &t.control->slots[0];
    set(&slot->error_classes, 1U << XKS_FAULT_ENCRYPT | 1U << XKS_FAULT_DECRYPT);
    set(&slot->error_rv, CKR_DEVICE_ERROR);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key)); /* a rate of 0 */
    set(&slot->error_ppm, 1000000);
    CHECK_RV(CKR_DEVICE_ERROR, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_DEVICE_ERROR, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_OK, one_session_info(&t)); /* another class */
    set(&slot->error_ppm, 300000);
    int failed = 0;
    for (int i = 0; i < 500; i++) {
        CK_RV rv = round_trip(&t, t.session, t.key); /* two draws */
        CHECK(rv == CKR_OK || rv == CKR_DEVICE_ERROR);
        failed += rv != CKR_OK;
    }
    CHECK(failed > 180 && failed < 330); /* 51 % of 500 */
    set(&slot->error_ppm, 1000000);
    set(&slot->error_times, 2);
    CHECK_RV(CKR_DEVICE_ERROR, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_DEVICE_ERROR, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    CHECK(get(&slot->error_rv) == CKR_OK && get(&t.control->counters[0].errors[XKS_FAULT_ENCRYPT]) > 0);
    stop(&t);
}

static void an_error_takes_the_time_of_the_call_unless_it_comes_at_once(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    xksfault_slot *slot = &t.control->slots[0];
    set_latency(&t, 0, XKS_FAULT_ENCRYPT, XKS_FAULT_FIXED, 500 * MS);
    set(&slot->error_ppm, 1000000);
    set(&slot->error_classes, 1U << XKS_FAULT_ENCRYPT);
    set(&slot->error_rv, CKR_FUNCTION_FAILED);
    uint64_t begin = now_ns();
    CHECK_RV(CKR_FUNCTION_FAILED, round_trip(&t, t.session, t.key));
    CHECK(now_ns() - begin >= 500 * MS);
    set(&slot->error_at_once, 1);
    begin = now_ns();
    CHECK_RV(CKR_FUNCTION_FAILED, round_trip(&t, t.session, t.key));
    CHECK(now_ns() - begin < 400 * MS);
    stop(&t);
}

static void a_dead_slot_fails_at_once_and_the_others_do_not(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_SESSION_HANDLE other = open_session(&t, 1), session;
    CK_SESSION_INFO info;
    set_latency(&t, 0, XKS_FAULT_ENCRYPT, XKS_FAULT_FIXED, 1000 * MS);
    set(&t.control->slots[0].dead_rv, CKR_TOKEN_NOT_PRESENT);
    uint64_t begin = now_ns();
    CHECK_RV(CKR_TOKEN_NOT_PRESENT, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_TOKEN_NOT_PRESENT, one_session_info(&t));
    CHECK_RV(CKR_TOKEN_NOT_PRESENT, try_open(&t, 0, &session));
    CHECK(now_ns() - begin < 500 * MS);
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(other, &info));
    set(&t.control->slots[0].dead_rv, CKR_OK);
    set_latency(&t, 0, XKS_FAULT_ENCRYPT, XKS_FAULT_NONE, 0);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    stop(&t);
}

static void a_restart_ends_sessions_logins_and_handles_of_its_slot(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_SESSION_HANDLE kept = open_session(&t, 1), stale = open_session(&t, 0);
    CK_OBJECT_HANDLE old = t.key;
    set(&t.control->slots[0].epoch, 1);
    CHECK_RV(CKR_SESSION_HANDLE_INVALID, round_trip(&t, t.session, t.key));
    t.session = open_session(&t, 0); /* which closes what is left of the old ones */
    CHECK(get(&t.control->counters[0].sessions_open) == 1);
    CHECK_RV(CKR_SESSION_HANDLE_INVALID, t.f->C_CloseSession(stale));
    if (softhsm) {
        CHECK(find_key(&t, t.session) == CK_INVALID_HANDLE);
        CHECK_RV(CKR_OK, login(&t, t.session));
        t.key = find_key(&t, t.session);
    } else {
        t.key = make_key(&t, t.session); /* a session key of NSS is gone with its session */
    }
    CHECK(t.key != CK_INVALID_HANDLE && t.key != old);
    CHECK_RV(CKR_KEY_HANDLE_INVALID, round_trip(&t, t.session, old));
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_OK, t.f->C_CloseSession(kept));
    stop(&t);
}

static void stable_handles_survive_a_restart_if_asked(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    set(&t.control->flags, XKS_FAULT_STABLE_HANDLES);
    set(&t.control->slots[0].epoch, 1);
    CHECK_RV(CKR_SESSION_HANDLE_INVALID, one_session_info(&t));
    t.session = open_session(&t, 0);
    CHECK_RV(CKR_OK, login(&t, t.session));
    CHECK(find_key(&t, t.session) == t.key);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    stop(&t);
}

static void a_lost_login_needs_only_a_login(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    if (!softhsm) {
        set(&t.control->slots[0].login_mode, XKS_FAULT_LOGIN_ANY_PIN);
        CHECK_RV(CKR_USER_NOT_LOGGED_IN, round_trip(&t, t.session, t.key));
        CHECK_RV(CKR_OK, login(&t, t.session));
    }
    CK_BYTE iv[12] = {9}, plain[16] = {0}, out[80];
    CK_ULONG len = sizeof out;
    CHECK_RV(CKR_OK, encrypt_init(&t, t.session, t.key, iv, 12));
    set(&t.control->slots[0].login_epoch, 1);
    CHECK_RV(CKR_USER_NOT_LOGGED_IN, t.f->C_Encrypt(t.session, plain, sizeof plain, out, &len));
    CHECK_RV(CKR_USER_NOT_LOGGED_IN, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_OK, login(&t, t.session));
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    CHECK(get(&t.control->counters[0].logins) == 2);
    stop(&t);
}

static void sessions_have_a_limit(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_SESSION_HANDLE sessions[3];
    set(&t.control->slots[0].max_sessions, 3);
    sessions[1] = open_session(&t, 0);
    sessions[2] = open_session(&t, 0);
    CHECK_RV(CKR_SESSION_COUNT, try_open(&t, 0, &sessions[0]));
    sessions[0] = open_session(&t, 1);
    CHECK_RV(CKR_OK, t.f->C_CloseSession(sessions[1]));
    sessions[1] = open_session(&t, 0);
    CHECK_RV(CKR_SESSION_COUNT, try_open(&t, 0, &sessions[0]));
    CHECK(get(&t.control->counters[0].sessions_open) == 3 && get(&t.control->counters[0].sessions_opened) == 4);
    CHECK_RV(CKR_OK, t.f->C_CloseAllSessions(0));
    CHECK(get(&t.control->counters[0].sessions_open) == 0);
    stop(&t);
}

static void logins_are_refused_and_counted(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_SESSION_HANDLE session = open_session(&t, 1);
    set(&t.control->slots[1].login_mode, XKS_FAULT_LOGIN_ANY_PIN);
    set(&t.control->slots[1].login_rv, CKR_PIN_INCORRECT);
    CHECK_RV(CKR_PIN_INCORRECT, login(&t, session));
    CHECK_RV(CKR_PIN_INCORRECT, login(&t, session));
    CHECK(get(&t.control->counters[1].calls[XKS_FAULT_LOGIN]) == 2 && get(&t.control->counters[1].logins) == 0);
    set(&t.control->slots[1].login_rv, CKR_OK);
    CHECK_RV(CKR_OK, login(&t, session));
    CHECK(get(&t.control->counters[1].calls[XKS_FAULT_LOGIN]) == 3 && get(&t.control->counters[1].logins) == 1);
    stop(&t);
}

static void a_device_error_ends_with_a_new_initialization_only(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_SESSION_HANDLE other = open_session(&t, 1), session;
    CK_SESSION_INFO info;
    set(&t.control->slots[0].device_error_epoch, 1);
    CHECK_RV(CKR_DEVICE_ERROR, round_trip(&t, t.session, t.key));
    CHECK_RV(CKR_DEVICE_ERROR, try_open(&t, 0, &session));
    CHECK_RV(CKR_DEVICE_ERROR, one_session_info(&t));
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(other, &info));
    CHECK_RV(CKR_OK, t.f->C_Finalize(NULL));
    CHECK_RV(CKR_CRYPTOKI_NOT_INITIALIZED, one_session_info(&t));
    CHECK_RV(CKR_OK, initialize(&t));
    CHECK_RV(CKR_SESSION_HANDLE_INVALID, one_session_info(&t));
    t.session = open_session(&t, 0);
    CHECK_RV(CKR_OK, one_session_info(&t));
    stop(&t);
}

int main(void)
{
    ON_BOTH(every_slot_has_its_own_name_and_all_have_the_key);
    ON_BOTH(without_virtual_slots_the_real_tokens_are_shown);
    ON_BOTH(a_login_is_of_one_slot);
    ON("softhsm", closing_the_last_session_of_a_slot_logs_out);
    ON_BOTH(each_class_of_functions_has_its_own_latency);
    ON_BOTH(multiplier_and_network_lengthen_a_latency_and_nothing_else);
    ON("nss", distributions_have_their_means);
    ON_BOTH(servers_limit_the_throughput);
    ON_BOTH(a_global_lock_lets_one_call_in_at_a_time);
    ON_BOTH(a_hang_holds_every_call_until_it_is_released);
    ON_BOTH(a_hang_ends_by_itself_with_its_code);
    ON_BOTH(errors_come_at_their_rate_and_leave_the_session_usable);
    ON_BOTH(an_error_takes_the_time_of_the_call_unless_it_comes_at_once);
    ON_BOTH(a_dead_slot_fails_at_once_and_the_others_do_not);
    ON_BOTH(a_restart_ends_sessions_logins_and_handles_of_its_slot);
    ON("softhsm", stable_handles_survive_a_restart_if_asked);
    ON_BOTH(a_lost_login_needs_only_a_login);
    ON_BOTH(sessions_have_a_limit);
    ON_BOTH(logins_are_refused_and_counted);
    ON_BOTH(a_device_error_ends_with_a_new_initialization_only);
    return 0;
}
