/* SPDX-License-Identifier: Apache-2.0 */
/* A label stands for one key: the one that was first seen under it. What it encrypted then, the key's reference, is kept by the node
 * (xks_reference_store.h), and every partition must open it before the key is used there, after each login, and on each sweep. So a key
 * that was replicated wrongly, made twice under one label, or replaced on a token is refused, in every process and after every restart.
 * A key that may only encrypt must make the same ciphertext again. One that may only decrypt is used before there is a reference: it can
 * do no harm. Where neither can be shown (the key may only encrypt and the HSM makes the IVs) the first partition of the group alone uses
 * the key. */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRIES 2

static const key_finding NO_REFERENCE = {XKS_KEY_FAILED, false, XKS_CKR_NO_REFERENCE};

bool xks_engine_is_stale(CK_RV rv)
{
    xks_ckr_class class = xks_ckr_classify(rv);
    return class == XKS_CKR_STALE_SESSION || class == XKS_CKR_STALE_LOGIN || class == XKS_CKR_MODULE_GONE;
}

/* --- before the start: where references are kept, and under which names */

xks_status xks_engine_name_group(xks_engine *engine, uint32_t group, const char *name, char *error)
{
    if (engine->started || group >= engine->group_count || engine->groups[group].name != NULL) {
        return xks_engine_refuse(error, "a group is named once, before the start");
    }
    engine->groups[group].name = strdup(name);
    return engine->groups[group].name != NULL ? XKS_OK : xks_engine_refuse(error, "no memory for a group's name");
}

xks_status xks_engine_keep_references(xks_engine *engine, const char *path, char *error)
{
    if (engine->started || engine->references != NULL) {
        return xks_engine_refuse(error, "one file of references is named, before the start");
    }
    return xks_reference_store_open(path, &engine->references, error);
}

/* --- the reference: in memory, and in the node's file where there is one */

static void note_reference_problem(engine_partition *partition, const char *problem)
{
    pthread_mutex_lock(&partition->lock);
    snprintf(partition->reference_problem, sizeof partition->reference_problem, "%s", problem);
    pthread_mutex_unlock(&partition->lock);
}

static bool is_remembered(xks_engine *engine, const wanted_key *wanted, xks_p11_canary *reference)
{
    pthread_mutex_lock(&engine->lock);
    const engine_key *key = xks_engine_key_at(engine, wanted->index);
    bool made = key->reference.made && atomic_load(&key->generation) == wanted->generation;
    if (made) {
        *reference = key->reference.canary;
    }
    pthread_mutex_unlock(&engine->lock);
    return made;
}

/* Remember a reference, unless there is one: then that one counts. False when it is not this one, or the key was removed. */
static bool remember(xks_engine *engine, const wanted_key *wanted, const xks_p11_canary *reference)
{
    pthread_mutex_lock(&engine->lock);
    engine_key *key = xks_engine_key_at(engine, wanted->index);
    bool ours = !key->reference.made && atomic_load(&key->generation) == wanted->generation;
    if (ours) {
        key->reference = (key_reference){*reference, true};
    }
    pthread_mutex_unlock(&engine->lock);
    return ours;
}

/* Whether the node's file has a part in it; then *name is the key's there. */
static bool is_kept(const xks_engine *engine, const wanted_key *wanted, uint8_t name[XKS_REFERENCE_NAME_BYTES])
{
    const char *group = engine->groups[wanted->group].name;
    if (engine->references == NULL || group == NULL) {
        return false;
    }
    xks_reference_name(group, wanted->label, wanted->label_len, name);
    return true;
}

/* XKS_OK, XKS_NOT_FOUND, or XKS_SYSTEM with reference_problem. */
static xks_status read_reference(engine_partition *partition, const wanted_key *wanted, xks_p11_canary *reference)
{
    xks_engine *engine = partition->engine;
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    char error[XKS_ERROR_TEXT_BYTES];
    if (is_remembered(engine, wanted, reference)) {
        return XKS_OK;
    }
    if (!is_kept(engine, wanted, name)) {
        return XKS_NOT_FOUND;
    }
    xks_status status = xks_reference_store_find(engine->references, name, reference, error);
    if (status == XKS_OK) {
        (void)remember(engine, wanted, reference);
    } else if (status != XKS_NOT_FOUND) {
        note_reference_problem(partition, error);
        return XKS_SYSTEM;
    }
    return status;
}

