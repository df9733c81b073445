/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_ckr_name.h"
#include "xks_clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define STOP_PATIENCE_S 2
#define MAX_LABEL_BYTES 255

static xks_status refuse(char *error, const char *text)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s", text);
    return XKS_CONFIG;
}

/* A copy of text, or NULL for NULL; *ok turns false when memory is out. */
static char *copy_text(const char *text, bool *ok)
{
    char *copy = text == NULL ? NULL : strdup(text);
    *ok = *ok && (text == NULL || copy != NULL);
    return copy;
}

static void monotonic_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* --- building */

xks_status xks_engine_new(const xks_engine_config *config, xks_engine **out, char *error)
{
    xks_engine *engine = calloc(1, sizeof *engine);
    *out = NULL;
    if (engine == NULL) {
        return refuse(error, "no memory for the engine");
    }
    engine->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->eventfd < 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "eventfd: %s", strerror(errno));
        free(engine);
        return XKS_SYSTEM;
    }
    engine->config = *config;
    engine->pid = getpid();
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->done_lock, NULL);
    monotonic_cond_init(&engine->settled);
    *out = engine;
    return XKS_OK;
}

xks_status xks_engine_add_module(xks_engine *engine, const char *path, const char *parameters, uint32_t *module, char *error)
{
    bool ok = true;
    if (engine->started || engine->module_count == XKS_MAX_MODULES) {
        return refuse(error, "no more modules can be added");
    }
    xks_p11_module *added = &engine->modules[engine->module_count];
    added->path = copy_text(path, &ok);
    added->parameters = copy_text(parameters, &ok);
    *module = engine->module_count++;
    return ok ? xks_p11_module_open(added, error) : refuse(error, "no memory for a module");
}

static xks_status check_partition(const xks_engine *engine, const xks_partition_config *config, char *error)
{
    int names = (config->token_label != NULL) + (config->token_serial != NULL) + (config->slot != XKS_NO_SLOT);
    if (engine->started || engine->partition_count == XKS_MAX_PARTITIONS) {
        return refuse(error, "no more partitions can be added");
    }
    if (config->module >= engine->module_count) {
        return refuse(error, "the partition's module does not exist");
    }
    if (names != 1) {
        return refuse(error, "a partition is named by exactly one of token label, serial number and slot");
    }
    if (config->sessions < 1 || config->sessions > XKS_MAX_SESSIONS) {
        return refuse(error, "a partition has 1 to 256 sessions");
    }
    if (xks_p11_profile_find(config->profile) == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "there is no vendor profile '%.64s'", config->profile);
        return XKS_CONFIG;
    }
    return XKS_OK;
}

xks_status xks_engine_add_partition(xks_engine *engine, const xks_partition_config *config, uint32_t *partition, char *error)
{
    bool ok = true;
    xks_status status = check_partition(engine, config, error);
    if (status != XKS_OK) {
        return status;
    }
    engine_partition *added = calloc(1, sizeof *added);
    if (added == NULL) {
        return refuse(error, "no memory for a partition");
    }
    added->engine = engine;
    added->index = engine->partition_count;
    added->module = &engine->modules[config->module];
    added->name = copy_text(config->name, &ok);
    added->token_label = copy_text(config->token_label, &ok);
    added->token_serial = copy_text(config->token_serial, &ok);
    added->health_label = copy_text(config->health_check_label, &ok);
    added->slot_wanted = config->slot;
    added->pin = config->pin;
    added->profile = xks_p11_profile_find(config->profile);
    added->sessions = config->sessions;
    added->workers = calloc(config->sessions, sizeof *added->workers);
    pthread_mutex_init(&added->lock, NULL);
    pthread_cond_init(&added->work, NULL);
    monotonic_cond_init(&added->attention);
    engine->partitions[engine->partition_count] = added;
    *partition = engine->partition_count++;
    return ok && added->workers != NULL ? XKS_OK : refuse(error, "no memory for a partition");
}

