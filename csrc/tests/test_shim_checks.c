/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens: IVs and damaged outputs, misuse that is counted or ends the process, messages, timelines. */
#include "shim_fixture.h"
#include <sched.h>
#include <signal.h>

static void a_tag_failure_has_the_code_that_is_set(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_BYTE iv[12], sealed[80], plain[80];
    CK_ULONG sealed_len = sizeof sealed;
    const CK_RV codes[] = {CKR_OK, CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED, CKR_DEVICE_ERROR, CKR_ENCRYPTED_DATA_INVALID};
    CHECK_RV(CKR_OK, encrypt(&t, t.session, t.key, iv, sealed, &sealed_len));
    sealed[0] ^= 1;
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        CK_ULONG plain_len = sizeof plain;
        CK_RV own = softhsm ? CKR_GENERAL_ERROR : CKR_ENCRYPTED_DATA_INVALID;
        set(&t.control->slots[0].tag_rv, codes[i]);
        CHECK_RV(codes[i] == CKR_OK ? own : codes[i], decrypt(&t, t.session, t.key, iv, 12, sealed, sealed_len, plain, &plain_len));
        CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    }
    stop(&t);
}

static bool is_zero(const CK_BYTE *data, size_t len)
{
    CK_BYTE any = 0;
    for (size_t i = 0; i < len; i++) {
        any |= data[i];
    }
    return any == 0;
}

static void an_iv_is_returned_in_the_parameter(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_BYTE ivs[2][12] = {{0}}, given[12] = {1}, plain[16] = {5}, sealed[2][64], opened[64];
    set(&t.control->slots[0].iv_mode, XKS_FAULT_IV_RETURNED_IN_PARAM);
    CHECK_RV(CKR_MECHANISM_PARAM_INVALID, encrypt_init(&t, t.session, t.key, given, 12));
    CHECK_RV(CKR_MECHANISM_PARAM_INVALID, encrypt_init(&t, t.session, t.key, NULL, 0));
    for (int i = 0; i < 2; i++) {
        CK_ULONG len = 64, opened_len = 64;
        CHECK_RV(CKR_OK, encrypt_init(&t, t.session, t.key, ivs[i], 12));
        CHECK_RV(CKR_OK, t.f->C_Encrypt(t.session, plain, 16, sealed[i], &len));
        CHECK(len == 32 && !is_zero(ivs[i], 12));
        CHECK_RV(CKR_OK, decrypt(&t, t.session, t.key, ivs[i], 12, sealed[i], len, opened, &opened_len));
        CHECK(opened_len == 16 && memcmp(opened, plain, 16) == 0);
    }
    CHECK(memcmp(ivs[0], ivs[1], 12) != 0);
    set(&t.control->slots[0].iv_mode, XKS_FAULT_IV_CALLER);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    stop(&t);
}

static void an_iv_is_appended_to_the_output(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_BYTE given[12] = {1}, plain[16] = {5}, sealed[64], first[16] = {0}, opened[64];
    for (CK_ULONG iv_len = 12; iv_len <= 16; iv_len += 4) {
        set(&t.control->slots[0].iv_mode, iv_len == 16 ? XKS_FAULT_IV_APPENDED_16 : XKS_FAULT_IV_APPENDED_12);
        CHECK_RV(CKR_MECHANISM_PARAM_INVALID, encrypt_init(&t, t.session, t.key, given, 12));
        for (int i = 0; i < 2; i++) {
            CK_ULONG short_len = 32 + iv_len - 1, len = 32 + iv_len, opened_len = sizeof opened;
            CHECK_RV(CKR_OK, encrypt_init(&t, t.session, t.key, NULL, 0));
            CHECK_RV(CKR_BUFFER_TOO_SMALL, t.f->C_Encrypt(t.session, plain, 16, sealed, &short_len));
            CHECK(short_len == len);
            CHECK_RV(CKR_OK, t.f->C_Encrypt(t.session, plain, 16, sealed, &len));
            CHECK(len == 32 + iv_len && memcmp(sealed + 32, first, iv_len) != 0);
            memcpy(first, sealed + 32, iv_len);
            CHECK_RV(CKR_OK, decrypt(&t, t.session, t.key, sealed + 32, iv_len, sealed, 32, opened, &opened_len));
            CHECK(opened_len == 16 && memcmp(opened, plain, 16) == 0);
        }
    }
    stop(&t);
}

