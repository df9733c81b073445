/* SPDX-License-Identifier: Apache-2.0 */
/* The engine on real tokens: SoftHSM2 and NSS softoken, made in a temporary directory. Skipped tokens are said, never silent.
 *
 * argv[1] selects one token ("softhsm", "nss"); without it both run, each in a process of its own.
 */
#include "engine_fixture.h"

static xks_job *run_job(fixture *f, xks_job *job)
{
    CHECK_STATUS(XKS_OK, xks_engine_submit(f->engine, job));
    xks_engine_flush(f->engine);
    return await(f, 1);
}

static xks_job *decrypt_of(fixture *f, const xks_job *sealed, size_t aad_len)
{
    xks_job *job = job_for(f, sealed->key, XKS_DECRYPT, aad_len, sealed->output_len);
    memcpy(job->input, sealed->output, sealed->output_len);
    memcpy(job->iv, sealed->iv, sealed->iv_len);
    memcpy(job->tag, sealed->tag, 16);
    job->iv_len = sealed->iv_len;
    return job;
}

static void every_size_round_trips_and_tampering_is_found(const token *t)
{
    fixture f = start(t, t->pin, 2, 100);
    uint32_t key = add_key(&f, "both");
    const size_t sizes[] = {0, 1, 16, 48, 4300, 8192, 65535};
    for (size_t a = 0; a < 7; a++) {
        for (size_t p = 0; p < 7; p++) {
            xks_job *sealed = job_for(&f, key, XKS_ENCRYPT, sizes[a], sizes[p]);
            sealed->want_cdiv = (a + p) % 2 == 0;
            run_job(&f, sealed);
            CHECK_STATUS(XKS_OK, sealed->status);
            xks_job *opened = run_job(&f, decrypt_of(&f, sealed, sizes[a]));
            CHECK_STATUS(XKS_OK, opened->status);
            CHECK(opened->output_len == sizes[p] && memcmp(opened->output, sealed->input, sizes[p]) == 0);
            xks_job *tampered = decrypt_of(&f, sealed, sizes[a]);
            tampered->tag[a] ^= 1;
            run_job(&f, tampered);
            CHECK_STATUS(XKS_NOT_AUTHENTIC, tampered->status);
            CHECK(tampered->output_len == 0);
            xks_job_release(f.pool, sealed);
            xks_job_release(f.pool, opened);
            xks_job_release(f.pool, tampered);
        }
    }
    stop(&f);
}

static void rights_are_the_tokens(const token *t)
{
    fixture f = start(t, t->pin, 1, 100);
    uint32_t only_encrypt = add_key(&f, "encrypt"), only_decrypt = add_key(&f, "decrypt");
    xks_key_status status;
    CHECK_STATUS(XKS_OK, xks_engine_key_status(f.engine, only_encrypt, f.partition, &status));
    CHECK(status.state == XKS_KEY_USABLE && status.can_encrypt && !status.can_decrypt && !status.extractable);
    xks_job *sealed = run_job(&f, job_for(&f, only_encrypt, XKS_ENCRYPT, 0, 16));
    CHECK_STATUS(XKS_OK, sealed->status);
    xks_job *opened = run_job(&f, decrypt_of(&f, sealed, 0));
    CHECK_STATUS(XKS_NOT_PERMITTED, opened->status);
    xks_job *refused = run_job(&f, job_for(&f, only_decrypt, XKS_ENCRYPT, 0, 16));
    CHECK_STATUS(XKS_NOT_PERMITTED, refused->status);
    xks_job_release(f.pool, sealed);
    xks_job_release(f.pool, opened);
    xks_job_release(f.pool, refused);
    stop(&f);
}

static void an_absent_key_is_said_and_a_removed_one_is_not_served(const token *t)
{
    fixture f = start(t, t->pin, 1, 100);
    uint32_t keys[3], again;
    size_t settled;
    CHECK_STATUS(XKS_OK, xks_engine_key_add(f.engine, f.group, "absent", 6, &keys[0], error));
    CHECK_STATUS(XKS_OK, xks_engine_key_add(f.engine, f.group, "both", 4, &keys[1], error));
    keys[2] = 4711; /* not known, so there is nothing to wait for */
    CHECK_STATUS(XKS_OK, xks_engine_wait_keys(f.engine, keys, 3, SECONDS(10), &settled));
    CHECK(settled == 3);
    uint32_t absent = keys[0], both = keys[1];
    xks_key_status status;
    CHECK_STATUS(XKS_OK, xks_engine_key_status(f.engine, absent, f.partition, &status));
    CHECK(status.state == XKS_KEY_ABSENT && strstr(status.reason, "'absent'") != NULL);
    xks_job *job = job_for(&f, absent, XKS_ENCRYPT, 0, 1);
    CHECK_STATUS(XKS_NOT_FOUND, xks_engine_submit(f.engine, job));
    CHECK_STATUS(XKS_OK, xks_engine_key_add(f.engine, f.group, "both", 4, &again, error));
    CHECK(again == both);
    xks_engine_key_remove(f.engine, both);
    job->key = both;
    CHECK_STATUS(XKS_OK, xks_engine_submit(f.engine, job));
    xks_engine_flush(f.engine);
    CHECK_STATUS(XKS_OK, await(&f, 1)->status);
    xks_engine_key_remove(f.engine, both);
    CHECK_STATUS(XKS_NOT_FOUND, xks_engine_submit(f.engine, job));
    xks_job_release(f.pool, job);
    stop(&f);
}