xks_status xks_engine_add_group(xks_engine *engine, const uint32_t *partitions, size_t partition_count, uint32_t *group,
                                char *error)
{
    if (engine->started || engine->group_count == XKS_MAX_GROUPS || partition_count == 0 ||
        partition_count > XKS_MAX_PARTITIONS) {
        return refuse(error, "a group has at least one partition, and is added before the start");
    }
    engine_group *added = &engine->groups[engine->group_count];
    added->partitions = calloc(partition_count, sizeof *added->partitions);
    if (added->partitions == NULL) {
        return refuse(error, "no memory for a group");
    }
    for (size_t i = 0; i < partition_count; i++) {
        if (partitions[i] >= engine->partition_count) {
            free(added->partitions);
            return refuse(error, "a group names a partition that does not exist");
        }
        added->partitions[i] = partitions[i];
    }
    added->count = (uint32_t)partition_count;
    *group = engine->group_count++;
    return XKS_OK;
}

static bool start_partition(engine_partition *partition)
{
    if (pthread_create(&partition->keeper, NULL, xks_engine_keeper_main, partition) != 0) {
        return false;
    }
    partition->keeper_started = true;
    for (uint32_t i = 0; i < partition->sessions; i++) {
        engine_worker *worker = &partition->workers[i];
        worker->partition = partition;
        if (pthread_create(&worker->thread, NULL, xks_engine_worker_main, worker) != 0) {
            return false;
        }
        worker->started = true;
    }
    return true;
}

xks_status xks_engine_start(xks_engine *engine, char *error)
{
    if (engine->started || engine->pid != getpid()) {
        return refuse(error, "the engine runs already, or in another process");
    }
    engine->started = true;
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        if (!start_partition(engine->partitions[i])) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "no thread could be started: raise the limit of processes (ulimit -u)");
            return XKS_SYSTEM;
        }
    }
    return XKS_OK;
}

/* --- stopping */

static bool join_in_time(pthread_t thread, const struct timespec *until)
{
    return pthread_timedjoin_np(thread, NULL, until) == 0;
}

static void free_partition(engine_partition *partition)
{
    free(partition->name);
    free(partition->token_label);
    free(partition->token_serial);
    free(partition->health_label);
    free(partition->workers);
    free(partition->keys);
    pthread_mutex_destroy(&partition->lock);
    pthread_cond_destroy(&partition->work);
    pthread_cond_destroy(&partition->attention);
    free(partition);
}

/* Ask every thread to end and join those that do; the number of those that are hung in a token. */
static uint32_t stop_threads(xks_engine *engine)
{
    uint32_t left = 0;
    struct timespec until;
    atomic_store(&engine->stopping, true);
    clock_gettime(CLOCK_REALTIME, &until); /* the clock of pthread_timedjoin_np */
    until.tv_sec += STOP_PATIENCE_S;
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        pthread_cond_broadcast(&partition->work);
        pthread_cond_broadcast(&partition->attention);
        pthread_mutex_unlock(&partition->lock);
    }
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        for (uint32_t w = 0; w < partition->sessions; w++) {
            left += partition->workers[w].started && !join_in_time(partition->workers[w].thread, &until) ? 1 : 0;
        }
        left += partition->keeper_started && !join_in_time(partition->keeper, &until) ? 1 : 0;
    }
    return left;
}

uint32_t xks_engine_free(xks_engine *engine)
{
    if (engine == NULL) {
        return 0;
    }
    uint32_t left = engine->pid == getpid() ? stop_threads(engine) : 1;
    if (left > 0) {
        return left; /* their memory must stay */
    }
    for (uint32_t i = 0; i < engine->module_count; i++) {
        xks_p11_module_close(&engine->modules[i]);
        free(engine->modules[i].path);
        free(engine->modules[i].parameters);
    }
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        free_partition(engine->partitions[i]);
    }
    for (uint32_t i = 0; i < engine->group_count; i++) {
        free(engine->groups[i].partitions);
    }
    for (uint32_t i = 0; i < engine->key_capacity; i++) {
        free(engine->keys[i].label);
    }
    free(engine->keys);
    close(engine->eventfd);
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->done_lock);
    pthread_cond_destroy(&engine->settled);
    free(engine);
    return 0;
}

