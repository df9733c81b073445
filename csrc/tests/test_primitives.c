/* SPDX-License-Identifier: Apache-2.0 */
/* Base64, hex, clock, slices, hash, random, AAD, metadata, JSON: every input and output ends at an unmapped page. */
#include "check.h"
#include "xks_aad.h"
#include "xks_base64.h"
#include "xks_clock.h"
#include "xks_hash.h"
#include "xks_hex.h"
#include "xks_json.h"
#include "xks_metadata.h"
#include "xks_random.h"
#include "xks_schedule.h"
#include <sched.h>
#include <sys/wait.h>

static void base64_round_trips_at_every_length(void)
{
    for (size_t len = 0; len < 200; len++) {
        uint8_t *data = guarded(len);
        for (size_t i = 0; i < len; i++) {
            data[i] = (uint8_t)(i * 37 + len);
        }
        size_t text_len = xks_base64_encoded_len(len), back_len = 99;
        char *text = (char *)guarded(text_len);
        xks_base64_encode(data, len, text);
        uint8_t *back = guarded(len);
        CHECK_STATUS(XKS_OK, xks_base64_decode(text, text_len, back, len, &back_len));
        CHECK(back_len == len && memcmp(back, data, len) == 0);
        if (len > 0) {
            CHECK_STATUS(XKS_NO_SPACE, xks_base64_decode(text, text_len, back, len - 1, &back_len));
            CHECK(back_len == 0);
        }
    }
}

static void base64_refuses_every_character_outside_the_alphabet(void)
{
    uint8_t out[8];
    size_t len;
    for (int c = 0; c < 256; c++) {
        int known = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '/';
        for (size_t at = 0; at < 8; at++) {
            char text[8] = {'A', 'A', 'A', 'A', 'A', 'A', 'A', 'A'};
            text[at] = (char)c;
            int allowed = known || (c == '=' && at == 7);
            CHECK_STATUS(allowed ? XKS_OK : XKS_BAD_INPUT,
                         xks_base64_decode((char *)guarded_copy(text, 8), 8, out, sizeof out, &len));
        }
    }
}

static void hex_reads_lower_case_only(void)
{
    uint8_t *bytes = guarded(4), out[4];
    memcpy(bytes, "\x00\x9f\xff\x1a", 4);
    char *text = (char *)guarded(8);
    xks_hex_encode(bytes, 4, text);
    CHECK(memcmp(text, "009fff1a", 8) == 0);
    CHECK_STATUS(XKS_OK, xks_hex_decode(text, 8, guarded(4)));
    for (int c = 0; c < 256; c++) {
        int known = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
        text[3] = (char)c;
        CHECK_STATUS(known ? XKS_OK : XKS_BAD_INPUT, xks_hex_decode(text, 8, out));
    }
    CHECK_STATUS(XKS_BAD_INPUT, xks_hex_decode("abc", 3, out));
}

static void dates_are_read_strictly(void)
{
    int64_t at;
    CHECK_STATUS(XKS_OK, xks_parse_amz_date((char *)guarded_copy("20240229T235959Z", 16), &at));
    CHECK(at == 1709251199);
    CHECK_STATUS(XKS_OK, xks_parse_amz_date((char *)guarded_copy("19700101T000000Z", 16), &at));
    CHECK(at == 0);
    const char *wrong[] = {"20230229T000000Z", "20241301T000000Z", "20240001T000000Z", "20240100T000000Z", "20240132T000000Z",
                           "20240101T240000Z", "20240101T006000Z", "20240101T000060Z", "20240101t000000Z", "20240101T000000z",
                           "2024-101T000000Z", "19691231T235959Z", "20240101 000000Z", "2024010 T000000Z", "+0240101T000000Z"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        CHECK_STATUS(XKS_BAD_INPUT, xks_parse_amz_date((char *)guarded_copy(wrong[i], 16), &at));
    }
    for (int64_t day = 0; day < 40000; day += 13) {
        char text[17] = "........T000000Z";
        xks_format_utc_day(day * 86400 + day % 86400, text);
        CHECK_STATUS(XKS_OK, xks_parse_amz_date(text, &at));
        CHECK(at == day * 86400);
    }
}

