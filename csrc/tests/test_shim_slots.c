/* SPDX-License-Identifier: Apache-2.0 */
/* The fault shim before real tokens, SoftHSM2 and NSS softoken: virtual slots, sessions, logins, restarts. */
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
    ON_BOTH(a_restart_ends_sessions_logins_and_handles_of_its_slot);
    ON("softhsm", stable_handles_survive_a_restart_if_asked);
    ON_BOTH(a_lost_login_needs_only_a_login);
    ON_BOTH(sessions_have_a_limit);
    ON_BOTH(logins_are_refused_and_counted);
    ON_BOTH(a_device_error_ends_with_a_new_initialization_only);
    return 0;
}