/* --- keys */

/* Room for one more key in the engine's table and in every partition's. engine->lock is held. */
static bool grow_tables_locked(xks_engine *engine)
{
    uint32_t capacity = engine->key_capacity == 0 ? 64 : engine->key_capacity * 2;
    engine_key *keys = realloc(engine->keys, capacity * sizeof *keys);
    if (keys == NULL) {
        return false;
    }
    memset(keys + engine->key_capacity, 0, (capacity - engine->key_capacity) * sizeof *keys);
    engine->keys = keys;
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        partition_key *known = realloc(partition->keys, capacity * sizeof *known);
        if (known != NULL) {
            memset(known + partition->key_capacity, 0, (capacity - partition->key_capacity) * sizeof *known);
            partition->keys = known;
            partition->key_capacity = capacity;
        }
        pthread_mutex_unlock(&partition->lock);
        if (known == NULL) {
            return false;
        }
    }
    engine->key_capacity = capacity;
    return true;
}

/* Tell the partitions of the key's group whether it is wanted. engine->lock is held. */
static void spread_locked(xks_engine *engine, uint32_t key, bool wanted)
{
    const engine_group *group = &engine->groups[engine->keys[key].group];
    for (uint32_t i = 0; i < group->count; i++) {
        engine_partition *partition = engine->partitions[group->partitions[i]];
        pthread_mutex_lock(&partition->lock);
        partition->keys[key].wanted = wanted;
        partition->keys[key].state = XKS_KEY_PENDING;
        partition->keys_pending = partition->keys_pending || wanted;
        pthread_cond_signal(&partition->attention);
        pthread_mutex_unlock(&partition->lock);
    }
}

/* A free index, never one whose copy a keeper has yet to destroy; UINT32_MAX when the tables are full. engine->lock is held. */
static uint32_t free_index_locked(xks_engine *engine)
{
    for (uint32_t i = 0; i < engine->key_capacity; i++) {
        if (engine->keys[i].references > 0) {
            continue;
        }
        bool busy = false;
        for (uint32_t p = 0; p < engine->partition_count && !busy; p++) {
            engine_partition *partition = engine->partitions[p];
            pthread_mutex_lock(&partition->lock);
            busy = partition->keys[i].key.copied || atomic_load(&partition->in_flight) > 0;
            pthread_mutex_unlock(&partition->lock);
        }
        if (!busy || engine->keys[i].label == NULL) {
            return i;
        }
    }
    return UINT32_MAX;
}

xks_status xks_engine_key_add(xks_engine *engine, uint32_t group, const char *label, size_t label_len, uint32_t *key, char *error)
{
    if (group >= engine->group_count || label_len == 0 || label_len > MAX_LABEL_BYTES) {
        return refuse(error, "a key has a label of 1 to 255 bytes and belongs to a group");
    }
    xks_status status = XKS_OK;
    pthread_mutex_lock(&engine->lock);
    for (uint32_t i = 0; i < engine->key_capacity; i++) {
        engine_key *known = &engine->keys[i];
        if (known->references > 0 && known->group == group && known->label_len == label_len &&
            memcmp(known->label, label, label_len) == 0) {
            known->references++;
            *key = i;
            goto out;
        }
    }
    uint32_t index = free_index_locked(engine);
    if (index == UINT32_MAX) {
        index = engine->key_capacity;
        if (!grow_tables_locked(engine)) {
            status = refuse(error, "no memory for another key");
            goto out;
        }
    }
    engine_key *added = &engine->keys[index];
    free(added->label);
    added->label = malloc(label_len);
    if (added->label == NULL) {
        status = refuse(error, "no memory for another key");
        goto out;
    }
    memcpy(added->label, label, label_len);
    added->label_len = label_len;
    added->group = group;
    added->references = 1;
    spread_locked(engine, index, true);
    *key = index;
out:
    pthread_mutex_unlock(&engine->lock);
    return status;
}

void xks_engine_key_remove(xks_engine *engine, uint32_t key)
{
    pthread_mutex_lock(&engine->lock);
    if (key < engine->key_capacity && engine->keys[key].references > 0 && --engine->keys[key].references == 0) {
        spread_locked(engine, key, false);
    }
    pthread_mutex_unlock(&engine->lock);
}

