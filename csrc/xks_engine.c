/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_clock.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STOP_PATIENCE_NS 2000000000U
#define JOIN_PAUSE_NS 1000000
/* A session worker's stack: a vendor's library below it needs more than we do. */
#define STACK_BYTES (512U * 1024U)

xks_status xks_engine_refuse(char *error, const char *text)
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

static bool same_file(const char *a, const char *b)
{
    struct stat of_a, of_b;
    if (a == NULL || b == NULL) {
        return false;
    }
    return strcmp(a, b) == 0 ||
           (stat(a, &of_a) == 0 && stat(b, &of_b) == 0 && of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino);
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
        return xks_engine_refuse(error, "no memory for the engine");
    }
    engine->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->eventfd < 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "eventfd: %s", strerror(errno));
        free(engine);
        return XKS_SYSTEM;
    }
    /* The kernel wipes this page in a child, which a pid that is asked for once per job would cost a system call to find out. */
    void *page = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || madvise(page, (size_t)sysconf(_SC_PAGESIZE), MADV_WIPEONFORK) != 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "a page that a fork wipes: %s", strerror(errno));
        goto fail;
    }
    *(uint8_t *)page = 1;
    engine->ours = page;
    engine->retired = (key_list){XKS_NO_KEY, XKS_NO_KEY};
    if (xks_job_pool_new(&engine->pool) != XKS_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory for the engine's jobs");
        goto fail;
    }
    engine->config = *config;
    engine->pid = getpid();
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->done_lock, NULL);
    monotonic_cond_init(&engine->settled);
    pthread_cond_init(&engine->environment_free, NULL);
    *out = engine;
    return XKS_OK;
fail:
    if (page != MAP_FAILED) {
        (void)munmap(page, (size_t)sysconf(_SC_PAGESIZE));
    }
    close(engine->eventfd);
    free(engine);
    return XKS_SYSTEM;
}

xks_status xks_engine_add_module(xks_engine *engine, const char *path, const char *parameters, uint32_t *module, char *error)
{
    bool ok = true;
    if (engine->started || engine->module_count == XKS_MAX_MODULES) {
        return xks_engine_refuse(error, "no more modules can be added");
    }
    engine_module *added = &engine->modules[engine->module_count];
    added->p11.path = copy_text(path, &ok);
    added->p11.parameters = copy_text(parameters, &ok);
    pthread_mutex_init(&added->lock, NULL);
    pthread_cond_init(&added->changed, NULL);
    /* The dynamic linker gives one library once, however often it is asked: the second module of a file gets a copy of its own. */
    for (uint32_t i = 0; i < engine->module_count; i++) {
        added->p11.private_copy = added->p11.private_copy || same_file(engine->modules[i].p11.path, path);
    }
    *module = engine->module_count++;
    return ok ? XKS_OK : xks_engine_refuse(error, "no memory for a module");
}

static xks_status check_partition(const xks_engine *engine, const xks_partition_config *config, char *error)
{
    int names = (config->token_label != NULL) + (config->token_serial != NULL) + (config->slot != XKS_NO_SLOT);
    if (engine->started || engine->partition_count == XKS_MAX_PARTITIONS) {
        return xks_engine_refuse(error, "no more partitions can be added");
    }
    if (config->module >= engine->module_count) {
        return xks_engine_refuse(error, "the partition's module does not exist");
    }
    if (names != 1) {
        return xks_engine_refuse(error, "a partition is named by exactly one of token label, serial number and slot");
    }
    if (config->sessions < 1 || config->sessions > XKS_MAX_SESSIONS) {
        return xks_engine_refuse(error, "a partition has 1 to 256 sessions");
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
        return xks_engine_refuse(error, "no memory for a partition");
    }
    added->engine = engine;
    added->index = engine->partition_count;
    added->module = &engine->modules[config->module];
    added->p11 = &added->module->p11;
    added->name = copy_text(config->name, &ok);
    added->token_label = copy_text(config->token_label, &ok);
    added->token_serial = copy_text(config->token_serial, &ok);
    added->health_label = copy_text(config->health_check_label, &ok);
    added->slot_wanted = config->slot;
    added->pin = config->pin;
    added->profile = xks_p11_profile_find(config->profile);
    added->sessions = config->sessions;
    added->session_limit = UINT32_MAX;
    added->remote = config->remote;
    for (int name = URGENT_KEYS; name < XKS_KEY_LISTS; name++) {
        added->lists[name] = (key_list){XKS_NO_KEY, XKS_NO_KEY};
    }
    added->problem_key = XKS_NO_KEY;
    added->workers = calloc(2 * (size_t)config->sessions, sizeof *added->workers);
    pthread_mutex_init(&added->lock, NULL);
    monotonic_cond_init(&added->attention);
    engine->partitions[engine->partition_count] = added;
    *partition = engine->partition_count++;
    return ok && added->workers != NULL ? XKS_OK : xks_engine_refuse(error, "no memory for a partition");
}

