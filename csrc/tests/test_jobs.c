/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs and the local key source: layout, wiping, the check decrypt, every size. */
#include "check.h"
#include "xks_aad.h"
#include "xks_bytes.h"
#include "xks_local.h"

static xks_aes_gcm_key *new_key(uint8_t seed)
{
    uint8_t bytes[32];
    xks_aes_gcm_key *key;
    memset(bytes, seed, sizeof bytes);
    CHECK_STATUS(XKS_OK, xks_aes_gcm_key_new(bytes, &key));
    return key;
}

static xks_job *encrypt_job(xks_job_pool *pool, size_t aad_len, size_t input_len, int want_cdiv)
{
    xks_job *job;
    CHECK_STATUS(XKS_OK, xks_job_take(pool, aad_len, input_len, &job));
    memset(job->aad + 2, 'a', aad_len);
    memset(job->input, 'p', input_len);
    job->input_len = input_len;
    job->operation = XKS_ENCRYPT;
    job->want_cdiv = (uint8_t)want_cdiv;
    CHECK_STATUS(XKS_OK, xks_job_compose_aad(job, aad_len));
    return job;
}

static void every_size_round_trips(void)
{
    xks_job_pool *pool;
    xks_random_pool random;
    xks_aes_gcm_key *key = new_key(1);
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&pool));
    xks_random_pool_init(&random);
    const size_t sizes[] = {0, 1, 15, 16, 17, 48, 1000, 4300, 8192};
    for (size_t a = 0; a < sizeof sizes / sizeof sizes[0]; a++) {
        for (size_t p = 0; p < 8; p++) {
            xks_job *sealed = encrypt_job(pool, sizes[a], sizes[p], (a + p) % 2 == 0), *opened;
            xks_local_run(key, &random, sealed);
            CHECK_STATUS(XKS_OK, sealed->status);
            CHECK(sealed->output_len == sizes[p] && sealed->iv_len == 12);
            CHECK_STATUS(XKS_OK, xks_job_take(pool, sizes[a], sizes[p], &opened));
            memset(opened->aad + 2, 'a', sizes[a]);
            memcpy(opened->input, sealed->output, sizes[p]);
            memcpy(opened->iv, sealed->iv, 12);
            memcpy(opened->tag, sealed->tag, 16);
            opened->input_len = sizes[p];
            opened->iv_len = 12;
            opened->operation = XKS_DECRYPT;
            CHECK_STATUS(XKS_OK, xks_job_compose_aad(opened, sizes[a]));
            xks_local_run(key, &random, opened);
            CHECK_STATUS(XKS_OK, opened->status);
            CHECK(opened->output_len == sizes[p] && memcmp(opened->output, sealed->input, sizes[p]) == 0);
            opened->tag[15] ^= 1;
            xks_local_run(key, &random, opened);
            CHECK_STATUS(XKS_NOT_AUTHENTIC, opened->status);
            CHECK(opened->output_len == 0);
            for (size_t i = 0; i < sizes[p]; i++) {
                CHECK(opened->output[i] == 0);
            }
            xks_job_release(pool, sealed);
            xks_job_release(pool, opened);
        }
    }
    xks_aes_gcm_key_free(key);
    xks_job_pool_free(pool);
}

static void a_released_job_holds_nothing_of_its_content(void)
{
    xks_job_pool *pool;
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&pool));
    xks_job *job = encrypt_job(pool, 64, 48, 0);
    uint8_t *aad = job->aad, *input = job->input;
    xks_job_release(pool, job);
    xks_job *again;
    CHECK_STATUS(XKS_OK, xks_job_take(pool, 64, 48, &again));
    CHECK(again == job && again->aad == aad && again->input == input);
    for (size_t i = 0; i < 48; i++) {
        CHECK(input[i] == 0);
    }
    xks_job_release(pool, again);
    CHECK_STATUS(XKS_TOO_LONG, xks_job_take(pool, 0, 1024 * 1024 + 1, &again));
    xks_job_pool_free(pool);
}

static void ivs_of_one_key_never_repeat(void)
{
    enum { COUNT = 4000 };
    static const size_t LEN = 12;
    xks_job_pool *pool;
    xks_random_pool random;
    xks_aes_gcm_key *key = new_key(2);
    uint8_t *seen = malloc(COUNT * LEN);
    CHECK(seen != NULL);
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&pool));
    xks_random_pool_init(&random);
    for (size_t i = 0; i < COUNT; i++) {
        xks_job *job = encrypt_job(pool, 0, 1, 0);
        xks_local_run(key, &random, job);
        memcpy(seen + i * LEN, job->iv, LEN);
        for (size_t k = i >= 64 ? i - 64 : 0; k < i; k++) {
            CHECK(memcmp(seen + k * LEN, job->iv, LEN) != 0);
        }
        xks_job_release(pool, job);
    }
    free(seen);
    xks_aes_gcm_key_free(key);
    xks_job_pool_free(pool);
}

static void the_sample_s_aad_fits_into_a_job_with_room_for_its_digest(void)
{
    xks_job_pool *pool;
    xks_job *job;
    CHECK_STATUS(XKS_OK, xks_job_pool_new(&pool));
    CHECK_STATUS(XKS_OK, xks_job_take(pool, XKS_SAMPLE_DIGEST_BYTES, 0, &job));
    job->metadata_len = XKS_MAX_METADATA_BYTES;
    CHECK_STATUS(XKS_OK, xks_job_compose_sample_aad(job, 0, true));
    CHECK(job->aad_len == 3 + 32 + 20 && job->aad + job->aad_len == job->input);
    CHECK_STATUS(XKS_OK, xks_job_compose_sample_aad(job, 0, false));
    CHECK(job->aad_len == 3 + 20);
    CHECK_STATUS(XKS_TOO_LONG, xks_job_compose_sample_aad(job, XKS_SAMPLE_DIGEST_BYTES + 1, true));
    xks_job_release(pool, job);
    CHECK_STATUS(XKS_OK, xks_job_take(pool, 3, 0, &job));
    CHECK_STATUS(XKS_NO_SPACE, xks_job_compose_sample_aad(job, 3, true));
    xks_job_release(pool, job);
    xks_job_pool_free(pool);
}

int main(void)
{
    RUN(every_size_round_trips);
    RUN(a_released_job_holds_nothing_of_its_content);
    RUN(the_sample_s_aad_fits_into_a_job_with_room_for_its_digest);
    RUN(ivs_of_one_key_never_repeat);
    return 0;
}