/* --- what the keepers know */

void xks_engine_announce(xks_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    pthread_cond_broadcast(&engine->settled);
    pthread_mutex_unlock(&engine->lock);
}

static bool is_settled_locked(xks_engine *engine)
{
    bool settled = true;
    for (uint32_t i = 0; i < engine->partition_count && settled; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        int state = atomic_load(&partition->state);
        settled = state != XKS_PARTITION_STARTING;
        for (uint32_t k = 0; k < partition->key_capacity && settled && state == XKS_PARTITION_READY; k++) {
            settled = !partition->keys[k].wanted || partition->keys[k].state != XKS_KEY_PENDING;
        }
        pthread_mutex_unlock(&partition->lock);
    }
    return settled;
}

xks_status xks_engine_wait_settled(xks_engine *engine, uint64_t timeout_ns)
{
    uint64_t until_ns = xks_monotonic_ns() + timeout_ns;
    struct timespec until = {(time_t)(until_ns / 1000000000U), (long)(until_ns % 1000000000U)};
    xks_status status = XKS_OK;
    pthread_mutex_lock(&engine->lock);
    while (!is_settled_locked(engine)) {
        if (pthread_cond_timedwait(&engine->settled, &engine->lock, &until) == ETIMEDOUT) {
            status = XKS_TIMEOUT;
            break;
        }
    }
    pthread_mutex_unlock(&engine->lock);
    return status;
}

xks_status xks_engine_partition_status(xks_engine *engine, uint32_t partition, xks_partition_status *out)
{
    if (partition >= engine->partition_count) {
        return XKS_NOT_FOUND;
    }
    engine_partition *p = engine->partitions[partition];
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&p->lock);
    out->state = (xks_partition_state)atomic_load(&p->state);
    memcpy(out->reason, p->reason, sizeof out->reason);
    memcpy(out->token_label, p->info.label, sizeof out->token_label);
    memcpy(out->manufacturer, p->info.manufacturer, sizeof out->manufacturer);
    memcpy(out->model, p->info.model, sizeof out->model);
    memcpy(out->serial, p->info.serial, sizeof out->serial);
    out->firmware_major = p->info.firmware_major;
    out->firmware_minor = p->info.firmware_minor;
    out->sessions_open = p->sessions_open;
    out->sessions_wanted = p->sessions;
    out->in_flight = atomic_load(&p->in_flight);
    out->login_epoch = p->epoch;
    out->operations = p->operations;
    out->failures = p->failures;
    out->last_probe_ns = p->last_probe_ns;
    out->last_good_probe_ns = p->last_good_probe_ns;
    out->probe_duration_ns = p->probe_duration_ns;
    out->tag_failure_ckr = p->tag_failure;
    snprintf(out->iv_mode, sizeof out->iv_mode, "%s", xks_iv_mode_name(p->profile->iv_mode));
    pthread_mutex_unlock(&p->lock);
    return XKS_OK;
}

/* What is wrong with a key and what to do, in words. */
static void explain(xks_key_state state, CK_RV rv, const engine_key *key, const char *token, char *out)
{
    int len = (int)(key->label_len < 128 ? key->label_len : 128);
    out[0] = '\0';
    switch (state) {
    case XKS_KEY_USABLE:
        break;
    case XKS_KEY_PENDING:
        snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' has not been looked for yet", len, key->label);
        break;
    case XKS_KEY_ABSENT:
        snprintf(out, XKS_ERROR_TEXT_BYTES,
                 "token '%s' has no secret key with the label '%.*s': create it, correct the label, or set create = true", token, len,
                 key->label);
        break;
    case XKS_KEY_AMBIGUOUS:
        snprintf(out, XKS_ERROR_TEXT_BYTES,
                 "token '%s' has several secret keys with the label '%.*s': give each a label of its own", token, len, key->label);
        break;
    case XKS_KEY_WRONG_TYPE:
        snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' is not AES with 256 bits: XKS knows no other", len,
                 key->label, token);
        break;
    case XKS_KEY_FAILED:
        snprintf(out, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' cannot be read: %s (0x%lx)", len, key->label, token,
                 xks_ckr_name(rv), rv);
        break;
    }
}

