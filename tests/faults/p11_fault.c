/* SPDX-License-Identifier: Apache-2.0 */
/* p11_fault.c - a PKCS#11 module that passes everything on to a real one, but for the faults that a test asks for.
 *
 * A real token cannot be made to hang or to lose its device on demand. XKS_FAULT_MODULE names the real module, XKS_FAULT_CONTROL a file
 * of five u32 that the test writes while the server runs: delay of C_Encrypt and C_Decrypt in ms; CK_RV that they return instead of
 * working; how many calls shall fail so (0 = all); CK_RV of C_Login; calls seen (written here).
 */
#define _GNU_SOURCE
#include "../../csrc/xks_pkcs11.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef struct control {
    _Atomic uint32_t delay_ms;
    _Atomic uint32_t rv;
    _Atomic uint32_t times;
    _Atomic uint32_t login_rv;
    _Atomic uint32_t logins;
} control;

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST ours;
static control *faults;

static CK_RV fault(void)
{
    uint32_t delay_ms = atomic_load(&faults->delay_ms);
    if (delay_ms > 0) {
        struct timespec pause = {delay_ms / 1000, (long)(delay_ms % 1000) * 1000000};
        nanosleep(&pause, NULL);
    }
    uint32_t rv = atomic_load(&faults->rv);
    if (rv != 0 && atomic_load(&faults->times) > 0 && atomic_fetch_sub(&faults->times, 1) == 1) {
        atomic_store(&faults->rv, 0);
    }
    return rv;
}

static CK_RV encrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG data_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    CK_RV rv = fault();
    return rv != CKR_OK ? rv : real->C_Encrypt(session, data, data_len, out, out_len);
}

static CK_RV decrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG data_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    CK_RV rv = fault();
    return rv != CKR_OK ? rv : real->C_Decrypt(session, data, data_len, out, out_len);
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len)
{
    uint32_t rv = atomic_load(&faults->login_rv);
    atomic_fetch_add(&faults->logins, 1);
    return rv != 0 ? rv : real->C_Login(session, user, pin, pin_len);
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
    CK_C_GetFunctionList get = NULL;
    void *library = dlopen(getenv("XKS_FAULT_MODULE"), RTLD_NOW | RTLD_LOCAL);
    void *symbol = library != NULL ? dlsym(library, "C_GetFunctionList") : NULL;
    memcpy(&get, &symbol, sizeof symbol);
    int fd = open(getenv("XKS_FAULT_CONTROL"), O_RDWR);
    faults = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (get == NULL || faults == MAP_FAILED || get(&real) != CKR_OK) {
        return CKR_GENERAL_ERROR;
    }
    ours = *real;
    ours.C_Encrypt = encrypt;
    ours.C_Decrypt = decrypt;
    ours.C_Login = login;
    *list = &ours;
    return CKR_OK;
}
