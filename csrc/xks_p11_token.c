/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_token.h"

#include "xks_ckr.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOGIN_RACE_TRIES 20
#define LOGIN_RACE_PAUSE_NS 25000000

/* A blank-padded field without its padding. out has len + 1 bytes. */
static void trim(const CK_UTF8CHAR *field, size_t len, char *out)
{
    while (len > 0 && (field[len - 1] == ' ' || field[len - 1] == '\0')) {
        len--;
    }
    memcpy(out, field, len);
    out[len] = '\0';
}

static void read_info(const CK_TOKEN_INFO *raw, xks_p11_token_info *info)
{
    trim(raw->label, sizeof raw->label, info->label);
    trim(raw->manufacturerID, sizeof raw->manufacturerID, info->manufacturer);
    trim(raw->model, sizeof raw->model, info->model);
    trim(raw->serialNumber, sizeof raw->serialNumber, info->serial);
    info->firmware_major = raw->firmwareVersion.major;
    info->firmware_minor = raw->firmwareVersion.minor;
}

static bool matches(const xks_p11_token_name *name, CK_SLOT_ID slot, const xks_p11_token_info *info)
{
    if (name->label != NULL) {
        return strcmp(name->label, info->label) == 0;
    }
    if (name->serial != NULL) {
        return strcmp(name->serial, info->serial) == 0;
    }
    return name->slot == slot;
}

static void describe(const xks_p11_token_name *name, char *out, size_t capacity)
{
    if (name->label != NULL) {
        snprintf(out, capacity, "with the label '%.64s'", name->label);
    } else if (name->serial != NULL) {
        snprintf(out, capacity, "with the serial number '%.64s'", name->serial);
    } else {
        snprintf(out, capacity, "in slot %llu", (unsigned long long)name->slot);
    }
}

/* Whether trying the PIN again may lock the token, or cannot help before somebody has changed the PIN. */
static bool is_pin_refused(CK_RV rv)
{
    return rv == CKR_PIN_INCORRECT || rv == CKR_PIN_INVALID || rv == CKR_PIN_LEN_RANGE || rv == CKR_PIN_EXPIRED || rv == CKR_PIN_LOCKED;
}

static xks_status check_mechanism(const xks_p11_module *module, CK_SLOT_ID slot, const char *label, char *error)
{
    CK_MECHANISM_INFO mechanism;
    CK_RV rv = module->f->C_GetMechanismInfo(slot, CKM_AES_GCM, &mechanism);
    if (rv != CKR_OK && rv != CKR_MECHANISM_INVALID) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "token '%s': C_GetMechanismInfo: %s (0x%lx)", label, xks_ckr_name(rv), rv);
        return XKS_UNAVAILABLE;
    }
    if (rv != CKR_OK || (mechanism.flags & (CKF_ENCRYPT | CKF_DECRYPT)) != (CKF_ENCRYPT | CKF_DECRYPT)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "token '%s' has no AES-GCM (C_GetMechanismInfo: %s): use a token or a firmware that has CKM_AES_GCM", label,
                 xks_ckr_name(rv));
        return XKS_CONFIG;
    }
    return XKS_OK;
}

xks_status xks_p11_token_look(const xks_p11_module *module, const xks_p11_token_name *name, CK_SLOT_ID slot, const char *serial,
                              xks_p11_token_info *info, bool *other, char *error)
{
    CK_TOKEN_INFO raw;
    CK_RV rv = module->f->C_GetTokenInfo(slot, &raw);
    *other = rv == CKR_SLOT_ID_INVALID || rv == CKR_TOKEN_NOT_PRESENT || rv == CKR_TOKEN_NOT_RECOGNIZED ||
             (rv == CKR_OK && (raw.flags & CKF_TOKEN_INITIALIZED) == 0);
    if (rv == CKR_OK) {
        read_info(&raw, info);
        *other = *other || !matches(name, slot, info) || (serial != NULL && strcmp(serial, info->serial) != 0);
    }
    if (*other) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "there is no initialised token in slot %lu of %.160s", slot, module->path);
        return XKS_CONFIG;
    }
    if (rv != CKR_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_GetTokenInfo: %s (0x%lx)", xks_ckr_name(rv), rv);
        return XKS_UNAVAILABLE;
    }
    return check_mechanism(module, slot, info->label, error);
}

