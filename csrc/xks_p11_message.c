/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_message.h"

#include <stdint.h>
#include <string.h>

CK_RV xks_p11_message_close(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_messages *messages)
{
    xks_p11_direction open = messages->open;
    messages->open = XKS_P11_NO_DIRECTION;
    if (open == XKS_P11_NO_DIRECTION) {
        return CKR_OK;
    }
    return open == XKS_P11_ENCRYPTS ? module->f3->C_MessageEncryptFinal(session) : module->f3->C_MessageDecryptFinal(session);
}

CK_RV xks_p11_message_ready(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_messages *messages,
                            CK_OBJECT_HANDLE key, xks_p11_direction direction, bool *by_message)
{
    CK_MECHANISM mechanism = {CKM_AES_GCM, NULL, 0};
    bool again = messages->last == direction && messages->last_key == key;
    messages->last = direction;
    messages->last_key = key;
    *by_message = messages->open == direction && messages->open_key == key;
    if (*by_message) {
        return CKR_OK;
    }
    CK_RV rv = xks_p11_message_close(module, session, messages);
    if (rv != CKR_OK || !again) {
        return rv;
    }
    rv = direction == XKS_P11_ENCRYPTS ? module->f3->C_MessageEncryptInit(session, &mechanism, key)
                                       : module->f3->C_MessageDecryptInit(session, &mechanism, key);
    if (rv == CKR_OK) {
        messages->open = direction;
        messages->open_key = key;
        *by_message = true;
    }
    return rv;
}

static CK_GCM_MESSAGE_PARAMS parameters(const CK_GCM_PARAMS *params, CK_BYTE *tag)
{
    CK_GCM_MESSAGE_PARAMS message = {
        .pIv = params->pIv,
        .ulIvLen = params->ulIvLen,
        .ulIvFixedBits = 0,
        .ivGenerator = CKG_NO_GENERATE,
        .pTag = tag,
        .ulTagBits = 128,
    };
    return message;
}

CK_RV xks_p11_message_encrypt(const xks_p11_module *module, CK_SESSION_HANDLE session, const CK_GCM_PARAMS *params,
                              const CK_BYTE *text, CK_ULONG len, CK_BYTE *out, CK_ULONG *out_len, CK_BYTE tag[16])
{
    CK_GCM_MESSAGE_PARAMS message = parameters(params, tag);
    return module->f3->C_EncryptMessage(session, &message, sizeof message, params->pAAD, params->ulAADLen,
                                        (CK_BYTE_PTR)(uintptr_t)text, len, out, out_len);
}

CK_RV xks_p11_message_decrypt(const xks_p11_module *module, CK_SESSION_HANDLE session, const CK_GCM_PARAMS *params,
                              const CK_BYTE *text, CK_ULONG len, CK_BYTE *out, CK_ULONG *out_len, const CK_BYTE tag[16])
{
    CK_GCM_MESSAGE_PARAMS message = parameters(params, (CK_BYTE *)(uintptr_t)tag);
    return module->f3->C_DecryptMessage(session, &message, sizeof message, params->pAAD, params->ulAADLen,
                                        (CK_BYTE_PTR)(uintptr_t)text, len, out, out_len);
}
