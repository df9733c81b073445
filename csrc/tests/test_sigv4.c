/* SPDX-License-Identifier: Apache-2.0 */
/* A keyring whose credentials and days come and go. Who is verified is signed for here by the same HMAC; that the signatures are AWS's
 * is shown in tests/native/test_sigv4.py. */
#include "check.h"
#include "xks_clock.h"
#include "xks_hash.h"
#include "xks_hex.h"
#include "xks_sigv4.h"

#define REGION "us-east-1"
#define NOON "T120000Z"

static const char *const IDS[] = {"AKIDAAAAAAAAAAAAAAAA", "AKIDBBBBBBBBBBBBBBBB", "AKIDCCCCCCCCCCCCCCCC"};
static const char *const DAYS[] = {"20260301", "20260302", "20260303", "20260304", "20260305"};

/* A keyring, and pages whose slot n holds 32 times the byte n. */
typedef struct fixture {
    xks_sigv4_keyring *ring;
    xks_secret_pages *pages;
} fixture;

static fixture new_fixture(void)
{
    fixture f;
    char error[XKS_ERROR_TEXT_BYTES];
    CHECK_STATUS(XKS_OK, xks_sigv4_keyring_new(REGION, strlen(REGION), &f.ring));
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(8, &f.pages, error));
    for (uint32_t slot = 0; slot < 8; slot++) {
        uint8_t key[32];
        memset(key, (int)slot, sizeof key);
        CHECK_STATUS(XKS_OK, xks_secret_pages_write(f.pages, slot, key));
    }
    return f;
}

static void free_fixture(fixture *f)
{
    xks_sigv4_keyring_free(f->ring);
    xks_secret_pages_free(f->pages, 1);
}

static xks_status put(fixture *f, const char *id, const char *day, uint32_t slot)
{
    char *copy = (char *)guarded_copy(id, strlen(id));
    return xks_sigv4_keyring_put(f->ring, copy, strlen(id), (char *)guarded_copy(day, 8), f->pages, slot);
}

static xks_status keep(fixture *f, const char *id, const char *days)
{
    return xks_sigv4_keyring_keep_days(f->ring, id, strlen(id), (char *)guarded_copy(days, strlen(days)), strlen(days) / 8);
}

static xks_status drop(fixture *f, const char *id, uint32_t *index)
{
    return xks_sigv4_keyring_remove(f->ring, id, strlen(id), index);
}

/* Verify a request signed at noon of `day` with the key of `slot`. */
static xks_sigv4_reason verify(fixture *f, const char *id, const char *day, uint32_t slot, uint32_t *index)
{
    static const char EMPTY[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    char date[17], canonical[512], text[512], authorization[512], hex[65] = "";
    uint8_t key[32], digest[32];
    int64_t now;
    xks_hmac_key hmac;
    snprintf(date, sizeof date, "%.8s%s", day, NOON);
    CHECK_STATUS(XKS_OK, xks_parse_amz_date(date, &now));
    snprintf(canonical, sizeof canonical, "POST\n/x\n\nhost:h\nx-amz-date:%s\n\nhost;x-amz-date\n%s", date, EMPTY);
    xks_sha256_once(canonical, strlen(canonical), digest);
    xks_hex_encode(digest, sizeof digest, hex);
    snprintf(text, sizeof text, "AWS4-HMAC-SHA256\n%s\n%s/" REGION "/kms-xks-proxy/aws4_request\n%s", date, day, hex);
    memset(key, (int)slot, sizeof key);
    xks_hmac_key_init(&hmac, key, sizeof key);
    xks_hmac_once(&hmac, text, strlen(text), digest);
    xks_hex_encode(digest, sizeof digest, hex);
    snprintf(authorization, sizeof authorization,
             "AWS4-HMAC-SHA256 Credential=%s/%s/" REGION "/kms-xks-proxy/aws4_request, SignedHeaders=host;x-amz-date, Signature=%s", id,
             day, hex);
#define SPAN(s) {(const uint8_t *)(s), strlen(s)}
    const xks_header headers[] = {{SPAN("host"), SPAN("h")}, {SPAN("x-amz-date"), SPAN(date)}, {SPAN("authorization"), SPAN(authorization)}};
    xks_sigv4_request request = {SPAN("POST"), SPAN("/x"), headers, 3, {NULL, 0}};
#undef SPAN
    xks_sigv4_reason reason;
    xks_status status = xks_sigv4_verify(f->ring, &request, now, index, &reason);
    CHECK((status == XKS_OK) == (reason == XKS_SIGV4_ACCEPTED));
    return reason;
}

static void a_removed_credential_is_unknown_and_the_others_move_up(void)
{
    fixture f = new_fixture();
    uint32_t index = 9;
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_STATUS(XKS_OK, put(&f, IDS[i], DAYS[0], i));
    }
    CHECK(verify(&f, IDS[1], DAYS[0], 1, &index) == XKS_SIGV4_ACCEPTED && index == 1);
    CHECK_STATUS(XKS_OK, drop(&f, IDS[1], &index));
    CHECK(index == 1);
    CHECK(verify(&f, IDS[1], DAYS[0], 1, &index) == XKS_SIGV4_UNKNOWN_ACCESS_KEY_ID);
    CHECK(verify(&f, IDS[0], DAYS[0], 0, &index) == XKS_SIGV4_ACCEPTED && index == 0);
    CHECK(verify(&f, IDS[2], DAYS[0], 2, &index) == XKS_SIGV4_ACCEPTED && index == 1);
    CHECK_STATUS(XKS_NOT_FOUND, drop(&f, IDS[1], &index));
    CHECK_STATUS(XKS_OK, put(&f, IDS[1], DAYS[0], 4));
    CHECK(verify(&f, IDS[1], DAYS[0], 1, &index) == XKS_SIGV4_WRONG_SIGNATURE);
    CHECK(verify(&f, IDS[1], DAYS[0], 4, &index) == XKS_SIGV4_ACCEPTED && index == 2);
    CHECK_STATUS(XKS_OK, drop(&f, IDS[1], &index));
    CHECK_STATUS(XKS_OK, drop(&f, IDS[2], &index));
    CHECK_STATUS(XKS_OK, drop(&f, IDS[0], &index));
    CHECK(verify(&f, IDS[0], DAYS[0], 0, &index) == XKS_SIGV4_UNKNOWN_ACCESS_KEY_ID);
    free_fixture(&f);
}

