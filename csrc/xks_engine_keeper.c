/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_engine_internal.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Between attempts to bring a partition up: doubled from the first one on, up to this many times it. One that has not served yet may be away
 * for long. */
#define LONGEST_PAUSE 10
#define LONGEST_PAUSE_AT_START 100
/* After the breaker opened: this many good probes in a row, each this part of the first pause after the other. */
#define GOOD_PROBES 3
#define BETWEEN_PROBES_PART 10
/* A session that fails its probes this often in a row is given up for a new one, with a new login. */
#define PROBES_PER_SESSION 3
/* Failed logins in a row before the module itself is reset, if all its partitions are down. */
#define ATTEMPTS_UNTIL_RESET 3
/* Time for keys: before the partition serves, between two looks at what else is to do, and for those known already per probe. */
#define FIRST_KEYS_NS 250000000U
#define KEYS_SLICE_NS 100000000U
#define SWEEP_SLICE_NS 20000000U

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

static void set_state_locked(engine_partition *partition, xks_partition_state state, const char *reason)
{
    atomic_store(&partition->state, (int)state);
    atomic_store(&partition->down, state != XKS_PARTITION_READY);
    if (state == XKS_PARTITION_READY) {
        atomic_store(&partition->hangs, false);
    }
    snprintf(partition->reason, sizeof partition->reason, "%s", reason);
    if (state == XKS_PARTITION_REFUSED) {
        xks_engine_purge_locked(partition, true, "the partition is refused", CKR_OK);
    }
    xks_engine_count_sessions_locked(partition);
    xks_engine_wake_all_workers_locked(partition);
}

static void set_state(engine_partition *partition, xks_partition_state state, const char *reason)
{
    pthread_mutex_lock(&partition->lock);
    set_state_locked(partition, state, reason);
    pthread_mutex_unlock(&partition->lock);
    xks_engine_announce(partition->engine);
}

/* Into service. False when what the keeper holds turned out to be gone. Inside the module, so that no reset comes between. */
static bool set_ready(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    bool good = !partition->keeper_session_gone && partition->epoch >= partition->valid_epoch;
    if (good) {
        set_state_locked(partition, XKS_PARTITION_READY, "");
    }
    pthread_mutex_unlock(&partition->lock);
    xks_engine_announce(partition->engine);
    return good;
}

static uint64_t first_pause_ns(const engine_partition *partition)
{
    uint64_t configured = partition->engine->config.recovery_pause_ns;
    return configured != 0 ? configured : XKS_RECOVERY_PAUSE_NS;
}

void xks_engine_ask_recovery_locked(engine_partition *partition, uint32_t epoch, bool by_breaker, const char *reason)
{
    if ((epoch != 0 && partition->epoch != epoch) || atomic_load(&partition->state) != XKS_PARTITION_READY) {
        return;
    }
    atomic_store(&partition->state, XKS_PARTITION_RECOVERING);
    partition->recovery_wanted = true;
    partition->recovery_by_breaker = by_breaker;
    snprintf(partition->reason, sizeof partition->reason, "%s%s", by_breaker ? "" : "the login was lost: ", reason);
    if (by_breaker) {
        partition->opens++;
        snprintf(partition->last_open_reason, sizeof partition->last_open_reason, "%s", reason);
        partition->last_open_unix_s = xks_unix_seconds();
    }
    pthread_cond_signal(&partition->attention);
    atomic_fetch_add(&partition->engine->changes, 1);
}

/* --- health */

/* A real encrypt and decrypt with the health check key. */
static CK_RV probe(engine_partition *partition)
{
    xks_p11_failure failure = {0};
    xks_p11_canary canary = partition->canary; /* written by this thread only */
    uint64_t began = xks_monotonic_ns();
    xks_p11_gcm gcm = {partition->p11, partition->keeper_session, canary.key, partition->profile->iv_mode, NULL};
    CK_RV rv = xks_p11_canary_make(&gcm, &partition->random, &canary, &failure);
    if (rv == CKR_OK) {
        rv = xks_p11_canary_check(&gcm, &partition->scratch, &canary, &failure);
    }
    uint64_t ended = xks_monotonic_ns();
    pthread_mutex_lock(&partition->lock);
    partition->last_probe_ns = ended;
    partition->probe_duration_ns = ended - began;
    if (rv == CKR_OK) {
        partition->last_good_probe_ns = ended;
    } else {
        partition->module_gone = partition->module_gone || rv == CKR_CRYPTOKI_NOT_INITIALIZED;
        snprintf(partition->reason, sizeof partition->reason, "health probe: %s: %s (0x%lx)", failure.call,
                 xks_ckr_name(failure.rv), failure.rv);
    }
    pthread_mutex_unlock(&partition->lock);
    return rv;
}

