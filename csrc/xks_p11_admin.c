/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_admin.h"

#include "xks_ckr.h"
#include "xks_p11_gcm.h"
#include "xks_p11_login.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AES_256_BYTES 32
#define MAX_FOUND 16
#define RECEIVER_BITS 3072

struct xks_admin {
    xks_p11_login login;
    bool private_keys;
    xks_random_pool random;
    xks_p11_scratch scratch;
};

static const uint8_t TEXT[XKS_ADMIN_PROOF_BYTES] = {'x', 'k', 's', 'f', 'a', 's', 't', ' ', 's', 'a', 'm', 'e', ' ', 'k', 'e', 'y'};
static const uint8_t AAD[3] = {0, 0, 0};
static const uint8_t EXPONENT[3] = {1, 0, 1};

static CK_FUNCTION_LIST *calls(const xks_admin *admin)
{
    return admin->login.module.f;
}

static xks_status failed(const char *call, CK_RV rv, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s (0x%lx)", call, xks_ckr_name(rv), rv);
    return xks_ckr_classify(rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}

/* --- the token */

xks_status xks_admin_open(const xks_provision_target *target, xks_admin **out, char *error)
{
    xks_admin *admin = calloc(1, sizeof *admin);
    *out = NULL;
    if (admin == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory");
        return XKS_SYSTEM;
    }
    xks_status status = xks_p11_login_open(target, true, &admin->login, error);
    if (status != XKS_OK) {
        free(admin);
        return status;
    }
    admin->private_keys = target->pin != NULL;
    xks_random_pool_init(&admin->random);
    *out = admin;
    return XKS_OK;
}

void xks_admin_close(xks_admin *admin)
{
    if (admin != NULL) {
        xks_p11_scratch_free(&admin->scratch);
        xks_random_pool_wipe(&admin->random);
        xks_p11_login_close(&admin->login);
        free(admin);
    }
}

static uint64_t count_of(CK_ULONG value)
{
    return value == CK_UNAVAILABLE_INFORMATION ? UINT64_MAX : value;
}

xks_status xks_admin_describe(const xks_provision_target *target, xks_admin_token *out, char *error)
{
    xks_provision_target without_login = *target;
    xks_p11_login login;
    CK_TOKEN_INFO token;
    CK_INFO library;
    without_login.pin = NULL;
    memset(out, 0, sizeof *out);
    xks_status status = xks_p11_login_open(&without_login, false, &login, error);
    if (status != XKS_OK) {
        return status;
    }
    CK_RV rv = login.module.f->C_GetTokenInfo(login.slot, &token);
    if (rv != CKR_OK) {
        status = failed("C_GetTokenInfo", rv, error);
        goto out;
    }
    memcpy(out->label, login.info.label, sizeof out->label);
    memcpy(out->manufacturer, login.info.manufacturer, sizeof out->manufacturer);
    memcpy(out->model, login.info.model, sizeof out->model);
    memcpy(out->serial, login.info.serial, sizeof out->serial);
    out->firmware_major = token.firmwareVersion.major;
    out->firmware_minor = token.firmwareVersion.minor;
    out->hardware_major = token.hardwareVersion.major;
    out->hardware_minor = token.hardwareVersion.minor;
    out->sessions = count_of(token.ulSessionCount);
    out->sessions -= out->sessions != UINT64_MAX && out->sessions > 0 ? 1 : 0; /* our own is none of the operator's */
    out->max_sessions = count_of(token.ulMaxSessionCount);
    out->rw_sessions = count_of(token.ulRwSessionCount);
    out->max_rw_sessions = count_of(token.ulMaxRwSessionCount);
    out->flags = token.flags;
    if (login.module.f->C_GetInfo(&library) == CKR_OK) {
        memcpy(out->library, library.libraryDescription, sizeof library.libraryDescription);
        for (size_t len = sizeof library.libraryDescription; len > 0 && out->library[len - 1] == ' '; len--) {
            out->library[len - 1] = '\0';
        }
        out->library_major = library.libraryVersion.major;
        out->library_minor = library.libraryVersion.minor;
    }
out:
    xks_p11_login_close(&login);
    return status;
}

/* --- finding */

static xks_status describe_key(const xks_admin *admin, CK_OBJECT_HANDLE handle, xks_admin_key *out, char *error)
{
    CK_KEY_TYPE type = CKK_VENDOR_DEFINED;
    CK_ULONG value_len = 0;
    CK_BBOOL encrypt = CK_FALSE, decrypt = CK_FALSE, wrap = CK_FALSE, unwrap = CK_FALSE, sensitive = CK_FALSE, extractable = CK_TRUE;
    CK_ATTRIBUTE wanted[] = {
        {CKA_KEY_TYPE, &type, sizeof type},       {CKA_VALUE_LEN, &value_len, sizeof value_len},
        {CKA_ENCRYPT, &encrypt, sizeof encrypt},  {CKA_DECRYPT, &decrypt, sizeof decrypt},
        {CKA_WRAP, &wrap, sizeof wrap},           {CKA_UNWRAP, &unwrap, sizeof unwrap},
        {CKA_SENSITIVE, &sensitive, sizeof sensitive}, {CKA_EXTRACTABLE, &extractable, sizeof extractable},
    };
    CK_RV rv = calls(admin)->C_GetAttributeValue(admin->login.session, handle, wanted, sizeof wanted / sizeof wanted[0]);
    if (rv != CKR_OK && rv != CKR_ATTRIBUTE_TYPE_INVALID && rv != CKR_ATTRIBUTE_SENSITIVE) {
        return failed("C_GetAttributeValue", rv, error);
    }
    *out = (xks_admin_key){
        .handle = handle,
        .value_len = wanted[1].ulValueLen == sizeof value_len ? value_len : 0,
        .is_aes = type == CKK_AES,
        .can_encrypt = encrypt == CK_TRUE,
        .can_decrypt = decrypt == CK_TRUE,
        .can_wrap = wrap == CK_TRUE,
        .can_unwrap = unwrap == CK_TRUE,
        .sensitive = sensitive == CK_TRUE,
        .extractable = extractable == CK_TRUE,
    };
    return XKS_OK;
}

xks_status xks_admin_find(xks_admin *admin, const char *label, size_t label_len, xks_admin_key *out, size_t capacity, size_t *count,
                          char *error)
{
    CK_OBJECT_CLASS secret_key = CKO_SECRET_KEY;
    CK_BBOOL on_token = CK_TRUE;
    CK_OBJECT_HANDLE found[MAX_FOUND];
    CK_ULONG number = 0;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &secret_key, sizeof secret_key},
        {CKA_TOKEN, &on_token, sizeof on_token},
        {CKA_LABEL, (void *)(uintptr_t)label, (CK_ULONG)label_len},
    };
    *count = 0;
    CK_RV rv = calls(admin)->C_FindObjectsInit(admin->login.session, template, sizeof template / sizeof template[0]);
    if (rv != CKR_OK) {
        return failed("C_FindObjectsInit", rv, error);
    }
    rv = calls(admin)->C_FindObjects(admin->login.session, found, MAX_FOUND, &number);
    CK_RV final = calls(admin)->C_FindObjectsFinal(admin->login.session);
    if (rv != CKR_OK || final != CKR_OK) {
        return failed("C_FindObjects", rv != CKR_OK ? rv : final, error);
    }
    for (CK_ULONG i = 0; i < number && i < capacity; i++) {
        xks_status status = describe_key(admin, found[i], &out[i], error);
        if (status != XKS_OK) {
            return status;
        }
    }
    *count = number;
    return XKS_OK;
}

