/* SPDX-License-Identifier: Apache-2.0 */
/* engine_fixture.h - for test_engine*.c: tokens made in a temporary directory, an engine on them, jobs and their answers. */
#ifndef ENGINE_FIXTURE_H
#define ENGINE_FIXTURE_H

#include "check.h"
#include "xks_clock.h"
#include "xks_engine.h"
#include "xks_p11_provision.h"
#include <poll.h>
#include <sys/wait.h>

#define SOFTHSM "/usr/lib/softhsm/libsofthsm2.so"
#define NSS "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
#define SECONDS(n) ((uint64_t)(n) * 1000000000U)

typedef struct token {
    char directory[64];
    const char *path;
    char parameters[512]; /* "" = none */
    const char *label;
    const char *profile;
    xks_secret *pin;
} token;

/* test scaffolding, not product code */
static char error[XKS_ERROR_TEXT_BYTES];

static inline void run(const char *command)
{
    CHECK(system(command) == 0);
}

static inline token make_token(const char *kind)
{
    token t = {0};
    char text[512], *directory = t.directory;
    strcpy(directory, "/tmp/xksfast-test-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    if (strcmp(kind, "softhsm") == 0) {
        snprintf(text, sizeof text, "echo 'directories.tokendir = %s' > %s/conf", directory, directory);
        run(text);
        snprintf(text, sizeof text, "%s/conf", directory);
        CHECK(setenv("SOFTHSM2_CONF", text, 1) == 0);
        run("softhsm2-util --init-token --free --label t0 --pin 1234 --so-pin 12345678 >/dev/null");
        t.path = SOFTHSM;
        t.label = "t0";
        t.profile = "softhsm";
        CHECK_STATUS(XKS_OK, xks_secret_from_bytes((const uint8_t *)"1234", 4, &t.pin));
    } else {
        snprintf(text, sizeof text, "certutil -N -d sql:%s --empty-password", directory);
        run(text);
        t.path = NSS;
        t.label = "t0";
        t.profile = "nss";
        snprintf(t.parameters, sizeof t.parameters,
                 "configdir='sql:%s' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='t0' flags=", directory);
    }
    return t;
}

/* Keys are made in a child: a module must not be initialised twice in a process. */
static inline void make_key(const token *t, const char *label, bool can_encrypt, bool can_decrypt)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        xks_provision_target target = {.module_path = t->path, .parameters = t->parameters[0] != '\0' ? t->parameters : NULL,
                                       .token_label = t->label, .slot = XKS_NO_SLOT, .pin = t->pin, .profile = t->profile};
        bool created = false;
        xks_status made = xks_provision_ensure_key(&target, label, strlen(label), can_encrypt, can_decrypt, &created, error);
        if (made != XKS_OK) {
            fprintf(stderr, "%s\n", error);
        }
        _exit(made == XKS_OK && created ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

typedef struct fixture {
    xks_engine *engine;
    xks_job_pool *pool;
    uint32_t partition;
    uint32_t group;
} fixture;

static inline fixture start(const token *t, const xks_secret *pin, uint32_t sessions, uint32_t max_queued)
{
    fixture f;
    uint32_t module;
    xks_engine_config config = {.max_queued = max_queued, .probe_interval_ns = SECONDS(1), .retry_budget = 0.2, .hedge_budget = 0.05};
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(f.engine, t->path, t->parameters[0] != '\0' ? t->parameters : NULL, &module, error));
    xks_partition_config partition = {.name = "p0", .module = module, .token_label = t->label, .slot = XKS_NO_SLOT, .pin = pin,
                                      .profile = t->profile, .sessions = sessions};
    CHECK_STATUS(XKS_OK, xks_engine_add_partition(f.engine, &partition, &f.partition, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_group(f.engine, &f.partition, 1, XKS_VERIFY_SAME, &f.group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(f.engine, error));
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&f.pool));
    return f;
}

static inline void stop(fixture *f)
{
    CHECK(xks_engine_free(f->engine) == 0);
    xks_job_pool_free(f->pool);
}

static inline uint32_t add_key(fixture *f, const char *label)
{
    uint32_t key;
    CHECK_STATUS(XKS_OK, xks_engine_key_add(f->engine, f->group, label, strlen(label), &key, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(f->engine, SECONDS(10)));
    return key;
}

static inline xks_job *job_for(fixture *f, uint32_t key, xks_operation operation, size_t aad_len, size_t input_len)
{
    xks_job *job;
    CHECK_STATUS(XKS_OK, xks_job_take(f->pool, aad_len, input_len, &job));
    memset(job->aad + 2, 'a', aad_len);
    memset(job->input, 'p', input_len);
    job->input_len = input_len;
    job->operation = (uint8_t)operation;
    job->key = key;
    job->deadline_ns = xks_monotonic_ns() + SECONDS(10);
    CHECK_STATUS(XKS_OK, xks_job_compose_aad(job, aad_len));
    return job;
}

/* Drain until `count` jobs are done; they come linked by next, in order of completion. */
static inline xks_job *await(fixture *f, size_t count)
{
    xks_job *first = NULL, **last = &first;
    uint64_t give_up = xks_monotonic_ns() + SECONDS(20);
    for (size_t done = 0; done < count;) {
        struct pollfd wait = {.fd = xks_engine_eventfd(f->engine), .events = POLLIN};
        (void)poll(&wait, 1, 5);
        *last = xks_engine_drain(f->engine);
        for (; *last != NULL; last = &(*last)->next) {
            done++;
        }
        CHECK(xks_monotonic_ns() < give_up);
    }
    return first;
}

/* Each case in a process of its own: a module is initialised once in each, and a hang ends with the alarm. */
#define CASE(test)                                                                                                               \
    do {                                                                                                                         \
        int status_;                                                                                                             \
        pid_t pid_ = fork();                                                                                                     \
        if (pid_ == 0) {                                                                                                         \
            alarm(120);                                                                                                          \
            test(&t);                                                                                                            \
            exit(0);                                                                                                             \
        }                                                                                                                        \
        CHECK(waitpid(pid_, &status_, 0) == pid_ && status_ == 0);                                                               \
        printf("ok   %s: %s\n", kind, #test);                                                                                    \
        fflush(stdout);                                                                                                          \
    } while (0)

#endif
