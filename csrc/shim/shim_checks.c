/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_checks.h"

#include <sys/mman.h>

#define DEFAULT_BITS 22
#define MOST_BITS 30
#define LONGEST_PROBE 256

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}

uint64_t shim_key_identity(uint32_t slot, CK_OBJECT_HANDLE real)
{
    return mix(((uint64_t)atomic_load(&shim()->slots[slot].real) << 48) ^ (uint64_t)real);
}

/* The table, made by whoever needs it first; NULL without memory. */
static _Atomic(uint64_t) *table(uint64_t *bits)
{
    shim_state *state = shim();
    _Atomic(uint64_t) *found = atomic_load(&state->iv_table);
    if (found == NULL) {
        pthread_mutex_lock(&state->mutex);
        found = atomic_load(&state->iv_table);
        if (found == NULL) {
            uint64_t wanted = word(&state->control->iv_table_bits);
            state->iv_table_bits = wanted == 0 ? DEFAULT_BITS : wanted < MOST_BITS ? wanted : MOST_BITS;
            void *mapped = mmap(NULL, sizeof(uint64_t) << state->iv_table_bits, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            found = mapped == MAP_FAILED ? NULL : mapped;
            atomic_store(&state->iv_table, found);
        }
        pthread_mutex_unlock(&state->mutex);
    }
    *bits = state->iv_table_bits;
    return found;
}

void shim_check_iv(uint64_t key, const CK_BYTE *iv, CK_ULONG iv_len)
{
    if (!shim_flag(XKS_FAULT_CHECK_IVS | XKS_FAULT_STRICT)) {
        return;
    }
    shim_state *state = shim();
    uint64_t bits, print = mix(key ^ iv_len);
    for (CK_ULONG i = 0; i < iv_len; i++) {
        print = (print ^ iv[i]) * 0x100000001B3U;
        print ^= print >> 32;
    }
    print = mix(print) | (print == 0); /* 0 is an empty entry */
    _Atomic(uint64_t) *entries = table(&bits);
    uint64_t at = print >> (64 - bits), room = 1UL << bits;
    for (uint32_t probe = 0; entries != NULL && probe < LONGEST_PROBE; probe++, at = (at + 1) & (room - 1)) {
        uint64_t found = atomic_load_explicit(&entries[at], memory_order_relaxed);
        if (found == 0 && atomic_load_explicit(&state->iv_count, memory_order_relaxed) >= room / 4 * 3) {
            break;
        }
        if (found == 0 && atomic_compare_exchange_strong_explicit(&entries[at], &found, print, memory_order_relaxed, memory_order_relaxed)) {
            atomic_fetch_add_explicit(&state->iv_count, 1, memory_order_relaxed);
            return;
        }
        if (found == print) {
            shim_misuse(&state->control->iv_repeats, "an IV was used twice with the same key");
            return;
        }
    }
    word_add(&state->control->ivs_untracked, 1);
}

void shim_check_room(CK_ULONG room, CK_ULONG needed)
{
    if (room < needed) {
        shim_misuse(&shim()->control->small_buffers, "an output buffer smaller than what may be written to it");
    }
}
