/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_call.h"

#include "shim_faults.h"
#include "shim_latency.h"
#include "shim_sessions.h"
#include "shim_slots.h"
#include "shim_timeline.h"
#include <string.h>

CK_RV shim_ready(void)
{
    shim_state *state = shim();
    if (atomic_load_explicit(&state->initialized, memory_order_acquire)) {
        return CKR_OK;
    }
    if (atomic_load(&state->forked)) {
        word_add(&state->control->forked_calls, 1);
    }
    return CKR_CRYPTOKI_NOT_INITIALIZED;
}

void shim_count_in(void)
{
    shim_state *state = shim();
    atomic_fetch_add(&state->inside, 1);
    if (atomic_load(&state->changing)) {
        shim_misuse(&state->control->calls_in_reset, "a call while another thread is in C_Finalize or C_Initialize");
    }
}

void shim_count_out(void)
{
    atomic_fetch_sub(&shim()->inside, 1);
}

/* Encryptions and decryptions are what the histogram is about. */
static bool measured(xksfault_class class)
{
    return class == XKS_FAULT_ENCRYPT || class == XKS_FAULT_DECRYPT || class == XKS_FAULT_MESSAGE_ENCRYPT || class == XKS_FAULT_MESSAGE_DECRYPT;
}

static void count_in(shim_call *call)
{
    xksfault_counters *counters = shim_counters(call->slot);
    word_add(&counters->calls[call->class], 1);
    call->counted = true;
    if (!measured(call->class)) {
        return;
    }
    uint64_t in_flight = word_add(&counters->in_flight, 1) + 1;
    uint64_t max = word(&counters->max_in_flight);
    while (in_flight > max && !__atomic_compare_exchange_n(&counters->max_in_flight, &max, in_flight, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

/* Time and faults of a call at call->slot. */
static CK_RV suffer(shim_call *call)
{
    count_in(call);
    if (shim_flag(XKS_FAULT_GLOBAL_LOCK)) {
        pthread_mutex_lock(&shim()->global_lock);
        call->locked = true;
    }
    bool timed = word(&shim_settings(call->slot)->latency[call->class].kind) != XKS_FAULT_NONE;
    uint64_t now_ns = 0;
    if (timed || measured(call->class) || shim_timeline_pending()) {
        now_ns = shim_now_ns();
        shim_timeline_run(now_ns);
        call->start_ns = measured(call->class) ? now_ns : 0;
    }
    CK_RV rv = shim_dead(call->slot);
    if (rv != CKR_OK) {
        return rv;
    }
    CK_RV error = shim_error(call->slot, call->class);
    if (error != CKR_OK && word(&shim_settings(call->slot)->error_at_once) != 0) {
        return error;
    }
    if (timed) {
        shim_sleep_until(shim_end_of_call(call->slot, call->class, now_ns));
    }
    rv = shim_hang(call->slot, call->class);
    rv = rv != CKR_OK ? rv : shim_dead(call->slot);
    return rv != CKR_OK ? rv : error;
}

CK_RV shim_enter_slot(shim_call *call, CK_SLOT_ID slot_id, xksfault_class class)
{
    memset(call, 0, sizeof *call);
    call->class = class;
    call->inside = true;
    shim_count_in();
    CK_RV rv = shim_ready();
    if (rv == CKR_OK && slot_id >= shim_slot_count()) {
        rv = CKR_SLOT_ID_INVALID;
    }
    if (rv != CKR_OK) {
        return rv;
    }
    call->slot = (uint32_t)slot_id;
    return suffer(call);
}

/* The slot restarted since the session was opened: it is gone. */
static bool restarted(const shim_call *call)
{
    return call->session->epoch != word(&shim_settings(call->slot)->epoch);
}

CK_RV shim_enter(shim_call *call, CK_SESSION_HANDLE handle, xksfault_class class)
{
    memset(call, 0, sizeof *call);
    call->class = class;
    call->inside = true;
    shim_count_in();
    CK_RV rv = shim_ready();
    if (rv != CKR_OK) {
        return rv;
    }
    shim_session *session = shim_session_take(handle);
    if (session == NULL) {
        return CKR_SESSION_HANDLE_INVALID;
    }
    if (atomic_exchange_explicit(&session->busy, true, memory_order_acquire)) {
        shim_session_release(session);
        shim_misuse(&shim()->control->shared_sessions, "two threads in one session at once");
        return CKR_OPERATION_ACTIVE;
    }
    call->session = session;
    call->slot = session->slot;
    call->real = session->real;
    rv = suffer(call);
    if (restarted(call)) {
        shim_session_retire(session, handle);
        return rv == CKR_OK ? CKR_SESSION_HANDLE_INVALID : rv;
    }
    return rv;
}

CK_RV shim_leave(shim_call *call, CK_RV rv)
{
    if (call->locked) {
        pthread_mutex_unlock(&shim()->global_lock);
    }
    if (call->counted) {
        xksfault_counters *counters = shim_counters(call->slot);
        if (measured(call->class)) {
            word_add(&counters->in_flight, UINT64_MAX);
        }
        if (rv != CKR_OK) {
            word_add(&counters->errors[call->class], 1);
        }
        if (call->start_ns != 0) {
            shim_histogram_add(call->slot, shim_now_ns() - call->start_ns);
        }
    }
    if (call->session != NULL) {
        atomic_store_explicit(&call->session->busy, false, memory_order_release);
        shim_session_release(call->session);
    }
    if (call->inside) {
        shim_count_out();
    }
    return rv;
}

CK_OBJECT_HANDLE shim_call_out(const shim_call *call, CK_OBJECT_HANDLE real)
{
    return shim_object_out(call->slot, call->session->epoch, real);
}

CK_OBJECT_HANDLE shim_call_in(const shim_call *call, CK_OBJECT_HANDLE handle)
{
    return shim_object_in(call->slot, call->session->epoch, handle);
}
