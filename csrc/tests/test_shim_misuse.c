/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens: misuse that is counted or ends the process, IVs that repeat, length queries, forks. */
#include "shim_fixture.h"
#include <sched.h>
#include <signal.h>

/* Misuse: each is done by a function that runs with and without the strict flag. */

static void initialize_without_locking(bool softhsm, uint64_t flags)
{
    fixture t;
    prepare(&t, softhsm, 1);
    set(&t.control->flags, flags);
    load(&t);
    (void)t.f->C_Initialize(NULL); /* NSS refuses it: it wants its parameters */
    CHECK(get(&t.control->unlocked_initializations) == 1);
}

static void initialize_with_locking(bool softhsm, uint64_t flags)
{
    fixture t;
    prepare(&t, softhsm, 1);
    set(&t.control->flags, flags);
    load(&t);
    CHECK_RV(CKR_OK, initialize(&t));
    CHECK(get(&t.control->unlocked_initializations) == 0 && get(&t.control->initialized) == 1);
    stop(&t);
}

static void *slow_call(void *context)
{
    fixture *t = context;
    CHECK_RV(CKR_OK, round_trip(t, t->session, t->key));
    return NULL;
}

static void share_a_session(bool softhsm, uint64_t flags)
{
    fixture t;
    pthread_t thread;
    CK_SESSION_INFO info;
    start(&t, softhsm, 1);
    set(&t.control->flags, flags);
    set(&t.control->slots[0].hang, 1);
    CHECK(pthread_create(&thread, NULL, slow_call, &t) == 0);
    while (get(&t.control->counters[0].hung) == 0) {
        sched_yield();
    }
    CHECK_RV(CKR_OPERATION_ACTIVE, t.f->C_GetSessionInfo(t.session, &info));
    CHECK(get(&t.control->shared_sessions) == 1);
    set(&t.control->slots[0].hang, 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(t.session, &info));
    CHECK(get(&t.control->shared_sessions) == 1);
    stop(&t);
}

static void give_small_buffers(bool softhsm, uint64_t flags)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_BYTE iv[12], out[80];
    CK_ULONG len = 64; /* exactly ciphertext and tag */
    CHECK_RV(CKR_OK, encrypt(&t, t.session, t.key, iv, out, &len));
    CHECK(get(&t.control->small_buffers) == 0);
    set(&t.control->flags, flags);
    len = 63;
    CHECK_RV(CKR_BUFFER_TOO_SMALL, encrypt(&t, t.session, t.key, iv, out, &len));
    CHECK(get(&t.control->small_buffers) == 1);
    stop(&t);
}

static void repeat_an_iv(bool softhsm, uint64_t flags)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_SESSION_HANDLE other = open_session(&t, 1);
    CK_BYTE iv[12] = {0xFF, 0xFF}, plain[16] = {5}, out[64];
    CK_ULONG len;
    if (softhsm) {
        CHECK_RV(CKR_OK, login(&t, other));
    }
    set(&t.control->flags, flags | XKS_FAULT_CHECK_IVS);
    for (CK_BYTE i = 0; i < 100; i++) { /* different IVs, then the same IV with another key */
        CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    }
    CK_OBJECT_HANDLE another = make_key(&t, t.session);
    const CK_OBJECT_HANDLE keys[] = {another, t.key};
    for (int i = 0; i < 2; i++) {
        len = sizeof out;
        CHECK_RV(CKR_OK, encrypt_init(&t, t.session, keys[i], iv, 12));
        CHECK_RV(CKR_OK, t.f->C_Encrypt(t.session, plain, 16, out, &len));
    }
    CHECK_RV(CKR_OK, t.f->C_DestroyObject(t.session, another)); /* only one is to be found */
    CHECK(get(&t.control->iv_repeats) == 0);
    /* the same key behind the other slot is the same key */
    len = sizeof out;
    CHECK_RV(CKR_OK, encrypt_init(&t, other, find_key(&t, other), iv, 12));
    CHECK_RV(CKR_OK, t.f->C_Encrypt(other, plain, 16, out, &len));
    CHECK(get(&t.control->iv_repeats) == 1);
    stop(&t);
}

