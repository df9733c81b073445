/* SPDX-License-Identifier: Apache-2.0 */
/* shim_fixture.h - for test_shim*.c: the shim before a real token, its control file mapped, a key, and calls that check themselves.
 *
 * Every test runs in a child process of its own: a PKCS#11 module has one state per process.
 */
#ifndef SHIM_FIXTURE_H
#define SHIM_FIXTURE_H

#include "check.h"
#include "shim/xksfault_control.h"
#include "xks_pkcs11.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>

#define SOFTHSM "/usr/lib/softhsm/libsofthsm2.so"
#define NSS "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
#define PIN "1234"
#define MS 1000000U

#define CHECK_RV(expected, expression)                                                                                           \
    do {                                                                                                                         \
        CK_RV got_ = (expression);                                                                                               \
        if (got_ != (CK_RV)(expected)) {                                                                                         \
            fprintf(stderr, "%s:%d: %s is 0x%lx, expected %s\n", __FILE__, __LINE__, #expression, got_, #expected);              \
            exit(1);                                                                                                             \
        }                                                                                                                        \
    } while (0)

typedef struct fixture {
    bool softhsm;
    char directory[64];
    void *library;
    CK_FUNCTION_LIST *f;
    xksfault_control *control;
    CK_SESSION_HANDLE session; /* on slot 0, logged in */
    CK_OBJECT_HANDLE key;
} fixture;

typedef struct initialize_args {
    CK_CREATEMUTEX CreateMutex;
    CK_DESTROYMUTEX DestroyMutex;
    CK_LOCKMUTEX LockMutex;
    CK_UNLOCKMUTEX UnlockMutex;
    CK_FLAGS flags;
    char *LibraryParameters;
    void *pReserved;
} initialize_args;

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static inline void set(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}

static inline uint64_t get(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}

/* A directory with a control file of `slots` virtual slots and, for SoftHSM, a token "t0" with the PIN. In the child of the test. */
static inline void prepare(fixture *t, bool softhsm, uint64_t slots)
{
    char text[256];
    memset(t, 0, sizeof *t);
    t->softhsm = softhsm;
    strcpy(t->directory, "/tmp/xksfast-shim-XXXXXX");
    CHECK(mkdtemp(t->directory) != NULL);
    snprintf(text, sizeof text, "%s/control", t->directory);
    int fd = open(text, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof *t->control) == 0);
    t->control = mmap(NULL, sizeof *t->control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    CHECK(t->control != MAP_FAILED);
    t->control->magic = XKS_FAULT_MAGIC;
    t->control->version = XKS_FAULT_VERSION;
    t->control->size = sizeof *t->control;
    t->control->slot_count = slots;
    setenv("XKSFAULT_CONTROL", text, 1);
    setenv("XKSFAULT_MODULE", softhsm ? SOFTHSM : NSS, 1);
    if (softhsm) {
        snprintf(text, sizeof text, "echo 'directories.tokendir = %s' > %s/conf", t->directory, t->directory);
        CHECK(system(text) == 0);
        snprintf(text, sizeof text, "%s/conf", t->directory);
        setenv("SOFTHSM2_CONF", text, 1);
        CHECK(system("softhsm2-util --init-token --free --label t0 --pin " PIN " --so-pin 12345678 >/dev/null") == 0);
        for (uint64_t i = 1; i < slots; i += 2) { /* and token number 0 for the others: the same */
            strcpy(t->control->slots[i].real_label, "t0");
        }
    }
}

static inline void load(fixture *t)
{
    CK_C_GetFunctionList get_list;
    t->library = dlopen(XKS_SHIM, RTLD_NOW | RTLD_LOCAL);
    CHECK(t->library != NULL);
    void *symbol = dlsym(t->library, "C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof symbol);
    CHECK(get_list != NULL);
    CHECK_RV(CKR_OK, get_list(&t->f));
}

static inline CK_RV initialize(fixture *t)
{
    static char parameters[] = "configdir='' certPrefix='' keyPrefix='' secmod='' flags=readOnly,noCertDB,noModDB,forceOpen,optimizeSpace";
    initialize_args args = {.flags = CKF_OS_LOCKING_OK, .LibraryParameters = t->softhsm ? NULL : parameters};
    return t->f->C_Initialize(&args);
}

static inline CK_RV try_open(fixture *t, CK_SLOT_ID slot, CK_SESSION_HANDLE *session)
{
    return t->f->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, session);
}

static inline CK_SESSION_HANDLE open_session(fixture *t, CK_SLOT_ID slot)
{
    CK_SESSION_HANDLE session;
    CHECK_RV(CKR_OK, try_open(t, slot, &session));
    return session;
}

static inline CK_RV login(fixture *t, CK_SESSION_HANDLE session)
{
    CK_UTF8CHAR pin[] = PIN;
    return t->f->C_Login(session, CKU_USER, pin, 4);
}

static inline CK_OBJECT_HANDLE make_key(fixture *t, CK_SESSION_HANDLE session)
{
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_ULONG len = 32;
    CK_OBJECT_HANDLE key;
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};
    char label[] = "k";
    CK_ATTRIBUTE template[] = {{CKA_ENCRYPT, &yes, 1}, {CKA_DECRYPT, &yes, 1}, {CKA_VALUE_LEN, &len, sizeof len}, {CKA_LABEL, label, 1},
                               {CKA_PRIVATE, t->softhsm ? &yes : &no, 1}, {CKA_TOKEN, t->softhsm ? &yes : &no, 1}};
    CHECK_RV(CKR_OK, t->f->C_GenerateKey(session, &mechanism, template, 6, &key));
    return key;
}