xks_status xks_engine_key_status(xks_engine *engine, uint32_t key, uint32_t partition, xks_key_status *out)
{
    xks_status status = XKS_NOT_FOUND;
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&engine->lock);
    if (partition < engine->partition_count && key < engine->key_capacity && engine->keys[key].references > 0) {
        engine_partition *p = engine->partitions[partition];
        pthread_mutex_lock(&p->lock);
        const partition_key *known = &p->keys[key];
        out->state = known->state;
        out->can_encrypt = known->key.can_encrypt;
        out->can_decrypt = known->key.can_decrypt;
        out->extractable = known->key.extractable;
        out->session_copy = known->key.copied;
        if (atomic_load(&p->state) != XKS_PARTITION_READY) {
            out->state = XKS_KEY_PENDING;
            snprintf(out->reason, sizeof out->reason, "the partition is not ready: %.400s", p->reason);
        } else {
            explain(known->state, known->rv, &engine->keys[key], p->info.label, out->reason);
        }
        pthread_mutex_unlock(&p->lock);
        status = XKS_OK;
    }
    pthread_mutex_unlock(&engine->lock);
    return status;
}

int xks_engine_eventfd(const xks_engine *engine)
{
    return engine->eventfd;
}

/* --- jobs */

/* The partition for a job, or NULL with the reason in *status. engine->lock is held, so that the key table stays. */
static engine_partition *choose_locked(xks_engine *engine, uint32_t key, xks_status *status)
{
    engine_partition *best = NULL;
    uint32_t least = UINT32_MAX;
    bool any_ready = false;
    if (key >= engine->key_capacity || engine->keys[key].references == 0) {
        *status = XKS_NOT_FOUND;
        return NULL;
    }
    engine_group *group = &engine->groups[engine->keys[key].group];
    for (uint32_t i = 0; i < group->count; i++) {
        engine_partition *partition = engine->partitions[group->partitions[(i + group->turn) % group->count]];
        int state = atomic_load(&partition->state);
        /* A partition that recovers may be back before the deadline; its queue waits. */
        bool ready = state == XKS_PARTITION_READY || (state == XKS_PARTITION_RECOVERING && group->count == 1);
        pthread_mutex_lock(&partition->lock);
        xks_key_state known = partition->keys[key].state;
        pthread_mutex_unlock(&partition->lock);
        bool has_key = known == XKS_KEY_USABLE || known == XKS_KEY_PENDING;
        any_ready = any_ready || ready;
        if (ready && has_key && atomic_load(&partition->in_flight) < least) {
            least = atomic_load(&partition->in_flight);
            best = partition;
        }
    }
    group->turn++;
    *status = best != NULL ? XKS_OK : any_ready ? XKS_NOT_FOUND : XKS_UNAVAILABLE;
    return best;
}

xks_status xks_engine_submit(xks_engine *engine, xks_job *job)
{
    xks_status status;
    if (atomic_load(&engine->queued) >= engine->config.max_queued) {
        return XKS_BUSY;
    }
    pthread_mutex_lock(&engine->lock);
    engine_partition *partition = choose_locked(engine, job->key, &status);
    pthread_mutex_unlock(&engine->lock);
    if (partition == NULL) {
        return status;
    }
    job->next = NULL;
    job->status = XKS_OK;
    job->partition = partition->index;
    job->submitted_ns = xks_monotonic_ns();
    pthread_mutex_lock(&partition->lock);
    if (atomic_load(&partition->state) == XKS_PARTITION_REFUSED) {
        pthread_mutex_unlock(&partition->lock);
        return XKS_UNAVAILABLE;
    }
    atomic_fetch_add(&partition->in_flight, 1);
    atomic_fetch_add(&engine->queued, 1);
    if (partition->queue_tail != NULL) {
        partition->queue_tail->next = job;
    } else {
        partition->queue_head = job;
    }
    partition->queue_tail = job;
    partition->queued++;
    pthread_mutex_unlock(&partition->lock);
    engine->dirty |= (uint64_t)1 << partition->index;
    return XKS_OK;
}

