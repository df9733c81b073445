/* SPDX-License-Identifier: Apache-2.0 */
/* An HSM that is away: while the engine starts, or later. It must not keep the others from serving, and it comes into service by itself. */
#include "ha_fixture.h"

/* Two partitions of one library, each in a group of its own; not waited for. */
static ha start_apart(xksfault_control *control, const token *t, bool by_slot, const char *health_key)
{
    static const char *const LABELS[] = {"p0", "p1"};
    ha h = {.control = control, .count = 2, .deadline_ns = SECONDS(2)};
    xks_engine_config config = {.max_queued = 4096, .probe_interval_ns = MS(200), .retry_budget = 0.2, .hedge_budget = 0.05, .seed = 7,
                                .recovery_pause_ns = MS(5)};
    xks_secret *pin = any_pin();
    uint32_t module, other;
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(h.f.engine, XKS_SHIM, t->parameters[0] != '\0' ? t->parameters : NULL, &module, error));
    for (uint32_t i = 0; i < 2; i++) {
        xks_partition_config partition = {.name = LABELS[i], .module = module, .token_label = by_slot ? NULL : LABELS[i],
                                          .slot = by_slot ? i : XKS_NO_SLOT, .pin = pin, .profile = t->profile, .sessions = 2,
                                          .health_check_label = i == 1 ? health_key : NULL};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(h.f.engine, &partition, &h.partitions[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_add_group(h.f.engine, &h.partitions[1], 1, XKS_VERIFY_SAME, &other, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_group(h.f.engine, &h.partitions[0], 1, XKS_VERIFY_SAME, &h.f.group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&h.f.pool));
    CHECK_STATUS(XKS_OK, xks_engine_key_add(h.f.engine, h.f.group, "both", 4, &h.key, error));
    return h;
}

static void await_state(ha *h, uint32_t partition, xks_partition_state state, const char *reason)
{
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    for (;;) {
        xks_partition_status status = status_of(h, partition);
        CHECK(status.state != XKS_PARTITION_REFUSED || state == XKS_PARTITION_REFUSED);
        if (status.state == state && strstr(status.reason, reason) != NULL) {
            return;
        }
        if (xks_monotonic_ns() > give_up) {
            fprintf(stderr, "p%u: state %d, not %d: %s\n", partition, status.state, state, status.reason);
            exit(1);
        }
        pump_until(h, xks_monotonic_ns() + MS(5));
    }
}

/* --- one hung HSM is nobody else's trouble */

static void an_hsm_that_hangs_does_not_keep_another_of_its_library_from_logging_in_again(const token *t)
{
    ha h = start_apart(make_control(t, 2), t, false, NULL);
    await_state(&h, 0, XKS_PARTITION_READY, "");
    await_state(&h, 1, XKS_PARTITION_READY, "");
    for (uint64_t round = 1; round <= 3; round++) {
        uint64_t logins = get(&h.control->counters[0].logins), give_up = xks_monotonic_ns() + SECONDS(30);
        set(&h.control->slots[1].hang, 1);
        set(round == 2 ? &h.control->slots[0].epoch : &h.control->slots[0].login_epoch, round); /* restarted, or logged out */
        while (get(&h.control->counters[0].logins) == logins || !status_of(&h, 0).in_service) {
            CHECK(xks_monotonic_ns() < give_up);
            load(&h, MS(20));
        }
    }
    pump_until_answered(&h);
    h.submitted = h.ok = h.refused = 0;
    load(&h, MS(200));
    expect_all_ok(&h);
    set(&h.control->slots[1].hang, 0);
    await_state(&h, 1, XKS_PARTITION_READY, "");
    stop_ha(&h);
}

static void an_hsm_that_hangs_at_the_start_does_not_keep_another_from_serving_that_is_named_by_its_slot(const token *t)
{
    xksfault_control *control = make_control(t, 2);
    control->slots[1].hang = 1;
    ha h = start_apart(control, t, true, NULL);
    await_state(&h, 0, XKS_PARTITION_READY, "");
    CHECK(status_of(&h, 1).state == XKS_PARTITION_STARTING);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(20);
    while (!status_of(&h, 0).in_service) {
        CHECK(xks_monotonic_ns() < give_up);
        pump_until(&h, xks_monotonic_ns() + MS(2));
    }
    load(&h, MS(100));
    expect_all_ok(&h);
    set(&h.control->slots[1].hang, 0);
    await_state(&h, 1, XKS_PARTITION_READY, "");
    stop_ha(&h);
}

static void a_partition_that_does_not_answer_is_not_waited_for_while_another_of_its_group_serves(const token *t)
{
    xksfault_control *control = make_control(t, 2);
    ha h = {.control = control, .count = 2, .deadline_ns = SECONDS(2)};
    xks_engine_config config = {.max_queued = 16, .probe_interval_ns = MS(200), .seed = 7};
    uint32_t module, lone;
    control->slots[1].hang = 1;
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(h.f.engine, XKS_SHIM, t->parameters, &module, error));
    for (uint32_t i = 0; i < 2; i++) {
        xks_partition_config partition = {.name = i == 0 ? "p0" : "p1", .module = module, .slot = i, .pin = any_pin(),
                                          .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(h.f.engine, &partition, &h.partitions[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_add_group(h.f.engine, h.partitions, 2, XKS_VERIFY_SAME, &h.f.group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&h.f.pool));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(60)));
    CHECK(status_of(&h, 0).state == XKS_PARTITION_READY && status_of(&h, 1).state == XKS_PARTITION_STARTING);
    set(&control->slots[1].hang, 0);
    stop(&h.f);

    set(&control->slots[0].hang, 1);
    set(&control->slots[1].hang, 1);
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &h.f.engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(h.f.engine, XKS_SHIM, t->parameters, &module, error));
    xks_partition_config partition = {.name = "p0", .module = module, .slot = 0, .pin = any_pin(), .profile = t->profile, .sessions = 1};
    CHECK_STATUS(XKS_OK, xks_engine_add_partition(h.f.engine, &partition, &h.partitions[0], error));
    CHECK_STATUS(XKS_OK, xks_engine_add_group(h.f.engine, h.partitions, 1, XKS_VERIFY_SAME, &lone, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(h.f.engine, error));
    CHECK_STATUS(XKS_TIMEOUT, xks_engine_wait_settled(h.f.engine, MS(2500))); /* nobody could serve in its place */
    set(&control->slots[0].hang, 0);
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(60)));
    CHECK(xks_engine_free(h.f.engine) == 0);
}

