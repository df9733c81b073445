/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_slots.h"

#include "shim_numbers.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REAL_HANDLE_BITS 40
#define TAG_COUNT 0xFFFFFFU

/* A blank-padded field as a string. */
static void text_of(const CK_UTF8CHAR *field, size_t len, char *out)
{
    while (len > 0 && (field[len - 1] == ' ' || field[len - 1] == '\0')) {
        len--;
    }
    memcpy(out, field, len);
    out[len] = '\0';
}

/* A string of the control file, which another process may be writing: at most `room` - 1 bytes. */
static void text_from(const char *field, char *out, size_t room)
{
    size_t len = 0;
    while (len < room - 1 && __atomic_load_n(&field[len], __ATOMIC_RELAXED) != '\0') {
        out[len] = __atomic_load_n(&field[len], __ATOMIC_RELAXED);
        len++;
    }
    out[len] = '\0';
}

static void padded(CK_UTF8CHAR *field, size_t len, const char *text)
{
    size_t text_len = strlen(text);
    memset(field, ' ', len);
    memcpy(field, text, text_len < len ? text_len : len);
}

uint32_t shim_slot_count(void)
{
    uint64_t count = word(&shim()->control->slot_count);
    count = count == 0 ? atomic_load(&shim()->real_count) : count;
    return (uint32_t)(count < XKS_FAULT_SLOTS ? count : XKS_FAULT_SLOTS);
}

static uint32_t real_of(uint32_t slot, const shim_real_token *tokens, uint32_t count)
{
    char label[XKS_FAULT_LABEL_BYTES + 1];
    text_from(shim_settings(slot)->real_label, label, sizeof label);
    if (label[0] == '\0') {
        uint64_t number = word(&shim()->control->slot_count) == 0 ? slot : word(&shim_settings(slot)->real_slot);
        return number < count ? (uint32_t)number + 1 : 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(tokens[i].label, label) == 0) {
            return i + 1;
        }
    }
    return 0;
}

/* SoftHSM gives its tokens random slot numbers and always has one more that is not initialized: not to be token number 0. */
static void initialized_first(shim_real_token *tokens, uint32_t count)
{
    uint32_t next = 0;
    for (uint32_t i = 0; i < count; i++) {
        if ((tokens[i].flags & CKF_TOKEN_INITIALIZED) != 0) {
            shim_real_token token = tokens[i];
            memmove(&tokens[next + 1], &tokens[next], (i - next) * sizeof token);
            tokens[next++] = token;
        }
    }
}

CK_RV shim_slots_find(void)
{
    shim_state *state = shim();
    CK_SLOT_ID ids[SHIM_MAX_REAL_SLOTS];
    CK_ULONG count = SHIM_MAX_REAL_SLOTS;
    CK_RV rv = state->real->C_GetSlotList(CK_TRUE, ids, &count);
    if (rv != CKR_OK) {
        return rv;
    }
    shim_real_token *found = calloc(count + 1, sizeof *found);
    if (found == NULL) {
        return CKR_HOST_MEMORY;
    }
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info = {0};
        found[i].id = ids[i];
        if (state->real->C_GetTokenInfo(ids[i], &info) == CKR_OK) {
            found[i].flags = info.flags;
            text_of(info.label, sizeof info.label, found[i].label);
        }
    }
    initialized_first(found, (uint32_t)count);
    pthread_mutex_lock(&state->mutex);
    for (CK_ULONG i = 0; i < count; i++) {
        for (uint32_t old = 0; old < atomic_load(&state->real_count); old++) {
            if (state->real_tokens[old].id == found[i].id) {
                found[i].anchor = state->real_tokens[old].anchor;
                found[i].logged_in = state->real_tokens[old].logged_in;
                found[i].pin_print = state->real_tokens[old].pin_print;
            }
        }
    }
    memcpy(state->real_tokens, found, count * sizeof *found);
    atomic_store(&state->real_count, (uint32_t)count);
    for (uint32_t slot = 0; slot < XKS_FAULT_SLOTS; slot++) {
        uint32_t real = real_of(slot, found, (uint32_t)count);
        atomic_store(&state->slots[slot].real, real);
        atomic_store(&state->slots[slot].real_needs_login, real != 0 && (found[real - 1].flags & CKF_LOGIN_REQUIRED) != 0);
    }
    pthread_mutex_unlock(&state->mutex);
    free(found);
    return CKR_OK;
}

/* A copy of the real token behind a slot. */
static CK_RV real_token(CK_SLOT_ID slot_id, shim_real_token *token)
{
    shim_state *state = shim();
    CK_RV rv = CKR_OK;
    pthread_mutex_lock(&state->mutex);
    uint32_t real = slot_id < shim_slot_count() ? atomic_load(&state->slots[slot_id].real) : 0;
    if (slot_id >= shim_slot_count()) {
        rv = CKR_SLOT_ID_INVALID;
    } else if (real == 0) {
        rv = CKR_TOKEN_NOT_PRESENT;
    } else {
        *token = state->real_tokens[real - 1];
    }
    pthread_mutex_unlock(&state->mutex);
    return rv;
}