/* A call of the keeper's own failed. What the token has forgotten is set up anew at once; after any other fault it must prove itself. */
static void out_of_service(engine_partition *partition, const char *what, CK_RV rv)
{
    char reason[XKS_ERROR_TEXT_BYTES];
    xks_ckr_class class = xks_ckr_classify(rv);
    bool forgot = class == XKS_CKR_STALE_SESSION || class == XKS_CKR_STALE_LOGIN || class == XKS_CKR_STALE_KEY ||
                  class == XKS_CKR_MODULE_GONE;
    snprintf(reason, sizeof reason, "%s: %s (0x%lx)", what, xks_ckr_name(rv), rv);
    pthread_mutex_lock(&partition->lock);
    partition->module_gone = partition->module_gone || class == XKS_CKR_MODULE_GONE;
    atomic_store(&partition->down, !forgot);
    if (xks_engine_is_session_gone(rv)) {
        xks_engine_lose_handles_locked(partition);
    }
    xks_engine_ask_recovery_locked(partition, 0, !forgot, reason);
    pthread_mutex_unlock(&partition->lock);
    xks_engine_announce(partition->engine);
}

static bool has_listed_keys(const engine_partition *partition)
{
    return partition->lists[URGENT_KEYS].head != XKS_NO_KEY || partition->lists[LISTED_KEYS].head != XKS_NO_KEY;
}

/* The login is proven before anything is looked for after a handle was called stale. */
static CK_RV look_for_keys(engine_partition *partition, uint64_t at_most_ns)
{
    pthread_mutex_lock(&partition->lock);
    bool doubt = partition->login_in_doubt;
    partition->login_in_doubt = false;
    pthread_mutex_unlock(&partition->lock);
    CK_RV rv = doubt ? xks_engine_login_check(partition) : CKR_OK;
    if (rv == CKR_OK) {
        rv = xks_engine_look_for_keys(partition, at_most_ns);
    }
    xks_engine_announce(partition->engine);
    return rv;
}

/* The next probe, or the next try for a session that the token refused or for a key that it could not tell of. */
static uint64_t next_due_locked(const engine_partition *partition, uint64_t next_probe)
{
    uint64_t retry = partition->retry_sessions_ns, keys = partition->retry_keys_ns;
    uint64_t due = retry != 0 && retry < next_probe ? retry : next_probe;
    return keys != 0 && keys < due ? keys : due;
}

/* READY: probe, look after keys and sessions, until recovery is wanted or the engine stops. */
static void keep_ready(engine_partition *partition)
{
    uint64_t interval = partition->engine->config.probe_interval_ns;
    uint64_t next_probe = xks_monotonic_ns() + interval;
    while (!stopping(partition)) {
        pthread_mutex_lock(&partition->lock);
        while (!stopping(partition) && !partition->recovery_wanted && !has_listed_keys(partition) &&
               xks_monotonic_ns() < next_due_locked(partition, next_probe)) {
            wait_locked(partition, next_due_locked(partition, next_probe));
        }
        xks_engine_list_due_keys_locked(partition, xks_monotonic_ns());
        bool recover = partition->recovery_wanted, look = has_listed_keys(partition);
        if (partition->retry_sessions_ns != 0 && xks_monotonic_ns() >= partition->retry_sessions_ns) {
            partition->retry_sessions_ns = 0;
            (void)xks_engine_end_rest_locked(partition);
        }
        pthread_mutex_unlock(&partition->lock);
        if (recover || stopping(partition)) {
            return;
        }
        if (!xks_engine_enter_module(partition)) {
            out_of_service(partition, "the keeper's session", CKR_SESSION_HANDLE_INVALID);
            continue;
        }
        CK_RV rv = look ? look_for_keys(partition, KEYS_SLICE_NS) : CKR_OK;
        const char *what = "looking for keys";
        if (rv == CKR_OK && xks_monotonic_ns() >= next_probe) {
            rv = probe(partition);
            what = "health probe";
            if (rv == CKR_OK) {
                rv = xks_engine_sweep_keys(partition, SWEEP_SLICE_NS);
                what = "revalidating keys";
                xks_engine_announce(partition->engine);
            }
            next_probe = xks_monotonic_ns() + interval;
        }
        if (rv != CKR_OK) {
            out_of_service(partition, what, rv);
        }
        xks_engine_leave_module(partition);
    }
}

/* --- recovery */

static void pause_for(engine_partition *partition, uint64_t pause_ns)
{
    uint64_t until = xks_monotonic_ns() + pause_ns;
    pthread_mutex_lock(&partition->lock);
    while (!stopping(partition) && xks_monotonic_ns() < until) {
        wait_locked(partition, until);
    }
    pthread_mutex_unlock(&partition->lock);
}

static uint64_t longer(uint64_t pause_ns, uint64_t longest_ns)
{
    return pause_ns * 2 < longest_ns ? pause_ns * 2 : longest_ns;
}

/* A pause that is not the same for every worker process: 75 to 125 %. */
static void jittered_pause(engine_partition *partition, uint64_t pause_ns)
{
    uint8_t random = 128;
    (void)!xks_random_draw(&partition->random, &random, 1);
    pause_for(partition, pause_ns * 3 / 4 + pause_ns / 2 * random / 255);
}

/* One probe of a partition that is out; *good counts those in a row. READY after enough of them: before the keeper leaves the module, since
 * a reset takes what was probed. */