/* CK_INVALID_HANDLE: not found. */
static inline CK_OBJECT_HANDLE find_key(fixture *t, CK_SESSION_HANDLE session)
{
    char label[] = "k";
    CK_ATTRIBUTE template = {CKA_LABEL, label, 1};
    CK_OBJECT_HANDLE key = CK_INVALID_HANDLE;
    CK_ULONG count = 0;
    CHECK_RV(CKR_OK, t->f->C_FindObjectsInit(session, &template, 1));
    CHECK_RV(CKR_OK, t->f->C_FindObjects(session, &key, 1, &count));
    CHECK_RV(CKR_OK, t->f->C_FindObjectsFinal(session));
    return count == 1 ? key : CK_INVALID_HANDLE;
}

static inline void start(fixture *t, bool softhsm, uint64_t slots)
{
    prepare(t, softhsm, slots);
    load(t);
    CHECK_RV(CKR_OK, initialize(t));
    t->session = open_session(t, 0);
    if (softhsm) {
        CHECK_RV(CKR_OK, login(t, t->session));
    }
    t->key = make_key(t, t->session);
}

static inline void stop(fixture *t)
{
    char command[128];
    CHECK_RV(CKR_OK, t->f->C_Finalize(NULL));
    snprintf(command, sizeof command, "rm -rf %s", t->directory);
    CHECK(system(command) == 0);
}

static inline CK_RV encrypt_init(fixture *t, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_BYTE *iv, CK_ULONG iv_len)
{
    CK_GCM_PARAMS params = {.pIv = iv, .ulIvLen = iv_len, .ulIvBits = iv_len * 8, .ulTagBits = 128};
    CK_MECHANISM mechanism = {CKM_AES_GCM, &params, sizeof params};
    return t->f->C_EncryptInit(session, &mechanism, key);
}

/* 48 bytes of 'p' under an IV that no other call has: out needs 80 bytes. */
static inline CK_RV encrypt(fixture *t, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_BYTE iv[12], CK_BYTE *out, CK_ULONG *out_len)
{
    static uint64_t counter = 1;
    CK_BYTE plain[48];
    uint64_t number = __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
    memset(plain, 'p', sizeof plain);
    memset(iv, 0, 12);
    memcpy(iv, &number, sizeof number);
    CK_RV rv = encrypt_init(t, session, key, iv, 12);
    return rv != CKR_OK ? rv : t->f->C_Encrypt(session, plain, sizeof plain, out, out_len);
}

static inline CK_RV decrypt(fixture *t, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_BYTE *iv, CK_ULONG iv_len, CK_BYTE *data,
                            CK_ULONG data_len, CK_BYTE *out, CK_ULONG *out_len)
{
    CK_GCM_PARAMS params = {.pIv = iv, .ulIvLen = iv_len, .ulIvBits = iv_len * 8, .ulTagBits = 128};
    CK_MECHANISM mechanism = {CKM_AES_GCM, &params, sizeof params};
    CK_RV rv = t->f->C_DecryptInit(session, &mechanism, key);
    return rv != CKR_OK ? rv : t->f->C_Decrypt(session, data, data_len, out, out_len);
}

/* Encrypts and opens again; the first CK_RV that is not OK. A wrong plaintext fails the test. */
static inline CK_RV round_trip(fixture *t, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key)
{
    CK_BYTE iv[12], sealed[80], plain[80];
    CK_ULONG sealed_len = sizeof sealed, plain_len = sizeof plain;
    CK_RV rv = encrypt(t, session, key, iv, sealed, &sealed_len);
    if (rv != CKR_OK) {
        return rv;
    }
    CHECK(sealed_len == 64);
    rv = decrypt(t, session, key, iv, 12, sealed, sealed_len, plain, &plain_len);
    if (rv == CKR_OK) {
        CHECK(plain_len == 48 && plain[0] == 'p' && plain[47] == 'p');
    }
    return rv;
}

static inline void set_latency(fixture *t, uint32_t slot, xksfault_class class, xksfault_distribution kind, uint64_t a_ns)
{
    set(&t->control->slots[slot].latency[class].a_ns, a_ns);
    set(&t->control->slots[slot].latency[class].kind, kind);
}

static inline CK_RV one_session_info(fixture *t)
{
    CK_SESSION_INFO info;
    return t->f->C_GetSessionInfo(t->session, &info);
}

/* Runs a test in a process of its own; how it ended is as of waitpid. */
static inline int in_child(void (*test)(bool), bool softhsm)
{
    int status;
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        test(softhsm);
        fflush(NULL);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

#define ON(token, test)                                                                                                          \
    do {                                                                                                                         \
        CHECK(in_child(test, strcmp(token, "softhsm") == 0) == 0);                                                               \
        printf("ok   %s %s\n", token, #test);                                                                                    \
    } while (0)
#define ON_BOTH(test)                                                                                                            \
    do {                                                                                                                         \
        ON("nss", test);                                                                                                         \
        ON("softhsm", test);                                                                                                     \
    } while (0)

#endif
