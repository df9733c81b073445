/* SPDX-License-Identifier: Apache-2.0 */
/* shim_crypt.c - encryption and decryption: where IV modes, damage and most checks are. */
#include "shim_crypt.h"

#include "shim_checks.h"
#include "shim_faults.h"
#include "shim_functions.h"
#include "shim_slots.h"
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define SHORT_IV_BYTES 12
#define LONG_IV_BYTES 16
#define DRAIN_ROOM 64 /* more than tag and padding */

CK_RV shim_key_for_operation(const shim_call *call, CK_OBJECT_HANDLE handle, CK_OBJECT_HANDLE *real)
{
    *real = shim_call_in(call, handle);
    if (*real == CK_INVALID_HANDLE) {
        return CKR_KEY_HANDLE_INVALID;
    }
    if (!shim_slot_needs_login(call->slot) || shim_slot_logged_in(call->slot)) {
        return CKR_OK;
    }
    CK_BBOOL private = CK_TRUE;
    CK_ATTRIBUTE wanted = {CKA_PRIVATE, &private, sizeof private};
    bool forced = word(&shim_settings(call->slot)->login_mode) == XKS_FAULT_LOGIN_ANY_PIN;
    if (forced || shim()->real->C_GetAttributeValue(call->real, *real, &wanted, 1) != CKR_OK || private) {
        return CKR_USER_NOT_LOGGED_IN;
    }
    return CKR_OK;
}

CK_RV shim_operation_login(const shim_call *call, const shim_operation *operation)
{
    return operation->active && operation->logged_in && !shim_slot_logged_in(call->slot) ? CKR_USER_NOT_LOGGED_IN : CKR_OK;
}

CK_RV shim_make_iv(CK_BYTE *iv, CK_ULONG len)
{
    return getrandom(iv, len, 0) == (ssize_t)len ? CKR_OK : CKR_FUNCTION_FAILED;
}

static bool is_zero(const CK_BYTE *data, CK_ULONG len)
{
    CK_BYTE any = 0;
    for (CK_ULONG i = 0; i < len; i++) {
        any |= data[i];
    }
    return any == 0;
}

/* Gives the parameters of an encryption the IV that the slot's IV mode wants. They are our copy; pIv may point to the caller's bytes. */
static CK_RV give_iv(uint32_t slot, CK_GCM_PARAMS *params, shim_operation *operation)
{
    CK_ULONG made = 0;
    switch ((xksfault_iv_mode)word(&shim_settings(slot)->iv_mode)) {
    case XKS_FAULT_IV_CALLER:
        return CKR_OK;
    case XKS_FAULT_IV_RETURNED_IN_PARAM:
        if (params->pIv == NULL || params->ulIvLen != SHORT_IV_BYTES || !is_zero(params->pIv, SHORT_IV_BYTES)) {
            return CKR_MECHANISM_PARAM_INVALID;
        }
        return shim_make_iv(params->pIv, SHORT_IV_BYTES);
    case XKS_FAULT_IV_APPENDED_16:
        made = LONG_IV_BYTES;
        break;
    case XKS_FAULT_IV_APPENDED_12:
        made = SHORT_IV_BYTES;
        break;
    case XKS_FAULT_IV_ZERO_SILENTLY:
        if (params->pIv != NULL && params->ulIvLen != 0) {
            return CKR_OK;
        }
        memset(operation->iv, 0, sizeof operation->iv);
        params->pIv = operation->iv;
        params->ulIvLen = SHORT_IV_BYTES;
        params->ulIvBits = SHORT_IV_BYTES * 8;
        return CKR_OK;
    }
    if (made == 0 || params->ulIvLen != 0) {
        return CKR_MECHANISM_PARAM_INVALID;
    }
    params->pIv = operation->iv;
    params->ulIvLen = made;
    params->ulIvBits = made * 8;
    operation->appended_iv_len = (uint8_t)made;
    return shim_make_iv(operation->iv, made);
}

