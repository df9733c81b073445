/* SPDX-License-Identifier: Apache-2.0 */
/* shim_messages.c - PKCS#11 3.0 message-based encryption and decryption. Reached only if the real module has the 3.0 table. */
#include "shim_checks.h"
#include "shim_crypt.h"
#include "shim_faults.h"
#include "shim_functions.h"
#include "shim_slots.h"
#include <string.h>

/* A module may have the table and leave a place in it empty. */
#define REAL_HAS(name) (shim()->real_3_0 != NULL && shim()->real_3_0->name != NULL)

static CK_RV begin(CK_SESSION_HANDLE handle, bool encrypts, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    shim_call call;
    CK_OBJECT_HANDLE real_key = CK_INVALID_HANDLE;
    CK_RV rv = shim_enter(&call, handle, encrypts ? XKS_FAULT_ENCRYPT_INIT : XKS_FAULT_DECRYPT_INIT);
    if (rv == CKR_OK && !(encrypts ? REAL_HAS(C_MessageEncryptInit) : REAL_HAS(C_MessageDecryptInit))) {
        rv = CKR_FUNCTION_NOT_SUPPORTED;
    }
    if (rv == CKR_OK && mechanism != NULL) {
        rv = shim_key_for_operation(&call, key, &real_key);
    }
    if (rv == CKR_OK) {
        rv = encrypts ? shim()->real_3_0->C_MessageEncryptInit(call.real, mechanism, real_key)
                      : shim()->real_3_0->C_MessageDecryptInit(call.real, mechanism, real_key);
    }
    if (rv == CKR_OK) {
        shim_operation begun = {.active = mechanism != NULL, .logged_in = shim_slot_logged_in(call.slot)};
        begun.gcm = mechanism != NULL && mechanism->mechanism == CKM_AES_GCM;
        begun.key = shim_key_identity(call.slot, real_key);
        *(encrypts ? &call.session->message_encrypt : &call.session->message_decrypt) = begun;
    }
    return shim_leave(&call, rv);
}

static CK_RV end(CK_SESSION_HANDLE handle, bool encrypts)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK && !(encrypts ? REAL_HAS(C_MessageEncryptFinal) : REAL_HAS(C_MessageDecryptFinal))) {
        rv = CKR_FUNCTION_NOT_SUPPORTED;
    }
    if (rv == CKR_OK) {
        rv = encrypts ? shim()->real_3_0->C_MessageEncryptFinal(call.real) : shim()->real_3_0->C_MessageDecryptFinal(call.real);
    }
    if (rv == CKR_OK) {
        (encrypts ? &call.session->message_encrypt : &call.session->message_decrypt)->active = false;
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_MessageEncryptInit(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    return begin(handle, true, mechanism, key);
}

CK_RV shim_C_MessageDecryptInit(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    return begin(handle, false, mechanism, key);
}

CK_RV shim_C_MessageEncryptFinal(CK_SESSION_HANDLE handle)
{
    return end(handle, true);
}

CK_RV shim_C_MessageDecryptFinal(CK_SESSION_HANDLE handle)
{
    return end(handle, false);
}

/* The token's own IV generator, where the slot's IV mode makes IVs and the real token may not: the IV is made here. */
static CK_RV generate_iv(uint32_t slot, CK_GCM_MESSAGE_PARAMS *params)
{
    if (word(&shim_settings(slot)->iv_mode) != XKS_FAULT_IV_RETURNED_IN_PARAM || params->ivGenerator == CKG_NO_GENERATE) {
        return CKR_OK;
    }
    CK_ULONG fixed = params->ulIvFixedBits / 8;
    if (params->pIv == NULL || fixed >= params->ulIvLen) {
        return CKR_MECHANISM_PARAM_INVALID;
    }
    params->ivGenerator = CKG_NO_GENERATE;
    params->ulIvFixedBits = 0;
    return shim_make_iv(params->pIv + fixed, params->ulIvLen - fixed);
}

CK_RV shim_C_EncryptMessage(CK_SESSION_HANDLE handle, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR aad, CK_ULONG aad_len,
                            CK_BYTE_PTR data, CK_ULONG data_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    if (out == NULL && out_len != NULL && shim_ready() == CKR_OK) {
        word_add(&shim()->control->length_queries, 1);
    }
    CK_RV rv = shim_enter(&call, handle, out == NULL ? XKS_FAULT_OTHER : XKS_FAULT_MESSAGE_ENCRYPT);
    rv = rv != CKR_OK ? rv : shim_operation_login(&call, &call.session->message_encrypt);
    rv = rv != CKR_OK ? rv : !REAL_HAS(C_EncryptMessage) ? CKR_FUNCTION_NOT_SUPPORTED : out_len == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
    if (rv != CKR_OK) {
        return shim_leave(&call, rv);
    }
    const shim_operation *operation = &call.session->message_encrypt;
    CK_ULONG capacity = *out_len;
    CK_GCM_MESSAGE_PARAMS params;
    bool gcm = operation->active && operation->gcm && parameter != NULL && parameter_len == sizeof params && out != NULL;
    if (gcm) {
        shim_check_room(capacity, data_len); /* the tag has a buffer of its own */
        memcpy(&params, parameter, sizeof params);
        rv = generate_iv(call.slot, &params);
        parameter = &params;
    }
    if (rv == CKR_OK) {
        rv = shim()->real_3_0->C_EncryptMessage(call.real, parameter, parameter_len, aad, aad_len, data, data_len, out, out_len);
    }
    if (rv == CKR_OK && gcm) {
        shim_check_iv(operation->key, params.pIv, params.ulIvLen);
    }
    if (rv == CKR_OK && out != NULL) {
        shim_damage(call.slot, word(&shim_settings(call.slot)->flip_encrypt_ppm), out, out_len, capacity);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_DecryptMessage(CK_SESSION_HANDLE handle, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR aad, CK_ULONG aad_len,
                            CK_BYTE_PTR data, CK_ULONG data_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    if (out == NULL && out_len != NULL && shim_ready() == CKR_OK) {
        word_add(&shim()->control->length_queries, 1);
    }
    CK_RV rv = shim_enter(&call, handle, out == NULL ? XKS_FAULT_OTHER : XKS_FAULT_MESSAGE_DECRYPT);
    rv = rv != CKR_OK ? rv : shim_operation_login(&call, &call.session->message_decrypt);
    rv = rv != CKR_OK ? rv : !REAL_HAS(C_DecryptMessage) ? CKR_FUNCTION_NOT_SUPPORTED : out_len == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
    if (rv != CKR_OK) {
        return shim_leave(&call, rv);
    }
    CK_ULONG capacity = *out_len;
    if (out != NULL && call.session->message_decrypt.gcm) {
        shim_check_room(capacity, data_len);
    }
    rv = shim()->real_3_0->C_DecryptMessage(call.real, parameter, parameter_len, aad, aad_len, data, data_len, out, out_len);
    if (rv == CKR_OK && out != NULL) {
        shim_damage(call.slot, word(&shim_settings(call.slot)->flip_decrypt_ppm), out, out_len, capacity);
    }
    return shim_leave(&call, shim_tag_failure(call.slot, rv));
}
