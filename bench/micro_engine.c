/* SPDX-License-Identifier: Apache-2.0 */
/* micro_engine.c - what the engine's hand-off costs: CPU time per Encrypt through submit, worker, completion and drain.
 *
 * usage: micro_engine MODULE PARAMETERS|- TOKEN_LABEL PIN|- PROFILE KEYS LOOP_WORK_NS SECONDS
 *
 * To be pinned to one core by taskset: loop and session workers share it, as a proxy worker's do on a loaded machine. 32 jobs are kept in
 * flight by an epoll loop that spins for LOOP_WORK_NS per finished job, in place of the HTTP work that stands between two jobs.
 * Prints "engine_ns N" (CPU of the whole process per job, the loop's work taken off), "p50_ns N", "p99_ns N" (submit to drain) and
 * "switches N" (context switches per job). Every key's result is proved by decrypting it before anything is timed.
 */
#include "xks_clock.h"
#include "xks_engine.h"
#include "xks_secret.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

#define IN_FLIGHT 32
#define MAX_KEYS 1000
#define TEXT_BYTES 48
#define AAD_BYTES 64
#define MAX_SAMPLES 2000000
#define TICK_MS ((int)(XKS_TICK_NS / 1000000))

static char error[XKS_ERROR_TEXT_BYTES];
static uint32_t samples[MAX_SAMPLES];

typedef struct arguments {
    const char *module, *parameters, *label, *profile;
    xks_secret *pin;
    uint32_t keys;
    uint64_t loop_work_ns, seconds;
} arguments;

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s: %s\n", what, error);
        exit(1);
    }
}

static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

static long switches(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nvcsw + usage.ru_nivcsw;
}

static xks_job *new_job(xks_job_pool *pool, const uint32_t *keys, uint32_t key_count, uint64_t turn)
{
    xks_job *job;
    require(xks_job_take(pool, AAD_BYTES, TEXT_BYTES, &job) == XKS_OK, "job");
    memset(job->aad + 2, 'a', AAD_BYTES);
    memset(job->input, (int)(turn & 0xFF), TEXT_BYTES);
    job->input_len = TEXT_BYTES;
    job->operation = XKS_ENCRYPT;
    job->key = keys[turn % key_count];
    job->deadline_ns = xks_monotonic_ns() + 5000000000U;
    require(xks_job_compose_aad(job, AAD_BYTES) == XKS_OK, "AAD");
    return job;
}

/* Submits and waits: the job that comes out, which need not be the one that went in. */
static xks_job *run_one(xks_engine *engine, int epoll, xks_job *job)
{
    struct epoll_event event;
    xks_job *done = NULL;
    require(xks_engine_submit(engine, job) == XKS_OK, "submit");
    xks_engine_flush(engine);
    while (done == NULL) {
        (void)epoll_wait(epoll, &event, 1, TICK_MS);
        done = xks_engine_drain(engine);
    }
    return done;
}

/* Encrypt, decrypt, compare, with every key. */
static void prove(xks_engine *engine, int epoll, xks_job_pool *pool, const uint32_t *keys, uint32_t key_count)
{
    for (uint32_t i = 0; i < key_count; i++) {
        xks_job *sealed = run_one(engine, epoll, new_job(pool, keys, key_count, i));
        require(sealed->status == XKS_OK, "encrypt");
        xks_job *job = new_job(pool, keys, key_count, i);
        job->operation = XKS_DECRYPT;
        memcpy(job->input, sealed->output, TEXT_BYTES);
        memcpy(job->iv, sealed->iv, sealed->iv_len);
        memcpy(job->tag, sealed->tag, sizeof job->tag);
        job->iv_len = sealed->iv_len;
        xks_job *opened = run_one(engine, epoll, job);
        require(opened->status == XKS_OK && memcmp(opened->output, sealed->input, TEXT_BYTES) == 0, "decrypt");
        xks_job_release(pool, sealed);
        xks_job_release(pool, opened);
    }
}

