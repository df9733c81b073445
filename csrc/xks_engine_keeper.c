/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_PAUSE_NS 100000000U
#define LONGEST_PAUSE_NS 1000000000U
#define PURGE_INTERVAL_NS 50000000U

/* --- waiting */

/* Wait until something is to do or until at_ns (CLOCK_MONOTONIC). */
static void wait_locked(engine_partition *partition, uint64_t at_ns)
{
    struct timespec at = {(time_t)(at_ns / 1000000000U), (long)(at_ns % 1000000000U)};
    (void)pthread_cond_timedwait(&partition->attention, &partition->lock, &at);
}

static bool stopping(const engine_partition *partition)
{
    return atomic_load(&partition->engine->stopping);
}

static void set_state(engine_partition *partition, xks_partition_state state, const char *reason)
{
    pthread_mutex_lock(&partition->lock);
    atomic_store(&partition->state, (int)state);
    snprintf(partition->reason, sizeof partition->reason, "%s", reason);
    if (state == XKS_PARTITION_REFUSED) {
        xks_engine_purge_locked(partition, true, XKS_UNAVAILABLE);
    }
    pthread_cond_broadcast(&partition->work);
    pthread_mutex_unlock(&partition->lock);
    xks_engine_announce(partition->engine);
}

/* --- bringing a partition up */

static void close_keeper_session(engine_partition *partition)
{
    if (partition->keeper_session_open) {
        (void)partition->module->f->C_CloseSession(partition->keeper_session); /* its session objects go with it */
        partition->keeper_session_open = false;
    }
}

