/* SPDX-License-Identifier: Apache-2.0 */
/* The engine with several partitions: what lies, or holds the wrong key, is found before an answer leaves. */
#include "ha_fixture.h"

/* --- lies */

/* Of three partitions two flip bits of ciphertexts, one of plaintexts. */
static void lie(xksfault_control *control, uint64_t encrypt_ppm, uint64_t decrypt_ppm)
{
    set(&control->slots[0].flip_encrypt_ppm, encrypt_ppm);
    set(&control->slots[1].flip_decrypt_ppm, decrypt_ppm);
    set(&control->slots[2].flip_encrypt_ppm, encrypt_ppm);
}

static void bits_that_flip_never_leave_with_a_cdiv(const token *t, xks_verify_policy verify)
{
    ha h = start_ha(t, 3, 4, verify);
    lie(h.control, 200000, 100000);
    uint64_t answered = 0, wrong = 0, end = xks_monotonic_ns() + SECONDS(2);
    while (xks_monotonic_ns() < end) {
        xks_job *sealed = job_for(&h.f, h.key, XKS_ENCRYPT, 8, 48);
        sealed->want_cdiv = true;
        sealed->deadline_ns = xks_monotonic_ns() + MS(500);
        if (xks_engine_submit(h.f.engine, sealed) != XKS_OK) {
            xks_job_release(h.f.pool, sealed);
            continue;
        }
        xks_engine_flush(h.f.engine);
        sealed = await(&h.f, 1);
        if (sealed->status == XKS_OK) {
            /* The shim's faults are off for the judge: what left must open. */
            lie(h.control, 0, 0);
            xks_job *opened = job_for(&h.f, h.key, XKS_DECRYPT, 8, 48);
            memcpy(opened->input, sealed->output, 48);
            memcpy(opened->iv, sealed->iv, sealed->iv_len);
            memcpy(opened->tag, sealed->tag, 16);
            opened->iv_len = sealed->iv_len;
            CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, opened));
            xks_engine_flush(h.f.engine);
            opened = await(&h.f, 1);
            answered++;
            wrong += opened->status != XKS_OK || memcmp(opened->output, sealed->input, 48) != 0 ? 1 : 0;
            xks_job_release(h.f.pool, opened);
            lie(h.control, 200000, 100000);
        }
        xks_job_release(h.f.pool, sealed);
    }
    CHECK(answered > 100 && wrong == 0);
    uint64_t found = 0;
    for (uint32_t i = 0; i < 3; i++) {
        found += status_of(&h, i).faults + status_of(&h, i).opens;
    }
    CHECK(found > 0);
    xks_engine_totals totals;
    xks_engine_totals_read(h.f.engine, &totals);
    CHECK((totals.checks_elsewhere > 0) == (verify == XKS_VERIFY_OTHER));
    stop_ha(&h);
}

static void bits_that_flip_are_found_by_the_partition_itself(const token *t)
{
    bits_that_flip_never_leave_with_a_cdiv(t, XKS_VERIFY_SAME);
}

static void bits_that_flip_are_found_by_another_partition(const token *t)
{
    bits_that_flip_never_leave_with_a_cdiv(t, XKS_VERIFY_OTHER);
}

static void garbage_from_a_caller_opens_no_breaker(const token *t)
{
    static const uint64_t CODES[] = {0, CKR_GENERAL_ERROR, 0x6, CKR_DEVICE_ERROR};
    for (size_t c = 0; c < 4; c++) {
        ha h = {0};
        int status;
        pid_t pid = fork(); /* a module has one state per process */
        if (pid == 0) {
            h.control = make_control(t, 2);
            h.control->slots[0].tag_rv = h.control->slots[1].tag_rv = CODES[c];
            start_engine(&h, t, 2, 4, XKS_VERIFY_SAME);
            for (int i = 0; i < 300; i++) {
                xks_job *job = job_for(&h.f, h.key, XKS_DECRYPT, 8, 48);
                job->iv_len = 12;
                job->owner = &h;
                CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, job));
                xks_engine_flush(h.f.engine);
                h.out++;
                pump_until_answered(&h);
            }
            CHECK(h.by_status[XKS_NOT_AUTHENTIC] == 300 && status_of(&h, 0).opens == 0 && status_of(&h, 1).opens == 0);
            stop_ha(&h);
            exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
}

