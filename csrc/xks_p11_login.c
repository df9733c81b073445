/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_login.h"

#include "xks_ckr.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define START_RACE_TRIES 10
#define START_RACE_PAUSE_NS 50000000

static xks_status find_patiently(const xks_provision_target *target, xks_p11_login *login, char *error)
{
    xks_p11_token_name name = {target->token_label, target->token_serial, target->slot};
    int tries = login->profile->start_up_login_race ? START_RACE_TRIES : 1;
    for (int attempt = 1;; attempt++) {
        xks_status status = xks_p11_module_open(&login->module, error);
        if (status != XKS_OK) {
            return status;
        }
        status = xks_p11_token_find(&login->module, &name, &login->slot, &login->info, error);
        if (status == XKS_OK || attempt == tries || !login->module.initialized_by_us) {
            return status;
        }
        struct timespec pause = {0, START_RACE_PAUSE_NS};
        xks_p11_module_close(&login->module);
        (void)nanosleep(&pause, NULL);
    }
}

xks_status xks_p11_login_open(const xks_provision_target *target, bool read_write, xks_p11_login *out, char *error)
{
    memset(out, 0, sizeof *out);
    out->profile = xks_p11_profile_find(target->profile);
    if (out->profile == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "there is no vendor profile '%.64s'", target->profile);
        return XKS_CONFIG;
    }
    out->module.path = strdup(target->module_path);
    out->module.parameters = target->parameters != NULL ? strdup(target->parameters) : NULL;
    if (out->module.path == NULL || (target->parameters != NULL && out->module.parameters == NULL)) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory");
        xks_p11_login_close(out);
        return XKS_SYSTEM;
    }
    xks_status status = find_patiently(target, out, error);
    if (status == XKS_OK) {
        CK_FLAGS flags = CKF_SERIAL_SESSION | (read_write ? CKF_RW_SESSION : 0);
        CK_RV rv = out->module.f->C_OpenSession(out->slot, flags, NULL, NULL, &out->session);
        if (rv != CKR_OK) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "C_OpenSession: %s (0x%lx)", xks_ckr_name(rv), rv);
            status = XKS_UNAVAILABLE;
        } else {
            out->open = true;
            status = xks_p11_token_login(&out->module, out->session, target->pin, out->profile, error);
        }
    }
    if (status != XKS_OK) {
        xks_p11_login_close(out);
    }
    return status;
}

void xks_p11_login_close(xks_p11_login *login)
{
    if (login->open) {
        (void)login->module.f->C_CloseSession(login->session);
        login->open = false;
    }
    xks_p11_module_close(&login->module);
    free(login->module.path);
    free(login->module.parameters);
    login->module.path = login->module.parameters = NULL;
}
