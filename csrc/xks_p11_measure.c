/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_p11_measure.h"

#include "xks_ckr.h"
#include "xks_clock.h"
#include "xks_p11_key.h"
#include "xks_p11_login.h"
#include "xks_p11_self_test.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LATENCY_SAMPLES 500
#define MIN_LATENCY_SAMPLES 20
#define THREAD_SAMPLES 4096
#define SMALL_BYTES 16
#define LOAD_BYTES 48
#define MAX_RUN_NS 60000000000U

static int by_value(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

/* Sorts. The p99 of few samples is their largest. */
static void quantiles(uint64_t *samples, size_t count, uint64_t *median_ns, uint64_t *p99_ns)
{
    *median_ns = *p99_ns = 0;
    if (count > 0) {
        qsort(samples, count, sizeof *samples, by_value);
        *median_ns = samples[count / 2];
        *p99_ns = samples[(count * 99 + 99) / 100 - 1];
    }
}

static xks_status failed(const char *call, CK_RV rv, char *error)
{
    snprintf(error, XKS_ERROR_TEXT_BYTES, "%s: %s (0x%lx)", call, xks_ckr_name(rv), rv);
    return xks_ckr_classify(rv) == XKS_CKR_CONFIG ? XKS_CONFIG : XKS_UNAVAILABLE;
}

static CK_RV encrypt(const xks_p11_gcm *gcm, xks_random_pool *random, size_t len)
{
    static const uint8_t TEXT[LOAD_BYTES] = {0};
    uint8_t out[LOAD_BYTES + 32], iv[16], iv_len, tag[16];
    xks_p11_failure failure;
    return xks_p11_gcm_encrypt(gcm, random, (xks_span){NULL, 0}, (xks_span){TEXT, len}, out, iv, &iv_len, tag, &failure);
}

/* --- round trips */

static xks_status measure_latency(const xks_p11_gcm *gcm, xks_random_pool *random, uint64_t run_ns, xks_measure_result *out,
                                  char *error)
{
    uint64_t samples[LATENCY_SAMPLES];
    size_t count = 0;
    uint64_t end = xks_monotonic_ns() + run_ns;
    while (count < LATENCY_SAMPLES && (count < MIN_LATENCY_SAMPLES || xks_monotonic_ns() < end)) {
        uint64_t began = xks_monotonic_ns();
        CK_RV rv = encrypt(gcm, random, SMALL_BYTES);
        samples[count++] = xks_monotonic_ns() - began;
        if (rv != CKR_OK) {
            return failed("encrypt", rv, error);
        }
    }
    out->encrypt.samples = (uint32_t)count;
    quantiles(samples, count, &out->encrypt.median_ns, &out->encrypt.p99_ns);
    count = 0;
    end = xks_monotonic_ns() + run_ns;
    while (count < LATENCY_SAMPLES && (count < MIN_LATENCY_SAMPLES || xks_monotonic_ns() < end)) {
        CK_SESSION_INFO info;
        uint64_t began = xks_monotonic_ns();
        CK_RV rv = gcm->module->f->C_GetSessionInfo(gcm->session, &info);
        samples[count++] = xks_monotonic_ns() - began;
        if (rv != CKR_OK) {
            return failed("C_GetSessionInfo", rv, error);
        }
    }
    out->session_info.samples = (uint32_t)count;
    quantiles(samples, count, &out->session_info.median_ns, &out->session_info.p99_ns);
    return XKS_OK;
}

/* --- throughput */

typedef struct load_thread {
    pthread_t id;
    xks_p11_gcm gcm;
    uint64_t end_ns;
    const atomic_bool *stop;
    uint64_t operations;
    uint64_t failures;
    CK_RV failure;
    uint64_t samples[THREAD_SAMPLES]; /* the first ones: enough for a quantile, bounded for a fast token */
    size_t sample_count;
} load_thread;

static void *load(void *context)
{
    load_thread *self = context;
    xks_random_pool random;
    xks_random_pool_init(&random);
    for (uint64_t now = xks_monotonic_ns(); now < self->end_ns && !atomic_load(self->stop);) {
        CK_RV rv = encrypt(&self->gcm, &random, LOAD_BYTES);
        uint64_t then = now;
        now = xks_monotonic_ns();
        if (rv != CKR_OK) {
            self->failures++;
            self->failure = rv;
            break; /* a session that failed is not trusted any more, and a token that refuses fast is not fast */
        }
        self->operations++;
        if (self->sample_count < THREAD_SAMPLES) {
            self->samples[self->sample_count++] = now - then;
        }
    }
    xks_random_pool_wipe(&random);
    return NULL;
}

static xks_status measure_throughput(const xks_p11_gcm *gcm, const CK_SESSION_HANDLE *sessions, uint32_t threads, uint64_t run_ns,
                                     xks_measure_throughput *out, char *error)
{
    load_thread *all = calloc(threads, sizeof *all);
    uint64_t *samples = calloc((size_t)threads * THREAD_SAMPLES, sizeof *samples);
    atomic_bool stop = false;
    uint32_t started = 0;
    size_t count = 0;
    xks_status status = XKS_OK;
    memset(out, 0, sizeof *out);
    if (all == NULL || samples == NULL) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "no memory");
        status = XKS_SYSTEM;
        goto out;
    }
    uint64_t began = xks_monotonic_ns();
    for (; started < threads; started++) {
        all[started].gcm = *gcm;
        all[started].gcm.session = sessions[started];
        all[started].end_ns = began + run_ns;
        all[started].stop = &stop;
        if (pthread_create(&all[started].id, NULL, load, &all[started]) != 0) {
            snprintf(error, XKS_ERROR_TEXT_BYTES, "thread %u of %u cannot be started", started + 1, threads);
            atomic_store(&stop, true);
            status = XKS_SYSTEM;
            break;
        }
    }
    for (uint32_t i = 0; i < started; i++) {
        (void)pthread_join(all[i].id, NULL);
        out->operations += all[i].operations;
        out->failures += all[i].failures;
        out->failure_ckr = all[i].failures > 0 ? all[i].failure : out->failure_ckr;
        memcpy(samples + count, all[i].samples, all[i].sample_count * sizeof *samples);
        count += all[i].sample_count;
    }
    out->threads = threads;
    out->elapsed_ns = xks_monotonic_ns() - began;
    quantiles(samples, count, &out->median_ns, &out->p99_ns);