static void a_code_that_was_not_learnt_is_settled_by_another_partition(const token *t)
{
    ha h = start_ha(t, 2, 4, XKS_VERIFY_SAME);
    set(&h.control->slots[0].tag_rv, CKR_GENERAL_ERROR); /* after the self-test has learnt another */
    set(&h.control->slots[1].tag_rv, CKR_GENERAL_ERROR);
    for (int i = 0; i < 50; i++) {
        xks_job *job = job_for(&h.f, h.key, XKS_DECRYPT, 8, 48);
        job->iv_len = 12;
        job->owner = &h;
        CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, job));
        xks_engine_flush(h.f.engine);
        h.out++;
        pump_until_answered(&h);
    }
    /* The retry budget bounds how many of them get their second opinion; no breaker opens over any of them. */
    CHECK(h.by_status[XKS_NOT_AUTHENTIC] >= 10 && h.by_status[XKS_NOT_AUTHENTIC] + h.by_status[XKS_UNAVAILABLE] == 50);
    CHECK(status_of(&h, 0).opens == 0 && status_of(&h, 1).opens == 0);
    stop_ha(&h);
}

/* --- keys and tokens that are not what they should be; each slot before a SoftHSM token of its own */

static void an_own_key_of_this_label_is_not_used(const token *t, const char *label)
{
    ha h = {0};
    h.control = make_control(t, 2);
    h.control->flags = 0; /* an encrypt-only key is proven by encrypting the same text again under the same IV */
    for (int i = 0; i < 2; i++) {
        h.control->slots[i].login_mode = XKS_FAULT_LOGIN_AS_REAL;
        snprintf(h.control->slots[i].real_label, sizeof h.control->slots[i].real_label, "t%d", i);
    }
    start_engine_for(&h, t, 2, 2, XKS_VERIFY_SAME, label);
    xks_key_status status[2];
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_STATUS(XKS_OK, xks_engine_key_status(h.f.engine, h.key, h.partitions[i], &status[i]));
    }
    bool first = status[0].state == XKS_KEY_USABLE;
    CHECK(status[first ? 0 : 1].state == XKS_KEY_USABLE && status[first ? 0 : 1].proven);
    CHECK(status[first ? 1 : 0].state == XKS_KEY_DIFFERENT && strstr(status[first ? 1 : 0].reason, "another key") != NULL);
    for (int i = 0; i < 50; i++) {
        xks_job *job = job_for(&h.f, h.key, XKS_ENCRYPT, 8, 48);
        job->owner = &h;
        CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, job));
        xks_engine_flush(h.f.engine);
        h.out++;
        h.submitted++;
        pump_until_answered(&h);
    }
    expect_all_ok(&h);
    CHECK(status_of(&h, first ? 1 : 0).firsts == 0);
    stop_ha(&h);
}

static void an_own_key_under_the_same_label_is_not_used(const token *t)
{
    an_own_key_of_this_label_is_not_used(t, "both");
}

static void an_own_key_that_may_only_encrypt_is_not_used(const token *t)
{
    an_own_key_of_this_label_is_not_used(t, "encrypt");
}

static void the_same_key_that_may_only_encrypt_is_used_on_both(const token *t)
{
    ha h = {0};
    h.control = make_control(t, 2);
    h.control->flags = 0;
    start_engine_for(&h, t, 2, 2, XKS_VERIFY_SAME, "encrypt");
    for (uint32_t i = 0; i < 2; i++) {
        xks_key_status status;
        CHECK_STATUS(XKS_OK, xks_engine_key_status(h.f.engine, h.key, h.partitions[i], &status));
        CHECK(status.state == XKS_KEY_USABLE && status.proven);
    }
    stop_ha(&h);
}

