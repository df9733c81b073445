/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_key.h"

#include "xks_ckr.h"
#include <stdint.h>
#include <string.h>

#define AES_256_BYTES 32
#define MAX_LABEL_BYTES 256

static xks_p11_key_verdict unreadable(xks_p11_key *key, CK_RV rv)
{
    key->rv = rv;
    return XKS_P11_KEY_UNREADABLE;
}

/* Type, length and rights of one object, and its label when `label` is not NULL. An attribute that the token does not tell counts as
 * false. */
static xks_p11_key_verdict read_attributes(const xks_p11_module *module, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                                           CK_ATTRIBUTE *label, xks_p11_key *key)
{
    CK_KEY_TYPE type = CKK_VENDOR_DEFINED;
    CK_ULONG value_len = 0;
    CK_BBOOL encrypt = CK_FALSE, decrypt = CK_FALSE, extractable = CK_TRUE;
    CK_ATTRIBUTE wanted[] = {
        {CKA_KEY_TYPE, &type, sizeof type},          {CKA_VALUE_LEN, &value_len, sizeof value_len},
        {CKA_ENCRYPT, &encrypt, sizeof encrypt},     {CKA_DECRYPT, &decrypt, sizeof decrypt},
        {CKA_EXTRACTABLE, &extractable, sizeof extractable},
        {CKA_LABEL, NULL, 0},
    };
    CK_ULONG count = sizeof wanted / sizeof wanted[0];
    if (label != NULL) {
        wanted[count - 1] = *label;
    } else {
        count--;
    }
    CK_RV rv = module->f->C_GetAttributeValue(session, object, wanted, count);
    if (label != NULL) {
        label->ulValueLen = wanted[count - 1].ulValueLen;
    }
    if (rv == CKR_OBJECT_HANDLE_INVALID) {
        return XKS_P11_KEY_ABSENT;
    }
    bool long_label = label != NULL && rv == CKR_BUFFER_TOO_SMALL; /* a foreign key's: the other attributes were read */
    if (rv != CKR_OK && rv != CKR_ATTRIBUTE_TYPE_INVALID && rv != CKR_ATTRIBUTE_SENSITIVE && !long_label) {
        return unreadable(key, rv);
    }
    /* SoftHSM tells 0 of every key that it unwrapped, and lets nobody set it: whoever put the key there has proved it. */
    if (type != CKK_AES || (value_len != AES_256_BYTES && value_len != 0)) {
        return XKS_P11_KEY_WRONG_TYPE;
    }
    key->can_encrypt = encrypt == CK_TRUE;
    key->can_decrypt = decrypt == CK_TRUE;
    key->extractable = extractable == CK_TRUE;
    return XKS_P11_KEY_FOUND;
}

xks_p11_key_verdict xks_p11_key_find(const xks_p11_module *module, CK_SESSION_HANDLE session, const char *label, size_t label_len,
                                     xks_p11_key *key)
{
    CK_OBJECT_CLASS secret_key = CKO_SECRET_KEY;
    CK_BBOOL on_token = CK_TRUE;
    CK_OBJECT_HANDLE found[2];
    CK_ULONG count = 0;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &secret_key, sizeof secret_key},
        {CKA_TOKEN, &on_token, sizeof on_token},
        {CKA_LABEL, (void *)(uintptr_t)label, (CK_ULONG)label_len},
    };
    memset(key, 0, sizeof *key);
    CK_RV rv = module->f->C_FindObjectsInit(session, template, sizeof template / sizeof template[0]);
    if (rv != CKR_OK) {
        return unreadable(key, rv);
    }
    rv = module->f->C_FindObjects(session, found, 2, &count);
    CK_RV final = module->f->C_FindObjectsFinal(session);
    if (rv != CKR_OK || final != CKR_OK) {
        return unreadable(key, rv != CKR_OK ? rv : final);
    }
    if (count == 0) {
        return XKS_P11_KEY_ABSENT;
    }
    if (count > 1) {
        return XKS_P11_KEY_AMBIGUOUS;
    }
    key->source = key->use = found[0];
    return read_attributes(module, session, found[0], NULL, key);
}

xks_p11_key_verdict xks_p11_key_read(const xks_p11_module *module, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, char *label,
                                     size_t capacity, size_t *label_len, xks_p11_key *key)
{
    CK_ATTRIBUTE attribute = {CKA_LABEL, label, (CK_ULONG)capacity};
    memset(key, 0, sizeof *key);
    key->source = key->use = object;
    xks_p11_key_verdict verdict = read_attributes(module, session, object, &attribute, key);
    *label_len = attribute.ulValueLen <= capacity ? attribute.ulValueLen : 0; /* CK_UNAVAILABLE_INFORMATION is the largest CK_ULONG */
    return verdict;
}

void xks_p11_key_copy(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_key *key)
{
    CK_BBOOL on_token = CK_FALSE;
    CK_ATTRIBUTE template[] = {{CKA_TOKEN, &on_token, sizeof on_token}};
    CK_OBJECT_HANDLE copy;
    xks_p11_key of_copy = {0};
    if (module->f->C_CopyObject(session, key->source, template, 1, &copy) != CKR_OK) {
        return;
    }
    if (read_attributes(module, session, copy, NULL, &of_copy) != XKS_P11_KEY_FOUND || of_copy.can_encrypt != key->can_encrypt ||
        of_copy.can_decrypt != key->can_decrypt || of_copy.extractable != key->extractable) {
        (void)module->f->C_DestroyObject(session, copy);
        return;
    }
    key->use = copy;
    key->copied = true;
}

xks_p11_key_verdict xks_p11_key_still_there(const xks_p11_module *module, CK_SESSION_HANDLE session, const char *label,
                                            size_t label_len, xks_p11_key *key)
{
    char found[MAX_LABEL_BYTES];
    CK_ATTRIBUTE attribute = {CKA_LABEL, found, sizeof found};
    xks_p11_key now = *key;
    xks_p11_key_verdict verdict = read_attributes(module, session, key->source, &attribute, &now);
    if (verdict == XKS_P11_KEY_UNREADABLE) {
        key->rv = now.rv;
        return verdict;
    }
    if (verdict == XKS_P11_KEY_FOUND && (now.can_encrypt != key->can_encrypt || now.can_decrypt != key->can_decrypt)) {
        return XKS_P11_KEY_ABSENT; /* its rights changed: look for it again */
    }
    bool told = attribute.ulValueLen <= sizeof found; /* CK_UNAVAILABLE_INFORMATION is the largest CK_ULONG */
    if (verdict == XKS_P11_KEY_FOUND && told && (attribute.ulValueLen != label_len || memcmp(found, label, label_len) != 0)) {
        return XKS_P11_KEY_ABSENT; /* it was given another name */
    }
    return verdict;
}

void xks_p11_key_drop(const xks_p11_module *module, CK_SESSION_HANDLE session, xks_p11_key *key)
{
    if (key->copied) {
        (void)module->f->C_DestroyObject(session, key->use);
        key->copied = false;
        key->use = key->source;
    }
}
