/* SPDX-License-Identifier: Apache-2.0 */
/* A module gives the numbers of sessions and objects out again, for another token even: after a reset, after a restart of an HSM, after a
 * close. No request may ever be served with another key than its own.
 *
 * RESETS: so many resets of the module rather than as many as fit in RESET_SECONDS (20).
 */
#include "two_tenants.h"

#define FLAGS (XKS_FAULT_STRICT | XKS_FAULT_REUSE_HANDLES)

static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? (uint64_t)atoll(text) : otherwise;
}

/* One HSM errs until its library is reset, the other one blinks meanwhile: long enough for its breaker, or for its login as well. */
static void resets_never_mix_two_tenants_keys(const token *t)
{
    uint64_t wanted = number_from("RESETS", 0), began = xks_monotonic_ns();
    uint64_t end = wanted != 0 ? UINT64_MAX : began + SECONDS(number_from("RESET_SECONDS", 20));
    tenants s = start_tenants(t, FLAGS, 3);
    alarm(wanted != 0 ? 0 : 300);
    srand(7);
    set(&s.h.control->finalize_ns, 300000);
    uint64_t first = get(&s.h.control->initialized), resets = 0;
    for (uint64_t round = 1; (wanted == 0 || resets < wanted) && xks_monotonic_ns() < end; round++) {
        uint32_t sick = (uint32_t)rand() % TENANTS;
        xksfault_slot *blinking = &s.h.control->slots[1 - sick];
        uint64_t before = get(&s.h.control->initialized), give_up = xks_monotonic_ns() + SECONDS(60);
        set(&blinking->error_times, 3 + (uint64_t)rand() % 8);
        set(&blinking->error_ppm, 1000000);
        set(&blinking->error_rv, CKR_DEVICE_ERROR);
        set(&s.h.control->slots[sick].device_error_epoch, round);
        while (get(&s.h.control->initialized) == before) {
            CHECK(xks_monotonic_ns() < give_up);
            if (get(&blinking->error_rv) == 0 && is_ready(&s, 1 - sick)) { /* it is too well for a reset */
                set(&blinking->error_times, 3 + (uint64_t)rand() % 8);
                set(&blinking->error_rv, CKR_DEVICE_ERROR);
            }
            turn(&s);
        }
        if (rand() % 4 != 0) { /* else it goes on while they come up */
            turn_until_ready(&s);
        }
        resets = get(&s.h.control->initialized) - first;
    }
    for (uint32_t i = 0; i < TENANTS; i++) {
        set(&s.h.control->slots[i].error_rv, 0);
    }
    stop_tenants(&s);
    printf("     %lu resets in %.1f s, %lu answers, %lu under the own key\n", (unsigned long)resets,
           (double)(xks_monotonic_ns() - began) / 1e9, (unsigned long)s.answered, (unsigned long)s.own);
    CHECK(resets >= 20);
}

/* The HSMs restart by turns and nobody resets anything: their sessions are gone, and the numbers go to who asks next. */
static void restarts_never_mix_two_tenants_keys(const token *t)
{
    /* Not strict: until the second holder of a number has looked who else holds it, both may call with it at once. */
    tenants s = start_tenants(t, XKS_FAULT_REUSE_HANDLES, 3);
    uint64_t end = xks_monotonic_ns() + SECONDS(5), rounds = 0;
    srand(8);
    for (; xks_monotonic_ns() < end; rounds++) {
        uint32_t restarts = (uint32_t)rand() % 3; /* one of them, or both */
        for (uint32_t i = 0; i < TENANTS; i++) {
            if (restarts == i || restarts == TENANTS) {
                set(&s.h.control->slots[i].epoch, rounds + 1);
            }
        }
        for (int turns = rand() % 30; turns > 0; turns--) {
            turn(&s);
        }
        if (rand() % 4 != 0) {
            turn_until_ready(&s);
        }
    }
    stop_tenants(&s);
    CHECK(rounds >= 20);
}