static void of_two_partitions_that_are_one_token_one_serves(const token *t)
{
    uint32_t module, partitions[2], group, ready = 0, out = 0;
    xks_engine *engine;
    xks_engine_config config = {.max_queued = 10, .probe_interval_ns = SECONDS(1)};
    xks_partition_status status;
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, t->path, NULL, &module, error));
    for (uint32_t i = 0; i < 2; i++) {
        xks_partition_config partition = {.name = i == 0 ? "one" : "two", .module = module, .token_label = "t0", .slot = XKS_NO_SLOT,
                                          .pin = t->pin, .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, partitions, 2, XKS_VERIFY_SAME, &group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(10)));
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[i], &status));
        ready += status.state == XKS_PARTITION_READY ? 1 : 0;
        out += status.state == XKS_PARTITION_RECOVERING && strstr(status.reason, "is the same token as partition") != NULL ? 1 : 0;
    }
    CHECK(ready == 1 && out == 1);
    CHECK(xks_engine_free(engine) == 0);
}

static void two_modules_have_their_own_state(const token *t, const char *first, const char *second)
{
    uint32_t module[2], partitions[2], group;
    xks_engine *engine;
    xks_engine_config config = {.max_queued = 10, .probe_interval_ns = SECONDS(1)};
    xks_partition_status status;
    char conf[96];
    CHECK_STATUS(XKS_OK, xks_engine_new(&config, &engine, error));
    for (uint32_t i = 0; i < 2; i++) {
        snprintf(conf, sizeof conf, "%s/%s", t->directory, i == 0 ? "conf" : "conf-empty");
        CHECK_STATUS(XKS_OK, xks_engine_add_variable(engine, "SOFTHSM2_CONF", conf, error));
        CHECK_STATUS(XKS_OK, xks_engine_add_module(engine, i == 0 ? first : second, NULL, &module[i], error));
        xks_partition_config partition = {.name = i == 0 ? "one" : "two", .module = module[i], .token_label = "t0",
                                          .slot = XKS_NO_SLOT, .pin = t->pin, .profile = t->profile, .sessions = 1};
        CHECK_STATUS(XKS_OK, xks_engine_add_partition(engine, &partition, &partitions[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_add_group(engine, partitions, 2, XKS_VERIFY_SAME, &group, error));
    CHECK_STATUS(XKS_OK, xks_engine_start(engine, error));
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(engine, SECONDS(10)));
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[0], &status));
    CHECK(status.state == XKS_PARTITION_READY);
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(engine, partitions[1], &status));
    CHECK(status.state == XKS_PARTITION_RECOVERING && strstr(status.reason, "there is no token") != NULL);
    CHECK(xks_engine_free(engine) == 0);
}

static void one_file_serves_as_two_modules_with_their_own_state(const token *t)
{
    two_modules_have_their_own_state(t, t->path, t->path);
}

/* The linker takes them for one library: a reset of one would take the other's sessions. */
static void one_file_of_two_names_serves_as_two_modules_with_their_own_state(const token *t)
{
    char command[300], one[96], two[96];
    snprintf(one, sizeof one, "%s/one.so", t->directory);
    snprintf(two, sizeof two, "%s/two.so", t->directory);
    snprintf(command, sizeof command, "cp %s %s && ln %s %s", t->path, one, one, two);
    run(command);
    two_modules_have_their_own_state(t, one, two);
}

/* --- keys that come and go */

