/* SPDX-License-Identifier: Apache-2.0 */
/* shim_faults.h - what goes wrong: hangs, errors by rate, a dead or broken device, damaged outputs.
 *
 * Layer:   shim, above shim_latency.
 * Memory:  allocates nothing; outputs are the caller's.
 * Threads: any. Of the threads that hang at a slot one looks at the flag twice per millisecond, the others wait for it.
 */
#ifndef SHIM_FAULTS_H
#define SHIM_FAULTS_H

#include "shim_state.h"

/* What makes every call fail before it takes any time: dead, or a device error that only a new C_Initialize ends. */
CK_RV shim_dead(uint32_t slot);
/* Returns when the slot does not hang (any more). Not CKR_OK: hang_max_ms are over and the call fails with hang_rv. */
CK_RV shim_hang(uint32_t slot, xksfault_class class);
/* The injected CK_RV of this call, or CKR_OK. */
CK_RV shim_error(uint32_t slot, xksfault_class class);
/* Flips a bit or changes the length of an output, as the settings say. capacity: bytes at out. */
void shim_damage(uint32_t slot, uint64_t flip_ppm, CK_BYTE *out, CK_ULONG *out_len, CK_ULONG capacity);
/* What a decryption returns that the real token found not authentic. */
CK_RV shim_tag_failure(uint32_t slot, CK_RV rv);

#endif
