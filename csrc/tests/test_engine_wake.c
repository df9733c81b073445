/* SPDX-License-Identifier: Apache-2.0 */
/* The way from a finished job to the loop: while a completion waits, the descriptor is readable. */
#include "check.h"
#include "xks_clock.h"
#include "xks_engine_internal.h"
#include <poll.h>

#define THREADS 4
#define RUN_NS 4000000000U
#define PATIENCE_MS 2000

typedef struct finisher {
    xks_engine *engine;
    xks_job job;
    _Atomic bool taken;
    pthread_t thread;
} finisher;

/* Finishes one job after the other: the next when the loop has taken the last. */
static void *finish_jobs(void *argument)
{
    finisher *f = argument;
    uint64_t end = xks_monotonic_ns() + RUN_NS;
    while (xks_monotonic_ns() < end) {
        atomic_store(&f->taken, false);
        f->job.finished_ns = xks_monotonic_ns();
        xks_engine_complete(f->engine, &f->job, false);
        while (!atomic_load(&f->taken)) {
        }
    }
    return NULL;
}

static void every_completion_wakes_the_loop(void)
{
    static finisher finishers[THREADS];
    char error[XKS_ERROR_TEXT_BYTES];
    xks_engine *engine;
    const xks_engine_config config = {.max_queued = 1, .probe_interval_ns = 1000000000U};
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    for (uint32_t i = 0; i < THREADS; i++) {
        finishers[i].engine = engine;
        finishers[i].job.owner = &finishers[i];
        CHECK(pthread_create(&finishers[i].thread, NULL, finish_jobs, &finishers[i]) == 0);
    }
    uint64_t end = xks_monotonic_ns() + RUN_NS, taken = 0;
    while (xks_monotonic_ns() < end) {
        struct pollfd wait = {.fd = xks_engine_eventfd(engine), .events = POLLIN};
        int ready = poll(&wait, 1, PATIENCE_MS);
        xks_job *job = xks_engine_take_completions(engine);
        CHECK(ready == 1 || job == NULL); /* nothing waits unheard */
        for (xks_job *next; job != NULL; job = next, taken++) {
            next = job->next;
            atomic_store(&((finisher *)job->owner)->taken, true);
        }
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        atomic_store(&finishers[i].taken, true);
        while (pthread_tryjoin_np(finishers[i].thread, NULL) != 0) {
            atomic_store(&finishers[i].taken, true);
        }
    }
    CHECK(taken > 1000);
    (void)xks_engine_take_completions(engine);
    CHECK(xks_engine_free(engine) == 0);
}

int main(void)
{
    alarm(60);
    RUN(every_completion_wakes_the_loop);
    return 0;
}
