/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include <stdlib.h>
#include <string.h>

/* How many retired indices are tried before a new one is made: each may still have a copy on some token. */
#define RETIRED_TRIES 4
/* A key that could not be read is looked for again after these pauses, each twice the former. */
#define FIRST_RETRY_NS ((uint64_t)100000000U)
#define LONGEST_RETRY_NS ((uint64_t)10000000000U)
#define RETRY_DOUBLINGS 7

/* --- lists of indices */

static void append(key_list *list, uint32_t key, uint32_t *last_next)
{
    if (list->head == XKS_NO_KEY) {
        list->head = key;
    } else {
        *last_next = key;
    }
    list->tail = key;
}

void xks_engine_list_key_locked(engine_partition *partition, uint32_t key, key_list_name name)
{
    partition_key *known = xks_partition_key_at(partition, key);
    key_list *list = &partition->lists[name];
    if (known->listed[name]) {
        return;
    }
    known->listed[name] = true;
    known->next[name] = XKS_NO_KEY;
    append(list, key, list->tail != XKS_NO_KEY ? &xks_partition_key_at(partition, list->tail)->next[name] : NULL);
    pthread_cond_signal(&partition->attention);
}

uint32_t xks_engine_next_listed_locked(engine_partition *partition)
{
    for (int name = URGENT_KEYS; name <= LISTED_KEYS; name++) {
        key_list *list = &partition->lists[name];
        if (list->head != XKS_NO_KEY) {
            uint32_t key = list->head;
            partition_key *known = xks_partition_key_at(partition, key);
            list->head = known->next[name];
            list->tail = list->head == XKS_NO_KEY ? XKS_NO_KEY : list->tail;
            known->listed[name] = false;
            return key;
        }
    }
    return XKS_NO_KEY;
}

void xks_engine_set_key_locked(engine_partition *partition, uint32_t key, xks_key_state state)
{
    partition_key *known = xks_partition_key_at(partition, key);
    if (known->counted_as > 0) {
        partition->keys_by_state[known->counted_as - 1]--;
    }
    known->counted_as = (uint8_t)(known->wanted ? state + 1 : 0);
    if (known->counted_as > 0) {
        partition->keys_by_state[state]++;
    }
    atomic_store(&known->state, (uint8_t)state);
}

void xks_engine_retry_key_locked(engine_partition *partition, uint32_t key, uint64_t now)
{
    partition_key *known = xks_partition_key_at(partition, key);
    uint64_t pause = FIRST_RETRY_NS << (known->failed < RETRY_DOUBLINGS ? known->failed : RETRY_DOUBLINGS);
    known->failed = (uint8_t)(known->failed < UINT8_MAX ? known->failed + 1 : UINT8_MAX);
    known->due_ns = now + (pause < LONGEST_RETRY_NS ? pause : LONGEST_RETRY_NS);
    if (partition->retry_keys_ns == 0 || known->due_ns < partition->retry_keys_ns) {
        partition->retry_keys_ns = known->due_ns;
    }
    xks_engine_list_key_locked(partition, key, RETRIED_KEYS);
}

void xks_engine_list_due_keys_locked(engine_partition *partition, uint64_t now)
{
    if (partition->retry_keys_ns == 0 || now < partition->retry_keys_ns) {
        return;
    }
    uint32_t key = partition->lists[RETRIED_KEYS].head, next;
    partition->lists[RETRIED_KEYS] = (key_list){XKS_NO_KEY, XKS_NO_KEY};
    partition->retry_keys_ns = 0;
    for (; key != XKS_NO_KEY; key = next) {
        partition_key *known = xks_partition_key_at(partition, key);
        next = known->next[RETRIED_KEYS];
        known->listed[RETRIED_KEYS] = false;
        if (!known->wanted || atomic_load(&known->state) != XKS_KEY_FAILED) {
            continue;
        }
        if (known->due_ns <= now) {
            xks_engine_list_key_locked(partition, key, LISTED_KEYS);
            continue;
        }
        if (partition->retry_keys_ns == 0 || known->due_ns < partition->retry_keys_ns) {
            partition->retry_keys_ns = known->due_ns;
        }
        xks_engine_list_key_locked(partition, key, RETRIED_KEYS);
    }
}

void xks_engine_forget_handles_locked(engine_partition *partition)
{
    uint32_t capacity = atomic_load(&partition->engine->key_capacity);
    for (uint32_t key = 0; key < capacity && partition->keys[key / XKS_KEYS_PER_CHUNK] != NULL; key++) {
        partition_key *known = xks_partition_key_at(partition, key);
        known->copied = false; /* it went with the session that held it */
        known->source = known->use = 0;
        if (known->wanted) {
            xks_engine_set_key_locked(partition, key, XKS_KEY_PENDING);
            xks_engine_list_key_locked(partition, key, LISTED_KEYS);
        }
    }
}