static void hmac_agrees_with_rfc_4231(void)
{
    uint8_t mac[32], key[131];
    char hex[64];
    xks_hmac_key state;
    memset(key, 0xaa, sizeof key);
    xks_hmac_key_init(&state, (const uint8_t *)"Jefe", 4);
    xks_hmac_once(&state, "what do ya want for nothing?", 28, mac);
    xks_hex_encode(mac, 32, hex);
    CHECK(memcmp(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843", 64) == 0);
    xks_hmac_key_init(&state, key, sizeof key);
    xks_hmac_once(&state, "Test Using Larger Than Block-Size Key - Hash Key First", 54, mac);
    xks_hex_encode(mac, 32, hex);
    CHECK(memcmp(hex, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54", 64) == 0);
}

static void random_bytes_never_repeat_over_refills_and_forks(void)
{
    xks_random_pool pool;
    uint8_t a[12], b[12], child[12];
    int pipe_ends[2], status;
    xks_random_pool_init(&pool);
    CHECK_STATUS(XKS_OK, xks_random_draw(&pool, a, sizeof a));
    for (int i = 0; i < 2000; i++) {
        CHECK_STATUS(XKS_OK, xks_random_draw(&pool, b, sizeof b));
        CHECK(memcmp(a, b, sizeof a) != 0);
        memcpy(a, b, sizeof a);
    }
    CHECK(pipe(pipe_ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        _exit(xks_random_draw(&pool, child, sizeof child) == XKS_OK && write(pipe_ends[1], child, 12) == 12 ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(read(pipe_ends[0], child, 12) == 12);
    CHECK_STATUS(XKS_OK, xks_random_draw(&pool, a, sizeof a));
    CHECK(memcmp(a, child, sizeof a) != 0);
    uint8_t *large = guarded(XKS_RANDOM_POOL_BYTES + 1);
    CHECK_STATUS(XKS_OK, xks_random_draw(&pool, large, XKS_RANDOM_POOL_BYTES + 1));
    xks_random_pool_wipe(&pool);
}

static void aad_is_composed_in_place_and_apart(void)
{
    uint8_t *out = guarded(2 + 5 + 1 + 3);
    size_t len;
    memcpy(out + 2, "hello", 5);
    CHECK_STATUS(XKS_OK, xks_aad_compose((xks_span){out + 2, 5}, (xks_span){(const uint8_t *)"abc", 3}, out, 11, &len));
    CHECK(len == 11 && memcmp(out, "\0\5hello\3abc", 11) == 0);
    CHECK_STATUS(XKS_NO_SPACE, xks_aad_compose((xks_span){out + 2, 5}, (xks_span){(const uint8_t *)"abc", 3}, out, 10, &len));
    CHECK_STATUS(XKS_OK, xks_aad_compose((xks_span){NULL, 0}, (xks_span){NULL, 0}, out, 3, &len));
    CHECK(len == 3 && memcmp(out, "\0\0\0", 3) == 0);
}

static void the_sample_s_aad_is_composed_over_the_aad_itself(void)
{
    uint8_t digest[32], *out = guarded(2 + 32 + 1 + 3);
    const xks_span metadata = {(const uint8_t *)"abc", 3};
    size_t len;
    memcpy(out + 2, "hello", 5);
    xks_sha256_once("hello", 5, digest);
    CHECK_STATUS(XKS_NO_SPACE, xks_aad_compose_sample((xks_span){out + 2, 5}, metadata, out, 37, &len));
    CHECK_STATUS(XKS_OK, xks_aad_compose_sample((xks_span){out + 2, 5}, metadata, out, 38, &len));
    CHECK(len == 38 && memcmp(out, "\0\5", 2) == 0 && memcmp(out + 2, digest, 32) == 0 && memcmp(out + 34, "\3abc", 4) == 0);
    CHECK_STATUS(XKS_OK, xks_aad_compose_sample((xks_span){NULL, 0}, metadata, out, 6, &len));
    CHECK(len == 6 && memcmp(out, "\0\0\3abc", 6) == 0);
    xks_sha256_once("", 0, digest);
    CHECK_STATUS(XKS_OK, xks_aad_compose_sample((xks_span){out + 2, 0}, (xks_span){NULL, 0}, out, 35, &len));
    CHECK(len == 35 && memcmp(out, "\0\0", 2) == 0 && memcmp(out + 2, digest, 32) == 0 && out[34] == 0);
}

static void metadata_is_read_as_it_was_written_and_nothing_else_is_ours(void)
{
    const uint32_t versions[] = {1, 2, 255, 256, 65536, UINT32_MAX};
    uint32_t version;
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
        uint8_t *written = guarded(XKS_METADATA_BYTES);
        xks_metadata_write(versions[i], written);
        CHECK_STATUS(XKS_OK, xks_metadata_read(written, XKS_METADATA_BYTES, &version));
        CHECK(version == versions[i]);
        CHECK_STATUS(XKS_BAD_INPUT, xks_metadata_read(written + 1, XKS_METADATA_BYTES - 1, &version));
        written[0] ^= 1;
        CHECK_STATUS(XKS_BAD_INPUT, xks_metadata_read(written, XKS_METADATA_BYTES, &version));
    }
    CHECK_STATUS(XKS_OK, xks_metadata_read(guarded_copy("\xA5\1\2\3\4", 5), 5, &version));
    CHECK(version == 0x01020304);
    CHECK_STATUS(XKS_BAD_INPUT, xks_metadata_read(guarded_copy("\xA5\0\0\0\0", 5), 5, &version));
    CHECK_STATUS(XKS_BAD_INPUT, xks_metadata_read(guarded_copy("\xA5\0\0\0\1\0", 6), 6, &version));
    CHECK_STATUS(XKS_BAD_INPUT, xks_metadata_read(NULL, 0, &version));
}

static void json_is_scanned_within_its_bounds(void)
{
    const char text[] = "{\"a\":{\"b\":[1,\"x\\\"y\"]},\"\\u0061b\":null}";
    for (size_t len = 0; len < sizeof text; len++) {
        xks_status status = xks_json_check_members((char *)guarded_copy(text, len), len);
        CHECK(status == XKS_OK || status == XKS_BAD_INPUT);
        CHECK((len == sizeof text - 1) <= (status == XKS_OK));
    }
}

static void a_slice_is_taken_where_the_kernel_knows_of_slices(void)
{
    uint64_t in_force = 1, kernels_own;
    xks_status status_now = xks_schedule_slice(0, 0, &kernels_own);
    if (status_now == XKS_NOT_PERMITTED) {
        return; /* a sandbox forbids the call */
    }
    CHECK_STATUS(XKS_OK, status_now);
    CHECK_STATUS(XKS_OK, xks_schedule_slice(0, 200000, &in_force));
    CHECK(in_force == (kernels_own == 0 ? 0 : 200000));
    CHECK_STATUS(XKS_OK, xks_schedule_slice(0, 1, &in_force));
    CHECK(in_force == (kernels_own == 0 ? 0 : 100000));
    CHECK_STATUS(XKS_OK, xks_schedule_slice(0, 0, &in_force));
    CHECK(in_force == kernels_own);
    CHECK_STATUS(XKS_NOT_FOUND, xks_schedule_slice(0x7ffffff0, 0, &in_force));
    CHECK(in_force == 0);
    if (fork() == 0) {
        const struct sched_param none = {0};
        in_force = 1;
        int idle = sched_setscheduler(0, SCHED_IDLE, &none) == 0;
        _exit(idle && xks_schedule_slice(0, 200000, &in_force) == XKS_OK && in_force == 0 && sched_getscheduler(0) == SCHED_IDLE
                  ? 0
                  : 1);
    }
    int status = -1;
    CHECK(wait(&status) > 0 && status == 0);
}

int main(void)
{
    RUN(base64_round_trips_at_every_length);
    RUN(base64_refuses_every_character_outside_the_alphabet);
    RUN(hex_reads_lower_case_only);
    RUN(dates_are_read_strictly);
    RUN(hmac_agrees_with_rfc_4231);
    RUN(random_bytes_never_repeat_over_refills_and_forks);
    RUN(aad_is_composed_in_place_and_apart);
    RUN(the_sample_s_aad_is_composed_over_the_aad_itself);
    RUN(metadata_is_read_as_it_was_written_and_nothing_else_is_ours);
    RUN(json_is_scanned_within_its_bounds);
    RUN(a_slice_is_taken_where_the_kernel_knows_of_slices);
    return 0;
}
