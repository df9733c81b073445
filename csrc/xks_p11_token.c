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

static xks_status check_mechanism(const xks_p11_module *module, CK_SLOT_ID slot, const char *label, char *error)
{
    CK_MECHANISM_INFO mechanism;
    CK_RV rv = module->f->C_GetMechanismInfo(slot, CKM_AES_GCM, &mechanism);
    if (rv != CKR_OK || (mechanism.flags & (CKF_ENCRYPT | CKF_DECRYPT)) != (CKF_ENCRYPT | CKF_DECRYPT)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "token '%s' has no AES-GCM (C_GetMechanismInfo: %s): use a token or a firmware that has CKM_AES_GCM", label,
                 xks_ckr_name(rv));
        return XKS_CONFIG;
    }
    return XKS_OK;
}

xks_status xks_p11_token_find(const xks_p11_module *module, const xks_p11_token_name *name, CK_SLOT_ID *slot,
                              xks_p11_token_info *info, char *error)
{
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
    if (xks_ckr_classify(rv) == XKS_CKR_CONFIG) {
        snprintf(error, XKS_ERROR_TEXT_BYTES,
                 "C_Login: %s (0x%lx): the PIN was tried once and will not be tried again, since tokens lock; correct the PIN (or "
                 "unlock the token), then start again",
                 xks_ckr_name(rv), rv);
        return XKS_CONFIG;
    }
    snprintf(error, XKS_ERROR_TEXT_BYTES, "C_Login: %s (0x%lx)", xks_ckr_name(rv), rv);
    return XKS_UNAVAILABLE;
}