xks_status xks_engine_add_group(xks_engine *engine, const uint32_t *partitions, size_t partition_count, xks_verify_policy verify,
                                uint32_t *group, char *error)
{
    if (engine->started || engine->group_count == XKS_MAX_GROUPS || partition_count == 0 ||
        partition_count > XKS_MAX_PARTITIONS) {
        return xks_engine_refuse(error, "a group has at least one partition, and is added before the start");
    }
    engine_group added = {.verify = verify};
    for (size_t i = 0; i < partition_count; i++) {
        if (partitions[i] >= engine->partition_count) {
            return xks_engine_refuse(error, "a group names a partition that does not exist");
        }
        const engine_partition *partition = engine->partitions[partitions[i]];
        added.local |= partition->remote ? 0 : xks_partition_bit(partition);
        added.members |= xks_partition_bit(partition);
    }
    added.count = (uint32_t)__builtin_popcountll(added.members);
    *group = engine->group_count++;
    engine->groups[*group] = added;
    return XKS_OK;
}

/* A thread to which no signal of the process is delivered: a library's system calls must not be interrupted by a SIGTERM or SIGCHLD that
 * is meant for the loop. */
static bool start_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(thread, attributes, run, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

bool xks_engine_start_worker_locked(engine_partition *partition)
{
    pthread_attr_t attributes;
    for (uint32_t i = 0; i < 2 * partition->sessions; i++) {
        engine_worker *worker = &partition->workers[i];
        if (worker->started && !worker->exited) {
            continue;
        }
        if (worker->started) {
            if (!worker->joined) {
                (void)pthread_join(worker->thread, NULL); /* it has left already */
            }
            pthread_cond_destroy(&worker->wake);
        }
        memset(worker, 0, sizeof *worker);
        worker->partition = partition;
        pthread_cond_init(&worker->wake, NULL);
        pthread_attr_init(&attributes);
        (void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
        worker->started = start_thread(&worker->thread, &attributes, xks_engine_worker_main, worker);
        pthread_attr_destroy(&attributes);
        partition->threads += worker->started ? 1 : 0;
        return worker->started;
    }
    return false;
}

static bool start_partition(engine_partition *partition)
{
    if (!start_thread(&partition->keeper, NULL, xks_engine_keeper_main, partition)) {
        return false;
    }
    partition->keeper_started = true;
    bool started = true;
    pthread_mutex_lock(&partition->lock);
    while (started && partition->threads < partition->sessions) {
        started = xks_engine_start_worker_locked(partition);
    }
    pthread_mutex_unlock(&partition->lock);
    return started;
}

xks_status xks_engine_start(xks_engine *engine, char *error)
{
    if (engine->started || engine->pid != getpid()) {
        return xks_engine_refuse(error, "the engine runs already, or in another process");
    }
    xks_router_config routing = {engine->config.seed, engine->partition_count > 0 ? engine->partition_count : 1,
                                 engine->config.retry_budget, engine->config.hedge_budget};
    if (xks_router_new(&routing, &engine->router) != XKS_OK) {
        return xks_engine_refuse(error, "no memory for the router");
    }
    engine->started = true;
    engine->started_ns = xks_monotonic_ns();
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        if (!start_partition(engine->partitions[i])) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "no thread could be started: raise the limit of processes (ulimit -u)");
            return XKS_SYSTEM;
        }
    }
    return XKS_OK;
}

