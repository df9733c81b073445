/* SPDX-License-Identifier: Apache-2.0 */
/* shim_forward.c - what has no fault of its own: handles are translated, class XKS_FAULT_OTHER (random bytes: GENERATE), and on it goes. */
#include "shim_call.h"
#include "shim_functions.h"
#include "shim_slots.h"

#define PARAMETERS_1(A) , A a
#define PARAMETERS_2(A, B) PARAMETERS_1(A), B b
#define PARAMETERS_3(A, B, C) PARAMETERS_2(A, B), C c
#define PARAMETERS_4(A, B, C, D) PARAMETERS_3(A, B, C), D d
#define PARAMETERS_5(A, B, C, D, E) PARAMETERS_4(A, B, C, D), E e
#define PARAMETERS_6(A, B, C, D, E, F) PARAMETERS_5(A, B, C, D, E), F f
#define PARAMETERS_7(A, B, C, D, E, F, G) PARAMETERS_6(A, B, C, D, E, F), G g
#define ARGUMENTS_1 , a
#define ARGUMENTS_2 ARGUMENTS_1, b
#define ARGUMENTS_3 ARGUMENTS_2, c
#define ARGUMENTS_4 ARGUMENTS_3, d
#define ARGUMENTS_5 ARGUMENTS_4, e
#define ARGUMENTS_6 ARGUMENTS_5, f
#define ARGUMENTS_7 ARGUMENTS_6, g

/* A function of the session and `count` parameters of the given types. */
#define FORWARD(table, class, name, count, ...)                                                                                  \
    CK_RV shim_##name(CK_SESSION_HANDLE handle PARAMETERS_##count(__VA_ARGS__))                                                  \
    {                                                                                                                            \
        shim_call call;                                                                                                          \
        CK_RV rv = shim_enter(&call, handle, class);                                                                             \
        if (rv == CKR_OK) {                                                                                                      \
            rv = shim()->table != NULL && shim()->table->name != NULL ? shim()->table->name(call.real ARGUMENTS_##count)         \
                                                                      : CKR_FUNCTION_NOT_SUPPORTED;                              \
        }                                                                                                                        \
        return shim_leave(&call, rv);                                                                                            \
    }

/* A function that begins an operation with a key. */
#define FORWARD_WITH_KEY(table, name)                                                                                            \
    CK_RV shim_##name(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)                                \
    {                                                                                                                            \
        shim_call call;                                                                                                          \
        CK_OBJECT_HANDLE real_key = CK_INVALID_HANDLE;                                                                           \
        CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);                                                                   \
        if (rv == CKR_OK && mechanism != NULL && (real_key = shim_call_in(&call, key)) == CK_INVALID_HANDLE) {                   \
            rv = CKR_KEY_HANDLE_INVALID;                                                                                         \
        }                                                                                                                        \
        if (rv == CKR_OK) {                                                                                                      \
            rv = shim()->table != NULL && shim()->table->name != NULL ? shim()->table->name(call.real, mechanism, real_key)      \
                                                                      : CKR_FUNCTION_NOT_SUPPORTED;                              \
        }                                                                                                                        \
        return shim_leave(&call, rv);                                                                                            \
    }

/* Shapes that come again and again. */
#define FORWARD_IN_OUT(name) FORWARD(real, XKS_FAULT_OTHER, name, 4, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR)
#define FORWARD_OUT(name) FORWARD(real, XKS_FAULT_OTHER, name, 2, CK_BYTE_PTR, CK_ULONG_PTR)
#define FORWARD_IN(name) FORWARD(real, XKS_FAULT_OTHER, name, 2, CK_BYTE_PTR, CK_ULONG)

