/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_provision.h"

#include "xks_ckr.h"
#include "xks_p11_key.h"
#include "xks_p11_login.h"
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

static xks_status ensure(const xks_p11_login *login, const char *label, size_t label_len, bool can_encrypt, bool can_decrypt,
                         bool private, bool *created, char *error)
{
    const xks_p11_module *module = &login->module;
    CK_SESSION_HANDLE session = login->session;
    xks_status status = XKS_OK;
    xks_p11_key key;
    int shown = (int)(label_len < 128 ? label_len : 128);
    switch (xks_p11_key_find(module, session, label, label_len, &key)) {
    case XKS_P11_KEY_FOUND:
        break;
    case XKS_P11_KEY_ABSENT:
        status = generate(module, session, label, label_len, can_encrypt, can_decrypt, private, error);
        *created = status == XKS_OK;
        break;
    case XKS_P11_KEY_AMBIGUOUS:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "token '%s' has several secret keys with the label '%.*s': give each its own",
                 login->info.label, shown, label);
        status = XKS_CONFIG;
        break;
    case XKS_P11_KEY_WRONG_TYPE:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the key '%.*s' on token '%s' is not AES with 256 bits: choose another label", shown,
                 label, login->info.label);
        status = XKS_CONFIG;
        break;
    case XKS_P11_KEY_UNREADABLE:
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_FindObjects: %s (0x%lx)", xks_ckr_name(key.rv), key.rv);
        status = XKS_UNAVAILABLE;
        break;
    }
    return status;
}

xks_status xks_provision_ensure_key(const xks_provision_target *target, const char *label, size_t label_len, bool can_encrypt,
                                    bool can_decrypt, bool *created, char *error)
{
    xks_p11_login login;
    *created = false;
    xks_status status = xks_p11_login_open(target, true, &login, error);
    if (status != XKS_OK) {
        return status;
    }
    status = ensure(&login, label, label_len, can_encrypt, can_decrypt, target->pin != NULL, created, error);
    xks_p11_login_close(&login);
    return status;
}
