/* SPDX-License-Identifier: Apache-2.0 */
/* xks_p11_module.h - a loaded PKCS#11 library.
 *
 * Layer:   p11.
 * Memory:  the module owns the dlopen handle; it is never dlclosed, since vendor libraries leave threads behind.
 *          path and parameters are the caller's.
 * Threads: initialised with CKF_OS_LOCKING_OK, so that its functions may be called from any thread.
 */
#ifndef XKS_P11_MODULE_H
#define XKS_P11_MODULE_H

#include "xks_pkcs11.h"
#include "xks_status.h"
#include <stdbool.h>

typedef struct xks_p11_module {
    char *path;
    char *parameters; /* NULL: none */
    void *library;
    bool private_copy; /* load a copy of the file, so that another module of the same file keeps its own state */
    CK_FUNCTION_LIST *f;
    CK_FUNCTION_LIST_3_0 *f3; /* with message-based encryption; NULL: the module has none */
    bool initialized_by_us;
} xks_p11_module;

/* Loads and initialises. XKS_CONFIG with a text that names the path and what is wrong; then it may be tried again, which goes on where it
 * failed. path and parameters are set already. */
XKS_MUST_CHECK xks_status xks_p11_module_open(xks_p11_module *module, char *error);
/* C_Finalize, then C_Initialize again: every session of every token is gone. Only when no thread is inside the module. */
XKS_MUST_CHECK xks_status xks_p11_module_reset(xks_p11_module *module, char *error);
/* C_Finalize if we initialised it. Only when no thread is inside the module. */
void xks_p11_module_close(xks_p11_module *module);

#endif