static void a_bad_token_takes_zeros_for_a_missing_iv(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CK_BYTE zero[12] = {0}, plain[16] = {5}, sealed[64], opened[64];
    CK_ULONG len = sizeof sealed, opened_len = sizeof opened;
    set(&t.control->slots[0].iv_mode, XKS_FAULT_IV_ZERO_SILENTLY);
    CHECK_RV(CKR_OK, encrypt_init(&t, t.session, t.key, NULL, 0));
    CHECK_RV(CKR_OK, t.f->C_Encrypt(t.session, plain, 16, sealed, &len));
    CHECK(len == 32);
    CHECK_RV(CKR_OK, decrypt(&t, t.session, t.key, zero, 12, sealed, len, opened, &opened_len));
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    if (!softhsm) { /* SoftHSM 2.6.1 does this by itself */
        set(&t.control->slots[0].iv_mode, XKS_FAULT_IV_CALLER);
        CHECK(encrypt_init(&t, t.session, t.key, NULL, 0) != CKR_OK);
    }
    stop(&t);
}

static int bits_of(const CK_BYTE *a, const CK_BYTE *b, size_t len)
{
    int bits = 0;
    for (size_t i = 0; i < len; i++) {
        bits += __builtin_popcount((unsigned)(a[i] ^ b[i]));
    }
    return bits;
}

static void outputs_are_damaged_at_their_rate(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    xksfault_slot *slot = &t.control->slots[0];
    CK_BYTE iv[12], sealed[80], plain[80], expected[48];
    CK_ULONG sealed_len = sizeof sealed, plain_len = sizeof plain;
    memset(expected, 'p', sizeof expected);
    set(&slot->flip_decrypt_ppm, 1000000);
    CHECK_RV(CKR_OK, encrypt(&t, t.session, t.key, iv, sealed, &sealed_len));
    CHECK_RV(CKR_OK, decrypt(&t, t.session, t.key, iv, 12, sealed, sealed_len, plain, &plain_len));
    CHECK(plain_len == 48 && bits_of(plain, expected, 48) == 1);
    set(&slot->flip_decrypt_ppm, 0);
    set(&slot->flip_encrypt_ppm, 1000000);
    CHECK_RV(softhsm ? CKR_GENERAL_ERROR : CKR_ENCRYPTED_DATA_INVALID, round_trip(&t, t.session, t.key));
    set(&slot->flip_encrypt_ppm, 500000);
    int damaged = 0;
    for (int i = 0; i < 200; i++) {
        damaged += round_trip(&t, t.session, t.key) != CKR_OK;
    }
    CHECK(damaged > 60 && damaged < 140);
    set(&slot->flip_encrypt_ppm, 0);
    set(&slot->wrong_length_ppm, 1000000);
    sealed_len = sizeof sealed;
    CHECK_RV(CKR_OK, encrypt(&t, t.session, t.key, iv, sealed, &sealed_len));
    CHECK(sealed_len == 63);
    set(&slot->wrong_length_ppm, 0);
    CHECK_RV(CKR_OK, round_trip(&t, t.session, t.key));
    stop(&t);
}

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

/* The PKCS#11 3.0 table, or NULL. */
static CK_FUNCTION_LIST_3_0 *table_3_0(fixture *t)
{
    CK_C_GetInterface get_interface;
    CK_INTERFACE *interface = NULL;
    CK_VERSION version = {3, 0};
    CK_UTF8CHAR name[] = "PKCS 11";
    void *symbol = dlsym(t->library, "C_GetInterface");
    memcpy(&get_interface, &symbol, sizeof symbol);
    CHECK(get_interface != NULL);
    CHECK_RV(CKR_OK, get_interface(NULL, NULL, &interface, 0));
    return get_interface(name, &version, &interface, 0) == CKR_OK ? interface->pFunctionList : NULL;
}

