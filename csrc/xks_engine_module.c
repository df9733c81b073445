/* SPDX-License-Identifier: Apache-2.0 */
/* The gate of a module: who is inside, and who has to wait while it is loaded or reset.
 *
 * C_Finalize takes every session and every handle of every partition of the module, and a module may give the same numbers out again at
 * once, for another token. So nobody is inside while it runs, and before it runs every partition of the module has forgotten what it
 * holds. Keepers count themselves in `inside` around each region of calls; a region ends only where nothing is concluded from it any more.
 * Workers are counted by their partition (running_workers), under the lock that they take anyway, and stopped by `frozen`. */
#include "xks_engine_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the environment */

xks_status xks_engine_add_variable(xks_engine *engine, const char *name, const char *value, char *error)
{
    engine_module *module = &engine->modules[engine->module_count];
    if (engine->started || engine->module_count == XKS_MAX_MODULES || module->variable_count == XKS_MAX_VARIABLES) {
        return xks_engine_refuse(error, "a module has at most 64 variables of its environment, added before it and before the start");
    }
    module_variable added = {strdup(name), strdup(value)};
    if (added.name == NULL || added.value == NULL || setenv(name, value, 1) != 0) {
        free(added.name);
        free(added.value);
        return xks_engine_refuse(error, "no memory for a module's environment");
    }
    module->variables[module->variable_count++] = added;
    return XKS_OK;
}

void xks_engine_free_variables(engine_module *module)
{
    for (uint32_t i = 0; i < module->variable_count; i++) {
        free(module->variables[i].name);
        free(module->variables[i].value);
    }
}

/* Whether both want different values of one variable. */
static bool contradict(const engine_module *a, const engine_module *b)
{
    bool differ = false;
    for (uint32_t i = 0; i < a->variable_count * b->variable_count && !differ; i++) {
        const module_variable *x = &a->variables[i / b->variable_count], *y = &b->variables[i % b->variable_count];
        differ = strcmp(x->name, y->name) == 0 && strcmp(x->value, y->value) != 0;
    }
    return differ;
}

/* engine->lock is held. */
static bool is_taken_locked(const xks_engine *engine, const engine_module *module)
{
    bool taken = false;
    for (uint32_t i = 0; i < engine->module_count && !taken; i++) {
        taken = engine->modules[i].reads_environment && contradict(&engine->modules[i], module);
    }
    return taken;
}

/* Two modules may want different values of the same variable, and read them in C_Initialize: one after the other. No others wait for each
 * other, since an HSM that does not answer may keep its module there for long. False: the engine stops before its turn. Every name is there since
 * before the first thread, so that the C library replaces a value in place and no reader elsewhere loses the array under its feet. */
static bool begin_environment(xks_engine *engine, engine_module *module)
{
    if (module->variable_count == 0) {
        return true;
    }
    pthread_mutex_lock(&engine->lock);
    while (is_taken_locked(engine, module) && !atomic_load(&engine->stopping)) {
        pthread_cond_wait(&engine->environment_free, &engine->lock);
    }
    bool free = !is_taken_locked(engine, module);
    module->reads_environment = free;
    pthread_mutex_unlock(&engine->lock);
    for (uint32_t i = 0; i < module->variable_count && free; i++) {
        const char *now = getenv(module->variables[i].name);
        if (now == NULL || strcmp(now, module->variables[i].value) != 0) {
            (void)setenv(module->variables[i].name, module->variables[i].value, 1);
        }
    }
    return free;
}

static void end_environment(xks_engine *engine, engine_module *module)
{
    if (module->variable_count == 0) {
        return;
    }
    pthread_mutex_lock(&engine->lock);
    module->reads_environment = false;
    pthread_cond_broadcast(&engine->environment_free);
    pthread_mutex_unlock(&engine->lock);
}

/* --- keepers come and go */

/* Until the module is not being changed; false when the engine stops before. module->lock is held. */
static bool wait_for_change_locked(const xks_engine *engine, engine_module *module)
{
    while (module->changing && !atomic_load(&engine->stopping)) {
        pthread_cond_wait(&module->changed, &module->lock);
    }
    return !module->changing;
}

static void end_change(engine_module *module, bool open)
{
    pthread_mutex_lock(&module->lock);
    module->open = open;
    module->changing = false;
    pthread_cond_broadcast(&module->changed);
    pthread_mutex_unlock(&module->lock);
}

bool xks_engine_enter_module(engine_partition *partition)
{
    engine_module *module = partition->module;
    pthread_mutex_lock(&module->lock);
    bool entered = wait_for_change_locked(partition->engine, module) && module->open;
    module->inside += entered ? 1 : 0;
    pthread_mutex_unlock(&module->lock);
    if (!entered) {
        return false;
    }
    pthread_mutex_lock(&partition->lock);
    bool gone = partition->keeper_session_gone;
    pthread_mutex_unlock(&partition->lock);
    if (gone) {
        xks_engine_leave_module(partition);
    }
    return !gone;
}

