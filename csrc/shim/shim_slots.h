/* SPDX-License-Identifier: Apache-2.0 */
/* shim_slots.h - virtual slots: which real token is behind each, what it shows of itself, who is logged in, its object handles.
 *
 * Layer:   shim, above shim_state.
 * Layout:  slot id = number of the virtual slot. Object handle = 24 bits of (epoch, slot) | 40 bits of the real handle: a handle of
 *          another slot, or from before a restart, is recognised without a table. The real token is logged in while any virtual slot
 *          before it is.
 * Memory:  the PIN is not kept, only a keyed fingerprint of it.
 * Threads: any; see shim_state.h.
 */
#ifndef SHIM_SLOTS_H
#define SHIM_SLOTS_H

#include "shim_state.h"

/* Reads the real module's tokens and finds one for each virtual slot. Called by C_Initialize and C_GetSlotList. */
CK_RV shim_slots_find(void);
uint32_t shim_slot_count(void);
/* CKR_SLOT_ID_INVALID, CKR_TOKEN_NOT_PRESENT if no real token has its label or number. */
CK_RV shim_slot_real(CK_SLOT_ID slot_id, CK_SLOT_ID *real_id);
CK_RV shim_slot_info(CK_SLOT_ID slot_id, CK_SLOT_INFO *info);
CK_RV shim_slot_token_info(CK_SLOT_ID slot_id, CK_TOKEN_INFO *info);

bool shim_slot_needs_login(uint32_t slot);
bool shim_slot_logged_in(uint32_t slot);
CK_RV shim_slot_login(uint32_t slot, CK_SESSION_HANDLE real, CK_UTF8CHAR *pin, CK_ULONG pin_len);
/* real: a session in which the real token is logged out of what C_Login let through to it, or 0. */
CK_RV shim_slot_logout(uint32_t slot, CK_SESSION_HANDLE real);
void shim_slot_pin_changed(uint32_t slot, CK_UTF8CHAR *pin, CK_ULONG pin_len);
/* Forgets every login, without calls into the real module: C_Finalize, and C_Initialize after a fork. */
void shim_slots_forget(void);

CK_OBJECT_HANDLE shim_object_out(uint32_t slot, uint64_t epoch, CK_OBJECT_HANDLE real);
/* CK_INVALID_HANDLE if the handle is of another slot or epoch. */
CK_OBJECT_HANDLE shim_object_in(uint32_t slot, uint64_t epoch, CK_OBJECT_HANDLE handle);

#endif