/* --- away at the start */

typedef enum absence { ERRS, NO_TOKEN, ERRS_ABOUT_MECHANISMS, NO_HEALTH_KEY, ERRS_AT_LOGIN, WRONG_BYTES } absence;

static void an_hsm_that_is_away_at_the_start(const token *t, absence what, const char *reason)
{
    int process;
    pid_t pid = fork();
    if (pid != 0) {
        CHECK(waitpid(pid, &process, 0) == pid && process == 0);
        return;
    }
    alarm(120);
    xksfault_control *control = make_control(t, 2);
    xksfault_slot *slot = &control->slots[1];
    switch (what) {
    case ERRS: slot->dead_rv = CKR_DEVICE_ERROR; break;
    case NO_TOKEN: strcpy(slot->label, "other"); break;
    case ERRS_ABOUT_MECHANISMS:
        slot->error_classes = 1 << XKS_FAULT_OTHER;
        slot->error_rv = CKR_DEVICE_ERROR;
        slot->error_ppm = 500000; /* each call of the class in turn, as it happens */
        break;
    case NO_HEALTH_KEY: break;
    case ERRS_AT_LOGIN:
        slot->error_classes = 1 << XKS_FAULT_LOGIN;
        slot->error_rv = 0x102; /* CKR_USER_PIN_NOT_INITIALIZED */
        slot->error_ppm = 1000000;
        break;
    case WRONG_BYTES: slot->flip_decrypt_ppm = 1000000; break;
    }
    ha h = start_apart(control, t, false, what == NO_HEALTH_KEY ? "health" : NULL);
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(60))); /* each was tried once */
    await_state(&h, 0, XKS_PARTITION_READY, "");
    if (what != ERRS_ABOUT_MECHANISMS) {
        await_state(&h, 1, XKS_PARTITION_RECOVERING, reason);
    }
    /* The key of its group could not be asked for: no verdict. */
    uint32_t key;
    xks_job *job;
    CHECK_STATUS(XKS_OK, xks_engine_key_add(h.f.engine, 0, "both", 4, &key, error));
    job = job_for(&h.f, key, XKS_ENCRYPT, 8, 48);
    xks_status submitted = xks_engine_submit(h.f.engine, job);
    if (what != ERRS_ABOUT_MECHANISMS) {
        CHECK_STATUS(XKS_UNAVAILABLE, submitted);
        xks_job_release(h.f.pool, job);
        CHECK(status_of(&h, 1).state != XKS_PARTITION_READY);
    }
    slot->dead_rv = slot->error_rv = slot->flip_decrypt_ppm = 0;
    if (what == NO_TOKEN) {
        slot->label[0] = '\0';
    } else if (what == NO_HEALTH_KEY) {
        make_key(t, "health", true, true);
    }
    await_state(&h, 1, XKS_PARTITION_READY, "");
    CHECK(xks_engine_free(h.f.engine) == 0);
    exit(0);
}

