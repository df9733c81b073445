/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens: errors, dead slots, codes of bad tags, ways with IVs, damaged outputs; and the same of messages. */
#include "shim_fixture.h"

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

int main(void)
{
    ON_BOTH(errors_come_at_their_rate_and_leave_the_session_usable);
    ON_BOTH(an_error_takes_the_time_of_the_call_unless_it_comes_at_once);
    ON_BOTH(a_dead_slot_fails_at_once_and_the_others_do_not);
    ON_BOTH(a_tag_failure_has_the_code_that_is_set);
    ON_BOTH(an_iv_is_returned_in_the_parameter);
    ON_BOTH(an_iv_is_appended_to_the_output);
    ON_BOTH(a_bad_token_takes_zeros_for_a_missing_iv);
    ON_BOTH(outputs_are_damaged_at_their_rate);
    ON("nss", messages_have_latency_errors_and_checks);
    ON("softhsm", a_module_without_messages_offers_none);
    return 0;
}