/* --- making */

#define MAX_ATTRIBUTES 16

typedef struct attributes {
    CK_ATTRIBUTE list[MAX_ATTRIBUTES];
    CK_ULONG count;
} attributes;

static void add(attributes *all, CK_ATTRIBUTE_TYPE type, const void *value, size_t len)
{
    all->list[all->count++] = (CK_ATTRIBUTE){type, (void *)(uintptr_t)value, (CK_ULONG)len};
}

static void add_flag(attributes *all, CK_ATTRIBUTE_TYPE type, bool value)
{
    static const CK_BBOOL YES = CK_TRUE, NO = CK_FALSE;
    add(all, type, value ? &YES : &NO, sizeof YES);
}

/* Everything but the length, which is said when a key is generated and, by some tokens, refused when it is unwrapped. */
static attributes attributes_of(const xks_admin *admin, const xks_admin_template *wanted)
{
    static const CK_OBJECT_CLASS SECRET_KEY = CKO_SECRET_KEY;
    static const CK_KEY_TYPE AES = CKK_AES;
    attributes all = {.count = 0};
    add(&all, CKA_CLASS, &SECRET_KEY, sizeof SECRET_KEY);
    add(&all, CKA_KEY_TYPE, &AES, sizeof AES);
    add(&all, CKA_LABEL, wanted->label, wanted->label_len);
    add_flag(&all, CKA_TOKEN, wanted->on_token);
    add_flag(&all, CKA_PRIVATE, admin->private_keys);
    add_flag(&all, CKA_SENSITIVE, true);
    add_flag(&all, CKA_EXTRACTABLE, wanted->extractable);
    add_flag(&all, CKA_ENCRYPT, wanted->can_encrypt);
    add_flag(&all, CKA_DECRYPT, wanted->can_decrypt);
    add_flag(&all, CKA_WRAP, wanted->can_wrap);
    add_flag(&all, CKA_UNWRAP, wanted->can_unwrap);
    return all;
}