CK_RV shim_C_EncryptInit(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    shim_call call;
    CK_OBJECT_HANDLE real_key = CK_INVALID_HANDLE;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_ENCRYPT_INIT);
    if (rv != CKR_OK || mechanism == NULL) {
        return shim_leave(&call, rv != CKR_OK ? rv : shim()->real->C_EncryptInit(call.real, NULL, key));
    }
    rv = shim_key_for_operation(&call, key, &real_key);
    shim_operation begun = {.active = true, .logged_in = shim_slot_logged_in(call.slot)};
    CK_MECHANISM given = *mechanism;
    CK_GCM_PARAMS params;
    if (rv == CKR_OK && given.mechanism == CKM_AES_GCM && given.pParameter != NULL && given.ulParameterLen == sizeof params) {
        memcpy(&params, given.pParameter, sizeof params);
        rv = give_iv(call.slot, &params, &begun);
        given.pParameter = &params;
        begun.gcm = true;
        if (rv == CKR_OK && params.pIv != NULL && params.ulIvLen <= sizeof begun.iv) {
            begun.iv_len = (uint8_t)params.ulIvLen;
            memmove(begun.iv, params.pIv, params.ulIvLen);
        }
        begun.key = shim_key_identity(call.slot, real_key);
    }
    rv = rv != CKR_OK ? rv : shim()->real->C_EncryptInit(call.real, &given, real_key);
    if (rv == CKR_OK) {
        call.session->encrypt = begun;
        call.session->parts = false;
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_DecryptInit(CK_SESSION_HANDLE handle, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    shim_call call;
    CK_OBJECT_HANDLE real_key = CK_INVALID_HANDLE;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_DECRYPT_INIT);
    if (rv == CKR_OK && mechanism != NULL) {
        rv = shim_key_for_operation(&call, key, &real_key);
    }
    rv = rv != CKR_OK ? rv : shim()->real->C_DecryptInit(call.real, mechanism, real_key);
    if (rv == CKR_OK) {
        shim_operation begun = {.active = mechanism != NULL, .logged_in = shim_slot_logged_in(call.slot)};
        begun.gcm = mechanism != NULL && mechanism->mechanism == CKM_AES_GCM;
        call.session->decrypt = begun;
        call.session->parts = false;
    }
    return shim_leave(&call, rv);
}

/* An injected error ends the operation, as PKCS#11 wants; tokens cannot cancel one, so it is carried out and thrown away. */
static void drain(const shim_call *call, shim_operation *operation, bool encrypts, CK_BYTE *data, CK_ULONG data_len)
{
    if (!operation->active || call->session->parts) {
        return;
    }
    CK_ULONG len = data_len + DRAIN_ROOM;
    CK_BYTE *scratch = malloc(len);
    if (scratch == NULL) {
        return;
    }
    if (encrypts) {
        (void)shim()->real->C_Encrypt(call->real, data, data_len, scratch, &len);
    } else {
        (void)shim()->real->C_Decrypt(call->real, data, data_len, scratch, &len);
    }
    explicit_bzero(scratch, data_len + DRAIN_ROOM);
    free(scratch);
    operation->active = false;
}

/* A call with no output asks for the length only: counted, and without the operation's time and faults. */
static CK_RV length_query(CK_SESSION_HANDLE handle, bool encrypts, CK_BYTE *data, CK_ULONG data_len, CK_ULONG *out_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK && encrypts) {
        rv = shim()->real->C_Encrypt(call.real, data, data_len, NULL, out_len);
        *out_len += rv == CKR_OK ? call.session->encrypt.appended_iv_len : 0U;
    } else if (rv == CKR_OK) {
        rv = shim()->real->C_Decrypt(call.real, data, data_len, NULL, out_len);
    }
    word_add(&shim()->control->length_queries, 1);
    return shim_leave(&call, rv);
}

