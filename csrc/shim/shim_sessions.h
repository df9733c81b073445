/* SPDX-License-Identifier: Apache-2.0 */
/* shim_sessions.h - the table of sessions: our handle -> real session, virtual slot, epoch at which it was opened.
 *
 * Layer:   shim, above shim_slots.
 * Layout:  handle = generation << 20 | (index + 1): a handle that was closed is not given out again for 4096 turns of its entry.
 * Memory:  a fixed table in shim_state. An entry is closed by its last user: who closes a session that another thread is in does not
 *          pull the real one away from under it.
 * Threads: any. An entry's operation fields belong to the one thread that is in it (shim_call.h sees to that).
 */
#ifndef SHIM_SESSIONS_H
#define SHIM_SESSIONS_H

#include "shim_state.h"

CK_RV shim_session_open(uint32_t slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, CK_SESSION_HANDLE *handle);
/* The entry, with its user count raised, or NULL: no such session. */
shim_session *shim_session_take(CK_SESSION_HANDLE handle);
void shim_session_release(shim_session *session);
/* The handle is invalid from now on; the real session is closed as soon as nobody is in it. */
void shim_session_retire(shim_session *session, CK_SESSION_HANDLE handle);
/* All sessions of a slot whose epoch is not `but_epoch` (UINT64_MAX: all). */
void shim_sessions_retire_slot(uint32_t slot, uint64_t but_epoch);
/* Empties the table without closing anything: C_Initialize in a forked child. */
void shim_sessions_forget(void);

#endif
