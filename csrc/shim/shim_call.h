/* SPDX-License-Identifier: Apache-2.0 */
/* shim_call.h - what every call goes through before and after the real module: state, faults, time, counters.
 *
 * Layer:   shim, above shim_sessions, shim_faults, shim_latency.
 * Memory:  a shim_call lives on the caller's stack from enter to leave.
 * Threads: each call has its own. leave follows every enter, whatever enter returned.
 *
 * The order in a call: is the library initialised, is the session valid and free, is the device dead; then it takes its time, then it
 * may hang (also one that began before the hang did), then the slot may have restarted meanwhile, then it may fail.
 */
#ifndef SHIM_CALL_H
#define SHIM_CALL_H

#include "shim_state.h"

typedef struct shim_call {
    shim_session *session; /* NULL: the call is not on a session, or its handle was invalid */
    CK_SESSION_HANDLE real;
    uint32_t slot;
    xksfault_class class;
    bool inside;
    bool counted;
    bool locked;
    uint64_t start_ns; /* 0: not measured */
} shim_call;

/* CKR_CRYPTOKI_NOT_INITIALIZED unless this process has called C_Initialize. */
CK_RV shim_ready(void);
/* Calls that are neither on a session nor on one slot: count them in, and out again. */
void shim_count_in(void);
void shim_count_out(void);
CK_RV shim_enter(shim_call *call, CK_SESSION_HANDLE handle, xksfault_class class);
/* For a call on a slot, without a session. */
CK_RV shim_enter_slot(shim_call *call, CK_SLOT_ID slot_id, xksfault_class class);
/* Returns rv. */
CK_RV shim_leave(shim_call *call, CK_RV rv);

/* Object handles of the call's session. */
CK_OBJECT_HANDLE shim_call_out(const shim_call *call, CK_OBJECT_HANDLE real);
CK_OBJECT_HANDLE shim_call_in(const shim_call *call, CK_OBJECT_HANDLE handle);

#endif