static void add_length(attributes *all)
{
    static const CK_ULONG LENGTH = AES_256_BYTES;
    add(all, CKA_VALUE_LEN, &LENGTH, sizeof LENGTH);
}

xks_status xks_admin_generate(xks_admin *admin, const xks_admin_template *wanted, uint64_t *key, char *error)
{
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};
    CK_OBJECT_HANDLE made;
    attributes all = attributes_of(admin, wanted);
    add_length(&all);
    CK_RV rv = calls(admin)->C_GenerateKey(admin->login.session, &mechanism, all.list, all.count, &made);
    if (rv != CKR_OK) {
        return failed("C_GenerateKey", rv, error);
    }
    *key = made;
    return XKS_OK;
}

/* --- wrapping */

static xks_status wrap(xks_admin *admin, CK_MECHANISM *mechanism, uint64_t wrapping_key, uint64_t key, uint8_t *blob, size_t *blob_len,
                       char *error)
{
    CK_ULONG len = XKS_ADMIN_BLOB_BYTES;
    CK_RV rv = CKR_KEY_UNEXTRACTABLE;
    xks_admin_key about;
    *blob_len = 0;
    xks_status status = describe_key(admin, key, &about, error);
    if (status != XKS_OK) {
        return status;
    }
    if (about.extractable) { /* NSS softoken would wrap one that is not */
        rv = calls(admin)->C_WrapKey(admin->login.session, mechanism, wrapping_key, key, blob, &len);
    }
    if (rv == CKR_KEY_UNEXTRACTABLE || rv == CKR_KEY_NOT_WRAPPABLE) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_WrapKey: %s (0x%lx): the key is not extractable", xks_ckr_name(rv), rv);
        return XKS_NOT_PERMITTED;
    }
    if (rv == CKR_MECHANISM_INVALID) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "C_WrapKey: %s: the token has no mechanism 0x%lx: set wrap_mechanism of the partition to its number for AES "
                 "key wrap",
                 xks_ckr_name(rv), mechanism->mechanism);
        return XKS_CONFIG;
    }
    if (rv != CKR_OK) {
        return failed("C_WrapKey", rv, error);
    }
    if (len > XKS_ADMIN_BLOB_BYTES) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_WrapKey returned a wrong length");
        return XKS_UNAVAILABLE;
    }
    *blob_len = len;
    return XKS_OK;
}

