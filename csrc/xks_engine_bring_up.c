/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper's way from nothing to a partition that may serve: token, claim, session, login, health check key, self-test. */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

#define WORKERS_OUT_PAUSE_NS 1000000

/* Close the keeper's session; its session objects go with it. When the token does not know it or a worker's any more, or the number is of
 * another token by now, the token has lost its older sessions, and their numbers may be given out again: then nobody closes them one by
 * one, and what is still open in our slot is closed here. */
void xks_engine_close_keeper_session(engine_partition *partition)
{
    CK_SESSION_INFO info;
    pthread_mutex_lock(&partition->lock);
    bool open = partition->keeper_session_open;
    CK_SESSION_HANDLE session = partition->keeper_session;
    CK_SLOT_ID slot = partition->keeper_slot;
    bool lost = partition->valid_epoch > partition->epoch;
    partition->keeper_session_open = false;
    pthread_mutex_unlock(&partition->lock);
    if (!open) {
        return;
    }
    CK_RV rv = partition->p11->f->C_GetSessionInfo(session, &info);
    lost = lost || xks_engine_is_session_gone(rv) || (rv == CKR_OK && info.slotID != slot) || rv == CKR_CRYPTOKI_NOT_INITIALIZED;
    if (lost) {
        pthread_mutex_lock(&partition->lock);
        xks_engine_lose_handles_locked(partition);
        pthread_mutex_unlock(&partition->lock);
        (void)partition->p11->f->C_CloseAllSessions(slot);
    } else {
        (void)partition->p11->f->C_CloseSession(session);
    }
}

/* Before the first call for a login: whatever handles there are belong to the login before. Nobody begins a call with them any more, and who
 * is in one is waited for, since the token may give a number of theirs to what is opened now; but for those that hang. */
static void keep_workers_out(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    if (!partition->logging_in) {
        partition->logging_in = true;
        xks_engine_forget_handles_locked(partition);
        xks_engine_purge_locked(partition, true, NULL, CKR_OK);
    }
    for (bool busy = true; busy && !atomic_load(&partition->engine->stopping);) {
        uint64_t now = xks_monotonic_ns();
        busy = false;
        for (uint32_t w = 0; w < 2 * partition->sessions && partition->running_workers > 0; w++) {
            const engine_worker *worker = &partition->workers[w];
            busy = busy || (worker->started && !worker->exited && worker->busy_since_ns != 0 && now < worker->busy_since_ns + XKS_HANG_NS);
        }
        if (busy) {
            struct timespec pause = {0, WORKERS_OUT_PAUSE_NS};
            pthread_mutex_unlock(&partition->lock);
            (void)nanosleep(&pause, NULL);
            pthread_mutex_lock(&partition->lock);
        }
    }
    pthread_mutex_unlock(&partition->lock);
}

/* The slot where the token was is asked first, and no other one while it is there: another HSM of the same library may not answer. */
static xks_status find_token(engine_partition *partition, CK_SLOT_ID *slot, xks_p11_token_info *info, char *error)
{
    xks_p11_token_name name = {partition->token_label, partition->token_serial, partition->slot_wanted};
    bool moved = true;
    if (partition->epoch > 0) { /* slot and info are written by this thread only */
        *slot = partition->slot;
        xks_status status = xks_p11_token_look(partition->p11, &name, *slot, partition->info.serial, info, &moved, error);
        if (!moved) {
            return status;
        }
    }
    return xks_p11_token_find(partition->p11, &name, slot, info, error);
}

static xks_status call_failed(engine_partition *partition, const char *call, CK_RV rv, char *error)
{
    if (rv == CKR_CRYPTOKI_NOT_INITIALIZED) {
        pthread_mutex_lock(&partition->lock);
        partition->module_gone = true;
        pthread_mutex_unlock(&partition->lock);
    }
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s (0x%lx)", call, xks_ckr_name(rv), rv);
    return xks_ckr_classify(rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}

/* The key for self-test and probes: the configured one, or a session key that is gone with the keeper's session. */
static xks_status find_health_key(engine_partition *partition, CK_OBJECT_HANDLE *handle, char *error)
{
    if (partition->health_label != NULL) {
        xks_p11_key key;
        xks_p11_key_verdict verdict = xks_p11_key_find(partition->p11, partition->keeper_session, partition->health_label,
                                                       strlen(partition->health_label), &key);
        if (verdict == XKS_P11_KEY_UNREADABLE) {
            return call_failed(partition, "C_FindObjects", key.rv, error);
        }
        if (verdict != XKS_P11_KEY_FOUND || !key.can_encrypt || !key.can_decrypt) {
            snprintf(error, XKS_ERROR_TEXT_BYTES,
                     "the health check key '%.200s' is not one AES-256 key that may encrypt and decrypt: create it, or leave "
                     "health_check_key empty for a session key",
                     partition->health_label);
            return XKS_CONFIG;
        }
        *handle = key.use;
        return XKS_OK;
    }
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_ULONG length = 32;
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_MECHANISM generate = {CKM_AES_KEY_GEN, NULL, 0};
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof class},     {CKA_KEY_TYPE, &type, sizeof type},  {CKA_VALUE_LEN, &length, sizeof length},
        {CKA_TOKEN, &no, sizeof no},           {CKA_ENCRYPT, &yes, sizeof yes},     {CKA_DECRYPT, &yes, sizeof yes},
        {CKA_SENSITIVE, &yes, sizeof yes},     {CKA_EXTRACTABLE, &no, sizeof no},
    };
    CK_RV rv = partition->p11->f->C_GenerateKey(partition->keeper_session, &generate, template,
                                                   sizeof template / sizeof template[0], handle);
    return rv == CKR_OK ? XKS_OK : call_failed(partition, "C_GenerateKey (session key for health checks)", rv, error);
}