CK_RV shim_slot_real(CK_SLOT_ID slot_id, CK_SLOT_ID *real_id)
{
    shim_real_token token;
    CK_RV rv = real_token(slot_id, &token);
    if (rv == CKR_OK) {
        *real_id = token.id;
    }
    return rv;
}

CK_RV shim_slot_info(CK_SLOT_ID slot_id, CK_SLOT_INFO *info)
{
    CK_SLOT_ID real_id;
    CK_RV rv = shim_slot_real(slot_id, &real_id);
    if (rv == CKR_TOKEN_NOT_PRESENT) {
        memset(info, 0, sizeof *info);
        padded(info->slotDescription, sizeof info->slotDescription, "libxksfault: no real token here");
        padded(info->manufacturerID, sizeof info->manufacturerID, "xksfast");
        return CKR_OK;
    }
    return rv != CKR_OK ? rv : shim()->real->C_GetSlotInfo(real_id, info);
}

CK_RV shim_slot_token_info(CK_SLOT_ID slot_id, CK_TOKEN_INFO *info)
{
    CK_SLOT_ID real_id;
    CK_RV rv = shim_slot_real(slot_id, &real_id);
    if (rv == CKR_OK) {
        rv = shim()->real->C_GetTokenInfo(real_id, info);
    }
    if (rv != CKR_OK) {
        return rv;
    }
    uint32_t slot = (uint32_t)slot_id;
    char text[XKS_FAULT_LABEL_BYTES + 1];
    bool as_real = word(&shim()->control->slot_count) == 0;
    text_from(shim_settings(slot)->label, text, sizeof text);
    if (text[0] == '\0' && !as_real) {
        snprintf(text, sizeof text, "p%u", slot);
    }
    if (text[0] != '\0') {
        padded(info->label, sizeof info->label, text);
    }
    if (!as_real) {
        snprintf(text, sizeof text, "%.12s-p%02u", (const char *)info->serialNumber, slot);
        padded(info->serialNumber, sizeof info->serialNumber, text);
    }
    if (shim_slot_needs_login(slot)) {
        info->flags |= CKF_LOGIN_REQUIRED | CKF_USER_PIN_INITIALIZED;
    }
    uint64_t max_sessions = word(&shim_settings(slot)->max_sessions);
    if (max_sessions != 0) {
        info->ulMaxSessionCount = info->ulMaxRwSessionCount = (CK_ULONG)max_sessions;
    }
    return CKR_OK;
}

bool shim_slot_needs_login(uint32_t slot)
{
    return word(&shim_settings(slot)->login_mode) == XKS_FAULT_LOGIN_ANY_PIN ||
           atomic_load_explicit(&shim()->slots[slot].real_needs_login, memory_order_relaxed);
}

/* What shim_slot.login is while somebody is logged in: lost with a restart and with a lost login. */
static uint64_t login_mark(uint32_t slot)
{
    return 1 + word(&shim_settings(slot)->epoch) + (word(&shim_settings(slot)->login_epoch) << 32);
}

bool shim_slot_logged_in(uint32_t slot)
{
    return atomic_load_explicit(&shim()->slots[slot].login, memory_order_relaxed) == login_mark(slot);
}

/* Keyed, so that it says nothing outside this process. FNV-1a over key and PIN, finished as in SplitMix64; 0 means "none". */
static uint64_t print_of(const CK_UTF8CHAR *pin, CK_ULONG pin_len)
{
    uint64_t hash = 0xCBF29CE484222325U ^ shim()->pin_key;
    for (CK_ULONG i = 0; i < pin_len; i++) {
        hash = (hash ^ pin[i]) * 0x100000001B3U;
    }
    hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9U;
    return (hash ^ (hash >> 27)) | 1U;
}

/* Keeps a session of the real token open, so that it stays logged in when the session that did it is closed. */
static void keep_login(shim_state *state, uint32_t real, uint64_t print)
{
    CK_SESSION_HANDLE anchor = 0;
    bool needed;
    pthread_mutex_lock(&state->mutex);
    state->real_tokens[real].logged_in = true;
    state->real_tokens[real].pin_print = print;
    needed = state->real_tokens[real].anchor == 0;
    CK_SLOT_ID id = state->real_tokens[real].id;
    pthread_mutex_unlock(&state->mutex);
    if (!needed || state->real->C_OpenSession(id, CKF_SERIAL_SESSION, NULL, NULL, &anchor) != CKR_OK) {
        return;
    }
    pthread_mutex_lock(&state->mutex);
    if (state->real_tokens[real].anchor == 0) {
        state->real_tokens[real].anchor = anchor;
        anchor = 0;
    }
    pthread_mutex_unlock(&state->mutex);
    if (anchor != 0) {
        (void)state->real->C_CloseSession(anchor);
    }
}

