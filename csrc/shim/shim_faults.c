/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_faults.h"

#include "shim_latency.h"
#include "shim_timeline.h"
#include <time.h>

#define POLL_NS 500000U
#define FOLLOWER_POLL_NS 20000000U
#define NS_PER_MS 1000000U

static bool concerns(uint64_t mask, xksfault_class class)
{
    return mask == 0 || (mask & (1U << class)) != 0;
}

CK_RV shim_dead(uint32_t slot)
{
    xksfault_slot *settings = shim_settings(slot);
    if (word(&settings->device_error_epoch) != atomic_load_explicit(&shim()->slots[slot].device_error_epoch, memory_order_relaxed)) {
        return CKR_DEVICE_ERROR;
    }
    return (CK_RV)word(&settings->dead_rv);
}

/* One thread per slot polls; the others sleep on a condition that it signals, so that a hundred hung threads cost as little as one.
 * A follower looks by itself now and then, for its own hang_max_ms. */
static void wait_for_change(uint32_t slot, uint64_t give_up_ns)
{
    shim_state *state = shim();
    uint64_t now_ns = shim_now_ns();
    pthread_mutex_lock(&state->hang_mutex);
    if (!state->slots[slot].hang_watched) {
        state->slots[slot].hang_watched = true;
        pthread_mutex_unlock(&state->hang_mutex);
        while (word(&shim_settings(slot)->hang) != 0 && now_ns < give_up_ns) {
            uint64_t next_ns = now_ns + POLL_NS;
            shim_sleep_until(next_ns < give_up_ns ? next_ns : give_up_ns);
            now_ns = shim_now_ns();
            shim_timeline_run(now_ns);
        }
        pthread_mutex_lock(&state->hang_mutex);
        state->slots[slot].hang_watched = false;
        pthread_cond_broadcast(&state->hang_over);
    } else {
        struct timespec until;
        uint64_t wait_ns = give_up_ns - now_ns < FOLLOWER_POLL_NS ? give_up_ns - now_ns : FOLLOWER_POLL_NS;
        clock_gettime(CLOCK_REALTIME, &until);
        wait_ns += (uint64_t)until.tv_nsec;
        until.tv_sec += (time_t)(wait_ns / 1000000000U);
        until.tv_nsec = (long)(wait_ns % 1000000000U);
        pthread_cond_timedwait(&state->hang_over, &state->hang_mutex, &until);
    }
    pthread_mutex_unlock(&state->hang_mutex);
}

CK_RV shim_hang(uint32_t slot, xksfault_class class)
{
    xksfault_slot *settings = shim_settings(slot);
    if (word(&settings->hang) == 0 || !concerns(word(&settings->hang_classes), class)) {
        return CKR_OK;
    }
    uint64_t max_ms = word(&settings->hang_max_ms), now_ns = shim_now_ns();
    uint64_t give_up_ns = max_ms != 0 && max_ms < UINT64_MAX / NS_PER_MS - now_ns ? now_ns + max_ms * NS_PER_MS : UINT64_MAX;
    CK_RV rv = CKR_OK;
    word_add(&shim_counters(slot)->hung, 1);
    while (word(&settings->hang) != 0) {
        if (shim_now_ns() >= give_up_ns) {
            rv = (CK_RV)word(&settings->hang_rv);
            break;
        }
        wait_for_change(slot, give_up_ns);
    }
    word_add(&shim_counters(slot)->hung, UINT64_MAX);
    return rv;
}

CK_RV shim_error(uint32_t slot, xksfault_class class)
{
    xksfault_slot *settings = shim_settings(slot);
    uint64_t rv = word(&settings->error_rv);
    if (rv == CKR_OK || !concerns(word(&settings->error_classes), class) || !shim_chance(word(&settings->error_ppm))) {
        return CKR_OK;
    }
    uint64_t times = word(&settings->error_times);
    while (times > 0) {
        if (__atomic_compare_exchange_n(&settings->error_times, &times, times - 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            if (times == 1) {
                word_set(&settings->error_rv, CKR_OK);
            }
            break;
        }
    }
    return (CK_RV)rv;
}

void shim_damage(uint32_t slot, uint64_t flip_ppm, CK_BYTE *out, CK_ULONG *out_len, CK_ULONG capacity)
{
    if (*out_len > 0 && shim_chance(flip_ppm)) {
        uint64_t bit = shim_random() % (*out_len * 8);
        out[bit / 8] ^= (CK_BYTE)(1U << (bit % 8));
    }
    if (shim_chance(word(&shim_settings(slot)->wrong_length_ppm))) {
        if (*out_len > 0) {
            *out_len -= 1;
        } else if (capacity > 0) {
            out[0] = 0;
            *out_len = 1;
        }
    }
}

CK_RV shim_tag_failure(uint32_t slot, CK_RV rv)
{
    uint64_t replacement = word(&shim_settings(slot)->tag_rv);
    bool not_authentic = rv == CKR_ENCRYPTED_DATA_INVALID || rv == CKR_AEAD_DECRYPT_FAILED || rv == CKR_GENERAL_ERROR;
    return not_authentic && replacement != CKR_OK ? (CK_RV)replacement : rv;
}