static void an_hsm_that_errs_at_the_start_comes_into_service_by_itself(const token *t)
{
    an_hsm_that_is_away_at_the_start(t, ERRS, "");
    an_hsm_that_is_away_at_the_start(t, ERRS_ABOUT_MECHANISMS, "");
    an_hsm_that_is_away_at_the_start(t, ERRS_AT_LOGIN, "C_Login: CKR_USER_PIN_NOT_INITIALIZED");
    an_hsm_that_is_away_at_the_start(t, WRONG_BYTES, "self-test: ");
}

static void a_health_check_key_that_is_made_later_lets_its_partition_serve(const token *t)
{
    an_hsm_that_is_away_at_the_start(t, NO_HEALTH_KEY, "the health check key 'health'");
}

static void a_token_that_is_absent_at_the_start_comes_into_service_by_itself(const token *t)
{
    an_hsm_that_is_away_at_the_start(t, NO_TOKEN, "there is no token with the label 'p1'");
}

static void a_module_that_cannot_be_initialised_now_is_tried_again(const token *t)
{
    xksfault_control *control = make_control(t, 2);
    control->initialize_rv = CKR_GENERAL_ERROR;
    ha h = start_apart(control, t, false, NULL);
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(60)));
    await_state(&h, 0, XKS_PARTITION_RECOVERING, "C_Initialize: CKR_GENERAL_ERROR");
    await_state(&h, 1, XKS_PARTITION_RECOVERING, "C_Initialize: CKR_GENERAL_ERROR");
    set(&control->initialize_rv, 0);
    await_state(&h, 0, XKS_PARTITION_READY, "");
    await_state(&h, 1, XKS_PARTITION_READY, "");
    CHECK(get(&control->initialized) == 1);
    stop_ha(&h);
}