static void a_day_is_replaced_and_days_that_are_not_kept_are_gone(void)
{
    fixture f = new_fixture();
    uint32_t index;
    for (uint32_t i = 0; i < XKS_SIGV4_MAX_DAYS; i++) {
        CHECK_STATUS(XKS_OK, put(&f, IDS[0], DAYS[i], i));
    }
    CHECK_STATUS(XKS_TOO_LONG, put(&f, IDS[0], DAYS[4], 4));
    CHECK_STATUS(XKS_OK, put(&f, IDS[0], DAYS[2], 7));
    CHECK(verify(&f, IDS[0], DAYS[2], 2, &index) == XKS_SIGV4_WRONG_SIGNATURE);
    CHECK(verify(&f, IDS[0], DAYS[2], 7, &index) == XKS_SIGV4_ACCEPTED);
    CHECK_STATUS(XKS_OK, keep(&f, IDS[0], "202603052026030420260303"));
    CHECK(verify(&f, IDS[0], DAYS[0], 0, &index) == XKS_SIGV4_NO_KEY_FOR_DAY);
    CHECK(verify(&f, IDS[0], DAYS[1], 1, &index) == XKS_SIGV4_NO_KEY_FOR_DAY);
    CHECK(verify(&f, IDS[0], DAYS[2], 7, &index) == XKS_SIGV4_ACCEPTED);
    CHECK(verify(&f, IDS[0], DAYS[3], 3, &index) == XKS_SIGV4_ACCEPTED);
    CHECK_STATUS(XKS_OK, put(&f, IDS[0], DAYS[4], 4));
    CHECK(verify(&f, IDS[0], DAYS[4], 4, &index) == XKS_SIGV4_ACCEPTED);
    CHECK_STATUS(XKS_OK, keep(&f, IDS[0], ""));
    CHECK(verify(&f, IDS[0], DAYS[4], 4, &index) == XKS_SIGV4_NO_KEY_FOR_DAY);
    CHECK_STATUS(XKS_NOT_FOUND, keep(&f, IDS[1], "20260301"));
    free_fixture(&f);
}

static void what_is_refused_changes_nothing(void)
{
    fixture f = new_fixture();
    uint32_t index;
    char id[21] = "AKIDAAAAAAAAAAAAAAAA";
    CHECK_STATUS(XKS_BAD_INPUT, put(&f, IDS[0], DAYS[0], 8));
    CHECK_STATUS(XKS_BAD_INPUT, put(&f, IDS[0], "20260230", 0));
    CHECK_STATUS(XKS_BAD_INPUT, put(&f, "short", DAYS[0], 0));
    CHECK(verify(&f, IDS[0], DAYS[0], 0, &index) == XKS_SIGV4_UNKNOWN_ACCESS_KEY_ID);
    for (int i = 0; i < XKS_SIGV4_MAX_CREDENTIALS; i++) {
        id[19] = (char)('A' + i);
        CHECK_STATUS(XKS_OK, put(&f, id, DAYS[0], 0));
    }
    CHECK_STATUS(XKS_TOO_LONG, put(&f, IDS[1], DAYS[0], 0));
    CHECK(verify(&f, IDS[1], DAYS[0], 0, &index) == XKS_SIGV4_UNKNOWN_ACCESS_KEY_ID);
    CHECK_STATUS(XKS_OK, put(&f, id, DAYS[1], 1));
    CHECK(verify(&f, id, DAYS[1], 1, &index) == XKS_SIGV4_ACCEPTED && index == XKS_SIGV4_MAX_CREDENTIALS - 1);
    free_fixture(&f);
}

int main(void)
{
    RUN(a_removed_credential_is_unknown_and_the_others_move_up);
    RUN(a_day_is_replaced_and_days_that_are_not_kept_are_gone);
    RUN(what_is_refused_changes_nothing);
    return 0;
}
