/* SPDX-License-Identifier: Apache-2.0 */
/* What a partition's keeper does for keys: it finds each by its label, copies it into its session where that pays, has it proven
 * (xks_engine_identity.c), and looks again on each sweep. */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* With more keys to find than this, reading every key of the token once costs less than searching it for each. */
#define BULK_KEYS 32U
#define HANDLES_PER_CALL 512U

CK_RV xks_engine_login_check(engine_partition *partition)
{
    CK_SESSION_INFO info;
    CK_RV rv = partition->p11->f->C_GetSessionInfo(partition->keeper_session, &info);
    if (rv == CKR_OK && info.slotID != partition->keeper_slot) {
        return CKR_SESSION_HANDLE_INVALID; /* its number is of another token's session by now */
    }
    if (rv == CKR_OK && partition->pin != NULL && info.state != CKS_RO_USER_FUNCTIONS && info.state != CKS_RW_USER_FUNCTIONS) {
        return CKR_USER_NOT_LOGGED_IN;
    }
    return rv;
}

/* A token whose files or link are gone may still answer that it has no such object: an absence is believed only of a token that tells
 * about itself, and while we are logged in, since a logged-out session is shown no private object. Else the partition is brought up again. */
static CK_RV believe_absence(engine_partition *partition)
{
    char reason[XKS_ERROR_TEXT_BYTES];
    CK_TOKEN_INFO info;
    CK_RV rv = xks_engine_login_check(partition);
    if (rv != CKR_OK) {
        return rv;
    }
    rv = partition->p11->f->C_GetTokenInfo(partition->slot, &info);
    if (rv != CKR_OK) {
        snprintf(reason, sizeof reason, "a key is gone, and C_GetTokenInfo: %s (0x%lx)", xks_ckr_name(rv), rv);
        pthread_mutex_lock(&partition->lock);
        xks_engine_ask_recovery_locked(partition, 0, false, reason);
        pthread_mutex_unlock(&partition->lock);
    }
    return rv;
}

/* Whether the number of the keeper's session is somebody else's by now: whatever is asked or destroyed with it is another token's. */
static bool is_session_lost(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    bool lost = partition->keeper_session_gone;
    pthread_mutex_unlock(&partition->lock);
    return lost;
}

/* --- what is to be looked for */

