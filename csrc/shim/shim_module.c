/* SPDX-License-Identifier: Apache-2.0 */
/* shim_module.c - the module's three doors, its life cycle, and its slots. */
#include "shim_call.h"
#include "shim_functions.h"
#include "shim_latency.h"
#include "shim_numbers.h"
#include "shim_sessions.h"
#include "shim_slots.h"
#include "shim_timeline.h"
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

/* Both tables and their interfaces, every function in its place by the OASIS header. */
#define CK_PKCS11_FUNCTION_INFO(name) .name = shim_##name,
static const CK_FUNCTION_LIST_3_0 FUNCTIONS_3_0 = {
    .version = {3, 0},
#include <pkcs11f.h>
};
#define CK_PKCS11_2_0_ONLY 1
static const CK_FUNCTION_LIST FUNCTIONS_2_40 = {
    .version = {2, 40},
#include <pkcs11f.h>
};
#undef CK_PKCS11_2_0_ONLY
#undef CK_PKCS11_FUNCTION_INFO

static const char INTERFACE_NAME[] = "PKCS 11";
/* The PKCS#11 types have no const; the tables are read-only all the same. */
static const CK_INTERFACE INTERFACES[] = {
    {(CK_CHAR *)INTERFACE_NAME, (CK_VOID_PTR)&FUNCTIONS_3_0, 0},
    {(CK_CHAR *)INTERFACE_NAME, (CK_VOID_PTR)&FUNCTIONS_2_40, 0},
};

/* The first interface that is offered: 0, or 1 if the real module has no 3.0 or it is hidden. */
static size_t first_interface(void)
{
    return shim()->real_3_0 == NULL || shim_flag(XKS_FAULT_HIDE_3_0) ? 1 : 0;
}

CK_RV shim_C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
    CK_RV rv = list == NULL ? CKR_ARGUMENTS_BAD : shim_load();
    if (rv == CKR_OK) {
        *list = (CK_FUNCTION_LIST *)&FUNCTIONS_2_40;
    }
    return rv;
}

CK_RV shim_C_GetInterfaceList(CK_INTERFACE_PTR list, CK_ULONG_PTR count)
{
    CK_RV rv = count == NULL ? CKR_ARGUMENTS_BAD : shim_load();
    if (rv != CKR_OK) {
        return rv;
    }
    size_t first = first_interface(), have = 2 - first, room = *count;
    *count = have;
    if (list == NULL) {
        return CKR_OK;
    }
    if (room < have) {
        return CKR_BUFFER_TOO_SMALL;
    }
    memcpy(list, &INTERFACES[first], have * sizeof INTERFACES[0]);
    return CKR_OK;
}

CK_RV shim_C_GetInterface(CK_UTF8CHAR_PTR name, CK_VERSION_PTR version, CK_INTERFACE_PTR_PTR interface, CK_FLAGS flags)
{
    CK_RV rv = interface == NULL ? CKR_ARGUMENTS_BAD : shim_load();
    if (rv != CKR_OK) {
        return rv;
    }
    if ((name != NULL && strcmp((const char *)name, INTERFACE_NAME) != 0) || flags != 0) {
        return CKR_FUNCTION_FAILED;
    }
    for (size_t i = first_interface(); i < 2; i++) {
        const CK_VERSION *has = INTERFACES[i].pFunctionList;
        if (version == NULL || (version->major == has->major && version->minor == has->minor)) {
            *interface = (CK_INTERFACE *)&INTERFACES[i];
            return CKR_OK;
        }
    }
    return CKR_FUNCTION_FAILED;
}

EXPORTED CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
    return shim_C_GetFunctionList(list);
}

EXPORTED CK_RV C_GetInterfaceList(CK_INTERFACE_PTR list, CK_ULONG_PTR count)
{
    return shim_C_GetInterfaceList(list, count);
}

EXPORTED CK_RV C_GetInterface(CK_UTF8CHAR_PTR name, CK_VERSION_PTR version, CK_INTERFACE_PTR_PTR interface, CK_FLAGS flags)
{
    return shim_C_GetInterface(name, version, interface, flags);
}

/* Nobody may be inside during the reset: a real library frees what the others are working with. */
static void begin_change(const char *misuse)
{
    shim_state *state = shim();
    atomic_store(&state->changing, true);
    if (atomic_load(&state->inside) != 0) {
        shim_misuse(&state->control->calls_in_reset, misuse);
    }
}

static CK_RV initialize(CK_VOID_PTR arguments)
{
    shim_state *state = shim();
    CK_RV rv = (CK_RV)word(&state->control->initialize_rv);
    if (rv != CKR_OK || atomic_load(&state->initialized)) {
        return rv != CKR_OK ? rv : CKR_CRYPTOKI_ALREADY_INITIALIZED;
    }
    const CK_C_INITIALIZE_ARGS *given = arguments;
    if (given == NULL || ((given->flags & CKF_OS_LOCKING_OK) == 0 && given->CreateMutex == NULL)) {
        shim_misuse(&state->control->unlocked_initializations, "C_Initialize without CKF_OS_LOCKING_OK: threads may not use this library");
    }
    bool forked = atomic_load(&state->forked);
    rv = state->real->C_Initialize(arguments);
    if (rv != CKR_OK && !(forked && rv == CKR_CRYPTOKI_ALREADY_INITIALIZED)) { /* a real module that has not noticed the fork */
        return rv;
    }
    shim_sessions_forget();
    shim_slots_forget();
    shim_numbers_forget();
    for (uint32_t slot = 0; slot < XKS_FAULT_SLOTS; slot++) {
        atomic_store(&state->slots[slot].device_error_epoch, word(&shim_settings(slot)->device_error_epoch));
    }
    rv = shim_slots_find();
    if (rv == CKR_OK) {
        rv = shim_timeline_start();
    }
    if (rv != CKR_OK) {
        (void)state->real->C_Finalize(NULL);
        return rv;
    }
    atomic_store(&state->forked, false);
    atomic_store(&state->initialized, true);
    word_add(&state->control->initialized, 1);
    return CKR_OK;
}