/* --- the hash of labels; all with engine->lock held */

/* FNV-1a. Labels come from the operator's own configuration. */
static uint32_t hash_of(const char *label, size_t len)
{
    uint32_t hash = 2166136261U;
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ (uint8_t)label[i]) * 16777619U;
    }
    return hash;
}

static bool grow_buckets_locked(xks_engine *engine)
{
    uint32_t count = engine->bucket_count == 0 ? XKS_KEYS_PER_CHUNK : engine->bucket_count * 2;
    uint32_t *buckets = malloc(count * sizeof *buckets);
    if (buckets == NULL) {
        return false;
    }
    memset(buckets, 0xFF, count * sizeof *buckets); /* XKS_NO_KEY */
    for (uint32_t i = 0; i < engine->keys_used; i++) {
        engine_key *key = xks_engine_key_at(engine, i);
        if (key->references > 0) {
            key->next = buckets[key->hash % count];
            buckets[key->hash % count] = i;
        }
    }
    free(engine->buckets);
    engine->buckets = buckets;
    engine->bucket_count = count;
    return true;
}

static uint32_t find_locked(const xks_engine *engine, uint32_t group, const char *label, size_t len, uint32_t hash)
{
    uint32_t at = engine->bucket_count == 0 ? XKS_NO_KEY : engine->buckets[hash % engine->bucket_count];
    for (; at != XKS_NO_KEY; at = xks_engine_key_at(engine, at)->next) {
        const engine_key *key = xks_engine_key_at(engine, at);
        if (key->hash == hash && key->label_len == len && atomic_load(&key->group_plus_one) == group + 1 &&
            memcmp(key->label, label, len) == 0) {
            return at;
        }
    }
    return XKS_NO_KEY;
}

uint32_t xks_engine_next_of_label_locked(const xks_engine *engine, uint32_t after, const char *label, size_t len)
{
    uint32_t hash = hash_of(label, len);
    uint32_t at = after != XKS_NO_KEY         ? xks_engine_key_at(engine, after)->next
                  : engine->bucket_count == 0 ? XKS_NO_KEY
                                              : engine->buckets[hash % engine->bucket_count];
    for (; at != XKS_NO_KEY; at = xks_engine_key_at(engine, at)->next) {
        const engine_key *key = xks_engine_key_at(engine, at);
        if (key->hash == hash && key->label_len == len && memcmp(key->label, label, len) == 0) {
            return at;
        }
    }
    return XKS_NO_KEY;
}

/* --- indices; all with engine->lock held */

/* Room for another chunk of keys in the engine's table and in every partition's. */
static bool grow_tables_locked(xks_engine *engine)
{
    uint32_t chunk = atomic_load(&engine->key_capacity) / XKS_KEYS_PER_CHUNK;
    if (chunk == XKS_MAX_KEY_CHUNKS) {
        return false;
    }
    if (engine->keys[chunk] == NULL) {
        engine->keys[chunk] = calloc(XKS_KEYS_PER_CHUNK, sizeof *engine->keys[chunk]);
    }
    bool ok = engine->keys[chunk] != NULL;
    for (uint32_t i = 0; i < engine->partition_count && ok; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        if (partition->keys[chunk] == NULL) {
            partition->keys[chunk] = calloc(XKS_KEYS_PER_CHUNK, sizeof *partition->keys[chunk]);
        }
        ok = partition->keys[chunk] != NULL;
        pthread_mutex_unlock(&partition->lock);
    }
    if (ok) {
        atomic_store(&engine->key_capacity, (chunk + 1) * XKS_KEYS_PER_CHUNK);
    }
    return ok;
}

static bool has_copies(xks_engine *engine, uint32_t key)
{
    bool copied = false;
    for (uint32_t p = 0; p < engine->partition_count && !copied; p++) {
        engine_partition *partition = engine->partitions[p];
        pthread_mutex_lock(&partition->lock);
        copied = xks_partition_key_at(partition, key)->copied;
        pthread_mutex_unlock(&partition->lock);
    }
    return copied;
}

static void retire_locked(xks_engine *engine, uint32_t key)
{
    key_list *list = &engine->retired;
    xks_engine_key_at(engine, key)->next = XKS_NO_KEY;
    append(list, key, list->tail != XKS_NO_KEY ? &xks_engine_key_at(engine, list->tail)->next : NULL);
}