static xks_status unwrap(xks_admin *admin, CK_MECHANISM *mechanism, uint64_t unwrapping_key, const uint8_t *blob, size_t blob_len,
                         const xks_admin_template *wanted, uint64_t *key, char *error)
{
    xks_admin_key got;
    xks_admin_proof proof;
    CK_OBJECT_HANDLE made;
    attributes all = attributes_of(admin, wanted);
    CK_BYTE_PTR bytes = (CK_BYTE_PTR)(uintptr_t)blob;
    CK_ULONG len = (CK_ULONG)blob_len;
    CK_RV rv = calls(admin)->C_UnwrapKey(admin->login.session, mechanism, unwrapping_key, bytes, len, all.list, all.count, &made);
    if (rv == CKR_TEMPLATE_INCOMPLETE) { /* Luna before firmware 7.9.3 wants the length */
        add_length(&all);
        rv = calls(admin)->C_UnwrapKey(admin->login.session, mechanism, unwrapping_key, bytes, len, all.list, all.count, &made);
    }
    if (rv == CKR_MECHANISM_INVALID) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "C_UnwrapKey: %s: the token has no mechanism 0x%lx: set wrap_mechanism of the partition to its number for AES "
                 "key wrap",
                 xks_ckr_name(rv), mechanism->mechanism);
        return XKS_CONFIG;
    }
    if (rv != CKR_OK) {
        return failed("C_UnwrapKey", rv, error);
    }
    xks_status status = describe_key(admin, made, &got, error);
    bool wrong = status == XKS_OK && (!got.is_aes || (got.value_len != 0 && got.value_len != AES_256_BYTES));
    if (status == XKS_OK && got.value_len == 0 && wanted->can_encrypt) {
        wrong = xks_admin_prove(admin, made, &proof, error) != XKS_OK;
    }
    if (wrong) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "C_UnwrapKey said CKR_OK and made something else than an AES-256 key: it was destroyed. The two partitions do not "
                 "mean the same mechanism: set wrap_mechanism of both to RFC 3394 (0x2109) or both to RFC 5649 (0x210B)");
        status = XKS_CONFIG;
    }
    if (status != XKS_OK) {
        (void)calls(admin)->C_DestroyObject(admin->login.session, made);
        return status;
    }
    *key = made;
    return XKS_OK;
}

xks_status xks_admin_wrap(xks_admin *admin, uint64_t wrapping_key, uint64_t key, unsigned long mechanism,
                          uint8_t blob[XKS_ADMIN_BLOB_BYTES], size_t *blob_len, char *error)
{
    CK_MECHANISM how = {mechanism, NULL, 0};
    return wrap(admin, &how, wrapping_key, key, blob, blob_len, error);
}

xks_status xks_admin_unwrap(xks_admin *admin, uint64_t unwrapping_key, unsigned long mechanism, const uint8_t *blob, size_t blob_len,
                            const xks_admin_template *wanted, uint64_t *key, char *error)
{
    CK_MECHANISM how = {mechanism, NULL, 0};
    return unwrap(admin, &how, unwrapping_key, blob, blob_len, wanted, key, error);
}

/* --- the transport key's way */

static CK_RSA_PKCS_OAEP_PARAMS oaep(void)
{
    CK_RSA_PKCS_OAEP_PARAMS params = {.hashAlg = CKM_SHA_1, .mgf = CKG_MGF1_SHA1, .source = CKZ_DATA_SPECIFIED};
    return params;
}

