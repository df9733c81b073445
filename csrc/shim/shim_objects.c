/* SPDX-License-Identifier: Apache-2.0 */
/* shim_objects.c - sessions, login, objects and keys: calls whose handles are translated. */
#include "shim_call.h"
#include "shim_functions.h"
#include "shim_numbers.h"
#include "shim_sessions.h"
#include "shim_slots.h"
#include <string.h>

#define MOST_SEARCHED_ATTRIBUTES 64

CK_RV shim_C_OpenSession(CK_SLOT_ID slot_id, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session)
{
    shim_call call;
    CK_RV rv = session == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
    CK_RV entered = shim_enter_slot(&call, slot_id, XKS_FAULT_OPEN_SESSION);
    rv = entered != CKR_OK ? entered : rv;
    return shim_leave(&call, rv != CKR_OK ? rv : shim_session_open(call.slot, flags, application, notify, session));
}

/* Not through shim_enter: a session may be closed while another thread is in it. Whatever fault there is, it is closed. */
CK_RV shim_C_CloseSession(CK_SESSION_HANDLE handle)
{
    shim_call call;
    CK_RV rv = shim_ready();
    shim_session *session = rv == CKR_OK ? shim_session_take(handle) : NULL;
    if (session == NULL) {
        return rv != CKR_OK ? rv : CKR_SESSION_HANDLE_INVALID;
    }
    bool restarted = session->epoch != word(&shim_settings(session->slot)->epoch);
    rv = shim_enter_slot(&call, session->slot, XKS_FAULT_OTHER);
    shim_session_retire(session, handle);
    shim_session_release(session);
    return shim_leave(&call, rv == CKR_OK && restarted ? CKR_SESSION_HANDLE_INVALID : rv);
}

CK_RV shim_C_CloseAllSessions(CK_SLOT_ID slot_id)
{
    shim_call call;
    CK_RV rv = shim_enter_slot(&call, slot_id, XKS_FAULT_OTHER);
    if (rv == CKR_OK) {
        shim_sessions_retire_slot(call.slot, UINT64_MAX);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_GetSessionInfo(CK_SESSION_HANDLE handle, CK_SESSION_INFO_PTR info)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : shim()->real->C_GetSessionInfo(call.real, info);
    if (rv == CKR_OK) {
        bool writes = (info->flags & CKF_RW_SESSION) != 0, logged_in = shim_slot_logged_in(call.slot);
        info->slotID = call.slot;
        if (logged_in) {
            info->state = writes ? CKS_RW_USER_FUNCTIONS : CKS_RO_USER_FUNCTIONS;
        } else if (shim_slot_needs_login(call.slot) && info->state != CKS_RW_SO_FUNCTIONS) {
            info->state = writes ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
        }
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_Login(CK_SESSION_HANDLE handle, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_LOGIN);
    if (rv == CKR_OK) {
        rv = user == CKU_USER ? shim_slot_login(call.slot, call.real, pin, pin_len) : shim()->real->C_Login(call.real, user, pin, pin_len);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_Logout(CK_SESSION_HANDLE handle)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    return shim_leave(&call, rv != CKR_OK ? rv : shim_slot_logout(call.slot, call.real));
}

CK_RV shim_C_SetPIN(CK_SESSION_HANDLE handle, CK_UTF8CHAR_PTR old_pin, CK_ULONG old_len, CK_UTF8CHAR_PTR new_pin, CK_ULONG new_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : shim()->real->C_SetPIN(call.real, old_pin, old_len, new_pin, new_len);
    if (rv == CKR_OK) {
        shim_slot_pin_changed(call.slot, new_pin, new_len);
    }
    return shim_leave(&call, rv);
}

/* A slot that nobody is logged in to shows public objects only, though the real token may be logged in for another slot. */
CK_RV shim_C_FindObjectsInit(CK_SESSION_HANDLE handle, CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    shim_call call;
    CK_ATTRIBUTE wanted[MOST_SEARCHED_ATTRIBUTES + 1];
    CK_BBOOL no = CK_FALSE;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_FIND);
    if (rv != CKR_OK) {
        return shim_leave(&call, rv);
    }
    if (!shim_slot_needs_login(call.slot) || shim_slot_logged_in(call.slot)) {
        return shim_leave(&call, shim()->real->C_FindObjectsInit(call.real, template, count));
    }
    if (word(&shim_settings(call.slot)->login_mode) == XKS_FAULT_LOGIN_ANY_PIN) {
        rv = call.session->find_empty ? CKR_OPERATION_ACTIVE : CKR_OK;
        call.session->find_empty = true;
        return shim_leave(&call, rv);
    }
    if (count > MOST_SEARCHED_ATTRIBUTES || (template == NULL && count > 0)) {
        return shim_leave(&call, CKR_ARGUMENTS_BAD);
    }
    if (count > 0) {
        memcpy(wanted, template, count * sizeof *template);
    }
    wanted[count] = (CK_ATTRIBUTE){CKA_PRIVATE, &no, sizeof no};
    return shim_leave(&call, shim()->real->C_FindObjectsInit(call.real, wanted, count + 1));
}

CK_RV shim_C_FindObjects(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE_PTR objects, CK_ULONG room, CK_ULONG_PTR count)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK && call.session->find_empty) {
        *count = 0;
    } else if (rv == CKR_OK) {
        rv = shim()->real->C_FindObjects(call.real, objects, room, count);
        for (CK_ULONG i = 0; rv == CKR_OK && i < *count; i++) {
            objects[i] = shim_call_out(&call, objects[i]);
        }
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_FindObjectsFinal(CK_SESSION_HANDLE handle)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK && call.session->find_empty) {
        call.session->find_empty = false;
    } else if (rv == CKR_OK) {
        rv = shim()->real->C_FindObjectsFinal(call.real);
    }
    return shim_leave(&call, rv);
}