/* An index for a new key, never one of which a token still has a copy; XKS_NO_KEY when memory is out. */
static uint32_t take_index_locked(xks_engine *engine)
{
    for (int i = 0; i < RETIRED_TRIES && engine->retired.head != XKS_NO_KEY; i++) {
        uint32_t key = engine->retired.head;
        engine->retired.head = xks_engine_key_at(engine, key)->next;
        engine->retired.tail = engine->retired.head == XKS_NO_KEY ? XKS_NO_KEY : engine->retired.tail;
        if (!has_copies(engine, key)) {
            return key;
        }
        retire_locked(engine, key);
    }
    if (engine->keys_used == atomic_load(&engine->key_capacity) && !grow_tables_locked(engine)) {
        return XKS_NO_KEY;
    }
    if (engine->keys_used >= engine->bucket_count && !grow_buckets_locked(engine)) {
        return XKS_NO_KEY;
    }
    return engine->keys_used++;
}

/* Tell the partitions of the key's group whether it is wanted, and that a new generation of its index begins. */
static void spread_locked(xks_engine *engine, uint32_t key, uint32_t group, uint32_t generation, bool wanted)
{
    uint64_t members = engine->groups[group].members;
    for (; members != 0; members &= members - 1) {
        engine_partition *partition = engine->partitions[__builtin_ctzll(members)];
        pthread_mutex_lock(&partition->lock);
        partition_key *known = xks_partition_key_at(partition, key);
        known->wanted = wanted;
        known->generation = generation;
        known->proven = false;
        known->told = XKS_KEY_PENDING;
        known->failed = 0;
        xks_engine_set_key_locked(partition, key, XKS_KEY_PENDING);
        if (wanted || known->copied) {
            xks_engine_list_key_locked(partition, key, LISTED_KEYS);
        }
        pthread_mutex_unlock(&partition->lock);
    }
}

xks_status xks_engine_key_add(xks_engine *engine, uint32_t group, const char *label, size_t label_len, uint32_t *key, char *error)
{
    if (group >= engine->group_count || label_len == 0 || label_len > XKS_MAX_LABEL_BYTES) {
        return xks_engine_refuse(error, "a key has a label of 1 to 255 bytes and belongs to a group");
    }
    uint32_t hash = hash_of(label, label_len);
    xks_status status = XKS_OK;
    pthread_mutex_lock(&engine->lock);
    *key = find_locked(engine, group, label, label_len, hash);
    if (*key != XKS_NO_KEY) {
        xks_engine_key_at(engine, *key)->references++;
        goto out;
    }
    char *copy = malloc(label_len);
    *key = copy != NULL ? take_index_locked(engine) : XKS_NO_KEY;
    if (*key == XKS_NO_KEY) {
        free(copy);
        status = xks_engine_refuse(error, "no memory for another key");
        goto out;
    }
    engine_key *added = xks_engine_key_at(engine, *key);
    free(added->label);
    memcpy(copy, label, label_len);
    added->label = copy;
    added->label_len = label_len;
    added->references = 1;
    added->hash = hash;
    added->reference.made = false;
    added->next = engine->buckets[hash % engine->bucket_count];
    engine->buckets[hash % engine->bucket_count] = *key;
    uint32_t generation = atomic_load(&added->generation) + 1;
    spread_locked(engine, *key, group, generation, true);
    atomic_store(&added->generation, generation);
    atomic_store(&added->group_plus_one, group + 1);
out:
    pthread_mutex_unlock(&engine->lock);
    return status;
}

static void unhash_locked(xks_engine *engine, uint32_t key)
{
    uint32_t *link = &engine->buckets[xks_engine_key_at(engine, key)->hash % engine->bucket_count];
    while (*link != key) {
        link = &xks_engine_key_at(engine, *link)->next;
    }
    *link = xks_engine_key_at(engine, key)->next;
}

void xks_engine_key_remove(xks_engine *engine, uint32_t key)
{
    pthread_mutex_lock(&engine->lock);
    if (key < engine->keys_used && xks_engine_key_at(engine, key)->references > 0 &&
        --xks_engine_key_at(engine, key)->references == 0) {
        engine_key *removed = xks_engine_key_at(engine, key);
        uint32_t group = atomic_load(&removed->group_plus_one) - 1;
        uint32_t generation = atomic_load(&removed->generation) + 1;
        atomic_store(&removed->group_plus_one, 0);
        atomic_store(&removed->generation, generation);
        unhash_locked(engine, key);
        spread_locked(engine, key, group, generation, false);
        retire_locked(engine, key);
    }
    pthread_mutex_unlock(&engine->lock);
}

void xks_engine_free_keys(xks_engine *engine)
{
    for (uint32_t i = 0; i < engine->keys_used; i++) {
        free(xks_engine_key_at(engine, i)->label);
    }
    for (uint32_t c = 0; c < XKS_MAX_KEY_CHUNKS && engine->keys[c] != NULL; c++) {
        free(engine->keys[c]);
    }
    free(engine->buckets);
}