xks_status xks_admin_receiver(xks_admin *admin, uint64_t *private_key, uint8_t modulus[XKS_ADMIN_BLOB_BYTES], size_t *modulus_len,
                              char *error)
{
    CK_MECHANISM mechanism = {CKM_RSA_PKCS_KEY_PAIR_GEN, NULL, 0};
    CK_ULONG bits = RECEIVER_BITS;
    CK_OBJECT_HANDLE public_half, private_half;
    attributes public_wanted = {.count = 0}, private_wanted = {.count = 0};
    add_flag(&public_wanted, CKA_TOKEN, false);
    add_flag(&public_wanted, CKA_WRAP, true);
    add(&public_wanted, CKA_MODULUS_BITS, &bits, sizeof bits);
    add(&public_wanted, CKA_PUBLIC_EXPONENT, EXPONENT, sizeof EXPONENT);
    add_flag(&private_wanted, CKA_TOKEN, false);
    add_flag(&private_wanted, CKA_PRIVATE, admin->private_keys);
    add_flag(&private_wanted, CKA_SENSITIVE, true);
    add_flag(&private_wanted, CKA_EXTRACTABLE, false);
    add_flag(&private_wanted, CKA_UNWRAP, true);
    CK_RV rv = calls(admin)->C_GenerateKeyPair(admin->login.session, &mechanism, public_wanted.list, public_wanted.count,
                                               private_wanted.list, private_wanted.count, &public_half, &private_half);
    if (rv != CKR_OK) {
        return failed("C_GenerateKeyPair", rv, error);
    }
    CK_ATTRIBUTE value = {CKA_MODULUS, modulus, XKS_ADMIN_BLOB_BYTES};
    rv = calls(admin)->C_GetAttributeValue(admin->login.session, public_half, &value, 1);
    if (rv != CKR_OK || value.ulValueLen > XKS_ADMIN_BLOB_BYTES) {
        (void)calls(admin)->C_DestroyObject(admin->login.session, private_half);
        return failed("C_GetAttributeValue (CKA_MODULUS)", rv, error);
    }
    *modulus_len = value.ulValueLen;
    *private_key = private_half;
    return XKS_OK;
}

xks_status xks_admin_wrap_for(xks_admin *admin, const uint8_t *modulus, size_t modulus_len, uint64_t key,
                              uint8_t blob[XKS_ADMIN_BLOB_BYTES], size_t *blob_len, char *error)
{
    CK_OBJECT_CLASS class = CKO_PUBLIC_KEY;
    CK_KEY_TYPE type = CKK_RSA;
    CK_OBJECT_HANDLE receiver;
    attributes all = {.count = 0};
    add(&all, CKA_CLASS, &class, sizeof class);
    add(&all, CKA_KEY_TYPE, &type, sizeof type);
    add_flag(&all, CKA_TOKEN, false);
    add_flag(&all, CKA_WRAP, true);
    add(&all, CKA_MODULUS, modulus, modulus_len);
    add(&all, CKA_PUBLIC_EXPONENT, EXPONENT, sizeof EXPONENT);
    *blob_len = 0;
    CK_RV rv = calls(admin)->C_CreateObject(admin->login.session, all.list, all.count, &receiver);
    if (rv != CKR_OK) {
        return failed("C_CreateObject (the receiver's public key)", rv, error);
    }
    CK_RSA_PKCS_OAEP_PARAMS params = oaep();
    CK_MECHANISM how = {CKM_RSA_PKCS_OAEP, &params, sizeof params};
    xks_status status = wrap(admin, &how, receiver, key, blob, blob_len, error);
    (void)calls(admin)->C_DestroyObject(admin->login.session, receiver);
    return status;
}

xks_status xks_admin_unwrap_received(xks_admin *admin, uint64_t private_key, const uint8_t *blob, size_t blob_len,
                                     const xks_admin_template *wanted, uint64_t *key, char *error)
{
    CK_RSA_PKCS_OAEP_PARAMS params = oaep();
    CK_MECHANISM how = {CKM_RSA_PKCS_OAEP, &params, sizeof params};
    return unwrap(admin, &how, private_key, blob, blob_len, wanted, key, error);
}

/* --- proving */

static xks_p11_gcm gcm_of(const xks_admin *admin, uint64_t key)
{
    return (xks_p11_gcm){&admin->login.module, admin->login.session, key, admin->login.profile->iv_mode, NULL};
}

xks_status xks_admin_prove(xks_admin *admin, uint64_t key, xks_admin_proof *out, char *error)
{
    uint8_t bytes[XKS_ADMIN_PROOF_BYTES + 32];
    xks_p11_failure failure;
    xks_p11_gcm gcm = gcm_of(admin, key);
    memset(out, 0, sizeof *out);
    CK_RV rv = xks_p11_gcm_encrypt(&gcm, &admin->random, (xks_span){AAD, sizeof AAD}, (xks_span){TEXT, sizeof TEXT}, bytes, out->iv,
                                   &out->iv_len, out->tag, &failure);
    if (rv != CKR_OK) {
        return failed(failure.call, rv, error);
    }
    memcpy(out->ciphertext, bytes, sizeof out->ciphertext);
    return XKS_OK;
}