out:
    free(samples);
    free(all);
    return status;
}

/* --- sessions, message API */

static uint32_t open_sessions(const xks_p11_login *login, uint32_t wanted, CK_SESSION_HANDLE *sessions, unsigned long *ckr)
{
    uint32_t opened = 0;
    for (*ckr = CKR_OK; opened < wanted; opened++) {
        *ckr = login->module.f->C_OpenSession(login->slot, CKF_SERIAL_SESSION, NULL, NULL, &sessions[opened]);
        if (*ckr != CKR_OK) {
            break;
        }
    }
    return opened;
}

/* On a session that is closed afterwards: a message operation cannot be relied on to end otherwise. */
static bool offers_message_api(const xks_p11_login *login, CK_OBJECT_HANDLE key)
{
    CK_C_GetInterface get_interface = NULL;
    CK_INTERFACE *interface = NULL;
    CK_VERSION version = {3, 0};
    CK_SESSION_HANDLE session;
    void *symbol = dlsym(login->module.library, "C_GetInterface");
    memcpy(&get_interface, &symbol, sizeof symbol);
    if (get_interface == NULL || get_interface((CK_UTF8CHAR *)(uintptr_t) "PKCS 11", &version, &interface, 0) != CKR_OK ||
        interface == NULL || interface->pFunctionList == NULL) {
        return false;
    }
    const CK_FUNCTION_LIST_3_0 *list = interface->pFunctionList;
    if (list->version.major < 3 || list->C_MessageEncryptInit == NULL || list->C_EncryptMessage == NULL) {
        return false;
    }
    if (login->module.f->C_OpenSession(login->slot, CKF_SERIAL_SESSION, NULL, NULL, &session) != CKR_OK) {
        return false;
    }
    CK_MECHANISM mechanism = {CKM_AES_GCM, NULL, 0};
    bool offered = list->C_MessageEncryptInit(session, &mechanism, key) == CKR_OK;
    (void)login->module.f->C_CloseSession(session);
    return offered;
}

/* --- the whole */

