/* SPDX-License-Identifier: Apache-2.0 */
/* Managing keys on real tokens: two SoftHSM2 tokens and one of NSS softoken, keys travelling between every pair; measuring; and data
 * keys under a master key. */
#include "check.h"
#include "xks_ckr_name.h"
#include "xks_p11_admin.h"
#include "xks_p11_master.h"
#include "xks_p11_measure.h"

#define SOFTHSM "/usr/lib/softhsm/libsofthsm2.so"
#define NSS "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
#define RFC_3394 0x2109
#define KWP_OR_PKCS7 0x210A /* SoftHSM means RFC 5649 by it, NSS another padding */
#define RFC_5649 0x210B
#define TOKENS 3

/* test scaffolding, not product code */
static char error[XKS_ERROR_TEXT_BYTES];
static char directory[64], parameters[256];
static xks_provision_target targets[TOKENS];
static xks_admin *admins[TOKENS];

static void run(const char *format, const char *argument)
{
    char command[512];
    snprintf(command, sizeof command, format, argument);
    CHECK(system(command) == 0);
}

static void make_tokens(void)
{
    static const char *const LABELS[] = {"t0", "t1"};
    char text[512];
    xks_secret *pin;
    strcpy(directory, "/tmp/xksfast-test-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(text, sizeof text, "%s/conf", directory);
    CHECK(setenv("SOFTHSM2_CONF", text, 1) == 0);
    run("mkdir %s/tokens", directory);
    snprintf(text, sizeof text, "echo 'directories.tokendir = %s/tokens' > %%s/conf", directory);
    run(text, directory);
    run("certutil -N -d sql:%s --empty-password", directory);
    CHECK_STATUS(XKS_OK, xks_secret_from_bytes((const uint8_t *)"1234", 4, &pin));
    for (int i = 0; i < 2; i++) {
        run("softhsm2-util --init-token --free --label %s --pin 1234 --so-pin 12345678 >/dev/null", LABELS[i]);
        targets[i] = (xks_provision_target){
            .module_path = SOFTHSM, .token_label = LABELS[i], .slot = UINT64_MAX, .pin = pin, .profile = "softhsm"};
    }
    snprintf(parameters, sizeof parameters,
             "configdir='sql:%s' certPrefix='' keyPrefix='' secmod='' dbTokenDescription='nss' flags=", directory);
    targets[2] = (xks_provision_target){
        .module_path = NSS, .parameters = parameters, .token_label = "nss", .slot = UINT64_MAX, .profile = "nss"};
}

static uint64_t generate(int token, const char *label, bool transport, bool extractable)
{
    uint64_t key = 0;
    xks_admin_template wanted = {.label = label, .label_len = strlen(label), .on_token = true, .can_encrypt = !transport,
                                 .can_decrypt = !transport, .can_wrap = transport, .can_unwrap = transport, .extractable = extractable};
    CHECK_STATUS(XKS_OK, xks_admin_generate(admins[token], &wanted, &key, error));
    return key;
}

static uint64_t find_one(int token, const char *label, xks_admin_key *out)
{
    size_t count;
    CHECK_STATUS(XKS_OK, xks_admin_find(admins[token], label, strlen(label), out, 1, &count, error));
    CHECK(count == 1);
    return out->handle;
}

static void destroy(int token, const char *label)
{
    xks_admin_key keys[4];
    size_t count;
    CHECK_STATUS(XKS_OK, xks_admin_find(admins[token], label, strlen(label), keys, 4, &count, error));
    for (size_t i = 0; i < count; i++) {
        CHECK_STATUS(XKS_OK, xks_admin_destroy(admins[token], keys[i].handle, error));
    }
}

static xks_status check_both(int a, uint64_t on_a, int b, uint64_t on_b)
{
    xks_admin_proof proof;
    CHECK_STATUS(XKS_OK, xks_admin_prove(admins[a], on_a, &proof, error));
    xks_status there = xks_admin_check(admins[b], on_b, true, &proof, error);
    CHECK_STATUS(XKS_OK, xks_admin_prove(admins[b], on_b, &proof, error));
    xks_status back = xks_admin_check(admins[a], on_a, true, &proof, error);
    CHECK(there == back);
    return there;
}

/* A transport key "transport" on both; returns nothing that is not on the tokens. */
static void share_transport_key(int a, int b)
{
    uint8_t modulus[XKS_ADMIN_BLOB_BYTES], blob[XKS_ADMIN_BLOB_BYTES];
    size_t modulus_len, blob_len;
    uint64_t receiver, key = generate(a, "transport", true, true), arrived;
    xks_admin_template wanted = {.label = "transport", .label_len = 9, .on_token = true, .can_wrap = true, .can_unwrap = true};
    CHECK_STATUS(XKS_OK, xks_admin_receiver(admins[b], &receiver, modulus, &modulus_len, error));
    CHECK(modulus_len == 384);
    CHECK_STATUS(XKS_OK, xks_admin_wrap_for(admins[a], modulus, modulus_len, key, blob, &blob_len, error));
    CHECK(blob_len == modulus_len);
    CHECK_STATUS(XKS_OK, xks_admin_unwrap_received(admins[b], receiver, blob, blob_len, &wanted, &arrived, error));
    CHECK_STATUS(XKS_OK, xks_admin_lock_down(admins[a], key, error));
}

static void keys_travel_between_every_pair_of_tokens(void)
{
    for (int a = 0; a < TOKENS; a++) {
        for (int b = 0; b < TOKENS; b++) {
            if (a == b) {
                continue;
            }
            share_transport_key(a, b);
            xks_admin_key transport_a, transport_b, made;
            uint64_t wrapping = find_one(a, "transport", &transport_a), unwrapping = find_one(b, "transport", &transport_b);
            CHECK(transport_a.can_wrap && !transport_a.extractable && !transport_a.can_encrypt);
            CHECK(transport_b.can_unwrap && !transport_b.extractable && (transport_b.value_len == 32 || (b < 2 && transport_b.value_len == 0)));
            uint64_t key = generate(a, "orders", false, true), copy, other = generate(b, "other", false, false);
            uint8_t blob[XKS_ADMIN_BLOB_BYTES];
            size_t blob_len;
            CHECK_STATUS(XKS_OK, xks_admin_wrap(admins[a], wrapping, key, RFC_3394, blob, &blob_len, error));
            CHECK(blob_len == 40);
            xks_admin_template wanted = {.label = "arriving", .label_len = 8, .on_token = true, .can_encrypt = true, .can_decrypt = true};
            CHECK_STATUS(XKS_OK, xks_admin_unwrap(admins[b], unwrapping, RFC_3394, blob, blob_len, &wanted, &copy, error));
            CHECK_STATUS(XKS_OK, check_both(a, key, b, copy));
            CHECK_STATUS(XKS_NOT_AUTHENTIC, check_both(a, key, b, other));
            CHECK(strstr(error, "another key") != NULL);
            CHECK_STATUS(XKS_OK, xks_admin_rename(admins[b], copy, "orders", 6, error));
            CHECK(find_one(b, "orders", &made) == copy);
            CHECK(made.is_aes && made.value_len == (b < 2 ? 0 : 32) && made.can_encrypt && made.can_decrypt && !made.can_wrap && !made.can_unwrap);
            CHECK(made.sensitive && !made.extractable);
            blob[0] ^= 1;
            CHECK(xks_admin_unwrap(admins[b], unwrapping, RFC_3394, blob, blob_len, &wanted, &copy, error) != XKS_OK);
            CHECK(strstr(error, "C_UnwrapKey: CKR_") != NULL);
            for (int i = 0; i < TOKENS; i++) {
                destroy(i, "orders");
                destroy(i, "other");
                destroy(i, "transport");
            }
        }
    }
}

static void a_key_that_is_locked_down_cannot_be_wrapped(void)
{
    for (int i = 0; i < TOKENS; i++) {
        uint64_t transport = generate(i, "transport", true, false), key = generate(i, "orders", false, true);
        uint8_t blob[XKS_ADMIN_BLOB_BYTES];
        size_t blob_len;
        xks_admin_key now;
        CHECK_STATUS(XKS_OK, xks_admin_wrap(admins[i], transport, key, RFC_3394, blob, &blob_len, error));
        CHECK_STATUS(XKS_OK, xks_admin_lock_down(admins[i], key, error));
        CHECK_STATUS(XKS_NOT_PERMITTED, xks_admin_wrap(admins[i], transport, key, RFC_3394, blob, &blob_len, error));
        CHECK(blob_len == 0 && strstr(error, "not extractable") != NULL);
        (void)find_one(i, "orders", &now);
        CHECK(!now.extractable);
        CHECK_STATUS(XKS_CONFIG, xks_admin_wrap(admins[i], transport, generate(i, "orders", false, true), 0x80001234, blob, &blob_len, error));
        CHECK(strstr(error, "wrap_mechanism") != NULL);
        destroy(i, "orders");
        destroy(i, "transport");
    }
}

/* NSS 0x210A makes 48 bytes, which SoftHSM 0x2109 unwraps with CKR_OK into an AES key of 40 bytes. */
static void a_wrong_key_that_an_unwrap_calls_good_is_destroyed(void)
{
    uint8_t blob[XKS_ADMIN_BLOB_BYTES];
    size_t blob_len, count;
    xks_admin_key transport;
    uint64_t key, copy;
    xks_admin_template wanted = {.label = "arriving", .label_len = 8, .on_token = true, .can_encrypt = true, .can_decrypt = true};
    share_transport_key(2, 0);
    key = generate(2, "orders", false, true);
    CHECK_STATUS(XKS_OK, xks_admin_wrap(admins[2], find_one(2, "transport", &transport), key, KWP_OR_PKCS7, blob, &blob_len, error));
    CHECK(blob_len == 48);
    CHECK_STATUS(XKS_CONFIG, xks_admin_unwrap(admins[0], find_one(0, "transport", &transport), RFC_3394, blob, blob_len, &wanted, &copy,
                                              error));
    CHECK(strstr(error, "destroyed") != NULL && strstr(error, "wrap_mechanism") != NULL);
    CHECK_STATUS(XKS_OK, xks_admin_find(admins[0], "arriving", 8, &transport, 1, &count, error));
    CHECK(count == 0);
    CHECK_STATUS(XKS_OK, xks_admin_wrap(admins[2], find_one(2, "transport", &transport), key, RFC_5649, blob, &blob_len, error));
    CHECK(blob_len == 40);
    CHECK_STATUS(XKS_OK, xks_admin_unwrap(admins[0], find_one(0, "transport", &transport), KWP_OR_PKCS7, blob, blob_len, &wanted, &copy,
                                          error));
    CHECK_STATUS(XKS_OK, check_both(2, key, 0, copy));
    destroy(0, "arriving");
    destroy(0, "transport");
    destroy(2, "orders");
    destroy(2, "transport");
}

static void keys_are_found_by_label_and_counted(void)
{
    for (int i = 0; i < TOKENS; i++) {
        xks_admin_key keys[2];
        size_t count;
        CHECK_STATUS(XKS_OK, xks_admin_find(admins[i], "many", 4, keys, 2, &count, error));
        CHECK(count == 0);
        for (size_t made = 1; made <= 3; made++) {
            (void)generate(i, "many", false, false);
            CHECK_STATUS(XKS_OK, xks_admin_find(admins[i], "many", 4, keys, 2, &count, error));
            CHECK(count == made);
        }
        destroy(i, "many");
    }
}

static void looking_at_a_token_needs_no_pin(void)
{
    for (int i = 0; i < TOKENS; i++) {
        xks_admin_token about;
        xks_provision_target target = targets[i];
        xks_secret *wrong;
        CHECK_STATUS(XKS_OK, xks_secret_from_bytes((const uint8_t *)"9999", 4, &wrong));
        target.pin = wrong;
        CHECK_STATUS(XKS_OK, xks_admin_describe(&target, &about, error));
        CHECK(strcmp(about.label, target.token_label) == 0 && about.serial[0] != '\0' && about.manufacturer[0] != '\0');
        target.token_label = "absent";
        CHECK_STATUS(XKS_CONFIG, xks_admin_describe(&target, &about, error));
        CHECK(strstr(error, "there is no token with the label 'absent'") != NULL);
        xks_secret_free(wrong);
    }
}

static void measuring_tells_what_the_token_does(void)
{
    for (int i = 0; i < TOKENS; i++) {
        xks_measure_result result;
        xks_measure_options options = {.sessions = 3, .run_ns = 50000000};
        CHECK_STATUS(XKS_OK, xks_measure_partition(&targets[i], &options, &result, error));
        CHECK(result.encrypt.samples >= 20 && result.encrypt.median_ns > 0 && result.encrypt.median_ns <= result.encrypt.p99_ns);
        CHECK(result.session_info.samples >= 20 && result.session_info.median_ns <= result.session_info.p99_ns);
        CHECK(result.sessions_opened == 3 && result.sessions_ckr == 0);
        CHECK(result.single.threads == 1 && result.single.operations > 0 && result.single.elapsed_ns >= options.run_ns);
        CHECK(result.full.threads == 3 && result.full.operations > 0 && result.full.median_ns <= result.full.p99_ns);
        CHECK(result.single.failures == 0 && result.full.failures == 0);
        CHECK(strcmp(result.iv_mode, "caller") == 0);
        CHECK(strcmp(xks_ckr_name(result.tag_failure_ckr), i < 2 ? "CKR_GENERAL_ERROR" : "CKR_ENCRYPTED_DATA_INVALID") == 0);
        CHECK(result.message_api == (i == 2));
        options.health_check_key = "absent";
        CHECK_STATUS(XKS_CONFIG, xks_measure_partition(&targets[i], &options, &result, error));
        CHECK(strstr(error, "the health check key 'absent'") != NULL);
        options.sessions = 0;
        CHECK_STATUS(XKS_BAD_INPUT, xks_measure_partition(&targets[i], &options, &result, error));
        options.sessions = XKS_MEASURE_MAX_SESSIONS + 1;
        CHECK_STATUS(XKS_BAD_INPUT, xks_measure_partition(&targets[i], &options, &result, error));
    }
}

static xks_status wrap_master(int token, const char *label, uint8_t wrapped[XKS_WRAPPED_DATA_KEY_MAX_BYTES], size_t *len,
                              const xks_secret_pages *pages, uint32_t slot)
{
    return xks_master_wrap(&targets[token], label, strlen(label), "name", 4, pages, slot, wrapped, len, error);
}

static xks_status unwrap_master(int token, const char *context, const uint8_t *wrapped, size_t len, xks_secret_pages *pages,
                                uint32_t slot)
{
    return xks_master_unwrap(&targets[token], "master", 6, context, strlen(context), guarded_copy(wrapped, len), len, pages, slot,
                             error);
}

static void data_keys_are_wrapped_under_a_key_in_the_token(void)
{
    static const uint8_t DATA_KEY[32] = {1, 2, 3};
    xks_secret_pages *pages, *reader;
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(2, &pages, error));
    CHECK_STATUS(XKS_OK, xks_secret_pages_open(xks_secret_pages_fd(pages), &reader, error));
    for (int i = 0; i < TOKENS; i++) {
        uint8_t wrapped[XKS_WRAPPED_DATA_KEY_MAX_BYTES], zeros[32] = {0};
        size_t len;
        CHECK_STATUS(XKS_OK, xks_secret_pages_write(pages, 0, DATA_KEY));
        CHECK_STATUS(XKS_OK, xks_secret_pages_write(pages, 1, zeros));
        CHECK_STATUS(XKS_CONFIG, wrap_master(i, "master", wrapped, &len, pages, 0));
        CHECK(len == 0 && strstr(error, "is not there: make it") != NULL);
        (void)generate(i, "transport", true, false);
        CHECK_STATUS(XKS_CONFIG, wrap_master(i, "transport", wrapped, &len, pages, 0));
        CHECK(strstr(error, "may not both encrypt and decrypt") != NULL);
        (void)generate(i, "master", false, false);
        CHECK_STATUS(XKS_OK, wrap_master(i, "master", wrapped, &len, reader, 0));
        CHECK(len == 60);
        CHECK_STATUS(XKS_OK, unwrap_master(i, "name", wrapped, len, pages, 1));
        CHECK(memcmp(xks_secret_pages_view(reader, 1), DATA_KEY, 32) == 0);
        CHECK_STATUS(XKS_OK, xks_secret_pages_write(pages, 1, zeros));
        CHECK_STATUS(XKS_NOT_AUTHENTIC, unwrap_master(i, "other", wrapped, len, pages, 1));
        for (size_t at = 0; at < len; at += 7) {
            wrapped[at] ^= 4;
            CHECK_STATUS(XKS_NOT_AUTHENTIC, unwrap_master(i, "name", wrapped, len, pages, 1));
            CHECK(strstr(error, "another key of this label wrapped it, or it was changed") != NULL);
            wrapped[at] ^= 4;
        }
        for (size_t cut = 0; cut < len; cut++) {
            CHECK_STATUS(XKS_BAD_INPUT, unwrap_master(i, "name", wrapped, cut, pages, 1));
        }
        CHECK(memcmp(xks_secret_pages_view(reader, 1), zeros, 32) == 0);
        CHECK_STATUS(XKS_NOT_PERMITTED, unwrap_master(i, "name", wrapped, len, reader, 1));
        CHECK_STATUS(XKS_NOT_PERMITTED, unwrap_master(i, "name", wrapped, len, pages, 2));
        CHECK_STATUS(XKS_BAD_INPUT, wrap_master(i, "master", wrapped, &len, pages, 2));
        CHECK_STATUS(XKS_BAD_INPUT, xks_master_wrap(&targets[i], "master", 6, "", 0, pages, 0, wrapped, &len, error));
        destroy(i, "master");
        destroy(i, "transport");
    }
    xks_secret_pages_free(reader, 0);
    xks_secret_pages_free(pages, 1);
}

int main(void)
{
    make_tokens();
    RUN(looking_at_a_token_needs_no_pin); /* before a login, which the process keeps */
    for (int i = 0; i < TOKENS; i++) {
        CHECK_STATUS(XKS_OK, xks_admin_open(&targets[i], &admins[i], error));
    }
    RUN(keys_travel_between_every_pair_of_tokens);
    RUN(a_key_that_is_locked_down_cannot_be_wrapped);
    RUN(a_wrong_key_that_an_unwrap_calls_good_is_destroyed);
    RUN(keys_are_found_by_label_and_counted);
    RUN(data_keys_are_wrapped_under_a_key_in_the_token);
    RUN(measuring_tells_what_the_token_does);
    for (int i = TOKENS; i-- > 0;) { /* the first one of a module ends it */
        xks_admin_close(admins[i]);
    }
    xks_secret_free((xks_secret *)(uintptr_t)targets[0].pin);
    run("rm -rf %s", directory);
    return 0;
}