CK_RV shim_C_Encrypt(CK_SESSION_HANDLE handle, CK_BYTE_PTR data, CK_ULONG data_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    if (out == NULL && out_len != NULL && shim_ready() == CKR_OK) {
        return length_query(handle, true, data, data_len, out_len);
    }
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_ENCRYPT);
    if (call.session == NULL) {
        return shim_leave(&call, rv);
    }
    shim_operation *operation = &call.session->encrypt;
    rv = rv != CKR_OK ? rv : shim_operation_login(&call, operation);
    rv = rv != CKR_OK ? rv : out_len == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
    if (rv != CKR_OK) {
        drain(&call, operation, true, data, data_len);
        return shim_leave(&call, rv);
    }
    CK_ULONG capacity = *out_len, appended = operation->active ? operation->appended_iv_len : 0U;
    if (operation->active && operation->gcm) {
        shim_check_room(capacity, data_len + SHIM_TAG_BYTES + appended);
    }
    if (appended != 0 && capacity < data_len + SHIM_TAG_BYTES + appended) {
        *out_len = data_len + SHIM_TAG_BYTES + appended;
        return shim_leave(&call, CKR_BUFFER_TOO_SMALL);
    }
    *out_len = capacity - appended;
    rv = shim()->real->C_Encrypt(call.real, data, data_len, out, out_len);
    if (rv == CKR_OK) {
        if (operation->gcm) {
            shim_check_iv(operation->key, operation->iv, operation->iv_len);
        }
        memcpy(out + *out_len, operation->iv, appended);
        *out_len += appended;
        shim_damage(call.slot, word(&shim_settings(call.slot)->flip_encrypt_ppm), out, out_len, capacity);
    }
    operation->active = rv == CKR_BUFFER_TOO_SMALL && operation->active;
    return shim_leave(&call, rv);
}

CK_RV shim_C_Decrypt(CK_SESSION_HANDLE handle, CK_BYTE_PTR data, CK_ULONG data_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    if (out == NULL && out_len != NULL && shim_ready() == CKR_OK) {
        return length_query(handle, false, data, data_len, out_len);
    }
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_DECRYPT);
    if (call.session == NULL) {
        return shim_leave(&call, rv);
    }
    shim_operation *operation = &call.session->decrypt;
    rv = rv != CKR_OK ? rv : shim_operation_login(&call, operation);
    rv = rv != CKR_OK ? rv : out_len == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
    if (rv != CKR_OK) {
        drain(&call, operation, false, data, data_len);
        return shim_leave(&call, rv);
    }
    CK_ULONG capacity = *out_len;
    if (operation->active && operation->gcm) {
        shim_check_room(capacity, data_len); /* SoftHSM wants room for ciphertext and tag */
    }
    rv = shim()->real->C_Decrypt(call.real, data, data_len, out, out_len);
    if (rv == CKR_OK) {
        shim_damage(call.slot, word(&shim_settings(call.slot)->flip_decrypt_ppm), out, out_len, capacity);
    } else if (operation->active) {
        rv = shim_tag_failure(call.slot, rv);
    }
    operation->active = rv == CKR_BUFFER_TOO_SMALL && operation->active;
    return shim_leave(&call, rv);
}

/* In parts: time and errors as for a whole, no appended IV (a Luna takes GCM in one part only), no damage. */
CK_RV shim_C_EncryptUpdate(CK_SESSION_HANDLE handle, CK_BYTE_PTR part, CK_ULONG part_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK && call.session->encrypt.appended_iv_len != 0 && call.session->encrypt.active) {
        rv = CKR_FUNCTION_NOT_SUPPORTED;
    } else if (rv == CKR_OK) {
        call.session->parts = true;
        rv = shim()->real->C_EncryptUpdate(call.real, part, part_len, out, out_len);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_EncryptFinal(CK_SESSION_HANDLE handle, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_ENCRYPT);
    if (rv == CKR_OK) {
        shim_operation *operation = &call.session->encrypt;
        rv = shim()->real->C_EncryptFinal(call.real, out, out_len);
        if (rv == CKR_OK && out != NULL && operation->active && operation->gcm) {
            shim_check_iv(operation->key, operation->iv, operation->iv_len);
        }
        operation->active = operation->active && (out == NULL || rv == CKR_BUFFER_TOO_SMALL);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_DecryptUpdate(CK_SESSION_HANDLE handle, CK_BYTE_PTR part, CK_ULONG part_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_OTHER);
    if (rv == CKR_OK) {
        call.session->parts = true;
        rv = shim()->real->C_DecryptUpdate(call.real, part, part_len, out, out_len);
    }
    return shim_leave(&call, rv);
}

CK_RV shim_C_DecryptFinal(CK_SESSION_HANDLE handle, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    shim_call call;
    CK_RV rv = shim_enter(&call, handle, XKS_FAULT_DECRYPT);
    if (rv == CKR_OK) {
        shim_operation *operation = &call.session->decrypt;
        rv = shim_tag_failure(call.slot, shim()->real->C_DecryptFinal(call.real, out, out_len));
        operation->active = operation->active && (out == NULL || rv == CKR_BUFFER_TOO_SMALL);
    }
    return shim_leave(&call, rv);
}