FORWARD_IN(C_InitPIN)
FORWARD_OUT(C_GetOperationState)
FORWARD(real, XKS_FAULT_OTHER, C_DigestInit, 1, CK_MECHANISM_PTR)
FORWARD_IN_OUT(C_Digest)
FORWARD_IN(C_DigestUpdate)
FORWARD_OUT(C_DigestFinal)
FORWARD_WITH_KEY(real, C_SignInit)
FORWARD_IN_OUT(C_Sign)
FORWARD_IN(C_SignUpdate)
FORWARD_OUT(C_SignFinal)
FORWARD_WITH_KEY(real, C_SignRecoverInit)
FORWARD_IN_OUT(C_SignRecover)
FORWARD_WITH_KEY(real, C_VerifyInit)
FORWARD(real, XKS_FAULT_OTHER, C_Verify, 4, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG)
FORWARD_IN(C_VerifyUpdate)
FORWARD_IN(C_VerifyFinal)
FORWARD_WITH_KEY(real, C_VerifyRecoverInit)
FORWARD_IN_OUT(C_VerifyRecover)
FORWARD_IN_OUT(C_DigestEncryptUpdate)
FORWARD_IN_OUT(C_DecryptDigestUpdate)
FORWARD_IN_OUT(C_SignEncryptUpdate)
FORWARD_IN_OUT(C_DecryptVerifyUpdate)
FORWARD(real, XKS_FAULT_GENERATE, C_SeedRandom, 2, CK_BYTE_PTR, CK_ULONG)
FORWARD(real, XKS_FAULT_GENERATE, C_GenerateRandom, 2, CK_BYTE_PTR, CK_ULONG)

FORWARD(real_3_0, XKS_FAULT_OTHER, C_SessionCancel, 1, CK_FLAGS)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_EncryptMessageBegin, 4, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_EncryptMessageNext, 7, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR,
        CK_FLAGS)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_DecryptMessageBegin, 4, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_DecryptMessageNext, 7, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR,
        CK_FLAGS)
FORWARD_WITH_KEY(real_3_0, C_MessageSignInit)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_SignMessage, 6, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_SignMessageBegin, 2, CK_VOID_PTR, CK_ULONG)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_SignMessageNext, 6, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR)
FORWARD_WITH_KEY(real_3_0, C_MessageVerifyInit)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_VerifyMessage, 6, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_VerifyMessageBegin, 2, CK_VOID_PTR, CK_ULONG)
FORWARD(real_3_0, XKS_FAULT_OTHER, C_VerifyMessageNext, 6, CK_VOID_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG)

static CK_RV end(CK_SESSION_HANDLE handle, bool signs)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK) {
        const CK_FUNCTION_LIST_3_0 *real = shim()->real_3_0;
        CK_C_MessageSignFinal final = real == NULL ? NULL : signs ? real->C_MessageSignFinal : real->C_MessageVerifyFinal;
        rv = final != NULL ? final(call.real) : CKR_FUNCTION_NOT_SUPPORTED;
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_MessageSignFinal(CK_SESSION_HANDLE handle)
{
    return end(handle, true);
}

CK_RV shim_C_MessageVerifyFinal(CK_SESSION_HANDLE handle)
{
    return end(handle, false);
}

CK_RV shim_C_DigestKey(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE key)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    CK_OBJECT_HANDLE real_key = rv == CKR_OK ? shim_call_in(&call, key) : CK_INVALID_HANDLE;
    if (rv == CKR_OK) {
        rv = real_key == CK_INVALID_HANDLE ? CKR_KEY_HANDLE_INVALID : shim()->real->C_DigestKey(call.real, real_key);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_SetOperationState(CK_SESSION_HANDLE handle, CK_BYTE_PTR state, CK_ULONG state_len, CK_OBJECT_HANDLE encryption_key,
                               CK_OBJECT_HANDLE authentication_key)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK) {
        rv = shim()->real->C_SetOperationState(call.real, state, state_len, shim_call_in(&call, encryption_key),
                                               shim_call_in(&call, authentication_key));
    }
    return shim_leave(&call, rv);
}

/* Logins by name would have to be kept per virtual slot as well; nobody's HSM has them. */
CK_RV shim_C_LoginUser(CK_SESSION_HANDLE handle, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len, CK_UTF8CHAR_PTR name,
                       CK_ULONG name_len)
{
    (void)handle, (void)user, (void)pin, (void)pin_len, (void)name, (void)name_len;
    return CKR_FUNCTION_NOT_SUPPORTED;
}

/* Of PKCS#11 1.0. */
CK_RV shim_C_GetFunctionStatus(CK_SESSION_HANDLE handle)
{
    (void)handle;
    return CKR_FUNCTION_NOT_PARALLEL;
}

CK_RV shim_C_CancelFunction(CK_SESSION_HANDLE handle)
{
    (void)handle;
    return CKR_FUNCTION_NOT_PARALLEL;
}
