/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_module.h"

#include "xks_ckr.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* The dynamic linker knows a library by its inode: a copy in memory is another library. NULL with errno or dlerror() set. */
static void *load_copy(const char *path)
{
    char name[64];
    struct stat about;
    void *library = NULL;
    int from = open(path, O_RDONLY | O_CLOEXEC);
    int to = memfd_create("xksfast-pkcs11", MFD_CLOEXEC);
    if (from >= 0 && to >= 0 && fstat(from, &about) == 0) {
        off_t at = 0;
        while (at < about.st_size && sendfile(to, from, &at, (size_t)(about.st_size - at)) > 0) {
        }
        if (at == about.st_size) {
            snprintf(name, sizeof name, "/proc/self/fd/%d", to);
            library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        }
    }
    if (from >= 0) {
        close(from);
    }
    if (library == NULL && to >= 0) {
        close(to); /* kept open otherwise: the linker compares names too, and a number used again would name another copy */
    }
    return library;
}

static xks_status initialize(xks_p11_module *module, char *error)
{
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

/* The table of PKCS#11 3.0 when it has all six calls that we would make. */
static CK_FUNCTION_LIST_3_0 *find_message_calls(const xks_p11_module *module)
{
    CK_C_GetInterface get_interface = NULL;
    CK_INTERFACE *found = NULL;
    CK_VERSION version = {3, 0};
    void *symbol = dlsym(module->library, "C_GetInterface");
    memcpy(&get_interface, &symbol, sizeof symbol);
    if (get_interface == NULL ||
        get_interface((CK_UTF8CHAR_PTR) "PKCS 11", &version, &found, 0) != CKR_OK || found == NULL) {
        return NULL;
    }
    CK_FUNCTION_LIST_3_0 *list = found->pFunctionList;
    bool complete = list != NULL && list->version.major == 3 && list->C_MessageEncryptInit != NULL && list->C_EncryptMessage != NULL &&
                    list->C_MessageEncryptFinal != NULL && list->C_MessageDecryptInit != NULL && list->C_DecryptMessage != NULL &&
                    list->C_MessageDecryptFinal != NULL;
    return complete ? list : NULL;
}

xks_status xks_p11_module_open(xks_p11_module *module, char *error)
{
    CK_C_GetFunctionList get_function_list = NULL;
    if (module->f != NULL) {
        return initialize(module, error); /* what could not be initialised before stays loaded */
    }
    if (module->library == NULL) {
        module->library = module->private_copy ? load_copy(module->path) : dlopen(module->path, RTLD_NOW | RTLD_LOCAL);
    }
    if (module->library == NULL) {
        const char *why = dlerror();
        snprintf(error, XKS_ERROR_TEXT_BYTES, "the PKCS#11 module cannot be loaded: %s", why != NULL ? why : strerror(errno));
        return XKS_CONFIG;
    }
    void *symbol = dlsym(module->library, "C_GetFunctionList");
    memcpy(&get_function_list, &symbol, sizeof symbol); /* ISO C has no cast from object to function pointer */
    if (get_function_list == NULL || get_function_list(&module->f) != CKR_OK || module->f == NULL) {
        module->f = NULL;
        snprintf(error, XKS_ERROR_TEXT_BYTES, "%s is not a PKCS#11 module: it has no working C_GetFunctionList", module->path);
        return XKS_CONFIG;
    }
    module->f3 = find_message_calls(module);
    return initialize(module, error);
}

xks_status xks_p11_module_reset(xks_p11_module *module, char *error)
{
    (void)module->f->C_Finalize(NULL);
    return initialize(module, error);
}

void xks_p11_module_close(xks_p11_module *module)
{
    if (module->f != NULL && module->initialized_by_us) {
        (void)module->f->C_Finalize(NULL);
        module->initialized_by_us = false;
    }
}