/* The real handle of an object, or the error for a handle that is none here. */
static CK_RV object_of(const shim_call *call, CK_OBJECT_HANDLE handle, CK_OBJECT_HANDLE *real)
{
    *real = shim_call_in(call, handle);
    return *real == CK_INVALID_HANDLE ? CKR_OBJECT_HANDLE_INVALID : CKR_OK;
}

/* What a call that makes an object ends with. */
static CK_RV leave_with_object(shim_call *call, CK_RV rv, CK_OBJECT_HANDLE *object)
{
    if (rv == CKR_OK) {
        *object = shim_call_out(call, *object);
    }
    return shim_leave(call, rv);
}

CK_RV shim_C_CreateObject(CK_SESSION_HANDLE handle, CK_ATTRIBUTE_PTR template, CK_ULONG count, CK_OBJECT_HANDLE_PTR object)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GENERATE);
    rv = rv != CKR_OK ? rv : shim()->real->C_CreateObject(call.real, template, count, object);
    return leave_with_object(&call, rv, object);
}

CK_RV shim_C_CopyObject(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG count,
                        CK_OBJECT_HANDLE_PTR copy)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GENERATE);
    rv = rv != CKR_OK ? rv : object_of(&call, object, &real);
    rv = rv != CKR_OK ? rv : shim()->real->C_CopyObject(call.real, real, template, count, copy);
    return leave_with_object(&call, rv, copy);
}

CK_RV shim_C_DestroyObject(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : object_of(&call, object, &real);
    rv = rv != CKR_OK ? rv : shim()->real->C_DestroyObject(call.real, real);
    if (rv == CKR_OK) {
        shim_number_free(object);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_GetObjectSize(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ULONG_PTR size)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : object_of(&call, object, &real);
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_GetObjectSize(call.real, real, size));
}

CK_RV shim_C_GetAttributeValue(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GET_ATTRIBUTE);
    rv = rv != CKR_OK ? rv : object_of(&call, object, &real);
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_GetAttributeValue(call.real, real, template, count));
}

CK_RV shim_C_SetAttributeValue(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    rv = rv != CKR_OK ? rv : object_of(&call, object, &real);
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_SetAttributeValue(call.real, real, template, count));
}

CK_RV shim_C_GenerateKey(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR template, CK_ULONG count,
                         CK_OBJECT_HANDLE_PTR key)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GENERATE);
    rv = rv != CKR_OK ? rv : shim()->real->C_GenerateKey(call.real, mechanism, template, count, key);
    return leave_with_object(&call, rv, key);
}

CK_RV shim_C_GenerateKeyPair(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR public_template,
                             CK_ULONG public_count, CK_ATTRIBUTE_PTR private_template, CK_ULONG private_count,
                             CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GENERATE);
    if (rv == CKR_OK) {
        rv = shim()->real->C_GenerateKeyPair(call.real, mechanism, public_template, public_count, private_template, private_count,
                                             public_key, private_key);
    }
    if (rv == CKR_OK) {
        *public_key = shim_call_out(&call, *public_key);
    }
    return leave_with_object(&call, rv, private_key);
}

CK_RV shim_C_WrapKey(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE wrapping_key, CK_OBJECT_HANDLE key,
                     CK_BYTE_PTR wrapped, CK_ULONG_PTR wrapped_len)
{
    shim_call call;
    CK_OBJECT_HANDLE real, real_wrapping;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK && object_of(&call, wrapping_key, &real_wrapping) != CKR_OK) {
        rv = CKR_WRAPPING_KEY_HANDLE_INVALID;
    }
    if (rv == CKR_OK && object_of(&call, key, &real) != CKR_OK) {
        rv = CKR_KEY_HANDLE_INVALID;
    }
    return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_WrapKey(call.real, mechanism, real_wrapping, real, wrapped, wrapped_len));
}

CK_RV shim_C_UnwrapKey(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE unwrapping_key, CK_BYTE_PTR wrapped,
                       CK_ULONG wrapped_len, CK_ATTRIBUTE_PTR template, CK_ULONG count, CK_OBJECT_HANDLE_PTR key)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GENERATE);
    if (rv == CKR_OK && object_of(&call, unwrapping_key, &real) != CKR_OK) {
        rv = CKR_UNWRAPPING_KEY_HANDLE_INVALID;
    }
    rv = rv != CKR_OK ? rv : shim()->real->C_UnwrapKey(call.real, mechanism, real, wrapped, wrapped_len, template, count, key);
    return leave_with_object(&call, rv, key);
}

CK_RV shim_C_DeriveKey(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE base_key, CK_ATTRIBUTE_PTR template,
                       CK_ULONG count, CK_OBJECT_HANDLE_PTR key)
{
    shim_call call;
    CK_OBJECT_HANDLE real;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_GENERATE);
    if (rv == CKR_OK && object_of(&call, base_key, &real) != CKR_OK) {
        rv = CKR_KEY_HANDLE_INVALID;
    }
    rv = rv != CKR_OK ? rv : shim()->real->C_DeriveKey(call.real, mechanism, real, template, count, key);
    return leave_with_object(&call, rv, key);
}