static void an_index_that_is_used_again_never_serves_the_former_key(const token *t)
{
    ha h = start_ha(t, 2, 2, XKS_VERIFY_SAME);
    take_time(h.control, 0, MS(2));
    take_time(h.control, 1, MS(2));
    for (int round = 0; round < 40; round++) {
        uint32_t other;
        xks_job *jobs[6];
        CHECK_STATUS(XKS_OK, xks_engine_key_add(h.f.engine, h.f.group, round % 2 ? "other" : "both2", 5, &other, error));
        CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(5)));
        for (int i = 0; i < 6; i++) {
            jobs[i] = job_for(&h.f, other, XKS_ENCRYPT, 8, 48);
            CHECK_STATUS(XKS_OK, xks_engine_submit(h.f.engine, jobs[i]));
        }
        xks_engine_flush(h.f.engine);
        xks_engine_key_remove(h.f.engine, other); /* while they are queued and running */
        for (xks_job *job = await(&h.f, 6), *next; job != NULL; job = next) {
            next = job->next;
            CHECK(job->status == XKS_OK || job->status == XKS_NOT_FOUND);
            xks_job_release(h.f.pool, job);
        }
    }
    stop_ha(&h);
}

static void a_hundred_keys_are_read_in_bulk(const token *t)
{
    ha h = start_ha(t, 1, 2, XKS_VERIFY_SAME);
    uint32_t keys[100];
    char label[16];
    uint64_t finds = get(&h.control->counters[0].calls[XKS_FAULT_FIND]);
    for (uint32_t i = 0; i < 100; i++) {
        snprintf(label, sizeof label, "many-%u", i);
        CHECK_STATUS(XKS_OK, xks_engine_key_add(h.f.engine, h.f.group, label, strlen(label), &keys[i], error));
    }
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(h.f.engine, SECONDS(10)));
    for (uint32_t i = 0; i < 100; i++) {
        xks_key_status status;
        CHECK_STATUS(XKS_OK, xks_engine_key_status(h.f.engine, keys[i], h.partitions[0], &status));
        CHECK(status.state == (i < 60 ? XKS_KEY_USABLE : XKS_KEY_ABSENT));
    }
    finds = get(&h.control->counters[0].calls[XKS_FAULT_FIND]) - finds;
    CHECK(finds <= 100); /* one for the bulk, one for each that the token has not, some for those asked before there were many */
    stop_ha(&h);
}

int main(void)
{
    const char *kind = "nss";
    token t = make_token(kind);
    char label[24], command[96];
    make_key(&t, "both", true, true);
    make_key(&t, "both2", true, true);
    make_key(&t, "other", true, true);
    make_key(&t, "encrypt", true, false);
    for (int i = 0; i < 60; i++) {
        snprintf(label, sizeof label, "many-%d", i);
        make_key(&t, label, true, true);
    }
    CASE(bits_that_flip_are_found_by_the_partition_itself);
    CASE(bits_that_flip_are_found_by_another_partition);
    CASE(garbage_from_a_caller_opens_no_breaker);
    CASE(a_code_that_was_not_learnt_is_settled_by_another_partition);
    CASE(an_index_that_is_used_again_never_serves_the_former_key);
    CASE(a_hundred_keys_are_read_in_bulk);
    CASE(the_same_key_that_may_only_encrypt_is_used_on_both);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);

    kind = "softhsm";
    t = make_token(kind);
    make_key(&t, "both", true, true);
    make_key(&t, "encrypt", true, false);
    run("softhsm2-util --init-token --free --label t1 --pin 1234 --so-pin 12345678 >/dev/null");
    t.label = "t1";
    make_key(&t, "both", true, true);
    make_key(&t, "encrypt", true, false);
    t.label = "t0";
    snprintf(command, sizeof command, "mkdir %s/empty", t.directory);
    run(command);
    snprintf(label, sizeof label, "conf-empty");
    char text[256];
    snprintf(text, sizeof text, "echo 'directories.tokendir = %s/empty' > %s/%s", t.directory, t.directory, label);
    run(text);
    CASE(an_own_key_under_the_same_label_is_not_used);
    CASE(an_own_key_that_may_only_encrypt_is_not_used);
    CASE(of_two_partitions_that_are_one_token_one_serves);
    CASE(one_file_serves_as_two_modules_with_their_own_state);
    CASE(one_file_of_two_names_serves_as_two_modules_with_their_own_state);
    xks_secret_free(t.pin);
    snprintf(command, sizeof command, "rm -rf %s", t.directory);
    run(command);
    return 0;
}
