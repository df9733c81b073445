/* SPDX-License-Identifier: Apache-2.0 */
#include "shim_state.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* The only variables of file scope in the product's C; shim_state.h says why. */
static shim_state the_state = {
    .mutex = PTHREAD_MUTEX_INITIALIZER,
    .global_lock = PTHREAD_MUTEX_INITIALIZER,
    .hang_mutex = PTHREAD_MUTEX_INITIALIZER,
    .hang_over = PTHREAD_COND_INITIALIZER,
};
static _Thread_local shim_thread the_thread;

shim_state *shim(void)
{
    return &the_state;
}

shim_thread *shim_this_thread(void)
{
    return &the_thread;
}

void shim_say(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "libxksfault: %s\n", text);
}

bool shim_flag(uint64_t flag)
{
    return (word(&the_state.control->flags) & flag) != 0;
}

void shim_misuse(uint64_t *counter, const char *what)
{
    word_add(counter, 1);
    if (shim_flag(XKS_FAULT_STRICT)) {
        shim_say("misuse of PKCS#11: %s", what);
        abort();
    }
}

/* In the child of a fork: it must call C_Initialize itself, and the parent's locks may have been held by threads that are gone. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&the_state.mutex, NULL);
    pthread_mutex_init(&the_state.global_lock, NULL);
    pthread_mutex_init(&the_state.hang_mutex, NULL);
    pthread_cond_init(&the_state.hang_over, NULL);
    atomic_store(&the_state.forked, atomic_load(&the_state.initialized) || atomic_load(&the_state.forked));
    atomic_store(&the_state.initialized, false);
    atomic_store(&the_state.inside, 0);
    atomic_store(&the_state.changing, false);
}

static CK_RV map_control(void)
{
    const char *path = getenv("XKSFAULT_CONTROL");
    if (path == NULL || path[0] == '\0') {
        shim_say("XKSFAULT_CONTROL is not set: no fault can be steered, only XKSFAULT_SCRIPT");
        the_state.control = mmap(NULL, sizeof *the_state.control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (the_state.control == MAP_FAILED) {
            return CKR_HOST_MEMORY;
        }
        the_state.control->magic = XKS_FAULT_MAGIC;
        the_state.control->version = XKS_FAULT_VERSION;
        the_state.control->size = sizeof *the_state.control;
        return CKR_OK;
    }
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0) {
        shim_say("XKSFAULT_CONTROL: %s: %s: make it with: xksfast rehearse init %s", path, strerror(errno), path);
        if (fd >= 0) {
            close(fd);
        }
        return CKR_GENERAL_ERROR;
    }
    void *mapped = MAP_FAILED;
    if (status.st_size == (off_t)sizeof(xksfault_control)) {
        mapped = mmap(NULL, sizeof(xksfault_control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    xksfault_control *control = mapped;
    if (mapped == MAP_FAILED || control->magic != XKS_FAULT_MAGIC || control->version != XKS_FAULT_VERSION ||
        control->size != sizeof *control) {
        shim_say("XKSFAULT_CONTROL: %s was not made for this version: make it anew with: xksfast rehearse init %s", path, path);
        if (mapped != MAP_FAILED) {
            munmap(mapped, sizeof(xksfault_control));
        }
        return CKR_GENERAL_ERROR;
    }
    the_state.control = control;
    return CKR_OK;
}

/* ISO C has no cast from an object pointer to a function pointer. */
#define SYMBOL(library, name, function)                                                                                          \
    do {                                                                                                                         \
        void *symbol_ = dlsym(library, name);                                                                                    \
        memcpy(&(function), &symbol_, sizeof symbol_);                                                                           \
    } while (0)

static CK_RV load_real(void)
{
    CK_C_GetFunctionList get_list = NULL;
    CK_C_GetInterface get_interface = NULL;
    CK_FUNCTION_LIST *list = NULL;
    CK_INTERFACE *interface = NULL;
    const char *path = getenv("XKSFAULT_MODULE");
    if (path == NULL || path[0] == '\0') {
        shim_say("XKSFAULT_MODULE is not set: name the real PKCS#11 module in it");
        return CKR_GENERAL_ERROR;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        shim_say("XKSFAULT_MODULE: the module cannot be loaded: %s", dlerror());
        return CKR_GENERAL_ERROR;
    }
    SYMBOL(library, "C_GetFunctionList", get_list);
    if (get_list == NULL || get_list(&list) != CKR_OK || list == NULL) {
        shim_say("XKSFAULT_MODULE: %s is not a PKCS#11 module: it has no working C_GetFunctionList", path);
        return CKR_GENERAL_ERROR;
    }
    the_state.real = list;
    CK_VERSION version = {3, 0};
    CK_UTF8CHAR name[] = "PKCS 11";
    SYMBOL(library, "C_GetInterface", get_interface);
    if (get_interface != NULL && get_interface(name, &version, &interface, 0) == CKR_OK && interface != NULL) {
        the_state.real_3_0 = interface->pFunctionList;
    }
    return CKR_OK;
}

CK_RV shim_load(void)
{
    if (atomic_load(&the_state.loaded)) {
        return CKR_OK;
    }
    pthread_mutex_lock(&the_state.mutex);
    CK_RV rv = CKR_OK;
    if (!atomic_load(&the_state.loaded)) {
        rv = load_real();
        if (rv == CKR_OK) {
            rv = map_control();
        }
        if (rv == CKR_OK && (getrandom(&the_state.pin_key, sizeof the_state.pin_key, 0) != (ssize_t)sizeof the_state.pin_key ||
                             pthread_atfork(NULL, NULL, after_fork_in_child) != 0)) {
            rv = CKR_GENERAL_ERROR;
        }
        atomic_store(&the_state.loaded, rv == CKR_OK);
    }
    pthread_mutex_unlock(&the_state.mutex);
    return rv;
}