/* The HSM that errs for a moment is not to blame for the other's sessions, however early in its life it errs. */
static void a_partition_that_fails_before_its_first_success_closes_nobody_s_sessions(const token *t)
{
    tenants s = {0};
    s.h.control = make_control(t, TENANTS);
    s.h.control->slots[1].error_classes = 1 << XKS_FAULT_LOGIN;
    s.h.control->slots[1].error_ppm = 1000000;
    s.h.control->slots[1].error_rv = CKR_DEVICE_ERROR;
    s = start_tenants_on(s.h.control, t, FLAGS, 3);
    CHECK(is_ready(&s, 0) && !is_ready(&s, 1));
    uint64_t give_up = xks_monotonic_ns() + SECONDS(60);
    while (get(&s.h.control->counters[0].sessions_opened) < 4) { /* the keeper's and three workers' */
        CHECK(xks_monotonic_ns() < give_up);
        turn(&s);
    }
    uint64_t opened = get(&s.h.control->counters[0].sessions_opened), logins = get(&s.h.control->counters[0].logins);
    /* From now on the session that a failed login leaves behind cannot even be asked about. */
    set(&s.h.control->slots[1].error_classes, (1 << XKS_FAULT_LOGIN) | (1 << XKS_FAULT_OTHER));
    uint64_t errors = get(&s.h.control->counters[1].errors[XKS_FAULT_OTHER]);
    while (get(&s.h.control->counters[1].errors[XKS_FAULT_OTHER]) < errors + 10) {
        CHECK(xks_monotonic_ns() < give_up);
        turn(&s);
    }
    CHECK(is_ready(&s, 0));
    CHECK(get(&s.h.control->counters[0].sessions_opened) == opened && get(&s.h.control->counters[0].logins) == logins);
    set(&s.h.control->slots[1].error_rv, 0);
    stop_tenants(&s);
}

/* A key's session copy is destroyed while a call with its number is under way, and the number goes to another key's copy at once. */
static void a_number_of_a_destroyed_copy_never_serves_the_former_key(const token *t)
{
    tenants s = {.h.count = 1};
    s.h.control = make_control(t, 1);
    s.h.control->flags = FLAGS;
    s.h.control->slots[0].login_mode = XKS_FAULT_LOGIN_AS_REAL;
    start_engine_for(&s.h, t, 1, 4, XKS_VERIFY_SAME, TENANT_KEYS[0]);
    xks_engine_key_remove(s.h.f.engine, s.h.key);
    s.h.control->slots[0].latency[XKS_FAULT_ENCRYPT_INIT] = (xksfault_latency){XKS_FAULT_FIXED, MS(15), 0, 0};
    for (uint32_t i = 0; i < TENANTS; i++) {
        uint8_t value[32];
        tenant_value(i, value);
        CHECK_STATUS(XKS_OK, xks_aes_gcm_key_new(value, &s.values[i]));
    }
    uint32_t served = 0, gone = 0, next = 0, key = add_key(&s.h.f, TENANT_KEYS[0]);
    for (uint32_t round = 0; round < 40; round++, next = 1 - next) {
        for (int i = 0; i < 4; i++) {
            CHECK_STATUS(XKS_OK, xks_engine_submit(s.h.f.engine, job_for(&s.h.f, key, XKS_ENCRYPT, 8, INPUT_BYTES)));
        }
        xks_engine_flush(s.h.f.engine);
        (void)poll(NULL, 0, (int)(round % 4)); /* inside the first call, more or less */
        xks_engine_key_remove(s.h.f.engine, key);
        key = add_key(&s.h.f, TENANT_KEYS[1 - next]);
        for (xks_job *job = await(&s.h.f, 4), *after; job != NULL; job = after) {
            after = job->next;
            CHECK(job->status == XKS_OK || job->status == XKS_NOT_FOUND);
            CHECK(job->status != XKS_OK || opens(&s, next, job, job->output));
            served += job->status == XKS_OK ? 1 : 0;
            gone += job->status == XKS_OK ? 0 : 1;
            xks_job_release(s.h.f.pool, job);
        }
    }
    CHECK(served + gone == 160 && gone > 0);
    stop(&s.h.f);
}