/* A key with its label, and *known: what the partition knows of it; false when it is not wanted (any more). Takes both locks, in order. */
static bool read_wanted(engine_partition *partition, uint32_t index, wanted_key *wanted, partition_key *known)
{
    xks_engine *engine = partition->engine;
    pthread_mutex_lock(&engine->lock);
    pthread_mutex_lock(&partition->lock);
    *known = *xks_partition_key_at(partition, index);
    if (known->wanted) {
        const engine_key *key = xks_engine_key_at(engine, index);
        wanted->index = index;
        wanted->generation = known->generation;
        wanted->group = atomic_load(&key->group_plus_one) - 1;
        wanted->label_len = key->label_len;
        memcpy(wanted->label, key->label, key->label_len);
    }
    pthread_mutex_unlock(&partition->lock);
    pthread_mutex_unlock(&engine->lock);
    return known->wanted;
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

/* --- one key */

static const key_finding UNKNOWN = {XKS_KEY_PENDING, false, CKR_OK};

/* A key is used no more: its token object is another key by now, has another name or other rights, or is in doubt. The copy goes
 * after that is known, so that no worker takes its handle. */
static void give_up(engine_partition *partition, const wanted_key *wanted, xks_p11_key *key, const key_finding *found)
{
    xks_p11_key without = *key;
    without.copied = false;
    if (xks_engine_publish_key(partition, wanted, &without, found)) { /* else it goes with what is known of the removed key */
        xks_p11_key_drop(partition->p11, partition->keeper_session, key);
    }
}

/* What a token object means for a key that is looked for. CKR_OK, or a stale code. */
static CK_RV take_over(engine_partition *partition, const wanted_key *wanted, xks_p11_key *key, xks_p11_key_verdict verdict)
{
    key_finding found = {state_of(verdict), false, verdict == XKS_P11_KEY_UNREADABLE ? key->rv : CKR_OK};
    bool made = false;
    if (xks_engine_is_stale(found.rv)) {
        return found.rv;
    }
    if (verdict == XKS_P11_KEY_FOUND) {
        if (partition->profile->session_copy) {
            xks_p11_key_copy(partition->p11, partition->keeper_session, key);
        }
        found = xks_engine_prove_key(partition, wanted, key, &made);
        if (found.state != XKS_KEY_USABLE) {
            xks_p11_key_drop(partition->p11, partition->keeper_session, key);
        }
        if (xks_engine_is_stale(found.rv)) {
            return found.rv;
        }
    }
    if (!made && is_session_lost(partition)) {
        return CKR_SESSION_HANDLE_INVALID;
    }
    if (made) {
        xks_engine_hold_key(partition, wanted, key);
    } else {
        (void)xks_engine_publish_key(partition, wanted, key, &found);
    }
    return CKR_OK;
}

/* The copy of a key that nobody wants any more is destroyed. */
static void drop_unwanted(engine_partition *partition, uint32_t index)
{
    xks_p11_key key = {0};
    pthread_mutex_lock(&partition->lock);
    partition_key *known = xks_partition_key_at(partition, index);
    bool drop = !known->wanted && known->copied;
    if (drop) {
        key.use = known->use;
        key.source = known->source;
        key.copied = true;
    }
    pthread_mutex_unlock(&partition->lock);
    if (drop) {
        xks_p11_key_drop(partition->p11, partition->keeper_session, &key);
        pthread_mutex_lock(&partition->lock);
        xks_partition_key_at(partition, index)->copied = false; /* only now may the index be given to another key */
        pthread_mutex_unlock(&partition->lock);
    }
}

static CK_RV look_for_key(engine_partition *partition, uint32_t index)
{
    wanted_key wanted;
    partition_key known;
    xks_p11_key key;
    if (is_session_lost(partition)) {
        return CKR_SESSION_HANDLE_INVALID;
    }
    if (xks_engine_is_held(partition, index)) {
        xks_engine_publish_held(partition);
    }
    if (!read_wanted(partition, index, &wanted, &known)) {
        drop_unwanted(partition, index);
        return CKR_OK;
    }
    if (atomic_load(&known.state) == XKS_KEY_USABLE) {
        return CKR_OK;
    }
    if (known.copied) { /* it was doubted: another copy takes this one's place */
        xks_p11_key former = {.source = known.source, .use = known.use, .copied = true};
        give_up(partition, &wanted, &former, &UNKNOWN);
    }
    xks_p11_key_verdict verdict =
        xks_p11_key_find(partition->p11, partition->keeper_session, wanted.label, wanted.label_len, &key);
    if (verdict == XKS_P11_KEY_ABSENT) {
        CK_RV rv = believe_absence(partition);
        if (rv != CKR_OK) {
            return rv;
        }
    }
    return take_over(partition, &wanted, &key, verdict);
}

/* --- many keys: every secret key of the token is read once */

typedef struct handle_list {
    CK_OBJECT_HANDLE *handles;
    size_t count, capacity;
} handle_list;

static CK_RV read_handles(engine_partition *partition, handle_list *list)
{
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_BBOOL on_token = CK_TRUE;
    CK_ATTRIBUTE template[] = {{CKA_CLASS, &class, sizeof class}, {CKA_TOKEN, &on_token, sizeof on_token}};
    CK_ULONG got = HANDLES_PER_CALL;
    CK_RV rv = partition->p11->f->C_FindObjectsInit(partition->keeper_session, template, 2);
    if (rv != CKR_OK) {
        return rv;
    }
    while (rv == CKR_OK && got > 0) {
        if (list->capacity - list->count < HANDLES_PER_CALL) {
            size_t capacity = list->capacity * 2 + HANDLES_PER_CALL;
            CK_OBJECT_HANDLE *handles = realloc(list->handles, capacity * sizeof *handles);
            if (handles == NULL) {
                rv = CKR_HOST_MEMORY;
                break;
            }
            list->handles = handles;
            list->capacity = capacity;
        }
        rv = partition->p11->f->C_FindObjects(partition->keeper_session, list->handles + list->count, HANDLES_PER_CALL, &got);
        list->count += rv == CKR_OK ? got : 0;
    }
    CK_RV final = partition->p11->f->C_FindObjectsFinal(partition->keeper_session);
    return rv != CKR_OK ? rv : final;
}

static bool has_urgent(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    bool urgent = partition->lists[URGENT_KEYS].head != XKS_NO_KEY;
    pthread_mutex_unlock(&partition->lock);
    return urgent;
}

static uint32_t next_listed(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    uint32_t key = xks_engine_next_listed_locked(partition);
    pthread_mutex_unlock(&partition->lock);
    return key;
}

/* One object of the token. */
typedef struct token_object {
    char *label;
    size_t label_len;
    xks_p11_key key;
    xks_p11_key_verdict verdict;
} token_object;

static int by_label(const void *a, const void *b)
{
    const token_object *x = a, *y = b;
    if (x->label_len != y->label_len) {
        return x->label_len < y->label_len ? -1 : 1;
    }
    return x->label_len == 0 ? 0 : memcmp(x->label, y->label, x->label_len);
}

/* Label, type and rights of every object, in one call each; *count of them. Keys that jobs wait for are looked for in between. */
static CK_RV read_objects(engine_partition *partition, const handle_list *list, token_object *objects, size_t *count)
{
    char label[XKS_MAX_LABEL_BYTES + 1];
    CK_RV rv = CKR_OK;
    for (size_t i = 0; i < list->count && rv == CKR_OK && !atomic_load(&partition->engine->stopping); i++) {
        token_object *object = &objects[*count];
        while (rv == CKR_OK && has_urgent(partition)) {
            rv = look_for_key(partition, next_listed(partition));
        }
        object->verdict = xks_p11_key_read(partition->p11, partition->keeper_session, list->handles[i], label, XKS_MAX_LABEL_BYTES,
                                           &object->label_len, &object->key);
        if (object->verdict == XKS_P11_KEY_UNREADABLE && xks_engine_is_stale(object->key.rv)) {
            rv = object->key.rv;
        } else if (object->label_len > 0) {
            object->label = malloc(object->label_len);
            if (object->label == NULL) {
                return CKR_HOST_MEMORY;
            }
            memcpy(object->label, label, object->label_len);
            (*count)++;
        }
    }
    return rv;
}

/* The next key after *at that is wanted here, not known yet, and has this label. Takes both locks, in order. */
static bool wanted_by_label(engine_partition *partition, uint32_t *at, const token_object *object, wanted_key *wanted)
{
    xks_engine *engine = partition->engine;
    bool found = false;
    pthread_mutex_lock(&engine->lock);
    while (!found && (*at = xks_engine_next_of_label_locked(engine, *at, object->label, object->label_len)) != XKS_NO_KEY) {
        pthread_mutex_lock(&partition->lock);
        const partition_key *known = xks_partition_key_at(partition, *at);
        found = known->wanted && atomic_load(&known->state) == XKS_KEY_PENDING;
        *wanted = (wanted_key){.index = *at, .generation = known->generation, .label_len = object->label_len,
                               .group = atomic_load(&xks_engine_key_at(engine, *at)->group_plus_one) - 1};
        pthread_mutex_unlock(&partition->lock);
    }
    pthread_mutex_unlock(&engine->lock);
    memcpy(wanted->label, object->label, object->label_len);
    return found;
}

/* Objects sorted by label: one of a label is the key, several make it ambiguous. */
static CK_RV take_over_objects(engine_partition *partition, token_object *objects, size_t count)
{
    CK_RV rv = CKR_OK;
    for (size_t i = 0, same; i < count && rv == CKR_OK && !atomic_load(&partition->engine->stopping); i += same) {
        for (same = 1; i + same < count && by_label(&objects[i], &objects[i + same]) == 0; same++) {
        }
        wanted_key wanted;
        for (uint32_t at = XKS_NO_KEY; rv == CKR_OK && wanted_by_label(partition, &at, &objects[i], &wanted);) {
            xks_p11_key key = objects[i].key;
            rv = take_over(partition, &wanted, &key, same > 1 ? XKS_P11_KEY_AMBIGUOUS : objects[i].verdict);
        }
    }
    return rv;
}

/* Read every secret key of the token once, in place of one search per wanted key. Those it does not find are searched for after it. */
static CK_RV read_token(engine_partition *partition)
{
    handle_list list = {0};
    token_object *objects = NULL;
    size_t count = 0;
    CK_RV rv = read_handles(partition, &list);
    if (rv == CKR_OK && list.count > 0) {
        objects = calloc(list.count, sizeof *objects);
        rv = objects == NULL ? CKR_HOST_MEMORY : read_objects(partition, &list, objects, &count);
    }
    if (rv == CKR_OK && count > 0) {
        qsort(objects, count, sizeof *objects, by_label);
        rv = take_over_objects(partition, objects, count);
    }
    for (size_t i = 0; i < count; i++) {
        free(objects[i].label);
    }
    free(objects);
    free(list.handles);
    return rv;
}

CK_RV xks_engine_look_for_keys(engine_partition *partition, uint64_t at_most_ns)
{
    uint64_t until = xks_monotonic_ns() + at_most_ns;
    CK_RV rv = CKR_OK;
    pthread_mutex_lock(&partition->lock);
    bool many = partition->keys_by_state[XKS_KEY_PENDING] > BULK_KEYS && partition->read_in_epoch != partition->epoch;
    partition->read_in_epoch = many ? partition->epoch : partition->read_in_epoch;
    pthread_mutex_unlock(&partition->lock);
    if (many) {
        rv = read_token(partition);
    }
    while (rv == CKR_OK && !atomic_load(&partition->engine->stopping) && xks_monotonic_ns() < until) {
        uint32_t key = next_listed(partition);
        if (key == XKS_NO_KEY) {
            break;
        }
        rv = look_for_key(partition, key);
        if (rv != CKR_OK) { /* whoever repairs the session or the login goes on with it */
            pthread_mutex_lock(&partition->lock);
            xks_engine_list_key_locked(partition, key, LISTED_KEYS);
            pthread_mutex_unlock(&partition->lock);
        }
    }
    xks_engine_publish_held(partition);
    return rv;
}

/* --- what was found, again */

/* A key that is used is looked at, and opens its reference again. CKR_OK with *again: it is to be looked for; or a stale code. */
static CK_RV look_at_used(engine_partition *partition, const wanted_key *wanted, const partition_key *known, bool *again)
{
    xks_p11_key key = {.source = known->source, .use = known->use, .copied = known->copied, .can_encrypt = known->can_encrypt,
                       .can_decrypt = known->can_decrypt, .extractable = known->extractable};
    xks_p11_key_verdict verdict =
        xks_p11_key_still_there(partition->p11, partition->keeper_session, wanted->label, wanted->label_len, &key);
    if (verdict == XKS_P11_KEY_UNREADABLE) {
        return xks_engine_is_stale(key.rv) ? key.rv : CKR_OK;
    }
    if (verdict == XKS_P11_KEY_FOUND) {
        key_finding found = xks_engine_prove_again(partition, wanted, &key);
        if (found.state != XKS_KEY_USABLE) {
            give_up(partition, wanted, &key, &found);
        } else if (found.rv == CKR_OK && found.proven != known->proven) {
            (void)xks_engine_publish_key(partition, wanted, &key, &found);
        }
        return xks_engine_is_stale(found.rv) ? found.rv : CKR_OK;
    }
    CK_RV rv = xks_engine_login_check(partition);
    if (rv == CKR_OK) {
        give_up(partition, wanted, &key, &UNKNOWN);
        *again = true;
    }
    return rv;
}

static CK_RV revalidate(engine_partition *partition, uint32_t index)
{
    wanted_key wanted;
    partition_key known;
    if (!read_wanted(partition, index, &wanted, &known)) {
        return CKR_OK;
    }
    if (is_session_lost(partition)) {
        return CKR_SESSION_HANDLE_INVALID;
    }
    bool again = atomic_load(&known.state) != XKS_KEY_USABLE;
    CK_RV rv = again ? CKR_OK : look_at_used(partition, &wanted, &known, &again);
    return rv == CKR_OK && again ? look_for_key(partition, index) : rv;
}

CK_RV xks_engine_sweep_keys(engine_partition *partition, uint64_t at_most_ns)
{
    uint64_t until = xks_monotonic_ns() + at_most_ns;
    CK_RV rv = CKR_OK;
    pthread_mutex_lock(&partition->engine->lock);
    uint32_t used = partition->engine->keys_used;
    pthread_mutex_unlock(&partition->engine->lock);
    for (uint32_t i = 0; i < used && rv == CKR_OK && !atomic_load(&partition->engine->stopping) && xks_monotonic_ns() < until; i++) {
        partition->sweep_at = partition->sweep_at + 1 < used ? partition->sweep_at + 1 : 0;
        rv = revalidate(partition, partition->sweep_at);
    }
    xks_engine_publish_held(partition);
    return rv;
}