/* Message-based calls are tried on a session of their own: one that refuses them may be left in any state. */
static bool try_message_api(engine_partition *partition, CK_SLOT_ID slot, CK_OBJECT_HANDLE health_key)
{
    CK_SESSION_HANDLE session;
    if (partition->p11->f3 == NULL) {
        return false;
    }
    atomic_fetch_add(&partition->module->opening, 1);
    CK_RV rv = partition->p11->f->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session);
    if (rv == CKR_OK) {
        xks_engine_note_session(partition, session, NULL);
    }
    atomic_fetch_sub(&partition->module->opening, 1);
    if (rv != CKR_OK) {
        return false;
    }
    xks_p11_gcm gcm = {partition->p11, session, health_key, partition->profile->iv_mode, NULL};
    bool works = xks_p11_message_self_test(&gcm, &partition->random, &partition->scratch);
    (void)partition->p11->f->C_CloseSession(session);
    return works;
}

/* Claim the token. False when another partition is the same one: both would count its sessions and load twice, and no second HSM would
 * be there. */
static bool claim(engine_partition *partition, const xks_p11_token_info *info, char *error)
{
    xks_engine *engine = partition->engine;
    const engine_partition *twin = NULL;
    pthread_mutex_lock(&engine->lock);
    for (uint32_t i = 0; i < engine->partition_count && twin == NULL && info->serial[0] != '\0'; i++) {
        engine_partition *other = engine->partitions[i];
        if (other != partition) {
            pthread_mutex_lock(&other->lock);
            bool same = strcmp(other->info.serial, info->serial) == 0 && strcmp(other->info.label, info->label) == 0 &&
                        strcmp(other->info.manufacturer, info->manufacturer) == 0 && strcmp(other->info.model, info->model) == 0;
            twin = same ? other : NULL;
            pthread_mutex_unlock(&other->lock);
        }
    }
    if (twin == NULL) {
        pthread_mutex_lock(&partition->lock);
        partition->info = *info;
        pthread_mutex_unlock(&partition->lock);
    } else {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "partition %.64s is the same token as partition %.64s ('%s', serial number %s): remove one of them, and give the other "
                 "as many sessions as both had",
                 partition->name, twin->name, info->label, info->serial);
    }
    pthread_mutex_unlock(&engine->lock);
    return twin == NULL;
}

/* Open the keeper's session for a new login. */
static CK_RV open_keeper_session(engine_partition *partition, CK_SLOT_ID slot)
{
    CK_SESSION_HANDLE session;
    atomic_fetch_add(&partition->module->opening, 1);
    CK_RV rv = partition->p11->f->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session);
    if (rv == CKR_OK) {
        pthread_mutex_lock(&partition->lock);
        partition->keeper_session = session;
        partition->keeper_slot = slot;
        partition->keeper_session_open = true;
        pthread_mutex_unlock(&partition->lock);
        xks_engine_note_session(partition, session, NULL);
    }
    atomic_fetch_sub(&partition->module->opening, 1);
    return rv;
}

xks_status xks_engine_bring_up(engine_partition *partition, char *error)
{
    xks_p11_token_info info;
    CK_SLOT_ID slot;
    CK_OBJECT_HANDLE health_key;
    xks_p11_canary canary;
    CK_RV tag_failure;

    keep_workers_out(partition);
    xks_engine_close_keeper_session(partition);
    xks_status status = find_token(partition, &slot, &info, error);
    if (status != XKS_OK) {
        return status;
    }
    if (!claim(partition, &info, error)) {
        return XKS_CONFIG;
    }
    CK_RV rv = open_keeper_session(partition, slot);
    if (rv != CKR_OK) {
        return call_failed(partition, "C_OpenSession", rv, error);
    }
    status = xks_p11_token_login(partition->p11, partition->keeper_session, partition->pin, partition->profile, error);
    if (status == XKS_OK) {
        status = find_health_key(partition, &health_key, error);
    }
    if (status != XKS_OK) {
        return status;
    }
    xks_p11_gcm gcm = {partition->p11, partition->keeper_session, health_key, partition->profile->iv_mode, NULL};
    status = xks_p11_self_test(&gcm, &partition->random, &partition->scratch, &canary, &tag_failure, error);
    if (status != XKS_OK) {
        return status;
    }
    bool message_api = try_message_api(partition, slot, health_key);
    pthread_mutex_lock(&partition->lock);
    partition->slot = slot;
    partition->canary = canary;
    partition->tag_failure = tag_failure;
    partition->message_api = message_api;
    partition->epoch++;
    partition->recovery_wanted = false;
    partition->login_in_doubt = false;
    partition->module_gone = false;
    partition->logging_in = false;
    partition->last_probe_ns = partition->last_good_probe_ns = xks_monotonic_ns();
    xks_engine_forget_handles_locked(partition);
    pthread_mutex_unlock(&partition->lock);
    return XKS_OK;
}
