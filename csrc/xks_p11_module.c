/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_module.h"

#include "xks_ckr.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* CK_C_INITIALIZE_ARGS as NSS softoken reads it: one field more, before pReserved. */
typedef struct initialize_args_with_parameters {
    CK_CREATEMUTEX CreateMutex;
    CK_DESTROYMUTEX DestroyMutex;
    CK_LOCKMUTEX LockMutex;
    CK_UNLOCKMUTEX UnlockMutex;
    CK_FLAGS flags;
    char *LibraryParameters;
    void *pReserved;
} initialize_args_with_parameters;

xks_status xks_p11_module_open(xks_p11_module *module, char *error)
{
    CK_C_GetFunctionList get_function_list = NULL;
    module->library = dlopen(module->path, RTLD_NOW | RTLD_LOCAL);
    if (module->library == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the PKCS#11 module cannot be loaded: %s", dlerror());
        return XKS_CONFIG;
    }
    void *symbol = dlsym(module->library, "C_GetFunctionList");
    memcpy(&get_function_list, &symbol, sizeof symbol); /* ISO C has no cast from object to function pointer */
    if (get_function_list == NULL || get_function_list(&module->f) != CKR_OK || module->f == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s is not a PKCS#11 module: it has no working C_GetFunctionList", module->path);
        return XKS_CONFIG;
    }
    initialize_args_with_parameters args = {.flags = CKF_OS_LOCKING_OK, .LibraryParameters = module->parameters};
    CK_RV rv = module->f->C_Initialize(&args);
    if (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: C_Initialize: %s (0x%lx): check the module's own configuration and environment",
                 module->path, xks_ckr_name(rv), rv);
        return XKS_CONFIG;
    }
    module->initialized_by_us = rv == CKR_OK;
    return XKS_OK;
}

void xks_p11_module_close(xks_p11_module *module)
{
    if (module->f != NULL && module->initialized_by_us) {
        (void)module->f->C_Finalize(NULL);
        module->initialized_by_us = false;
    }
}