static void a_module_that_is_not_there_is_tried_again_and_the_others_serve(const token *t)
{
    char path[128], command[300];
    xks_engine_config config = {.max_queued = 16, .probe_interval_ns = MS(200), .seed = 7, .recovery_pause_ns = MS(5)};
    uint32_t modules[2], partitions[2], group;
    xks_partition_status status;
    xks_engine *engine;
    snprintf(path, sizeof path, "%s/module.so", t->directory);
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, i == 0 ? t->path : path, t->parameters, &modules[i], error));
        xks_partition_config partition = {.name = i == 0 ? "p0" : "p1", .module = modules[i], .token_label = "t0", .slot = XKS_NO_SLOT,
                                          .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
        CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, &partitions[i], 1, XKS_VERIFY_SAME, &group, error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(60)));
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[0], &status));
    CHECK(status.state == XKS_PARTITION_READY);
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[1], &status));
    CHECK(status.state == XKS_PARTITION_RECOVERING && strstr(status.reason, path) != NULL);
    snprintf(command, sizeof command, "ln -s %s %s", XKS_SHIM, path); /* whatever library: it is loaded now, and says what is wrong */
    run(command);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    do {
        CHECK(xks_monotonic_ns() < give_up);
        (void)poll(NULL, 0, 5);
        CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[1], &status));
    } while (strstr(status.reason, "cannot be loaded") != NULL);
    CHECK(xks_engine_free(engine) == 0);
}

/* --- a module's environment */

static void a_module_keeps_its_own_environment_when_it_is_reset(const token *t)
{
    char conf[256], other[96], copy[96];
    uint32_t modules[2], partitions[2], group;
    xks_engine_config config = {.max_queued = 16, .probe_interval_ns = MS(200), .seed = 7, .recovery_pause_ns = MS(2)};
    xks_partition_status status;
    xks_engine *engine;
    xksfault_control *control = make_control(t, 0);
    control->flags = 0;
    memset(control->slots, 0, sizeof control->slots);
    snprintf(copy, sizeof copy, "%s/libsofthsm2.so", t->directory); /* the linker gives one file once */
    snprintf(conf, sizeof conf, "cp %s %s", t->path, copy);
    run(conf);
    CHECK(setenv("XKSFAULT_MODULE", copy, 1) == 0);
    snprintf(conf, sizeof conf, "%s/conf", t->directory);
    snprintf(other, sizeof other, "%s/conf-other", t->directory);
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    for (uint32_t i = 0; i < 2; i++) { /* the first behind the shim, which can demand a reset */
        CHECK_STATUS(XKS_OK, xks_engine_add_variable(engine, "SOFTHSM2_CONF", i == 0 ? conf : other, error));
        CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, i == 0 ? XKS_SHIM : t->path, NULL, &modules[i], error));
        xks_partition_config partition = {.name = i == 0 ? "one" : "two", .module = modules[i], .token_label = "t0", .slot = XKS_NO_SLOT,
                                          .pin = t->pin, .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
        CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, &partitions[i], 1, XKS_VERIFY_SAME, &group, error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(60)));
    for (uint32_t i = 2; i-- > 0;) {
        CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[i], &status));
        CHECK_STATUS(XKS_PARTITION_READY, status.state);
        CHECK(strcmp(status.reason, "") == 0);
    }
    char serial[17];
    memcpy(serial, status.serial, sizeof serial);
    set(&control->slots[0].device_error_epoch, 1);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30);
    uint32_t epoch = status.login_epoch;
    do {
        CHECK(xks_monotonic_ns() < give_up);
        (void)poll(NULL, 0, 5);
        CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[0], &status));
    } while (status.state != XKS_PARTITION_READY || status.login_epoch == epoch);
    CHECK(get(&control->initialized) == 2);
    CHECK(strcmp(status.serial, serial) == 0); /* its own token, not the one of the same label in the other module */
    CHECK(xks_engine_free(engine) == 0);
}