static void spin(uint64_t ns)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    uint64_t until = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec + ns;
    do {
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    } while ((uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec < until);
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Keep IN_FLIGHT jobs out until the time is over; the number of finished jobs. */
static uint64_t keep_in_flight(xks_engine *engine, int epoll, xks_job_pool *pool, const uint32_t *keys, const arguments *a)
{
    struct epoll_event event;
    uint64_t turn = 0, finished = 0, end = xks_monotonic_ns() + a->seconds * 1000000000U;
    bool ending = false;
    for (; turn < IN_FLIGHT; turn++) {
        require(xks_engine_submit(engine, new_job(pool, keys, a->keys, turn)) == XKS_OK, "submit");
    }
    xks_engine_flush(engine);
    while (finished < turn) {
        (void)epoll_wait(epoll, &event, 1, TICK_MS);
        uint64_t now = xks_monotonic_ns();
        ending = ending || now > end;
        for (xks_job *job = xks_engine_drain(engine), *next; job != NULL; job = next) {
            next = job->next;
            require(job->status == XKS_OK, "encrypt");
            samples[finished++ % MAX_SAMPLES] = (uint32_t)(xks_monotonic_ns() - job->submitted_ns);
            xks_job_release(pool, job);
            if (a->loop_work_ns > 0) {
                spin(a->loop_work_ns);
            }
            if (!ending) {
                require(xks_engine_submit(engine, new_job(pool, keys, a->keys, turn++)) == XKS_OK, "submit");
            }
        }
        xks_engine_flush(engine);
    }
    return finished;
}

static void measure_engine(const arguments *a)
{
    static uint32_t keys[MAX_KEYS];
    xks_engine_config config = {.max_queued = 1000, .probe_interval_ns = 10000000000U, .retry_budget = 0.2, .hedge_budget = 0.05};
    xks_partition_config partition = {.name = "p0", .token_label = a->label, .slot = XKS_NO_SLOT, .pin = a->pin,
                                      .profile = a->profile, .sessions = 16};
    xks_engine *engine;
    xks_job_pool *pool;
    uint32_t index, group;
    require(xks_engine_new(&config, &engine, error) == XKS_OK, "engine");
    require(xks_engine_add_module(engine, a->module, a->parameters, &partition.module, error) == XKS_OK, "module");
    require(xks_engine_add_partition(engine, &partition, &index, error) == XKS_OK, "partition");
    require(xks_engine_add_group(engine, &index, 1, XKS_VERIFY_SAME, &group, error) == XKS_OK, "group");
    require(xks_engine_start(engine, error) == XKS_OK && xks_job_pool_new(&pool) == XKS_OK, "start");
    for (uint32_t i = 0; i < a->keys; i++) {
        char label[16];
        snprintf(label, sizeof label, "k%u", i);
        require(xks_engine_key_add(engine, group, label, strlen(label), &keys[i], error) == XKS_OK, "key");
    }
    require(xks_engine_wait_settled(engine, 30000000000U) == XKS_OK, "settle");
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    require(epoll_ctl(epoll, EPOLL_CTL_ADD, xks_engine_eventfd(engine), &event) == 0, "epoll");
    prove(engine, epoll, pool, keys, a->keys);

    long switched = switches();
    uint64_t began = cpu_ns();
    uint64_t finished = keep_in_flight(engine, epoll, pool, keys, a);
    double used = (double)(cpu_ns() - began) / (double)finished - (double)a->loop_work_ns;
    size_t count = finished < MAX_SAMPLES ? (size_t)finished : MAX_SAMPLES;
    qsort(samples, count, sizeof samples[0], ascending);
    printf("engine_ns %.0f\np50_ns %u\np99_ns %u\nswitches %.3f\n", used, samples[count / 2], samples[count * 99 / 100],
           (double)(switches() - switched) / (double)finished);
    require(xks_engine_free(engine) == 0, "stop");
    xks_job_pool_free(pool);
}

int main(int argc, char **argv)
{
    arguments a;
    if (argc != 9) {
        fprintf(stderr, "usage: see the head of micro_engine.c\n");
        return 2;
    }
    a = (arguments){argv[1], strcmp(argv[2], "-") == 0 ? NULL : argv[2], argv[3], argv[5], NULL, (uint32_t)atoi(argv[6]),
                    strtoull(argv[7], NULL, 10), strtoull(argv[8], NULL, 10)};
    require(a.keys >= 1 && a.keys <= MAX_KEYS, "1 to 1000 keys");
    if (strcmp(argv[4], "-") != 0) {
        require(xks_secret_from_bytes((const uint8_t *)argv[4], strlen(argv[4]), &a.pin) == XKS_OK, "PIN");
    }
    measure_engine(&a);
    xks_secret_free(a.pin);
    return 0;
}