/* How many idle workers to wake for what is queued: one per job on a slow token. A fast one, whose call is shorter than a wake-up, gets
 * one worker for all: it comes back for more before a second could start (measured on SoftHSM2: 8 % less CPU than one per 50 us of
 * work). Only when that one makes no progress is another woken. */
static uint32_t workers_to_wake_locked(const engine_partition *partition)
{
    if (partition->queued == 0) {
        return 0;
    }
    uint64_t wanted = partition->queued;
    if (partition->service_ns < XKS_FAST_CALL_NS) {
        bool progressing = xks_monotonic_ns() - partition->last_progress_ns < XKS_STALLED_NS;
        wanted = partition->running_workers > 0 && progressing ? 0 : 1;
    }
    if (wanted > partition->queued) {
        wanted = partition->queued;
    }
    return wanted < partition->idle_workers ? (uint32_t)wanted : partition->idle_workers;
}

void xks_engine_flush(xks_engine *engine)
{
    uint64_t still_queued = 0;
    while (engine->dirty != 0) {
        unsigned index = (unsigned)__builtin_ctzll(engine->dirty);
        engine_partition *partition = engine->partitions[index];
        engine->dirty &= engine->dirty - 1;
        pthread_mutex_lock(&partition->lock);
        uint32_t wake = workers_to_wake_locked(partition);
        still_queued |= partition->queued > 0 ? (uint64_t)1 << index : 0;
        pthread_mutex_unlock(&partition->lock);
        for (uint32_t i = 0; i < wake; i++) {
            pthread_cond_signal(&partition->work);
        }
    }
    engine->dirty = still_queued; /* looked at again by the next flush: the one worker of a fast token may have been stopped by it */
}

void xks_engine_complete(xks_engine *engine, xks_job *job, bool more_soon)
{
    bool wake = false;
    job->next = NULL;
    pthread_mutex_lock(&engine->done_lock);
    if (engine->done_tail != NULL) {
        engine->done_tail->next = job;
    } else {
        engine->done_head = job;
        engine->first_unsignalled_ns = job->finished_ns;
    }
    engine->done_tail = job;
    if (!engine->signalled && (!more_soon || job->finished_ns - engine->first_unsignalled_ns > XKS_HELD_WAKE_NS)) {
        engine->signalled = true;
        wake = true;
    }
    pthread_mutex_unlock(&engine->done_lock);
    if (wake) {
        uint64_t one = 1;
        ssize_t written = write(engine->eventfd, &one, sizeof one);
        (void)written; /* full means that the loop has been woken and has not come yet */
    }
}

xks_job *xks_engine_drain(xks_engine *engine)
{
    uint64_t count;
    pthread_mutex_lock(&engine->done_lock);
    bool signalled = engine->signalled;
    xks_job *first = engine->done_head;
    engine->done_head = engine->done_tail = NULL;
    engine->signalled = false;
    pthread_mutex_unlock(&engine->done_lock);
    if (signalled) {
        ssize_t got = read(engine->eventfd, &count, sizeof count);
        (void)got; /* empty: the writer has not come to its write yet; the loop then finds nothing once */
    }
    return first;
}

void xks_engine_purge_locked(engine_partition *partition, bool all, xks_status status)
{
    uint64_t now = xks_monotonic_ns();
    xks_job **link = &partition->queue_head;
    xks_job *last = NULL;
    while (*link != NULL) {
        xks_job *job = *link;
        if (!all && now <= job->deadline_ns) {
            last = job;
            link = &job->next;
            continue;
        }
        *link = job->next;
        partition->queued--;
        atomic_fetch_sub(&partition->engine->queued, 1);
        atomic_fetch_sub(&partition->in_flight, 1);
        job->status = now > job->deadline_ns ? XKS_TIMEOUT : status;
        job->finished_ns = now;
        xks_engine_complete(partition->engine, job, false);
    }
    partition->queue_tail = last;
}
