/* SPDX-License-Identifier: Apache-2.0 */
/* token.c - a token without a proxy before it: the same calls as the engine's, in bare loops; and many keys at once.
 *
 * usage: token MODULE PARAMETERS|- TOKEN_LABEL PIN|- PROFILE keys FIRST COUNT
 *        token MODULE PARAMETERS|- TOKEN_LABEL PIN|- PROFILE loop KEYS THREADS SECONDS RATE MESSAGES
 *
 * keys: makes AES-256 keys k<FIRST>, k<FIRST + 1>, ... in one session.
 * loop: THREADS threads, each with its own session, encrypt 48 bytes with 64 bytes of AAD under k0 ... k<KEYS - 1> by turns, from session
 *       copies where the token gives them, as the engine does. RATE > 0: so many a second in all, each thread sleeping for random times
 *       in between; 0: as fast as it goes. MESSAGES 1: by C_EncryptMessage where the token has it, 0: by C_EncryptInit and C_Encrypt.
 *       Every key's result is proved by decrypting it before anything is timed.
 *       Prints "ops_per_s N", "cpu_us N" (of the process, per operation), "p50_us N" and "p99_us N" of the call alone.
 */
#include "xks_clock.h"
#include "xks_p11_gcm.h"
#include "xks_p11_key.h"
#include "xks_p11_token.h"
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define MAX_KEYS 100000
#define MAX_THREADS 128
#define TEXT_BYTES 48
#define AAD_BYTES 64
#define MAX_SAMPLES 4000000

typedef struct token {
    xks_p11_module module;
    CK_SLOT_ID slot;
    CK_SESSION_HANDLE session;
    const xks_p11_profile *profile;
    CK_OBJECT_HANDLE *handles;
    uint32_t keys, threads;
    bool by_message;
    double rate;
    uint64_t end_ns;
} token;

static char error[XKS_ERROR_TEXT_BYTES];
static token the_token;
static uint32_t samples[MAX_SAMPLES];
static atomic_uint_fast64_t sample_count;

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s: %s\n", what, error);
        exit(1);
    }
}

static CK_SESSION_HANDLE open_session(const token *t)
{
    CK_SESSION_HANDLE session;
    require(t->module.f->C_OpenSession(t->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session) == CKR_OK, "C_OpenSession");
    return session;
}

static void open_token(token *t, char **argv)
{
    xks_secret *pin = NULL;
    xks_p11_token_info info;
    xks_p11_token_name name = {.label = argv[3], .slot = UINT64_MAX};
    t->module.path = argv[1];
    t->module.parameters = strcmp(argv[2], "-") == 0 ? NULL : argv[2];
    t->profile = xks_p11_profile_find(argv[5]);
    require(t->profile != NULL, "profile");
    require(xks_p11_module_open(&t->module, error) == XKS_OK, "module");
    require(xks_p11_token_find(&t->module, &name, &t->slot, &info, error) == XKS_OK, "token");
    t->session = open_session(t);
    if (strcmp(argv[4], "-") != 0) {
        require(xks_secret_from_bytes((const uint8_t *)argv[4], strlen(argv[4]), &pin) == XKS_OK, "PIN");
    }
    require(xks_p11_token_login(&t->module, t->session, pin, t->profile, error) == XKS_OK, "login");
    xks_secret_free(pin);
}

static void make_keys(const token *t, uint32_t first, uint32_t count)
{
    CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
    CK_OBJECT_CLASS class = CKO_SECRET_KEY;
    CK_KEY_TYPE type = CKK_AES;
    CK_ULONG length = 32;
    CK_OBJECT_HANDLE made;
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, NULL, 0};
    for (uint32_t i = first; i < first + count; i++) {
        char label[16];
        CK_ULONG label_len = (CK_ULONG)snprintf(label, sizeof label, "k%u", i);
        CK_ATTRIBUTE template[] = {
            {CKA_CLASS, &class, sizeof class},       {CKA_KEY_TYPE, &type, sizeof type}, {CKA_VALUE_LEN, &length, sizeof length},
            {CKA_LABEL, label, label_len},           {CKA_ID, label, label_len},         {CKA_TOKEN, &yes, sizeof yes},
            {CKA_PRIVATE, &no, sizeof no},           {CKA_SENSITIVE, &yes, sizeof yes},  {CKA_EXTRACTABLE, &no, sizeof no},
            {CKA_ENCRYPT, &yes, sizeof yes},         {CKA_DECRYPT, &yes, sizeof yes},
        };
        require(t->module.f->C_GenerateKey(t->session, &mechanism, template, sizeof template / sizeof template[0], &made) == CKR_OK,
                "C_GenerateKey");
    }
}

static void find_keys(token *t)
{
    t->handles = calloc(t->keys, sizeof *t->handles);
    require(t->handles != NULL, "memory");
    for (uint32_t i = 0; i < t->keys; i++) {
        char label[16];
        xks_p11_key key;
        snprintf(label, sizeof label, "k%u", i);
        require(xks_p11_key_find(&t->module, t->session, label, strlen(label), &key) == XKS_P11_KEY_FOUND, label);
        xks_p11_key_copy(&t->module, t->session, &key);
        t->handles[i] = key.use;
    }
}