static void messages_have_latency_errors_and_checks(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 2);
    CK_FUNCTION_LIST_3_0 *f = table_3_0(&t);
    CHECK(f != NULL && f->version.major == 3);
    CK_SESSION_HANDLE reader = open_session(&t, 0); /* NSS has one message operation per session */
    CK_MECHANISM mechanism = {CKM_AES_GCM, NULL, 0};
    CK_BYTE iv[12] = {1}, tag[16], plain[16] = {5}, sealed[16], opened[16];
    CK_GCM_MESSAGE_PARAMS params = {.pIv = iv, .ulIvLen = 12, .ivGenerator = CKG_NO_GENERATE, .pTag = tag, .ulTagBits = 128};
    CK_ULONG len = sizeof sealed;
    set(&t.control->flags, XKS_FAULT_CHECK_IVS);
    CHECK_RV(CKR_KEY_HANDLE_INVALID, f->C_MessageEncryptInit(t.session, &mechanism, 77));
    CHECK_RV(CKR_OK, f->C_MessageEncryptInit(t.session, &mechanism, t.key));
    CHECK_RV(CKR_OK, f->C_MessageDecryptInit(reader, &mechanism, t.key));
    CHECK_RV(CKR_OK, f->C_EncryptMessage(t.session, &params, sizeof params, NULL, 0, plain, 16, sealed, &len));
    CHECK(len == 16 && memcmp(sealed, plain, 16) != 0 && get(&t.control->iv_repeats) == 0);
    len = sizeof opened;
    CHECK_RV(CKR_OK, f->C_DecryptMessage(reader, &params, sizeof params, NULL, 0, sealed, 16, opened, &len));
    CHECK(len == 16 && memcmp(opened, plain, 16) == 0);
    CHECK_RV(CKR_OK, f->C_EncryptMessage(t.session, &params, sizeof params, NULL, 0, plain, 16, sealed, &len));
    CHECK(get(&t.control->iv_repeats) == 1);

    set(&t.control->slots[0].latency[XKS_FAULT_MESSAGE_ENCRYPT].a_ns, 20 * MS);
    set(&t.control->slots[0].latency[XKS_FAULT_MESSAGE_ENCRYPT].kind, XKS_FAULT_FIXED);
    uint64_t begin = now_ns();
    iv[0] = 2;
    CHECK_RV(CKR_OK, f->C_EncryptMessage(t.session, &params, sizeof params, NULL, 0, plain, 16, sealed, &len));
    CHECK(now_ns() - begin >= 20 * MS);
    set(&t.control->slots[0].error_rv, CKR_DEVICE_ERROR);
    set(&t.control->slots[0].error_classes, 1U << XKS_FAULT_MESSAGE_DECRYPT);
    set(&t.control->slots[0].error_ppm, 1000000);
    CHECK_RV(CKR_DEVICE_ERROR, f->C_DecryptMessage(reader, &params, sizeof params, NULL, 0, sealed, 16, opened, &len));
    set(&t.control->slots[0].error_ppm, 0);
    CHECK_RV(CKR_OK, f->C_DecryptMessage(reader, &params, sizeof params, NULL, 0, sealed, 16, opened, &len));
    set(&t.control->slots[0].flip_decrypt_ppm, 1000000);
    CHECK_RV(CKR_OK, f->C_DecryptMessage(reader, &params, sizeof params, NULL, 0, sealed, 16, opened, &len));
    CHECK(bits_of(opened, plain, 16) == 1);
    tag[0] ^= 1;
    set(&t.control->slots[0].tag_rv, CKR_FUNCTION_FAILED);
    CHECK_RV(CKR_FUNCTION_FAILED, f->C_DecryptMessage(reader, &params, sizeof params, NULL, 0, sealed, 16, opened, &len));
    CHECK_RV(CKR_OK, f->C_MessageEncryptFinal(t.session));
    CHECK_RV(CKR_OK, f->C_MessageDecryptFinal(reader));
    CHECK(get(&t.control->counters[0].calls[XKS_FAULT_MESSAGE_ENCRYPT]) == 3);
    CHECK(get(&t.control->counters[0].calls[XKS_FAULT_MESSAGE_DECRYPT]) == 5);

    set(&t.control->flags, XKS_FAULT_HIDE_3_0);
    CHECK(table_3_0(&t) == NULL);
    stop(&t);
}

static void a_module_without_messages_offers_none(bool softhsm)
{
    fixture t;
    start(&t, softhsm, 1);
    CHECK(table_3_0(&t) == NULL);
    stop(&t);
}

static void write_script(fixture *t, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/script", t->directory);
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
    setenv("XKSFAULT_SCRIPT", path, 1);
}