static void an_expired_job_is_not_started_and_a_full_queue_sheds(const token *t)
{
    fixture f = start(t, t->pin, 1, 4);
    uint32_t key = add_key(&f, "both");
    xks_job *late = job_for(&f, key, XKS_ENCRYPT, 0, 16);
    late->deadline_ns = xks_monotonic_ns() - 1;
    CHECK_STATUS(XKS_TIMEOUT, xks_engine_submit(f.engine, late));
    xks_job *jobs[5];
    for (size_t i = 0; i < 5; i++) {
        jobs[i] = job_for(&f, key, XKS_ENCRYPT, 0, 16);
        CHECK_STATUS(i < 4 ? XKS_OK : XKS_BUSY, xks_engine_submit(f.engine, jobs[i])); /* nobody is woken before the flush */
    }
    xks_engine_flush(f.engine);
    (void)await(&f, 4);
    for (size_t i = 0; i < 5; i++) {
        xks_job_release(f.pool, jobs[i]);
    }
    xks_job_release(f.pool, late);
    stop(&f);
}

static void many_jobs_are_answered_once_each_and_rightly(const token *t)
{
    enum { ROUNDS = 60, BATCH = 32 };
    fixture f = start(t, t->pin, 4, 1000);
    uint32_t key = add_key(&f, "both");
    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < BATCH; i++) {
            xks_job *job = job_for(&f, key, XKS_ENCRYPT, 8, 48 + i);
            job->owner = (void *)(uintptr_t)(i + 1);
            job->want_cdiv = i % 4 == 0;
            CHECK_STATUS(XKS_OK, xks_engine_submit(f.engine, job));
        }
        xks_engine_flush(f.engine);
        uint64_t seen = 0;
        for (xks_job *job = await(&f, BATCH), *next; job != NULL; job = next) {
            next = job->next;
            uint64_t bit = (uint64_t)1 << ((uintptr_t)job->owner - 1);
            CHECK_STATUS(XKS_OK, job->status);
            CHECK((seen & bit) == 0);
            seen |= bit;
            xks_job_release(f.pool, job);
        }
        CHECK(seen == 0xFFFFFFFFU);
    }
    xks_partition_status status;
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(f.engine, f.partition, &status));
    CHECK(status.in_flight == 0 && status.operations >= ROUNDS * BATCH && status.failures == 0);
    stop(&f);
}

static void a_refused_pin_takes_the_partition_out_for_good(const token *t)
{
    xks_secret *wrong;
    xks_partition_status status;
    if (t->pin == NULL) {
        return; /* a token without login */
    }
    CHECK_STATUS(XKS_OK, xks_secret_from_bytes((const uint8_t *)"9999", 4, &wrong));
    fixture f = start(t, wrong, 2, 100);
    CHECK_STATUS(XKS_OK, xks_engine_wait_settled(f.engine, SECONDS(10)));
    CHECK_STATUS(XKS_OK, xks_engine_partition_status(f.engine, f.partition, &status));
    CHECK(status.state == XKS_PARTITION_REFUSED && strstr(status.reason, "CKR_PIN_INCORRECT") != NULL);
    stop(&f);
    xks_secret_free(wrong);
}

static void keys_come_and_go_while_jobs_run(const token *t)
{
    fixture f = start(t, t->pin, 3, 1000);
    uint32_t key = add_key(&f, "both");
    for (int round = 0; round < 30; round++) {
        uint32_t other;
        CHECK_STATUS(XKS_OK, xks_engine_key_add(f.engine, f.group, round % 2 ? "encrypt" : "decrypt", 7, &other, error));
        for (size_t i = 0; i < 8; i++) {
            CHECK_STATUS(XKS_OK, xks_engine_submit(f.engine, job_for(&f, key, XKS_ENCRYPT, 8, 48)));
        }
        xks_engine_flush(f.engine);
        for (xks_job *job = await(&f, 8), *next; job != NULL; job = next) {
            next = job->next;
            CHECK_STATUS(XKS_OK, job->status);
            xks_job_release(f.pool, job);
        }
        CHECK(other != key);
        xks_engine_key_remove(f.engine, other);
    }
    stop(&f);
}

static void run_all(const char *kind)
{
    token t = make_token(kind);
    make_key(&t, "both", true, true);
    make_key(&t, "encrypt", true, false);
    make_key(&t, "decrypt", false, true);
    CASE(every_size_round_trips_and_tampering_is_found);
    CASE(rights_are_the_tokens);
    CASE(an_absent_key_is_said_and_a_removed_one_is_not_served);
    CASE(an_expired_job_is_not_started_and_a_full_queue_sheds);
    CASE(many_jobs_are_answered_once_each_and_rightly);
    CASE(a_refused_pin_takes_the_partition_out_for_good);
    CASE(keys_come_and_go_while_jobs_run);
    xks_secret_free(t.pin);
    char remove[80];
    snprintf(remove, sizeof remove, "rm -rf %s", t.directory);
    run(remove);
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "softhsm") == 0) {
        run_all("softhsm");
    }
    if (argc < 2 || strcmp(argv[1], "nss") == 0) {
        run_all("nss");
    }
    return 0;
}
