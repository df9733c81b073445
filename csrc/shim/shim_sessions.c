/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_sessions.h"

#include "shim_slots.h"
#include <string.h>

#define INDEX_BITS 20
#define GENERATIONS 4096U

/* An unused entry, or NULL. */
static shim_session *entry_new(void)
{
    shim_state *state = shim();
    shim_session *session = NULL;
    pthread_mutex_lock(&state->mutex);
    if (state->session_free != 0) {
        session = &state->sessions[state->session_free - 1];
        state->session_free = session->next_free;
    } else if (state->session_high < SHIM_MAX_SESSIONS) {
        session = &state->sessions[state->session_high++];
    }
    pthread_mutex_unlock(&state->mutex);
    return session;
}

static void entry_free(shim_session *session)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    session->next_free = state->session_free;
    state->session_free = (uint32_t)(session - state->sessions) + 1;
    pthread_mutex_unlock(&state->mutex);
}

/* A place below max_sessions, taken or not. */
static bool count_in(uint32_t slot)
{
    _Atomic(uint32_t) *open = &shim()->slots[slot].sessions;
    uint64_t max = word(&shim_settings(slot)->max_sessions);
    uint32_t before = atomic_load(open);
    do {
        if (max != 0 && before >= max) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(open, &before, before + 1));
    word_add(&shim_counters(slot)->sessions_open, 1);
    return true;
}

/* Closing the last session of a slot logs out. Source: PKCS#11 v3.1, 5.6.7 C_CloseSession. */
static void count_out(uint32_t slot)
{
    word_add(&shim_counters(slot)->sessions_open, UINT64_MAX);
    if (atomic_fetch_sub(&shim()->slots[slot].sessions, 1) == 1 && shim_slot_logged_in(slot)) {
        (void)shim_slot_logout(slot, 0);
    }
}

/* After a restart of the slot nobody may ever touch the old sessions again: they are closed before new ones are opened. */
static void sweep(uint32_t slot, uint64_t epoch)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    bool restarted = state->slots[slot].seen_epoch != epoch;
    state->slots[slot].seen_epoch = epoch;
    pthread_mutex_unlock(&state->mutex);
    if (restarted) {
        shim_sessions_retire_slot(slot, epoch);
    }
}

CK_RV shim_session_open(uint32_t slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, CK_SESSION_HANDLE *handle)
{
    CK_SLOT_ID real_id;
    uint64_t epoch = word(&shim_settings(slot)->epoch);
    sweep(slot, epoch);
    CK_RV rv = shim_slot_real(slot, &real_id);
    if (rv != CKR_OK) {
        return rv;
    }
    if (!count_in(slot)) {
        return CKR_SESSION_COUNT;
    }
    CK_SESSION_HANDLE real = 0;
    shim_session *session = entry_new();
    rv = session == NULL ? CKR_SESSION_COUNT : shim()->real->C_OpenSession(real_id, flags, application, notify, &real);
    if (rv != CKR_OK) {
        if (session != NULL) {
            entry_free(session);
        }
        count_out(slot);
        return rv;
    }
    session->slot = slot;
    session->epoch = epoch;
    session->real = real;
    session->find_empty = session->parts = false;
    memset(&session->encrypt, 0, sizeof session->encrypt);
    memset(&session->decrypt, 0, sizeof session->decrypt);
    memset(&session->message_encrypt, 0, sizeof session->message_encrypt);
    memset(&session->message_decrypt, 0, sizeof session->message_decrypt);
    session->generation = shim_flag(XKS_FAULT_REUSE_HANDLES) ? 0 : (session->generation + 1) % GENERATIONS;
    *handle = (CK_SESSION_HANDLE)session->generation << INDEX_BITS | (CK_SESSION_HANDLE)(session - shim()->sessions + 1);
    atomic_store(&session->retired, 0);
    atomic_store(&session->handle, *handle);
    word_add(&shim_counters(slot)->sessions_opened, 1);
    return CKR_OK;
}

/* Closes the real session if the entry is retired and nobody is in it; of those who see that, one does it. */
static void dispose(shim_session *session)
{
    uint32_t retired = 1;
    if (atomic_load(&session->users) == 0 && atomic_compare_exchange_strong(&session->retired, &retired, 2)) {
        uint32_t slot = session->slot;
        (void)shim()->real->C_CloseSession(session->real);
        entry_free(session);
        count_out(slot);
    }
}

shim_session *shim_session_take(CK_SESSION_HANDLE handle)
{
    uint64_t index = (handle & ((1UL << INDEX_BITS) - 1)) - 1; /* 0 becomes large */
    if (index >= SHIM_MAX_SESSIONS) {
        return NULL;
    }
    shim_session *session = &shim()->sessions[index];
    if (handle == 0 || atomic_load(&session->handle) != handle) {
        return NULL;
    }
    atomic_fetch_add(&session->users, 1);
    if (atomic_load(&session->handle) != handle) {
        shim_session_release(session);
        return NULL;
    }
    return session;
}

void shim_session_release(shim_session *session)
{
    if (atomic_fetch_sub(&session->users, 1) == 1) {
        dispose(session);
    }
}

void shim_session_retire(shim_session *session, CK_SESSION_HANDLE handle)
{
    uint64_t expected = handle;
    if (atomic_compare_exchange_strong(&session->handle, &expected, 0)) {
        atomic_store(&session->retired, 1);
        dispose(session);
    }
}

void shim_sessions_retire_slot(uint32_t slot, uint64_t but_epoch)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    uint32_t high = state->session_high;
    pthread_mutex_unlock(&state->mutex);
    for (uint32_t i = 0; i < high; i++) {
        shim_session *session = shim_session_take(atomic_load(&state->sessions[i].handle));
        if (session == NULL) {
            continue;
        }
        if (session->slot == slot && session->epoch != but_epoch) {
            shim_session_retire(session, atomic_load(&session->handle));
        }
        shim_session_release(session);
    }
}

void shim_sessions_forget(void)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    for (uint32_t i = 0; i < state->session_high; i++) {
        atomic_store(&state->sessions[i].handle, 0);
        atomic_store(&state->sessions[i].users, 0);
        atomic_store(&state->sessions[i].busy, false);
        atomic_store(&state->sessions[i].retired, 0);
    }
    state->session_high = state->session_free = 0;
    for (uint32_t slot = 0; slot < XKS_FAULT_SLOTS; slot++) {
        atomic_store(&state->slots[slot].sessions, 0);
    }
    pthread_mutex_unlock(&state->mutex);
}
