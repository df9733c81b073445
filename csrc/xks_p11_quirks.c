/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_quirks.h"

#include <string.h>

static const xks_p11_profile PROFILES[] = {
    {"softhsm", XKS_IV_CALLER, true, true},
    {"nss", XKS_IV_CALLER, true, false},
    {"luna", XKS_IV_CALLER, false, false},
    {"luna_fips", XKS_IV_APPENDED_16, false, false},
    {"cloudhsm", XKS_IV_RETURNED_IN_PARAM, false, false},
    {"nshield", XKS_IV_RETURNED_IN_PARAM, false, false},
    {"utimaco", XKS_IV_CALLER, false, false},
    {"securosys", XKS_IV_CALLER, false, false},
    {"generic", XKS_IV_CALLER, false, false},
};

const xks_p11_profile *xks_p11_profile_find(const char *name)
{
    for (size_t i = 0; i < sizeof PROFILES / sizeof PROFILES[0]; i++) {
        if (strcmp(PROFILES[i].name, name) == 0) {
            return &PROFILES[i];
        }
    }
    return NULL;
}

const char *xks_iv_mode_name(xks_iv_mode mode)
{
    static const char *const NAMES[] = {"caller", "returned_in_param", "appended_16", "appended_12"};
    return NAMES[mode];
}
