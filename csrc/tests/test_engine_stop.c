/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's threads: how they end, and what they do not hear. */
#include "ha_fixture.h"
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

static _Atomic long set_back_s; /* test scaffolding: by how much the clock of the day is wrong */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    now->tv_sec -= clock == CLOCK_REALTIME ? set_back_s : 0;
    return result;
}

/* An engine whose keeper will not come back from C_Login before the hang is over. */
static ha start_hanging_in_login(const token *t)
{
    ha h = {0};
    uint32_t module;
    xks_engine_config config = {.max_queued = 16, .probe_interval_ns = SECONDS(1)};
    h.control = make_control(t, 1);
    h.control->slots[0].hang_classes = 1 << XKS_FAULT_LOGIN;
    h.control->slots[0].hang = 1;
    xks_partition_config partition = {.name = "p0", .token_label = "p0", .slot = XKS_NO_SLOT, .pin = any_pin(), .profile = t->profile,
                                      .sessions = 4};
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(h.f.engine, XKS_SHIM, t->parameters, &module, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_partition(h.f.engine, &partition, &h.partitions[0], error));
    CHECK_STATUS(XKS_OK, xks_engine_add_group(h.f.engine, h.partitions, 1, XKS_VERIFY_SAME, &h.f.group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(h.f.engine, error));
    uint64_t give_up = xks_monotonic_ns() + SECONDS(20);
    while (get(&h.control->counters[0].hung) == 0) {
        CHECK(xks_monotonic_ns() < give_up);
        (void)poll(NULL, 0, 2);
    }
    return h;
}

static void a_stop_says_how_many_threads_are_inside_a_module_and_may_be_asked_again(const token *t)
{
    ha h = start_hanging_in_login(t);
    CHECK(xks_engine_stop(h.f.engine, MS(20)) == 1);
    CHECK(xks_engine_stop(h.f.engine, 0) == 1);
    CHECK(get(&h.control->counters[0].logins) == 0);
    set(&h.control->slots[0].hang, 0);
    CHECK(xks_engine_stop(h.f.engine, SECONDS(60)) == 0);
    CHECK(get(&h.control->counters[0].logins) == 1);
    CHECK(xks_engine_free(h.f.engine) == 0);
}

static void *let_go(void *control)
{
    (void)poll(NULL, 0, 300);
    set(&((xksfault_control *)control)->slots[0].hang, 0);
    return NULL;
}

/* A machine that corrects its clock while it shuts down must not cut a login short. */
static void a_stop_is_as_patient_whatever_the_clock_of_the_day_does(const token *t)
{
    pthread_t other;
    ha h = start_hanging_in_login(t);
    set_back_s = 3600;
    CHECK(pthread_create(&other, NULL, let_go, h.control) == 0);
    CHECK(xks_engine_stop(h.f.engine, SECONDS(60)) == 0);
    CHECK(get(&h.control->counters[0].logins) == 1);
    CHECK(pthread_join(other, NULL) == 0 && xks_engine_free(h.f.engine) == 0);
}

static void no_thread_of_the_engine_is_interrupted_by_a_signal(const token *t)
{
    ha h = start_ha(t, 1, 3, XKS_VERIFY_SAME);
    DIR *tasks = opendir("/proc/self/task");
    uint32_t deaf = 0, others = 0;
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        char path[320], line[128];
        unsigned long blocked = 0;
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == getpid()) {
            continue;
        }
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *file = fopen(path, "re");
        CHECK(file != NULL);
        while (fgets(line, sizeof line, file) != NULL) {
            (void)sscanf(line, "SigBlk: %lx", &blocked);
        }
        fclose(file);
        others++;
        deaf += (blocked & (1UL << (SIGTERM - 1))) && (blocked & (1UL << (SIGHUP - 1))) && (blocked & (1UL << (SIGCHLD - 1))) ? 1 : 0;
    }
    closedir(tasks);
    CHECK(others >= 4 && deaf == others); /* the keeper, and a thread for each session */
    stop_ha(&h);
}

int main(void)
{
    const char *kind = "nss";
    token t = make_token(kind);
    char command[96];
    make_key(&t, "both", true, true);
    CASE(a_stop_says_how_many_threads_are_inside_a_module_and_may_be_asked_again);
    CASE(a_stop_is_as_patient_whatever_the_clock_of_the_day_does);
    CASE(no_thread_of_the_engine_is_interrupted_by_a_signal);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
