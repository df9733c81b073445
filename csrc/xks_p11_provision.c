/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_provision.h"

#include "xks_ckr.h"
#include "xks_p11_key.h"
#include "xks_p11_token.h"
#include <stdio.h>
#include <string.h>

static xks_status generate(const xks_p11_module *module, CK_SESSION_HANDLE session, const char *label, size_t label_len,
                           bool can_encrypt, bool can_decrypt, bool private, char *error)
{
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_BBOOL encrypt = can_encrypt ? CK_TRUE : CK_FALSE, decrypt = can_decrypt ? CK_TRUE : CK_FALSE;
    CK_BBOOL is_private = private ? CK_TRUE : CK_FALSE;
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ULONG length = 32;
    CK_OBJECT_HANDLE made;
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof class},
        {CKA_KEY_TYPE, &type, sizeof type},
        {CKA_VALUE_LEN, &length, sizeof length},
        {CKA_LABEL, (void *)(uintptr_t)label, (CK_ULONG)label_len},
        {CKA_ID, (void *)(uintptr_t)label, (CK_ULONG)label_len},
        {CKA_TOKEN, &yes, sizeof yes},
        {CKA_PRIVATE, &is_private, sizeof is_private},
        {CKA_SENSITIVE, &yes, sizeof yes},
        {CKA_EXTRACTABLE, &no, sizeof no},
        {CKA_ENCRYPT, &encrypt, sizeof encrypt},
        {CKA_DECRYPT, &decrypt, sizeof decrypt},
    };
    CK_RV rv = module->f->C_GenerateKey(session, &mechanism, template, sizeof template / sizeof template[0], &made);
    if (rv != CKR_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_GenerateKey: %s (0x%lx)", xks_ckr_name(rv), rv);
        return XKS_UNAVAILABLE;
    }
    return XKS_OK;
}

static xks_status ensure(const xks_p11_module *module, const xks_provision_target *target, const char *label, size_t label_len,
                         bool can_encrypt, bool can_decrypt, bool *created, char *error)
{
    xks_p11_token_name name = {target->token_label, target->token_serial, target->slot};
    const xks_p11_profile *profile = xks_p11_profile_find(target->profile);
    xks_p11_token_info info;
    CK_SLOT_ID slot;
    CK_SESSION_HANDLE session;
    xks_p11_key key;
    int shown = (int)(label_len < 128 ? label_len : 128);
    if (profile == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "there is no vendor profile '%.64s'", target->profile);
        return XKS_CONFIG;
    }
    xks_status status = xks_p11_token_find(module, &name, &slot, &info, error);
    if (status != XKS_OK) {
        return status;
    }
    CK_RV rv = module->f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session);
    if (rv != CKR_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_OpenSession: %s (0x%lx)", xks_ckr_name(rv), rv);
        return XKS_UNAVAILABLE;
    }
    status = xks_p11_token_login(module, session, target->pin, profile, error);
    if (status != XKS_OK) {
        goto out;
    }
    switch (xks_p11_key_find(module, session, label, label_len, &key)) {
    case XKS_P11_KEY_FOUND:
        break;
    case XKS_P11_KEY_ABSENT:
        status = generate(module, session, label, label_len, can_encrypt, can_decrypt, target->pin != NULL, error);
        *created = status == XKS_OK;
        break;
    case XKS_P11_KEY_AMBIGUOUS:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "token '%s' has several secret keys with the label '%.*s': give each its own",
                 info.label, shown, label);
        status = XKS_CONFIG;
        break;
    case XKS_P11_KEY_WRONG_TYPE:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' is not AES with 256 bits: choose another label", shown,
                 label, info.label);
        status = XKS_CONFIG;
        break;
    case XKS_P11_KEY_UNREADABLE:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_FindObjects: %s (0x%lx)", xks_ckr_name(key.rv), key.rv);
        status = XKS_UNAVAILABLE;
        break;
    }
out:
    (void)module->f->C_CloseSession(session);
    return status;
}

xks_status xks_provision_ensure_key(const xks_provision_target *target, const char *label, size_t label_len, bool can_encrypt,
                                    bool can_decrypt, bool *created, char *error)
{
    xks_p11_module module;
    *created = false;
    memset(&module, 0, sizeof module);
    module.path = (char *)(uintptr_t)target->module_path;
    module.parameters = (char *)(uintptr_t)target->parameters;
    xks_status status = xks_p11_module_open(&module, error);
    if (status != XKS_OK) {
        return status;
    }
    status = ensure(&module, target, label, label_len, can_encrypt, can_decrypt, created, error);
    xks_p11_module_close(&module);
    return status;
}