static CK_RV finalize(CK_VOID_PTR reserved)
{
    shim_state *state = shim();
    shim_sleep_until(shim_now_ns() + word(&state->control->finalize_ns));
    atomic_store(&state->initialized, false);
    for (uint32_t slot = 0; slot < XKS_FAULT_SLOTS; slot++) {
        shim_sessions_retire_slot(slot, UINT64_MAX);
    }
    shim_slots_forget();
    return state->real->C_Finalize(reserved);
}

CK_RV shim_C_Initialize(CK_VOID_PTR arguments)
{
    CK_RV rv = shim_load();
    if (rv != CKR_OK) {
        return rv;
    }
    begin_change("C_Initialize while a call is inside");
    rv = initialize(arguments);
    atomic_store(&shim()->changing, false);
    return rv;
}

CK_RV shim_C_Finalize(CK_VOID_PTR reserved)
{
    CK_RV rv = shim_ready();
    if (rv != CKR_OK) {
        return rv;
    }
    begin_change("C_Finalize while a call is inside");
    rv = finalize(reserved);
    atomic_store(&shim()->changing, false);
    return rv;
}

CK_RV shim_C_GetInfo(CK_INFO_PTR info)
{
    CK_RV rv = shim_ready();
    return rv != CKR_OK ? rv : shim()->real->C_GetInfo(info);
}

CK_RV shim_C_GetSlotList(CK_BBOOL token_present, CK_SLOT_ID_PTR list, CK_ULONG_PTR count)
{
    shim_count_in();
    CK_RV rv = count == NULL ? CKR_ARGUMENTS_BAD : shim_ready();
    if (rv == CKR_OK) {
        rv = shim_slots_find();
    }
    shim_count_out();
    if (rv != CKR_OK) {
        return rv;
    }
    CK_ULONG room = *count, found = 0;
    for (uint32_t slot = 0; slot < shim_slot_count(); slot++) {
        if (token_present && atomic_load(&shim()->slots[slot].real) == 0) {
            continue;
        }
        if (list != NULL && found < room) {
            list[found] = slot;
        }
        found++;
    }
    *count = found;
    return list != NULL && found > room ? CKR_BUFFER_TOO_SMALL : CKR_OK;
}

CK_RV shim_C_GetSlotInfo(CK_SLOT_ID slot_id, CK_SLOT_INFO_PTR info)
{
    shim_call call;
    CK_RV rv = shim_enter_slot(&call, slot_id, XKS_FAULT_OTHER);
    if (rv == CKR_OK) {
        rv = info == NULL ? CKR_ARGUMENTS_BAD : shim_slot_info(slot_id, info);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_GetTokenInfo(CK_SLOT_ID slot_id, CK_TOKEN_INFO_PTR info)
{
    shim_call call;
    CK_RV rv = shim_enter_slot(&call, slot_id, XKS_FAULT_OTHER);
    if (rv == CKR_OK) {
        rv = info == NULL ? CKR_ARGUMENTS_BAD : shim_slot_token_info(slot_id, info);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_GetMechanismList(CK_SLOT_ID slot_id, CK_MECHANISM_TYPE_PTR list, CK_ULONG_PTR count)
{
    shim_call call;
    CK_SLOT_ID real_id = 0;
    CK_RV rv = shim_enter_slot(&call, slot_id, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : shim_slot_real(slot_id, &real_id);
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_GetMechanismList(real_id, list, count));
}

CK_RV shim_C_GetMechanismInfo(CK_SLOT_ID slot_id, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info)
{
    shim_call call;
    CK_SLOT_ID real_id = 0;
    CK_RV rv = shim_enter_slot(&call, slot_id, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : shim_slot_real(slot_id, &real_id);
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_GetMechanismInfo(real_id, type, info));
}

CK_RV shim_C_InitToken(CK_SLOT_ID slot_id, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len, CK_UTF8CHAR_PTR label)
{
    shim_call call;
    CK_SLOT_ID real_id = 0;
    CK_RV rv = shim_enter_slot(&call, slot_id, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : shim_slot_real(slot_id, &real_id);
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_InitToken(real_id, pin, pin_len, label));
}

CK_RV shim_C_WaitForSlotEvent(CK_FLAGS flags, CK_SLOT_ID_PTR slot, CK_VOID_PTR reserved)
{
    (void)flags;
    (void)slot;
    (void)reserved;
    return CKR_FUNCTION_NOT_SUPPORTED; /* the real module's slots are not ours */
}