/* --- stopping */

/* Whether a thread that was started has not ended by then. Asked again and again, since pthread_timedjoin_np goes by the clock of the day,
 * which may be set at the same time. */
static bool is_left(bool started, bool *joined, pthread_t thread, uint64_t until_ns)
{
    const struct timespec pause = {0, JOIN_PAUSE_NS};
    while (started && !*joined) {
        *joined = pthread_tryjoin_np(thread, NULL) == 0;
        if (!*joined && xks_monotonic_ns() >= until_ns) {
            break;
        }
        if (!*joined) {
            (void)nanosleep(&pause, NULL);
        }
    }
    return started && !*joined;
}

static void free_partition(engine_partition *partition)
{
    free(partition->name);
    free(partition->token_label);
    free(partition->token_serial);
    free(partition->health_label);
    free(partition->held);
    for (uint32_t w = 0; w < 2 * partition->sessions; w++) {
        if (partition->workers[w].started) {
            pthread_cond_destroy(&partition->workers[w].wake);
        }
    }
    free(partition->workers);
    for (uint32_t c = 0; c < XKS_MAX_KEY_CHUNKS && partition->keys[c] != NULL; c++) {
        free(partition->keys[c]);
    }
    pthread_mutex_destroy(&partition->lock);
    pthread_cond_destroy(&partition->attention);
    free(partition);
}

uint32_t xks_engine_stop(xks_engine *engine, uint64_t patience_ns)
{
    uint32_t left = 0;
    uint64_t until_ns = xks_monotonic_ns() + patience_ns;
    if (engine->pid != getpid()) {
        return 1;
    }
    atomic_store(&engine->stopping, true);
    pthread_mutex_lock(&engine->lock);
    pthread_cond_broadcast(&engine->environment_free);
    pthread_mutex_unlock(&engine->lock);
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        pthread_mutex_lock(&partition->lock);
        xks_engine_wake_all_workers_locked(partition);
        pthread_cond_broadcast(&partition->attention);
        pthread_mutex_unlock(&partition->lock);
        pthread_mutex_lock(&partition->module->lock);
        pthread_cond_broadcast(&partition->module->changed);
        pthread_mutex_unlock(&partition->module->lock);
    }
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *partition = engine->partitions[i];
        for (uint32_t w = 0; w < 2 * partition->sessions; w++) {
            engine_worker *worker = &partition->workers[w];
            left += is_left(worker->started, &worker->joined, worker->thread, until_ns) ? 1 : 0;
        }
        left += is_left(partition->keeper_started, &partition->keeper_joined, partition->keeper, until_ns) ? 1 : 0;
    }
    return left;
}

uint32_t xks_engine_free(xks_engine *engine)
{
    if (engine == NULL) {
        return 0;
    }
    uint32_t left = xks_engine_stop(engine, STOP_PATIENCE_NS);
    if (left > 0) {
        return left; /* their memory must stay */
    }
    for (uint32_t i = 0; i < engine->module_count; i++) {
        xks_p11_module_close(&engine->modules[i].p11);
        free(engine->modules[i].p11.path);
        free(engine->modules[i].p11.parameters);
        xks_engine_free_variables(&engine->modules[i]);
        pthread_mutex_destroy(&engine->modules[i].lock);
        pthread_cond_destroy(&engine->modules[i].changed);
    }
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        free_partition(engine->partitions[i]);
    }
    for (uint32_t i = 0; i < engine->group_count; i++) {
        free(engine->groups[i].name);
    }
    xks_engine_free_keys(engine);
    xks_reference_store_free(engine->references);
    xks_router_free(engine->router);
    xks_job_pool_free(engine->pool);
    close(engine->eventfd);
    (void)munmap((void *)(uintptr_t)engine->ours, (size_t)sysconf(_SC_PAGESIZE));
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->done_lock);
    pthread_cond_destroy(&engine->settled);
    pthread_cond_destroy(&engine->environment_free);
    free(engine);
    return 0;
}

int xks_engine_eventfd(const xks_engine *engine)
{
    return engine->eventfd;
}