static void a_script_sets_faults_by_the_clock(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 2);
    write_script(&t, "# a rehearsal\n0 * error_ppm 1000000\n\n150 1 dead_rv 0x30  # then\n300 0 latency.other.kind 1\n300 1 dead_rv 0\n");
    load(&t);
    CHECK_RV(CKR_OK, initialize(&t));
    uint64_t begin = get(&t.control->timeline_start_ns);
    CK_SESSION_HANDLE session = open_session(&t, 1);
    CK_SESSION_INFO info;
    CHECK(get(&t.control->slots[0].error_ppm) == 1000000 && get(&t.control->slots[1].error_ppm) == 1000000);
    bool died = false;
    for (uint64_t now = now_ns(); now < begin + 280 * MS; now = now_ns()) {
        CK_RV rv = t.f->C_GetSessionInfo(session, &info);
        CHECK(rv == CKR_OK || (rv == CKR_DEVICE_ERROR && now_ns() >= begin + 150 * MS));
        died = died || rv == CKR_DEVICE_ERROR;
    }
    while (now_ns() < begin + 300 * MS) {
        sched_yield();
    }
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(session, &info));
    CHECK(died && get(&t.control->slots[0].latency[XKS_FAULT_OTHER].kind) == 1 && get(&t.control->event_next) == 4);
    stop(&t);
}

static void a_script_releases_a_hang(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 1);
    write_script(&t, "0 0 hang_classes 0x800\n0 0 hang 1\n200 0 hang 0\n");
    load(&t);
    CHECK_RV(CKR_OK, initialize(&t));
    CK_SESSION_INFO info;
    CK_SESSION_HANDLE session = open_session(&t, 0);
    CHECK_RV(CKR_OK, t.f->C_GetSessionInfo(session, &info));
    CHECK(now_ns() >= get(&t.control->timeline_start_ns) + 200 * MS);
    stop(&t);
}

static void a_wrong_script_is_refused(bool softhsm)
{
    const char *wrong[] = {"x\n", "0 64 hang 1\n", "0 0 hanging 1\n", "0 0 hang one\n", "5 0 hang 1\n4 0 hang 0\n", "0 0 hang\n", "0 0 hang 1 1\n"};
    fixture t;
    fclose(stderr);
    prepare(&t, softhsm, 1);
    load(&t);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        write_script(&t, wrong[i]);
        CHECK_RV(CKR_GENERAL_ERROR, initialize(&t));
    }
    write_script(&t, "0 0 hang 0\n");
    CHECK_RV(CKR_OK, initialize(&t));
    stop(&t);
}

static CK_RV load_only(fixture *t)
{
    CK_C_GetFunctionList get_list;
    t->library = dlopen(XKS_SHIM, RTLD_NOW | RTLD_LOCAL);
    CHECK(t->library != NULL);
    void *symbol = dlsym(t->library, "C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof symbol);
    return get_list(&t->f);
}

static void another_layout_or_a_missing_module_is_refused(bool softhsm)
{
    fixture t;
    prepare(&t, softhsm, 1);
    fclose(stderr);
    set(&t.control->version, XKS_FAULT_VERSION + 1);
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    set(&t.control->version, XKS_FAULT_VERSION);
    set(&t.control->size, sizeof *t.control + 8);
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    set(&t.control->size, sizeof *t.control);
    setenv("XKSFAULT_MODULE", "/nowhere.so", 1);
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    unsetenv("XKSFAULT_MODULE");
    CHECK_RV(CKR_GENERAL_ERROR, load_only(&t));
    setenv("XKSFAULT_MODULE", softhsm ? SOFTHSM : NSS, 1);
    CHECK_RV(CKR_OK, load_only(&t));
    CHECK_RV(CKR_OK, initialize(&t));
    stop(&t);
}

int main(void)
{
    ON_BOTH(a_tag_failure_has_the_code_that_is_set);
    ON_BOTH(an_iv_is_returned_in_the_parameter);
    ON_BOTH(an_iv_is_appended_to_the_output);
    ON_BOTH(a_bad_token_takes_zeros_for_a_missing_iv);
    ON_BOTH(outputs_are_damaged_at_their_rate);
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
    ON_BOTH(times_are_counted_in_the_histogram);
    ON("nss", messages_have_latency_errors_and_checks);
    ON("softhsm", a_module_without_messages_offers_none);
    ON_BOTH(a_script_sets_faults_by_the_clock);
    ON_BOTH(a_script_releases_a_hang);
    ON_BOTH(a_wrong_script_is_refused);
    ON("nss", another_layout_or_a_missing_module_is_refused);
    return 0;
}
