/* SPDX-License-Identifier: Apache-2.0 */
/* Constant time by secret tainting: what must stay secret is marked undefined for valgrind's memcheck, which then reports every branch
 * and every index that depends on it. Run by `make -C csrc constant-time`; a build without valgrind's markers tests nothing.
 */
#include "check.h"
#include "xks_bytes.h"
#include "xks_hash.h"
#include "xks_hex.h"
#include <valgrind/memcheck.h>

#define SECRET(data, len) VALGRIND_MAKE_MEM_UNDEFINED(data, len)
#define PUBLIC(data, len) VALGRIND_MAKE_MEM_DEFINED(data, len)

static void comparing_does_not_branch_on_the_bytes(void)
{
    uint8_t a[32] = {1}, b[32] = {1};
    SECRET(a, sizeof a);
    SECRET(b, sizeof b);
    bool equal = xks_equal_constant_time(a, b, sizeof a);
    PUBLIC(&equal, sizeof equal);
    CHECK(equal);
}

static void reading_a_signature_does_not_branch_on_its_digits(void)
{
    char text[64];
    uint8_t bytes[32];
    memset(text, 'a', sizeof text);
    SECRET(text, sizeof text);
    xks_status status = xks_hex_decode(text, sizeof text, bytes);
    PUBLIC(&status, sizeof status);
    CHECK(status == XKS_OK);
}

static void hmac_does_not_branch_on_the_key(void)
{
    uint8_t secret[32] = {7}, mac[32];
    xks_hmac_key key;
    SECRET(secret, sizeof secret);
    xks_hmac_key_init(&key, secret, sizeof secret);
    xks_hmac_once(&key, "text", 4, mac);
    PUBLIC(mac, sizeof mac);
    CHECK(mac[0] != 0 || mac[1] != 0);
}

/* The check must be able to fail: this one branches on a secret, and valgrind must count it. */
static void a_branch_on_a_secret_is_found(void)
{
    volatile uint8_t secret = 1;
    SECRET(&secret, 1);
    unsigned before = VALGRIND_COUNT_ERRORS;
    if (secret == 1) {
        CHECK(VALGRIND_COUNT_ERRORS > before);
    }
}

int main(int argc, char **argv)
{
    CHECK(RUNNING_ON_VALGRIND);
    if (argc > 1 && strcmp(argv[1], "--prove-the-check") == 0) {
        RUN(a_branch_on_a_secret_is_found);
        return 0;
    }
    RUN(comparing_does_not_branch_on_the_bytes);
    RUN(reading_a_signature_does_not_branch_on_its_digits);
    RUN(hmac_does_not_branch_on_the_key);
    CHECK(VALGRIND_COUNT_ERRORS == 0);
    return 0;
}