CK_RV shim_slot_login(uint32_t slot, CK_SESSION_HANDLE real, CK_UTF8CHAR *pin, CK_ULONG pin_len)
{
    shim_state *state = shim();
    CK_RV rv = (CK_RV)word(&shim_settings(slot)->login_rv);
    if (rv == CKR_OK && shim_slot_logged_in(slot)) {
        rv = CKR_USER_ALREADY_LOGGED_IN;
    }
    if (rv == CKR_OK && word(&shim_settings(slot)->login_mode) == XKS_FAULT_LOGIN_AS_REAL) {
        uint32_t token = atomic_load(&state->slots[slot].real) - 1;
        uint64_t print = print_of(pin, pin == NULL ? 0 : pin_len);
        pthread_mutex_lock(&state->mutex);
        bool already = state->real_tokens[token].logged_in;
        uint64_t right_print = state->real_tokens[token].pin_print;
        pthread_mutex_unlock(&state->mutex);
        if (already) {
            rv = print == right_print ? CKR_OK : CKR_PIN_INCORRECT;
        } else {
            rv = state->real->C_Login(real, CKU_USER, pin, pin_len);
            rv = rv == CKR_USER_ALREADY_LOGGED_IN ? CKR_OK : rv;
            if (rv == CKR_OK) {
                keep_login(state, token, print);
            }
        }
    }
    if (rv == CKR_OK) {
        atomic_store(&state->slots[slot].login, login_mark(slot));
        word_add(&shim_counters(slot)->logins, 1);
    }
    return rv;
}

CK_RV shim_slot_logout(uint32_t slot, CK_SESSION_HANDLE real)
{
    shim_state *state = shim();
    uint32_t token = atomic_load(&state->slots[slot].real);
    bool was_logged_in = atomic_exchange(&state->slots[slot].login, 0) == login_mark(slot);
    CK_SESSION_HANDLE anchor = 0;
    bool needed = token == 0, real_logged_in = false;
    pthread_mutex_lock(&state->mutex);
    for (uint32_t other = 0; other < XKS_FAULT_SLOTS; other++) {
        needed = needed || (atomic_load(&state->slots[other].real) == token && atomic_load(&state->slots[other].login) != 0);
    }
    if (!needed) {
        real_logged_in = state->real_tokens[token - 1].logged_in;
        anchor = state->real_tokens[token - 1].anchor;
        state->real_tokens[token - 1].anchor = 0;
        state->real_tokens[token - 1].logged_in = false;
    }
    pthread_mutex_unlock(&state->mutex);
    if (anchor != 0) {
        (void)state->real->C_Logout(anchor);
        (void)state->real->C_CloseSession(anchor);
    }
    if (!was_logged_in && !real_logged_in && real != 0) {
        return state->real->C_Logout(real); /* of the security officer, whose login passes through */
    }
    return was_logged_in ? CKR_OK : CKR_USER_NOT_LOGGED_IN;
}

void shim_slot_pin_changed(uint32_t slot, CK_UTF8CHAR *pin, CK_ULONG pin_len)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    state->real_tokens[atomic_load(&state->slots[slot].real) - 1].pin_print = print_of(pin, pin == NULL ? 0 : pin_len);
    pthread_mutex_unlock(&state->mutex);
}

void shim_slots_forget(void)
{
    shim_state *state = shim();
    pthread_mutex_lock(&state->mutex);
    for (uint32_t slot = 0; slot < XKS_FAULT_SLOTS; slot++) {
        atomic_store(&state->slots[slot].login, 0);
    }
    memset(state->real_tokens, 0, sizeof state->real_tokens);
    atomic_store(&state->real_count, 0);
    pthread_mutex_unlock(&state->mutex);
}

/* Never 0, so that a real handle is never a handle of ours. */
static uint64_t tag_of(uint32_t slot, uint64_t epoch)
{
    uint64_t counted = shim_flag(XKS_FAULT_STABLE_HANDLES) ? 0 : epoch;
    return 1 + (counted * XKS_FAULT_SLOTS + slot) % TAG_COUNT;
}

CK_OBJECT_HANDLE shim_object_out(uint32_t slot, uint64_t epoch, CK_OBJECT_HANDLE real)
{
    if (real >> REAL_HANDLE_BITS != 0) {
        shim_say("the real module's object handles have more than 40 bits: not supported");
        return CK_INVALID_HANDLE;
    }
    if (shim_flag(XKS_FAULT_REUSE_HANDLES)) {
        return real == CK_INVALID_HANDLE ? CK_INVALID_HANDLE : shim_number_of(real);
    }
    return real == CK_INVALID_HANDLE ? CK_INVALID_HANDLE : (CK_OBJECT_HANDLE)(tag_of(slot, epoch) << REAL_HANDLE_BITS | real);
}

CK_OBJECT_HANDLE shim_object_in(uint32_t slot, uint64_t epoch, CK_OBJECT_HANDLE handle)
{
    if (shim_flag(XKS_FAULT_REUSE_HANDLES)) {
        return shim_number_real(handle);
    }
    return handle >> REAL_HANDLE_BITS == tag_of(slot, epoch) ? handle & ((1UL << REAL_HANDLE_BITS) - 1) : CK_INVALID_HANDLE;
}