/* XKS_OK: the reference that counts is in *reference, *first says whether it is this one; XKS_SYSTEM with reference_problem. */
static xks_status offer_reference(engine_partition *partition, const wanted_key *wanted, xks_p11_canary *reference, bool *first,
                                  bool *kept)
{
    xks_engine *engine = partition->engine;
    uint8_t name[XKS_REFERENCE_NAME_BYTES];
    char error[XKS_ERROR_TEXT_BYTES];
    *kept = is_kept(engine, wanted, name);
    if (*kept && xks_reference_store_offer(engine->references, name, reference, first, error) != XKS_OK) {
        note_reference_problem(partition, error);
        return XKS_SYSTEM;
    }
    bool ours = remember(engine, wanted, reference);
    if (!*kept) {
        *first = ours || !is_remembered(engine, wanted, reference);
    }
    return XKS_OK;
}

/* --- asking the token */

/* One look: CKR_OK with *same, or the code of a call that failed. */
static CK_RV look(engine_partition *partition, const xks_p11_gcm *gcm, const xks_p11_canary *reference, bool can_decrypt, bool *same)
{
    xks_p11_failure failure = {0};
    xks_p11_canary mine = *reference;
    *same = false;
    if (!can_decrypt) {
        return xks_p11_canary_repeat(gcm, reference, same, &failure);
    }
    mine.key = gcm->key;
    CK_RV rv = xks_p11_canary_check(gcm, &partition->scratch, &mine, &failure);
    *same = rv == CKR_OK;
    bool refused = failure.broken || rv == partition->tag_failure || xks_ckr_classify(rv) == XKS_CKR_BAD_CIPHERTEXT;
    return refused ? CKR_OK : rv;
}

/* A refusal counts when the token refuses twice and opens its own canary in between: the code by which it says "wrong tag" may be the one
 * that it has for every passing fault. */
static key_finding compare(engine_partition *partition, const xks_p11_gcm *gcm, const xks_p11_canary *reference, bool can_decrypt)
{
    for (int i = 0; i < TRIES; i++) {
        xks_p11_failure failure = {0};
        xks_p11_gcm plain = *gcm;
        bool same;
        CK_RV rv = look(partition, gcm, reference, can_decrypt, &same);
        if (same) {
            return (key_finding){XKS_KEY_USABLE, true, CKR_OK};
        }
        if (rv == CKR_OK) {
            rv = xks_p11_canary_check(&plain, &partition->scratch, &partition->canary, &failure);
        }
        if (rv != CKR_OK) {
            return (key_finding){XKS_KEY_FAILED, false, rv};
        }
    }
    return (key_finding){XKS_KEY_DIFFERENT, false, CKR_OK};
}

/* Make a reference and look whether the key opens it: what is kept for ever must be right. */
static CK_RV make_reference(engine_partition *partition, const xks_p11_gcm *gcm, bool can_decrypt, xks_p11_canary *reference)
{
    xks_p11_failure failure = {0};
    bool same = false;
    CK_RV rv = xks_p11_canary_make(gcm, &partition->random, reference, &failure);
    if (rv == CKR_OK) {
        rv = look(partition, gcm, reference, can_decrypt, &same);
    }
    return rv == CKR_OK && !same ? CKR_DEVICE_ERROR : rv;
}

/* --- what the keeper calls */

/* Neither by decrypting nor by encrypting again. */
static bool cannot_show(const engine_partition *partition, const xks_p11_key *key)
{
    return !key->can_decrypt && partition->profile->iv_mode != XKS_IV_CALLER;
}

/* Whether what the keeper's session told is of its own token: were its number another's by now, a foreign key would be kept for ever. */
static bool is_own_token(engine_partition *partition)
{
    bool own = xks_engine_login_check(partition) == CKR_OK;
    pthread_mutex_lock(&partition->lock);
    own = own && !partition->keeper_session_gone && partition->epoch >= partition->valid_epoch;
    pthread_mutex_unlock(&partition->lock);
    return own;
}