/* A key is removed while its keeper looks at it again: its copy is destroyed once. Were it destroyed again later, the copy that has its number
 * by then would go, and the next key's copy would have the number of a key that is used. */
static void a_copy_of_a_key_removed_while_it_is_looked_at_is_destroyed_once(const token *t)
{
    tenants s = {.h.count = 1};
    s.h.control = make_control(t, 1);
    s.h.control->flags = FLAGS;
    s.h.control->slots[0].login_mode = XKS_FAULT_LOGIN_AS_REAL;
    start_engine_for(&s.h, t, 1, 2, XKS_VERIFY_SAME, TENANT_KEYS[0]);
    uint64_t *const slow = &s.h.control->slots[0].latency[XKS_FAULT_GET_ATTRIBUTE].kind;
    const uint64_t *const looks = &s.h.control->counters[0].calls[XKS_FAULT_GET_ATTRIBUTE];
    s.h.control->slots[0].latency[XKS_FAULT_GET_ATTRIBUTE].a_ns = MS(200);
    s.h.control->slots[0].latency[XKS_FAULT_ENCRYPT_INIT] = (xksfault_latency){XKS_FAULT_FIXED, MS(30), 0, 0};
    for (uint32_t i = 0; i < TENANTS; i++) {
        uint8_t value[32];
        tenant_value(i, value);
        CHECK_STATUS(XKS_OK, xks_aes_gcm_key_new(value, &s.values[i]));
    }
    xks_engine_key_remove(s.h.f.engine, add_key(&s.h.f, TENANT_KEYS[1])); /* from now on both token objects have their numbers */
    for (uint32_t round = 0, mine = 0, key = s.h.key; round < 6; round++, mine = 1 - mine) {
        uint64_t before = get(looks), give_up = xks_monotonic_ns() + SECONDS(20);
        set(slow, XKS_FAULT_FIXED);
        while (get(looks) == before) { /* until the sweep is inside */
            CHECK(xks_monotonic_ns() < give_up);
            usleep(1000);
        }
        set(slow, XKS_FAULT_NONE);
        uint32_t other, again;
        xks_engine_key_remove(s.h.f.engine, key);
        CHECK_STATUS(XKS_OK, xks_engine_key_add(s.h.f.engine, s.h.f.group, TENANT_KEYS[1 - mine], strlen(TENANT_KEYS[1 - mine]), &other, error));
        xks_job *job = job_for(&s.h.f, other, XKS_ENCRYPT, 8, INPUT_BYTES); /* it has the other key looked for before all others */
        CHECK_STATUS(XKS_OK, xks_engine_submit(s.h.f.engine, job));
        xks_engine_flush(s.h.f.engine);
        CHECK_STATUS(XKS_OK, xks_engine_key_add(s.h.f.engine, s.h.f.group, TENANT_KEYS[mine], strlen(TENANT_KEYS[mine]), &again, error));
        job = await(&s.h.f, 1);
        CHECK(job->status == XKS_OK && opens(&s, 1 - mine, job, job->output));
        xks_job_release(s.h.f.pool, job);
        CHECK_STATUS(XKS_OK, xks_engine_wait_settled(s.h.f.engine, SECONDS(10)));
        xks_engine_key_remove(s.h.f.engine, again);
        key = other;
    }
    stop(&s.h.f);
}

int main(void)
{
    const char *kind = "softhsm";
    token t = make_two_tokens();
    char command[96];
    import_key(&t, 1, "t0"); /* the other tenant's key on the first one's token, too: under another label */
    CASE(a_copy_of_a_key_removed_while_it_is_looked_at_is_destroyed_once);
    CASE(a_number_of_a_destroyed_copy_never_serves_the_former_key);
    CASE(a_partition_that_fails_before_its_first_success_closes_nobody_s_sessions);
    CASE(restarts_never_mix_two_tenants_keys);
    CASE(resets_never_mix_two_tenants_keys);
    xks_secret_free(t.pin);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