/* Each module reads a variable of its own name: one whose HSM does not answer while it is reset keeps no other from being initialised. */
static void a_module_that_hangs_does_not_keep_another_from_its_environment(const token *t)
{
    char copy[96], path[96], command[300];
    uint32_t modules[2], partitions[2], group;
    xks_engine_config config = {.max_queued = 16, .probe_interval_ns = MS(50), .seed = 7, .recovery_pause_ns = MS(2)};
    xks_partition_status status;
    xks_engine *engine;
    xksfault_control *control = make_control(t, 0);
    control->flags = 0;
    memset(control->slots, 0, sizeof control->slots);
    snprintf(copy, sizeof copy, "%s/behind-the-shim.so", t->directory); /* the linker gives one file once */
    snprintf(path, sizeof path, "%s/later.so", t->directory);
    snprintf(command, sizeof command, "cp %s %s", t->path, copy);
    run(command);
    CHECK(setenv("XKSFAULT_MODULE", copy, 1) == 0);
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_STATUS(XKS_OK, xks_engine_add_variable(engine, i == 0 ? "XKSFAST_TEST_ONE" : "XKSFAST_TEST_TWO", "1", error));
        CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, i == 0 ? XKS_SHIM : path, NULL, &modules[i], error));
        xks_partition_config partition = {.name = i == 0 ? "one" : "two", .module = modules[i], .token_label = "t0", .slot = XKS_NO_SLOT,
                                          .pin = t->pin, .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
        CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, &partitions[i], 1, XKS_VERIFY_SAME, &group, error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(60)));
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[0], &status));
    CHECK_STATUS(XKS_PARTITION_READY, status.state);
    set(&control->finalize_ns, SECONDS(8));
    set(&control->slots[0].device_error_epoch, 1);
    uint64_t give_up = xks_monotonic_ns() + SECONDS(30), errors = 0, before;
    do { /* until nothing fails any more: its keeper is in C_Finalize */
        CHECK(xks_monotonic_ns() < give_up);
        before = errors;
        errors = 0;
        (void)poll(NULL, 0, 200);
        for (uint32_t class = 0; class < XKS_FAULT_CLASSES; class++) {
            errors += get(&control->counters[0].errors[class]);
        }
    } while (errors == 0 || errors != before);
    snprintf(command, sizeof command, "ln -s %s %s", t->path, path);
    run(command);
    do {
        CHECK(get(&control->initialized) == 1); /* it still hangs */
        (void)poll(NULL, 0, 5);
        CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[1], &status));
    } while (strstr(status.reason, "cannot be loaded") != NULL);
    CHECK(xks_engine_stop(engine, SECONDS(60)) == 0 && xks_engine_free(engine) == 0);
}

int main(void)
{
    const char *kind = "nss";
    token t = make_token(kind);
    char command[256], conf[96];
    make_key(&t, "both", true, true);
    CASE(an_hsm_that_hangs_does_not_keep_another_of_its_library_from_logging_in_again);
    CASE(an_hsm_that_hangs_at_the_start_does_not_keep_another_from_serving_that_is_named_by_its_slot);
    CASE(a_partition_that_does_not_answer_is_not_waited_for_while_another_of_its_group_serves);
    CASE(an_hsm_that_errs_at_the_start_comes_into_service_by_itself);
    CASE(a_token_that_is_absent_at_the_start_comes_into_service_by_itself);
    CASE(a_health_check_key_that_is_made_later_lets_its_partition_serve);
    CASE(a_module_that_cannot_be_initialised_now_is_tried_again);
    CASE(a_module_that_is_not_there_is_tried_again_and_the_others_serve);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);

    kind = "softhsm";
    t = make_token(kind);
    snprintf(command, sizeof command, "mkdir %s/other && echo 'directories.tokendir = %s/other' > %s/conf-other", t.directory,
             t.directory, t.directory);
    run(command);
    snprintf(conf, sizeof conf, "%s/conf-other", t.directory);
    snprintf(command, sizeof command,
             "SOFTHSM2_CONF=%s softhsm2-util --init-token --free --label t0 --pin 1234 --so-pin 12345678 >/dev/null", conf);
    run(command);
    CASE(a_module_keeps_its_own_environment_when_it_is_reset);
    CASE(a_module_that_hangs_does_not_keep_another_from_its_environment);
    xks_secret_free(t.pin);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