static CK_RV open_proof(xks_admin *admin, uint64_t key, const xks_admin_proof *proof, xks_p11_failure *failure)
{
    uint8_t out[XKS_ADMIN_PROOF_BYTES + 32];
    xks_p11_gcm gcm = gcm_of(admin, key);
    CK_RV rv = xks_p11_gcm_decrypt(&gcm, &admin->scratch, (xks_span){proof->iv, proof->iv_len}, (xks_span){AAD, sizeof AAD},
                                   (xks_span){proof->ciphertext, sizeof proof->ciphertext}, (xks_span){proof->tag, 16}, out, failure);
    if (rv == CKR_OK && memcmp(out, TEXT, sizeof TEXT) != 0) {
        *failure = (xks_p11_failure){CKR_DEVICE_ERROR, "C_Decrypt returned wrong bytes", true};
        return CKR_DEVICE_ERROR;
    }
    return rv;
}

xks_status xks_admin_check(xks_admin *admin, uint64_t key, bool can_encrypt, const xks_admin_proof *proof, char *error)
{
    xks_p11_failure failure;
    xks_admin_proof own;
    if (proof->iv_len != 12 && proof->iv_len != 16) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "a proof has an IV of 12 or 16 bytes");
        return XKS_BAD_INPUT;
    }
    CK_RV rv = open_proof(admin, key, proof, &failure);
    if (rv == CKR_OK) {
        return XKS_OK;
    }
    xks_ckr_class class = xks_ckr_classify(rv);
    if (failure.broken || (class != XKS_CKR_BAD_CIPHERTEXT && class != XKS_CKR_AMBIGUOUS)) {
        return failed(failure.call, rv, error);
    }
    if (class == XKS_CKR_AMBIGUOUS && can_encrypt) {
        xks_p11_failure own_failure;
        if (xks_admin_prove(admin, key, &own, error) != XKS_OK || open_proof(admin, key, &own, &own_failure) != CKR_OK) {
            return failed(failure.call, rv, error);
        }
    }
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s (0x%lx): another key", failure.call, xks_ckr_name(rv), rv);
    return XKS_NOT_AUTHENTIC;
}

/* --- changing */

xks_status xks_admin_rename(xks_admin *admin, uint64_t key, const char *label, size_t label_len, char *error)
{
    CK_ATTRIBUTE new_label = {CKA_LABEL, (void *)(uintptr_t)label, (CK_ULONG)label_len};
    CK_RV rv = calls(admin)->C_SetAttributeValue(admin->login.session, key, &new_label, 1);
    return rv == CKR_OK ? XKS_OK : failed("C_SetAttributeValue (CKA_LABEL)", rv, error);
}

xks_status xks_admin_lock_down(xks_admin *admin, uint64_t key, char *error)
{
    CK_BBOOL no = CK_FALSE;
    CK_ATTRIBUTE extractable = {CKA_EXTRACTABLE, &no, sizeof no};
    xks_admin_key now;
    CK_RV rv = calls(admin)->C_SetAttributeValue(admin->login.session, key, &extractable, 1);
    if (rv != CKR_OK) {
        return failed("C_SetAttributeValue (CKA_EXTRACTABLE = false)", rv, error);
    }
    xks_status status = describe_key(admin, key, &now, error);
    if (status == XKS_OK && now.extractable) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "C_SetAttributeValue (CKA_EXTRACTABLE = false) said CKR_OK, and the key still is extractable");
        return XKS_UNAVAILABLE;
    }
    return status;
}

xks_status xks_admin_destroy(xks_admin *admin, uint64_t key, char *error)
{
    CK_RV rv = calls(admin)->C_DestroyObject(admin->login.session, key);
    return rv == CKR_OK ? XKS_OK : failed("C_DestroyObject", rv, error);
}