static xks_status call_failed(const char *call, CK_RV rv, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s (0x%lx)", call, xks_ckr_name(rv), rv);
    return xks_ckr_classify(rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}

/* The key for self-test and probes: the configured one, or a session key that is gone with the keeper's session. */
static xks_status find_health_key(engine_partition *partition, CK_OBJECT_HANDLE *handle, char *error)
{
    if (partition->health_label != NULL) {
        xks_p11_key key;
        xks_p11_key_verdict verdict = xks_p11_key_find(partition->module, partition->keeper_session, partition->health_label,
                                                       strlen(partition->health_label), &key);
        if (verdict == XKS_P11_KEY_UNREADABLE) {
            return call_failed("C_FindObjects", key.rv, error);
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
    CK_RV rv = partition->module->f->C_GenerateKey(partition->keeper_session, &generate, template,
                                                   sizeof template / sizeof template[0], handle);
    return rv == CKR_OK ? XKS_OK : call_failed("C_GenerateKey (session key for health checks)", rv, error);
}

/* Find the token, log in, prove it, and let the workers in under a new epoch. */
static xks_status bring_up(engine_partition *partition, char *error)
{
    xks_p11_token_name name = {partition->token_label, partition->token_serial, partition->slot_wanted};
    xks_p11_token_info info;
    CK_SLOT_ID slot;
    CK_OBJECT_HANDLE health_key;
    xks_p11_canary canary;
    CK_RV tag_failure;

    close_keeper_session(partition);
    xks_status status = xks_p11_token_find(partition->module, &name, &slot, &info, error);
    if (status != XKS_OK) {
        return status;
    }
    CK_RV rv = partition->module->f->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &partition->keeper_session);
    if (rv != CKR_OK) {
        return call_failed("C_OpenSession", rv, error);
    }
    partition->keeper_session_open = true;
    status = xks_p11_token_login(partition->module, partition->keeper_session, partition->pin, partition->profile, error);
    if (status == XKS_OK) {
        status = find_health_key(partition, &health_key, error);
    }
    if (status != XKS_OK) {
        return status;
    }
    xks_p11_gcm gcm = {partition->module, partition->keeper_session, health_key, partition->profile->iv_mode};
    status = xks_p11_self_test(&gcm, &partition->random, &partition->scratch, &canary, &tag_failure, error);
    if (status != XKS_OK) {
        return status;
    }
    pthread_mutex_lock(&partition->lock);
    partition->info = info;
    partition->slot = slot;
    partition->canary = canary;
    partition->tag_failure = tag_failure;
    partition->epoch++;
    partition->faults_in_row = 0;
    partition->recovery_wanted = false;
    partition->last_probe_ns = partition->last_good_probe_ns = xks_monotonic_ns();
    for (uint32_t i = 0; i < partition->key_capacity; i++) {
        partition->keys[i].key.copied = false; /* it went with the session that held it */
        if (partition->keys[i].wanted) {
            partition->keys[i].state = XKS_KEY_PENDING;
            partition->keys_pending = true;
        }
    }
    pthread_mutex_unlock(&partition->lock);
    return XKS_OK;
}

/* --- keys */

/* The label of key `index` into text; false when it is not wanted (any more). Takes both locks, in order. */
static bool pending_label(engine_partition *partition, uint32_t index, char text[256], size_t *len)
{
    xks_engine *engine = partition->engine;
    bool wanted = false;
    pthread_mutex_lock(&engine->lock);
    pthread_mutex_lock(&partition->lock);
    if (index < partition->key_capacity && partition->keys[index].wanted &&
        (partition->keys[index].state == XKS_KEY_PENDING || partition->keys[index].state == XKS_KEY_FAILED ||
         partition->keys[index].state == XKS_KEY_ABSENT)) {
        memcpy(text, engine->keys[index].label, engine->keys[index].label_len);
        *len = engine->keys[index].label_len;
        wanted = true;
    }
    pthread_mutex_unlock(&partition->lock);
    pthread_mutex_unlock(&engine->lock);
    return wanted;
}

static xks_key_state state_of(xks_p11_key_verdict verdict)
{
    switch (verdict) {
    case XKS_P11_KEY_FOUND: return XKS_KEY_USABLE;
    case XKS_P11_KEY_ABSENT: return XKS_KEY_ABSENT;
    case XKS_P11_KEY_AMBIGUOUS: return XKS_KEY_AMBIGUOUS;
    case XKS_P11_KEY_WRONG_TYPE: return XKS_KEY_WRONG_TYPE;
    case XKS_P11_KEY_UNREADABLE: break;
    }
    return XKS_KEY_FAILED;
}

static void find_key(engine_partition *partition, uint32_t index)
{
    char label[256];
    size_t len;
    xks_p11_key key;
    if (!pending_label(partition, index, label, &len)) {
        return;
    }
    xks_p11_key_verdict verdict = xks_p11_key_find(partition->module, partition->keeper_session, label, len, &key);
    if (verdict == XKS_P11_KEY_FOUND && partition->profile->session_copy) {
        xks_p11_key_copy(partition->module, partition->keeper_session, &key);
    }
    pthread_mutex_lock(&partition->lock);
    bool still_wanted = index < partition->key_capacity && partition->keys[index].wanted;
    if (still_wanted) {
        partition->keys[index].key = key;
        partition->keys[index].rv = key.rv;
        partition->keys[index].state = state_of(verdict);
    }
    pthread_mutex_unlock(&partition->lock);
    if (!still_wanted) {
        xks_p11_key_drop(partition->module, partition->keeper_session, &key);
    }
}

/* Look for every key that is not known yet. */
static void find_pending_keys(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    partition->keys_pending = false;
    uint32_t capacity = partition->key_capacity;
    pthread_mutex_unlock(&partition->lock);
    for (uint32_t i = 0; i < capacity && !stopping(partition); i++) {
        find_key(partition, i);
    }
    xks_engine_announce(partition->engine);
}

/* Copies of keys that nobody wants any more are destroyed; keys deleted on the token stop being served. */
static void revalidate_keys(engine_partition *partition)
{
    for (uint32_t i = 0; !stopping(partition); i++) {
        pthread_mutex_lock(&partition->lock);
        if (i >= partition->key_capacity) {
            pthread_mutex_unlock(&partition->lock);
            return;
        }
        partition_key known = partition->keys[i];
        if (!known.wanted && known.key.copied) {
            partition->keys[i].key.copied = false;
            partition->keys[i].state = XKS_KEY_PENDING;
        }
        pthread_mutex_unlock(&partition->lock);
        if (!known.wanted) {
            xks_p11_key_drop(partition->module, partition->keeper_session, &known.key);
        } else if (known.state == XKS_KEY_USABLE) {
            if (xks_p11_key_still_there(partition->module, partition->keeper_session, &known.key) != XKS_P11_KEY_ABSENT) {
                continue;
            }
            pthread_mutex_lock(&partition->lock);
            if (partition->keys[i].wanted && partition->keys[i].key.source == known.key.source) {
                partition->keys[i].state = XKS_KEY_ABSENT;
                partition->keys[i].key.copied = false;
            }
            pthread_mutex_unlock(&partition->lock);
            xks_p11_key_drop(partition->module, partition->keeper_session, &known.key);
        } else {
            find_key(partition, i); /* it may have been created meanwhile */
        }
    }
}

/* --- health */

/* A real encrypt and decrypt with the health check key. */
static CK_RV probe(engine_partition *partition)
{
    xks_p11_failure failure = {0};
    xks_p11_canary canary = partition->canary; /* written by this thread only */
    uint8_t text[XKS_CANARY_BYTES] = {0}, out[XKS_CANARY_BYTES + 32];
    xks_p11_gcm gcm = {partition->module, partition->keeper_session, canary.key, partition->profile->iv_mode};
    uint64_t began = xks_monotonic_ns();
    CK_RV rv = xks_p11_gcm_encrypt(&gcm, &partition->random, (xks_span){text, 0}, (xks_span){text, sizeof text}, out, canary.iv,
                                   &canary.iv_len, canary.tag, &failure);
    if (rv == CKR_OK) {
        rv = xks_p11_canary_check(&gcm, &partition->scratch, &partition->canary, &failure);
    }
    uint64_t ended = xks_monotonic_ns();
    pthread_mutex_lock(&partition->lock);
    partition->last_probe_ns = ended;
    partition->probe_duration_ns = ended - began;
    if (rv == CKR_OK) {
        partition->last_good_probe_ns = ended;
        partition->faults_in_row = 0;
    } else {
        snprintf(partition->reason, sizeof partition->reason, "health probe: %s: %s (0x%lx)", failure.call,
                 xks_ckr_name(failure.rv), failure.rv);
    }
    pthread_mutex_unlock(&partition->lock);
    return rv;
}

/* READY: probe, look after keys, until recovery is wanted or the engine stops. */
static void keep_ready(engine_partition *partition)
{
    uint64_t interval = partition->engine->config.probe_interval_ns;
    uint64_t next_probe = xks_monotonic_ns() + interval;
    while (!stopping(partition)) {
        pthread_mutex_lock(&partition->lock);
        while (!stopping(partition) && !partition->recovery_wanted && !partition->keys_pending &&
               xks_monotonic_ns() < next_probe) {
            wait_locked(partition, next_probe);
        }
        bool recover = partition->recovery_wanted, look = partition->keys_pending;
        pthread_mutex_unlock(&partition->lock);
        if (recover || stopping(partition)) {
            return;
        }
        if (look) {
            find_pending_keys(partition);
        }
        if (xks_monotonic_ns() >= next_probe) {
            if (probe(partition) != CKR_OK) {
                return; /* bring it up anew */
            }
            revalidate_keys(partition);
            next_probe = xks_monotonic_ns() + interval;
        }
    }
}

/* Between two attempts: keep answering jobs whose time is over. */
static void pause_between_attempts(engine_partition *partition, uint64_t pause_ns)
{
    uint64_t until = xks_monotonic_ns() + pause_ns;
    pthread_mutex_lock(&partition->lock);
    while (!stopping(partition)) {
        uint64_t now = xks_monotonic_ns();
        xks_engine_purge_locked(partition, false, XKS_TIMEOUT);
        if (now >= until) {
            break;
        }
        wait_locked(partition, now + PURGE_INTERVAL_NS < until ? now + PURGE_INTERVAL_NS : until);
    }
    pthread_mutex_unlock(&partition->lock);
}

void *xks_engine_keeper_main(void *argument)
{
    engine_partition *partition = argument;
    char error[XKS_ERROR_TEXT_BYTES];
    uint64_t pause_ns = FIRST_PAUSE_NS;
    bool served = false;
    xks_random_pool_init(&partition->random);
    while (!stopping(partition)) {
        error[0] = '\0';
        xks_status status = bring_up(partition, error);
        if (status == XKS_OK) {
            find_pending_keys(partition);
            set_state(partition, XKS_PARTITION_READY, "");
            served = true;
            pause_ns = FIRST_PAUSE_NS;
            keep_ready(partition);
            if (!stopping(partition)) {
                atomic_store(&partition->state, XKS_PARTITION_RECOVERING);
            }
            continue;
        }
        /* A partition that served before is tried again whatever it says, but for a refused PIN. */
        bool pin_refused = strncmp(error, "C_Login", 7) == 0 && status == XKS_CONFIG;
        if (status == XKS_CONFIG && (!served || pin_refused)) {
            set_state(partition, XKS_PARTITION_REFUSED, error);
            pthread_mutex_lock(&partition->lock);
            while (!stopping(partition)) {
                pthread_cond_wait(&partition->attention, &partition->lock);
            }
            pthread_mutex_unlock(&partition->lock);
            break;
        }
        set_state(partition, XKS_PARTITION_RECOVERING, error);
        pause_between_attempts(partition, pause_ns);
        pause_ns = pause_ns * 2 < LONGEST_PAUSE_NS ? pause_ns * 2 : LONGEST_PAUSE_NS;
    }
    close_keeper_session(partition);
    xks_p11_scratch_free(&partition->scratch);
    xks_random_pool_wipe(&partition->random);
    return NULL;
}