/* Counted without the flag; with it the process ends by SIGABRT, and then only for misuse. */
#define MISUSE(name)                                                                                                             \
    static void name##_is_counted(bool softhsm)                                                                                  \
    {                                                                                                                            \
        name(softhsm, 0);                                                                                                        \
    }                                                                                                                            \
    static void name##_ends_a_strict_process(bool softhsm)                                                                       \
    {                                                                                                                            \
        fclose(stderr);                                                                                                          \
        name(softhsm, XKS_FAULT_STRICT);                                                                                         \
    }
MISUSE(initialize_without_locking)
MISUSE(share_a_session)
MISUSE(give_small_buffers)
MISUSE(repeat_an_iv)

static void good_use_is_no_misuse(bool softhsm)
{
    initialize_with_locking(softhsm, XKS_FAULT_STRICT);
}

static void check_misuse(const char *token, const char *name, void (*counted)(bool), void (*ends)(bool))
{
    bool softhsm = strcmp(token, "softhsm") == 0;
    CHECK(in_child(counted, softhsm) == 0);
    int status = in_child(ends, softhsm);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    printf("ok   %s %s, counted and strict\n", token, name);
}
#define MISUSED(token, name) check_misuse(token, #name, name##_is_counted, name##_ends_a_strict_process)

static void the_iv_table_has_an_end(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    set(&t.control->iv_table_bits, 6);
    set(&t.control->flags, XKS_FAULT_CHECK_IVS);
    for (int i = 0; i < 100; i++) {
        CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    }
    CHECK(get(&t.control->ivs_untracked) == 100 - 48 && get(&t.control->iv_repeats) == 0);
    stop(&t);
}

static void length_queries_are_counted(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_BYTE iv[12] = {7}, plain[16] = {5}, out[64];
    CK_ULONG len = 0;
    CHECK_RV(CKR_OK, encrypt_init(&t, t.session, t.key, iv, 12));
    CHECK(get(&t.control->length_queries) == 0);
    CHECK_RV(CKR_OK, t.f->C_Encrypt(t.session, plain, 16, NULL, &len));
    CHECK(get(&t.control->length_queries) == 1 && len > 0);
    len = sizeof out;
    CHECK_RV(CKR_OK, t.f->C_Encrypt(t.session, plain, 16, out, &len));
    CHECK(len == 32 && get(&t.control->length_queries) == 1);
    stop(&t);
}

static void a_forked_child_must_initialize(bool softhsm)
{
    fixture t;
    int status;
    start(&t, softhsm, 1);
    pid_t pid = fork();
    if (pid == 0) {
        CK_SESSION_INFO info;
        CHECK_RV(CKR_CRYPTOKI_NOT_INITIALIZED, t.f->C_GetSessionInfo(t.session, &info));
        CHECK(get(&t.control->forked_calls) == 1);
        CHECK_RV(CKR_OK, initialize(&t));
        CHECK_RV(CKR_SESSION_HANDLE_INVALID, t.f->C_GetSessionInfo(t.session, &info));
        CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(open_session(&t, 0), &info));
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    stop(&t);
}

int main(void)
{
    ON_BOTH(good_use_is_no_misuse);
    MISUSED("nss", initialize_without_locking);
    MISUSED("softhsm", initialize_without_locking);
    MISUSED("nss", share_a_session);
    MISUSED("softhsm", share_a_session);
    MISUSED("nss", give_small_buffers);
    MISUSED("softhsm", give_small_buffers);
    MISUSED("nss", repeat_an_iv);
    MISUSED("softhsm", repeat_an_iv);
    ON("nss", the_iv_table_has_an_end);
    ON_BOTH(length_queries_are_counted);
    ON_BOTH(a_forked_child_must_initialize);
    return 0;
}