static xks_status find_key(const xks_p11_login *login, const char *label, CK_OBJECT_HANDLE *out, char *error)
{
    if (label != NULL) {
        xks_p11_key key;
        xks_p11_key_verdict verdict = xks_p11_key_find(&login->module, login->session, label, strlen(label), &key);
        if (verdict == XKS_P11_KEY_UNREADABLE) {
            return failed("C_FindObjects", key.rv, error);
        }
        if (verdict != XKS_P11_KEY_FOUND || !key.can_encrypt || !key.can_decrypt) {
            snprintf(error, XKS_ERROR_TEXT_BYTES,
                     "the health check key '%.200s' is not one AES-256 key that may encrypt and decrypt: create it, or leave "
                     "health_check_key empty for a session key",
                     label);
            return XKS_CONFIG;
        }
        *out = key.use;
        return XKS_OK;
    }
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_ULONG length = 32;
    CK_MECHANISM generate = {CKM_AES_KEY_GEN, NULL, 0};
    CK_ATTRIBUTE template[] = {
        {CKA_VALUE_LEN, &length, sizeof length}, {CKA_TOKEN, &no, sizeof no},         {CKA_ENCRYPT, &yes, sizeof yes},
        {CKA_DECRYPT, &yes, sizeof yes},         {CKA_SENSITIVE, &yes, sizeof yes}, {CKA_EXTRACTABLE, &no, sizeof no},
    };
    CK_RV rv = login->module.f->C_GenerateKey(login->session, &generate, template, sizeof template / sizeof template[0], out);
    return rv == CKR_OK ? XKS_OK : failed("C_GenerateKey (session key for the test)", rv, error);
}

static xks_status measure(const xks_p11_login *login, const xks_measure_options *options, xks_measure_result *out, char *error)
{
    CK_SESSION_HANDLE sessions[XKS_MEASURE_MAX_SESSIONS];
    CK_OBJECT_HANDLE key;
    xks_random_pool random;
    xks_p11_scratch scratch = {NULL, 0};
    xks_p11_canary canary;
    xks_status status = find_key(login, options->health_check_key, &key, error);
    if (status != XKS_OK) {
        return status;
    }
    xks_p11_gcm gcm = {&login->module, login->session, key, login->profile->iv_mode, NULL};
    xks_random_pool_init(&random);
    snprintf(out->iv_mode, sizeof out->iv_mode, "%s", xks_iv_mode_name(login->profile->iv_mode));
    status = xks_p11_self_test(&gcm, &random, &scratch, &canary, &out->tag_failure_ckr, error);
    if (status == XKS_OK) {
        out->message_api = offers_message_api(login, key);
        status = measure_latency(&gcm, &random, options->run_ns, out, error);
    }
    if (status == XKS_OK) {
        out->sessions_opened = open_sessions(login, options->sessions, sessions, &out->sessions_ckr);
        if (out->sessions_opened == 0) {
            status = failed("C_OpenSession", out->sessions_ckr, error);
        }
    }
    if (status == XKS_OK) {
        status = measure_throughput(&gcm, sessions, 1, options->run_ns, &out->single, error);
    }
    if (status == XKS_OK) {
        status = measure_throughput(&gcm, sessions, out->sessions_opened, options->run_ns, &out->full, error);
    }
    for (uint32_t i = 0; i < out->sessions_opened; i++) {
        (void)login->module.f->C_CloseSession(sessions[i]);
    }
    xks_p11_scratch_free(&scratch);
    xks_random_pool_wipe(&random);
    return status;
}

xks_status xks_measure_partition(const xks_provision_target *target, const xks_measure_options *options, xks_measure_result *out,
                                 char *error)
{
    xks_p11_login login;
    memset(out, 0, sizeof *out);
    if (options->sessions < 1 || options->sessions > XKS_MEASURE_MAX_SESSIONS || options->run_ns > MAX_RUN_NS) {
        snprintf(error, XKS_ERROR_TEXT_BYTES, "a test has 1 to %d sessions and runs of at most 60 s", XKS_MEASURE_MAX_SESSIONS);
        return XKS_BAD_INPUT;
    }
    xks_status status = xks_p11_login_open(target, false, &login, error);
    if (status != XKS_OK) {
        return status;
    }
    status = measure(&login, options, out, error);
    xks_p11_login_close(&login);
    return status;
}