/* Encrypt, decrypt, compare, with every key. */
static void prove(const token *t)
{
    xks_p11_scratch scratch = {0};
    xks_p11_failure failure;
    xks_random_pool random;
    uint8_t aad[AAD_BYTES] = {1}, text[TEXT_BYTES] = {2}, sealed[TEXT_BYTES + 32], opened[TEXT_BYTES + 32], iv[16], iv_len, tag[16];
    xks_random_pool_init(&random);
    for (uint32_t i = 0; i < t->keys; i++) {
        xks_p11_gcm gcm = {&t->module, t->session, t->handles[i], t->profile->iv_mode, NULL};
        require(xks_p11_gcm_encrypt(&gcm, &random, (xks_span){aad, sizeof aad}, (xks_span){text, sizeof text}, sealed, iv, &iv_len, tag,
                                    &failure) == CKR_OK, "encrypt");
        require(xks_p11_gcm_decrypt(&gcm, &scratch, (xks_span){iv, iv_len}, (xks_span){aad, sizeof aad},
                                    (xks_span){sealed, sizeof text}, (xks_span){tag, sizeof tag}, opened, &failure) == CKR_OK, "decrypt");
        require(memcmp(opened, text, sizeof text) == 0 && memcmp(sealed, text, sizeof text) != 0, "the token is wrong");
    }
    xks_p11_scratch_free(&scratch);
}

static double unit(uint64_t *state) /* in (0, 1] */
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return ((double)(*state >> 11) + 1.0) / 9007199254740992.0;
}

static void *call_in_a_loop(void *argument)
{
    const token *t = &the_token;
    uint64_t number = (uint64_t)(uintptr_t)argument, turn = number, chance = number * 7919 + 1;
    xks_p11_messages messages = {0};
    xks_p11_gcm gcm = {&t->module, open_session(t), 0, t->profile->iv_mode, t->by_message ? &messages : NULL};
    uint8_t aad[AAD_BYTES] = {0}, text[TEXT_BYTES] = {0}, out[TEXT_BYTES + 32], iv[16], iv_len, tag[16];
    xks_p11_failure failure;
    xks_random_pool random;
    xks_random_pool_init(&random);
    (void)prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    for (uint64_t began = xks_monotonic_ns(); began < t->end_ns; began = xks_monotonic_ns()) {
        gcm.key = t->handles[turn++ % t->keys];
        require(xks_p11_gcm_encrypt(&gcm, &random, (xks_span){aad, sizeof aad}, (xks_span){text, sizeof text}, out, iv, &iv_len, tag,
                                    &failure) == CKR_OK, "C_Encrypt");
        uint64_t took_ns = xks_monotonic_ns() - began;
        samples[atomic_fetch_add_explicit(&sample_count, 1, memory_order_relaxed) % MAX_SAMPLES] = (uint32_t)took_ns;
        if (t->rate > 0) {
            double pause_ns = -log(unit(&chance)) * 1e9 * t->threads / t->rate - (double)took_ns;
            if (pause_ns > 0) {
                struct timespec pause = {(time_t)(pause_ns / 1e9), (long)fmod(pause_ns, 1e9)};
                nanosleep(&pause, NULL);
            }
        }
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void loop(token *t, double seconds)
{
    pthread_t threads[MAX_THREADS];
    struct timespec before, after;
    find_keys(t);
    prove(t);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    uint64_t began = xks_monotonic_ns();
    t->end_ns = began + (uint64_t)(seconds * 1e9);
    for (uintptr_t i = 0; i < t->threads; i++) {
        require(pthread_create(&threads[i], NULL, call_in_a_loop, (void *)i) == 0, "thread");
    }
    for (uint32_t i = 0; i < t->threads; i++) {
        pthread_join(threads[i], NULL);
    }
    double took_s = (double)(xks_monotonic_ns() - began) / 1e9;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    double cpu_us = (double)(after.tv_sec - before.tv_sec) * 1e6 + (double)(after.tv_nsec - before.tv_nsec) / 1e3;
    uint64_t done = atomic_load(&sample_count), kept = done < MAX_SAMPLES ? done : MAX_SAMPLES;
    require(done > 0, "no call");
    qsort(samples, kept, sizeof samples[0], ascending);
    printf("ops_per_s %.1f\ncpu_us %.3f\np50_us %.2f\np99_us %.2f\n", (double)done / took_s, cpu_us / (double)done,
           (double)samples[kept / 2] / 1e3, (double)samples[kept * 99 / 100] / 1e3);
}

int main(int argc, char **argv)
{
    token *t = &the_token;
    bool keys = argc == 9 && strcmp(argv[6], "keys") == 0;
    if (!keys && !(argc == 12 && strcmp(argv[6], "loop") == 0)) {
        fprintf(stderr, "usage: see the head of token.c\n");
        return 2;
    }
    open_token(t, argv);
    if (keys) {
        make_keys(t, (uint32_t)strtoul(argv[7], NULL, 10), (uint32_t)strtoul(argv[8], NULL, 10));
    } else {
        t->keys = (uint32_t)strtoul(argv[7], NULL, 10);
        t->threads = (uint32_t)strtoul(argv[8], NULL, 10);
        t->rate = atof(argv[10]);
        t->by_message = strcmp(argv[11], "1") == 0 && t->module.f3 != NULL;
        require(t->keys >= 1 && t->keys <= MAX_KEYS && t->threads >= 1 && t->threads <= MAX_THREADS, "keys and threads");
        loop(t, atof(argv[9]));
    }
    xks_p11_module_close(&t->module);
    return 0;
}