xks_status xks_p11_token_find(const xks_p11_module *module, const xks_p11_token_name *name, CK_SLOT_ID *slot,
                              xks_p11_token_info *info, char *error)
{
    if (name->label == NULL && name->serial == NULL) { /* nobody else is asked: another slot may not answer */
        bool other;
        *slot = (CK_SLOT_ID)name->slot;
        return xks_p11_token_look(module, name, *slot, NULL, info, &other, error);
    }
    CK_ULONG count = 0;
    CK_RV rv = module->f->C_GetSlotList(CK_TRUE, NULL, &count);
    CK_SLOT_ID *slots = calloc(count + 8, sizeof *slots);
    char wanted[96], others[160] = "";
    unsigned found = 0;
    if (slots == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory");
        return XKS_SYSTEM;
    }
    count += 8; /* tokens may appear in between */
    if (rv == CKR_OK) {
        rv = module->f->C_GetSlotList(CK_TRUE, slots, &count);
    }
    if (rv != CKR_OK) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "C_GetSlotList: %s (0x%lx)", xks_ckr_name(rv), rv);
        free(slots);
        return XKS_UNAVAILABLE;
    }
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO raw;
        xks_p11_token_info about;
        if (module->f->C_GetTokenInfo(slots[i], &raw) != CKR_OK || (raw.flags & CKF_TOKEN_INITIALIZED) == 0) {
            continue;
        }
        read_info(&raw, &about);
        if (matches(name, slots[i], &about)) {
            *slot = slots[i];
            *info = about;
            found++;
        } else if (strlen(others) + strlen(about.label) + 4 < sizeof others) {
            strcat(others, others[0] == '\0' ? "'" : ", '");
            strcat(others, about.label);
            strcat(others, "'");
        }
    }
    free(slots);
    describe(name, wanted, sizeof wanted);
    if (found == 0) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "there is no token %s in %.160s; tokens found: %s. Correct the partition, or initialise the token", wanted, module->path,
                 others[0] == '\0' ? "none" : others);
        return XKS_CONFIG;
    }
    if (found > 1) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "%u tokens %s in %.160s: name the one you mean by serial instead", found, wanted, module->path);
        return XKS_CONFIG;
    }
    return check_mechanism(module, *slot, info->label, error);
}

xks_status xks_p11_token_login(const xks_p11_module *module, CK_SESSION_HANDLE session, const xks_secret *pin,
                               const xks_p11_profile *profile, char *error)
{
    if (pin == NULL) {
        return XKS_OK;
    }
    size_t len;
    const uint8_t *bytes = xks_secret_view(pin, &len);
    CK_RV rv = CKR_OK;
    for (int attempt = 0; attempt < LOGIN_RACE_TRIES; attempt++) {
        rv = module->f->C_Login(session, CKU_USER, (CK_UTF8CHAR *)(uintptr_t)bytes, (CK_ULONG)len);
        if (rv != CKR_USER_PIN_NOT_INITIALIZED || !profile->start_up_login_race) {
            break;
        }
        struct timespec pause = {0, LOGIN_RACE_PAUSE_NS};
        (void)nanosleep(&pause, NULL);
    }
    if (rv == CKR_OK || rv == CKR_USER_ALREADY_LOGGED_IN) {
        return XKS_OK;
    }
    if (is_pin_refused(rv)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "C_Login: %s (0x%lx): the PIN was tried once and will not be tried again, since tokens lock; correct the PIN (or "
                 "unlock the token), then start again",
                 xks_ckr_name(rv), rv);
        return XKS_FINAL;
    }
    snprintf(error, XKS_ERROR_TEXT_BYTES, "C_Login: %s (0x%lx)", xks_ckr_name(rv), rv);
    return xks_ckr_classify(rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}