static CK_RV probe_out_of_service(engine_partition *partition, uint32_t *good)
{
    if (!xks_engine_enter_module(partition)) {
        return CKR_SESSION_HANDLE_INVALID;
    }
    CK_RV rv = probe(partition);
    *good = rv == CKR_OK ? *good + 1 : 0;
    if (*good == GOOD_PROBES && !set_ready(partition)) {
        rv = CKR_SESSION_HANDLE_INVALID;
    }
    xks_engine_leave_module(partition);
    return rv;
}

/* A breaker opened, the login stands: good probes in a row close it. False when the session is to be given up. */
static bool probe_until_good(engine_partition *partition)
{
    uint64_t first = first_pause_ns(partition), pause = first;
    uint32_t good = 0, bad = 0;
    jittered_pause(partition, pause);
    while (!stopping(partition) && bad < PROBES_PER_SESSION) {
        CK_RV rv = probe_out_of_service(partition, &good);
        xks_ckr_class class = xks_ckr_classify(rv);
        if (rv == CKR_OK && good == GOOD_PROBES) {
            return true;
        }
        if (class == XKS_CKR_STALE_SESSION || class == XKS_CKR_STALE_LOGIN || class == XKS_CKR_STALE_KEY ||
            class == XKS_CKR_MODULE_GONE) {
            return false;
        }
        if (rv == CKR_OK) {
            pause_for(partition, first / BETWEEN_PROBES_PART);
            continue;
        }
        bad++;
        pause = longer(pause, first * LONGEST_PAUSE);
        jittered_pause(partition, pause);
    }
    return false;
}

/* One attempt, READY when it went well: inside the module from the first call on, since a reset in between takes what was found. XKS_BUSY:
 * the token forgot the login while it was used for the first time. */
static xks_status attempt(engine_partition *partition, char *error)
{
    xks_status status = xks_engine_enter_for_login(partition, error);
    if (status != XKS_OK) {
        return status;
    }
    status = xks_engine_bring_up(partition, error);
    if (status == XKS_OK) {
        CK_RV rv = look_for_keys(partition, FIRST_KEYS_NS);
        bool ready = rv == CKR_OK && set_ready(partition);
        snprintf(error, XKS_ERROR_TEXT_BYTES, "looking for keys: %s (0x%lx)", xks_ckr_name(rv), rv);
        status = ready ? XKS_OK : XKS_BUSY;
    }
    xks_engine_leave_module(partition);
    return status;
}

/* Attempts until the partition is READY. XKS_FINAL: it is refused for good, and `error` says why. Whatever else is wrong may be put right
 * without us: a token that is away comes back, a key is made, a module's configuration corrected. */
static xks_status bring_up_until_good(engine_partition *partition, bool served, char *error)
{
    uint64_t first = first_pause_ns(partition), pause = first;
    uint32_t failed = 0, forgotten = 0;
    while (!stopping(partition)) {
        error[0] = '\0';
        xks_status status = attempt(partition, error);
        if (status == XKS_OK || status == XKS_FINAL) {
            return status;
        }
        if (status == XKS_BUSY && forgotten++ == 0) {
            jittered_pause(partition, first);
            continue;
        }
        set_state(partition, XKS_PARTITION_RECOVERING, error);
        failed++;
        pthread_mutex_lock(&partition->lock);
        bool gone = partition->module_gone;
        pthread_mutex_unlock(&partition->lock);
        if ((gone || failed >= ATTEMPTS_UNTIL_RESET) && xks_engine_reset_module(partition)) {
            failed = 0;
            continue;
        }
        jittered_pause(partition, pause);
        pause = longer(pause, first * (served ? LONGEST_PAUSE : LONGEST_PAUSE_AT_START));
    }
    return XKS_UNAVAILABLE;
}

/* The breaker's recovery keeps the login and every handle, if the probes are good. */
static bool recover_without_login(engine_partition *partition)
{
    pthread_mutex_lock(&partition->lock);
    bool by_breaker = partition->recovery_wanted && partition->recovery_by_breaker;
    partition->recovery_wanted = false;
    pthread_mutex_unlock(&partition->lock);
    return by_breaker && probe_until_good(partition);
}

void *xks_engine_keeper_main(void *argument)
{
    engine_partition *partition = argument;
    char error[XKS_ERROR_TEXT_BYTES];
    bool served = false;
    xks_random_pool_init(&partition->random);
    while (!stopping(partition)) {
        if (!served || !recover_without_login(partition)) {
            xks_status status = bring_up_until_good(partition, served, error);
            if (status == XKS_FINAL) {
                set_state(partition, XKS_PARTITION_REFUSED, error);
                pthread_mutex_lock(&partition->lock);
                while (!stopping(partition)) {
                    pthread_cond_wait(&partition->attention, &partition->lock);
                }
                pthread_mutex_unlock(&partition->lock);
                break;
            }
            if (status != XKS_OK) {
                continue;
            }
        }
        served = true;
        keep_ready(partition);
    }
    if (xks_engine_enter_module(partition)) {
        xks_engine_close_keeper_session(partition);
        xks_engine_leave_module(partition);
    }
    xks_p11_scratch_free(&partition->scratch);
    xks_random_pool_wipe(&partition->random);
    return NULL;
}
