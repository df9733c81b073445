/* SPDX-License-Identifier: Apache-2.0 */
/* shim_checks.h - the caller's mistakes that a real HSM may punish late or never.
 *
 * Layer:   shim, above shim_state.
 * Memory:  the IV check keeps one u64 fingerprint for each (key, IV), in a table of 2^iv_table_bits entries (32 MiB by default) that is
 *          mapped at its first use and touched only where it is used. Once it is three quarters full further IVs are counted in
 *          ivs_untracked and not remembered: the check then misses, it never accuses wrongly but by a collision of 64 bits.
 * Threads: any; entries are taken by compare-and-swap.
 */
#ifndef SHIM_CHECKS_H
#define SHIM_CHECKS_H

#include "shim_state.h"

/* Who a key is, whichever virtual slot it is reached through: real token and real object. */
uint64_t shim_key_identity(uint32_t slot, CK_OBJECT_HANDLE real);
/* An encryption with this IV is about to happen. Misuse if it is the second with this key. */
void shim_check_iv(uint64_t key, const CK_BYTE *iv, CK_ULONG iv_len);
/* Misuse if the output has less room than it needs. */
void shim_check_room(CK_ULONG room, CK_ULONG needed);

#endif