static key_finding take_the_first(const engine_partition *partition, const wanted_key *wanted)
{
    bool first = (uint32_t)__builtin_ctzll(partition->engine->groups[wanted->group].members) == partition->index;
    return (key_finding){first ? XKS_KEY_USABLE : XKS_KEY_FAILED, false, first ? CKR_OK : CKR_FUNCTION_NOT_SUPPORTED};
}

key_finding xks_engine_prove_key(engine_partition *partition, const wanted_key *wanted, const xks_p11_key *key, bool *made)
{
    xks_p11_gcm gcm = {partition->p11, partition->keeper_session, key->use, partition->profile->iv_mode, NULL};
    xks_p11_canary reference;
    *made = false;
    if (cannot_show(partition, key)) {
        return take_the_first(partition, wanted);
    }
    xks_status status = read_reference(partition, wanted, &reference);
    if (status == XKS_SYSTEM) {
        return NO_REFERENCE;
    }
    if (status == XKS_NOT_FOUND) {
        bool first, kept;
        if (!key->can_encrypt) {
            return (key_finding){XKS_KEY_USABLE, false, CKR_OK}; /* nothing to hold it against yet */
        }
        CK_RV rv = make_reference(partition, &gcm, key->can_decrypt, &reference);
        if (rv != CKR_OK) {
            return (key_finding){XKS_KEY_FAILED, false, rv};
        }
        if (!is_own_token(partition)) {
            return (key_finding){XKS_KEY_FAILED, false, CKR_SESSION_HANDLE_INVALID};
        }
        if (offer_reference(partition, wanted, &reference, &first, &kept) != XKS_OK) {
            return NO_REFERENCE;
        }
        if (first) {
            *made = kept;
            return (key_finding){XKS_KEY_USABLE, true, CKR_OK};
        }
    }
    return compare(partition, &gcm, &reference, key->can_decrypt);
}

key_finding xks_engine_prove_again(engine_partition *partition, const wanted_key *wanted, const xks_p11_key *key)
{
    xks_p11_gcm gcm = {partition->p11, partition->keeper_session, key->source, partition->profile->iv_mode, NULL};
    xks_p11_canary reference;
    if (cannot_show(partition, key) || read_reference(partition, wanted, &reference) != XKS_OK) {
        return (key_finding){XKS_KEY_USABLE, false, CKR_OK};
    }
    key_finding found = compare(partition, &gcm, &reference, key->can_decrypt);
    found.state = found.state == XKS_KEY_FAILED ? XKS_KEY_USABLE : found.state;
    return found;
}

/* --- new references go to the disk together */

/* What to publish of keys whose reference was recorded. */
static key_finding sync_references(engine_partition *partition)
{
    char error[XKS_ERROR_TEXT_BYTES];
    if (xks_reference_store_sync(partition->engine->references, error) == XKS_OK) {
        return (key_finding){XKS_KEY_USABLE, true, CKR_OK};
    }
    note_reference_problem(partition, error);
    return NO_REFERENCE;
}

void xks_engine_hold_key(engine_partition *partition, const wanted_key *wanted, const xks_p11_key *key)
{
    if (partition->held == NULL) {
        partition->held = calloc(XKS_MAX_HELD_KEYS, sizeof *partition->held);
    }
    if (partition->held == NULL) {
        xks_p11_key mine = *key;
        key_finding found = sync_references(partition);
        (void)xks_engine_publish_key(partition, wanted, &mine, &found);
        return;
    }
    partition->held[partition->held_count++] = (held_key){*wanted, *key};
    if (partition->held_count == XKS_MAX_HELD_KEYS) {
        xks_engine_publish_held(partition);
    }
}

bool xks_engine_is_held(const engine_partition *partition, uint32_t key)
{
    bool held = false;
    for (uint32_t i = 0; i < partition->held_count && !held; i++) {
        held = partition->held[i].wanted.index == key;
    }
    return held;
}

void xks_engine_publish_held(engine_partition *partition)
{
    if (partition->held_count == 0) {
        return;
    }
    key_finding found = sync_references(partition);
    for (uint32_t i = 0; i < partition->held_count; i++) {
        held_key *held = &partition->held[i];
        if (found.state != XKS_KEY_USABLE) {
            xks_p11_key_drop(partition->p11, partition->keeper_session, &held->key);
        }
        (void)xks_engine_publish_key(partition, &held->wanted, &held->key, &found);
    }
    partition->held_count = 0;
}