void xks_engine_leave_module(engine_partition *partition)
{
    pthread_mutex_lock(&partition->module->lock);
    partition->module->inside--;
    pthread_mutex_unlock(&partition->module->lock);
}

xks_status xks_engine_enter_for_login(engine_partition *partition, char *error)
{
    engine_module *module = partition->module;
    xks_status status = XKS_OK;
    pthread_mutex_lock(&module->lock);
    bool mine = wait_for_change_locked(partition->engine, module) && !module->open;
    module->changing = module->changing || mine;
    pthread_mutex_unlock(&module->lock);
    if (mine) {
        status = XKS_UNAVAILABLE;
        if (begin_environment(partition->engine, module)) {
            status = xks_p11_module_open(&module->p11, error);
            end_environment(partition->engine, module);
        }
        end_change(module, status == XKS_OK);
    }
    if (status != XKS_OK) {
        return status;
    }
    pthread_mutex_lock(&partition->lock);
    partition->keeper_session_open = partition->keeper_session_open && !partition->keeper_session_gone;
    partition->keeper_session_gone = false;
    pthread_mutex_unlock(&partition->lock);
    if (!xks_engine_enter_module(partition)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the module is being reset");
        return XKS_UNAVAILABLE;
    }
    return XKS_OK;
}

/* --- handles that are gone */

bool xks_engine_is_session_gone(CK_RV rv)
{
    return rv == CKR_SESSION_HANDLE_INVALID || rv == CKR_SESSION_CLOSED;
}

void xks_engine_lose_handles_locked(engine_partition *partition)
{
    partition->valid_epoch = partition->epoch + 1;
    xks_engine_forget_handles_locked(partition);
    xks_engine_purge_locked(partition, true, NULL, CKR_OK);
}

void xks_engine_note_session(engine_partition *partition, CK_SESSION_HANDLE session, const engine_worker *opener)
{
    const xks_engine *engine = partition->engine;
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *other = engine->partitions[i];
        if (other->module != partition->module) {
            continue;
        }
        bool own = other == partition && opener == NULL;
        pthread_mutex_lock(&other->lock);
        bool keepers = !own && other->keeper_session_open && !other->keeper_session_gone && other->keeper_session == session;
        bool lost = keepers;
        for (uint32_t w = 0; w < 2 * other->sessions && !lost; w++) {
            const engine_worker *worker = &other->workers[w];
            lost = worker != opener && worker->started && worker->session_open && worker->session == session &&
                   worker->session_epoch >= other->valid_epoch;
        }
        if (lost) {
            xks_engine_lose_handles_locked(other);
            other->keeper_session_gone = other->keeper_session_gone || keepers;
            xks_engine_ask_recovery_locked(other, 0, false, "its sessions are gone: the module gave the number of one of them to another");
        }
        pthread_mutex_unlock(&other->lock);
    }
}

/* --- resetting */

/* Whether all partitions of the module are down and without a worker inside; then no worker enters any more. module->lock is held. */
static bool freeze_locked(const xks_engine *engine, const engine_module *module)
{
    bool quiet = true;
    uint32_t looked_at = 0;
    for (; looked_at < engine->partition_count && quiet; looked_at++) {
        engine_partition *member = engine->partitions[looked_at];
        if (member->module == module) {
            pthread_mutex_lock(&member->lock);
            quiet = atomic_load(&member->down) && atomic_load(&member->state) != XKS_PARTITION_READY && member->running_workers == 0;
            member->frozen = quiet;
            pthread_mutex_unlock(&member->lock);
        }
    }
    return quiet;
}

/* Let the workers in again. */
static void thaw(const xks_engine *engine, const engine_module *module)
{
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *member = engine->partitions[i];
        if (member->module == module) {
            pthread_mutex_lock(&member->lock);
            member->frozen = false;
            xks_engine_wake_all_workers_locked(member);
            pthread_mutex_unlock(&member->lock);
        }
    }
}

bool xks_engine_reset_module(engine_partition *partition)
{
    engine_module *module = partition->module;
    xks_engine *engine = partition->engine;
    char error[XKS_ERROR_TEXT_BYTES];
    pthread_mutex_lock(&module->lock);
    bool alone = !module->changing && module->open && module->inside == 0;
    if (alone && !freeze_locked(engine, module)) {
        thaw(engine, module);
        alone = false;
    }
    module->changing = module->changing || alone;
    pthread_mutex_unlock(&module->lock);
    if (!alone) {
        return false;
    }
    for (uint32_t i = 0; i < engine->partition_count; i++) {
        engine_partition *member = engine->partitions[i];
        if (member->module == module) {
            pthread_mutex_lock(&member->lock);
            xks_engine_lose_handles_locked(member);
            member->keeper_session_gone = true;
            pthread_mutex_unlock(&member->lock);
        }
    }
    xks_status status = XKS_UNAVAILABLE;
    if (begin_environment(engine, module)) {
        status = xks_p11_module_reset(&module->p11, error);
        end_environment(engine, module);
    }
    thaw(engine, module);
    end_change(module, status == XKS_OK);
    return status == XKS_OK;
}
