/* SPDX-License-Identifier: Apache-2.0 */
/* Secrets, sealing and subkeys: every input and output ends at an unmapped page, every byte of what is sealed counts. */
#include "check.h"
#include "xks_hash.h"
#include "xks_seal.h"
#include "xks_secret.h"
#include "xks_sigv4.h"
#include "xks_subkey.h"
#include <fcntl.h>
#include <sys/stat.h>

#define NAME "xksfast|secrets|pin|1|p0"
#define NAME_LEN (sizeof NAME - 1)

static char error[XKS_ERROR_TEXT_BYTES];

static xks_secret *secret_of(const void *data, size_t len)
{
    xks_secret *made;
    CHECK_STATUS(XKS_OK, xks_secret_from_bytes(guarded_copy(data, len), len, &made));
    return made;
}

static xks_secret *key_of(uint8_t byte)
{
    uint8_t bytes[32];
    memset(bytes, byte, sizeof bytes);
    return secret_of(bytes, sizeof bytes);
}

static bool holds(const xks_secret *secret, const void *data, size_t len)
{
    size_t held;
    const uint8_t *bytes = xks_secret_view(secret, &held);
    return held == len && memcmp(bytes, data, len) == 0;
}

static void subkeys_are_hkdf_expand(void)
{
    /* RFC 5869's own vectors have other infos; this is HMAC-SHA-256(key, info | 0x01) by hand. */
    xks_secret *key = key_of(7);
    uint8_t expected[32], bytes[32], *out = guarded(32);
    char info[] = "xksfast mac peer\x01";
    xks_hmac_key hmac;
    memset(bytes, 7, sizeof bytes);
    xks_hmac_key_init(&hmac, bytes, sizeof bytes);
    xks_hmac_once(&hmac, info, sizeof info - 1, expected);
    CHECK_STATUS(XKS_OK, xks_subkey_derive(key, "mac", (char *)guarded_copy("peer", 4), 4, out));
    CHECK(memcmp(out, expected, 32) == 0);
    CHECK_STATUS(XKS_OK, xks_subkey_derive(key, "seal", "peer", 4, out));
    CHECK(memcmp(out, expected, 32) != 0);
    char *label = (char *)guarded(XKS_SUBKEY_MAX_LABEL_BYTES + 1);
    memset(label, 'x', XKS_SUBKEY_MAX_LABEL_BYTES + 1);
    CHECK_STATUS(XKS_OK, xks_subkey_derive(key, "mac", label, XKS_SUBKEY_MAX_LABEL_BYTES, out));
    CHECK_STATUS(XKS_BAD_INPUT, xks_subkey_derive(key, "mac", label, XKS_SUBKEY_MAX_LABEL_BYTES + 1, out));
    CHECK_STATUS(XKS_BAD_INPUT, xks_subkey_derive(key, "two words", label, 1, out));
    CHECK_STATUS(XKS_BAD_INPUT, xks_subkey_derive(key, "", label, 1, out));
    xks_secret *short_key = secret_of(bytes, 31);
    CHECK_STATUS(XKS_CONFIG, xks_subkey_derive(short_key, "mac", label, 1, out));
    xks_secret_free(short_key);
    xks_secret_free(key);
}

static void a_mac_is_for_one_key_label_and_text(void)
{
    xks_secret *key = key_of(1), *other = key_of(2);
    uint8_t *mac = guarded(32);
    xks_span text = {guarded_copy("text", 4), 4}, given = {mac, 32};
    CHECK_STATUS(XKS_OK, xks_subkey_mac(key, "a", 1, text, mac));
    CHECK_STATUS(XKS_OK, xks_subkey_check_mac(key, "a", 1, text, given));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_subkey_check_mac(other, "a", 1, text, given));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_subkey_check_mac(key, "b", 1, text, given));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_subkey_check_mac(key, "a", 1, (xks_span){text.data, 3}, given));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_subkey_check_mac(key, "a", 1, text, (xks_span){mac, 31}));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_subkey_check_mac(key, "a", 1, text, (xks_span){NULL, 0}));
    for (size_t i = 0; i < 32; i++) {
        mac[i] ^= 0x80;
        CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_subkey_check_mac(key, "a", 1, text, given));
        mac[i] ^= 0x80;
    }
    CHECK_STATUS(XKS_OK, xks_subkey_mac(key, "", 0, (xks_span){NULL, 0}, mac));
    CHECK_STATUS(XKS_OK, xks_subkey_check_mac(key, "", 0, (xks_span){NULL, 0}, given));
    xks_secret_free(key);
    xks_secret_free(other);
}

static void secrets_of_every_length_open_again(void)
{
    static const size_t LENGTHS[] = {1, 2, 4, 31, 32, 33, 61, 62, 63, 64, 126, 127, 1000, 1022, 1023, 1024};
    xks_secret *key = key_of(3), *opened;
    uint8_t text[1025];
    for (size_t i = 0; i < sizeof text; i++) {
        text[i] = (uint8_t)(i * 7 + 1);
    }
    for (size_t i = 0; i < sizeof LENGTHS / sizeof LENGTHS[0]; i++) {
        xks_secret *secret = secret_of(text, LENGTHS[i]);
        uint8_t room[XKS_SEAL_MAX_BYTES];
        size_t len;
        CHECK_STATUS(XKS_OK, xks_seal_secret(key, (char *)guarded_copy(NAME, NAME_LEN), NAME_LEN, secret, room, &len));
        CHECK(len == 33 + (LENGTHS[i] + 2 + 63) / 64 * 64 && len <= sizeof room);
        CHECK_STATUS(XKS_OK, xks_seal_open_secret(key, NAME, NAME_LEN, guarded_copy(room, len), len, &opened));
        CHECK(holds(opened, text, LENGTHS[i]));
        xks_secret_free(opened);
        xks_secret_free(secret);
    }
    xks_secret *long_one = secret_of(text, 1025);
    size_t len = 99;
    uint8_t *room = guarded(XKS_SEAL_MAX_BYTES);
    CHECK_STATUS(XKS_TOO_LONG, xks_seal_secret(key, NAME, NAME_LEN, long_one, room, &len));
    CHECK(len == 0);
    CHECK_STATUS(XKS_BAD_INPUT, xks_seal_secret(key, NAME, 0, key, room, &len));
    CHECK_STATUS(XKS_CONFIG, xks_seal_secret(long_one, NAME, NAME_LEN, key, room, &len));
    xks_secret_free(long_one);
    xks_secret *largest = secret_of(text, 1024);
    CHECK_STATUS(XKS_OK, xks_seal_secret(key, NAME, NAME_LEN, largest, room, &len)); /* fills its room to the last byte */
    CHECK(len == XKS_SEAL_MAX_BYTES);
    xks_secret_free(largest);
    xks_secret_free(key);
}

static void nothing_opens_but_what_was_sealed(void)
{
    xks_secret *key = key_of(4), *other = key_of(5), *secret = secret_of("314159", 6), *opened;
    xks_secret_pages *pages;
    uint8_t sealed[XKS_SEAL_MAX_BYTES], again[XKS_SEAL_MAX_BYTES];
    size_t len, again_len;
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(1, &pages, error));
    CHECK_STATUS(XKS_OK, xks_seal_secret(key, NAME, NAME_LEN, secret, sealed, &len));
    CHECK_STATUS(XKS_OK, xks_seal_secret(key, NAME, NAME_LEN, secret, again, &again_len));
    CHECK(again_len == len && memcmp(again, sealed, len) != 0); /* another IV */
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_seal_open_secret(other, NAME, NAME_LEN, sealed, len, &opened));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_seal_open_secret(key, NAME, NAME_LEN - 1, sealed, len, &opened));
    CHECK_STATUS(XKS_BAD_INPUT, xks_seal_open(key, NAME, NAME_LEN, sealed, len, pages, 0)); /* six bytes are no key */
    for (size_t i = 0; i < len; i++) {
        for (int bit = 0; bit < 8; bit++) {
            sealed[i] ^= (uint8_t)(1 << bit);
            CHECK(xks_seal_open_secret(key, NAME, NAME_LEN, sealed, len, &opened) != XKS_OK && opened == NULL);
            sealed[i] ^= (uint8_t)(1 << bit);
        }
    }
    for (size_t cut = 0; cut < len; cut++) {
        CHECK(xks_seal_open_secret(key, NAME, NAME_LEN, guarded_copy(sealed, cut), cut, &opened) != XKS_OK && opened == NULL);
    }
    uint8_t longer[2 * XKS_SEAL_MAX_BYTES] = {0};
    memcpy(longer, sealed, len);
    for (size_t more = 1; more <= 1100; more++) {
        CHECK(xks_seal_open_secret(key, NAME, NAME_LEN, longer, len + more, &opened) != XKS_OK);
    }
    xks_secret_pages_free(pages, 1);
    xks_secret_free(secret);
    xks_secret_free(other);
    xks_secret_free(key);
}

static void keys_of_both_formats_open_both_ways(void)
{
    xks_secret *master = key_of(6), *opened, *from_slot;
    xks_secret_pages *pages;
    uint8_t *sealed = guarded(XKS_SEALED_KEY_BYTES), moved[XKS_SEAL_MAX_BYTES];
    size_t moved_len;
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(2, &pages, error));
    CHECK_STATUS(XKS_OK, xks_seal_new_key(master, "old", 3, sealed));
    CHECK(memcmp(sealed, "XKSL\x01", 5) == 0);
    CHECK_STATUS(XKS_OK, xks_seal_open_secret(master, "old", 3, sealed, XKS_SEALED_KEY_BYTES, &opened));
    CHECK_STATUS(XKS_OK, xks_seal_open(master, "old", 3, sealed, XKS_SEALED_KEY_BYTES, pages, 1));
    CHECK(holds(opened, xks_secret_pages_view(pages, 1), 32));
    xks_secret *data_key = key_of(8);
    CHECK_STATUS(XKS_OK, xks_seal_move(master, "old", 3, sealed, XKS_SEALED_KEY_BYTES, data_key, "new", 3, moved, &moved_len));
    CHECK(moved_len == 33 + 64 && memcmp(moved, "XKSL\x02", 5) == 0);
    CHECK_STATUS(XKS_OK, xks_seal_open(data_key, "new", 3, guarded_copy(moved, moved_len), moved_len, pages, 0));
    CHECK(holds(opened, xks_secret_pages_view(pages, 0), 32));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_seal_move(master, "new", 3, sealed, XKS_SEALED_KEY_BYTES, data_key, "x", 1, moved, &moved_len));
    CHECK(moved_len == 0);
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_seal_open(master, "old", 3, sealed, XKS_SEALED_KEY_BYTES, pages, 2));
    CHECK_STATUS(XKS_OK, xks_secret_pages_take(pages, 0, &from_slot));
    CHECK(holds(from_slot, xks_secret_pages_view(pages, 1), 32) && xks_secret_pages_view(pages, 0)[0] == 0);
    sealed[4] = 2; /* another format: neither its length nor its tag fits */
    CHECK(xks_seal_open_secret(master, "old", 3, sealed, XKS_SEALED_KEY_BYTES, &opened) != XKS_OK);
    xks_secret_free(from_slot);
    xks_secret_free(data_key);
    xks_secret_free(master);
    xks_secret_pages_free(pages, 1);
}

static void many_keys_open_at_once(void)
{
    enum { KEYS = 5 };
    static const char *const NAMES[KEYS] = {"a", "bb", "ccc", "dddd", "eeeee"};
    xks_secret *master = key_of(6), *other = key_of(7);
    xks_secret_pages *pages, *alone;
    uint8_t all[KEYS * XKS_SEAL_MAX_BYTES], *results = guarded(KEYS);
    char names[64];
    uint32_t name_lens[KEYS], sealed_lens[KEYS], slots[KEYS] = {1, 2, 3, 5, 4};
    size_t names_len = 0, all_len = 0, len;
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(KEYS + 1, &pages, error));
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(KEYS, &alone, error));
    for (uint32_t i = 0; i < KEYS; i++) { /* of both formats; the third is another master key's, the last one no key */
        xks_secret *secret = i == KEYS - 1 ? secret_of("314159", 6) : key_of((uint8_t)(40 + i));
        name_lens[i] = (uint32_t)strlen(NAMES[i]);
        memcpy(names + names_len, NAMES[i], name_lens[i]);
        if (i == 1) {
            CHECK_STATUS(XKS_OK, xks_seal_new_key(master, NAMES[i], name_lens[i], all + all_len));
            len = XKS_SEALED_KEY_BYTES;
        } else {
            CHECK_STATUS(XKS_OK, xks_seal_secret(i == 2 ? other : master, NAMES[i], name_lens[i], secret, all + all_len, &len));
        }
        sealed_lens[i] = (uint32_t)len;
        xks_status status = xks_seal_open(master, NAMES[i], name_lens[i], all + all_len, len, alone, i);
        CHECK(status == (i == 2 ? XKS_NOT_AUTHENTIC : i == KEYS - 1 ? XKS_BAD_INPUT : XKS_OK));
        names_len += name_lens[i];
        all_len += len;
        xks_secret_free(secret);
    }
    const char *contexts = (const char *)guarded_copy(names, names_len);
    const uint8_t *sealed = guarded_copy(all, all_len);
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_seal_open_all(master, KEYS, contexts, name_lens, sealed, sealed_lens, pages, slots, results));
    for (uint32_t i = 0; i < KEYS; i++) {
        CHECK(results[i] == (i == 2 ? XKS_NOT_AUTHENTIC : i == KEYS - 1 ? XKS_BAD_INPUT : XKS_OK));
        CHECK(memcmp(xks_secret_pages_view(pages, slots[i]), xks_secret_pages_view(alone, i), 32) == 0);
    }
    CHECK(xks_secret_pages_view(pages, 5)[0] == 43 && xks_secret_pages_view(pages, 3)[0] == 0);
    CHECK_STATUS(XKS_OK, xks_seal_open_all(master, 2, contexts, name_lens, sealed, sealed_lens, pages, slots, results));
    slots[1] = KEYS + 1;
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_seal_open_all(master, 2, contexts, name_lens, sealed, sealed_lens, pages, slots, results));
    CHECK(results[0] == XKS_OK && results[1] == XKS_NOT_PERMITTED);
    CHECK_STATUS(XKS_OK, xks_seal_open_all(master, 0, NULL, NULL, NULL, NULL, pages, NULL, NULL));
    xks_secret_pages_free(pages, 1);
    xks_secret_pages_free(alone, 1);
    xks_secret_free(master);
    xks_secret_free(other);
}

static void signing_keys_come_from_the_sealed_secret(void)
{
    xks_secret *key = key_of(9), *secret = secret_of("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY0123", 44);
    xks_span plain = {guarded_copy("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY0123", 44), 44};
    xks_secret_pages *pages;
    uint8_t sealed[XKS_SEAL_MAX_BYTES];
    size_t len;
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(4, &pages, error));
    CHECK_STATUS(XKS_OK, xks_seal_secret(key, NAME, NAME_LEN, secret, sealed, &len));
    const char *days = (const char *)guarded_copy("202611252026112620261127", 24);
    CHECK_STATUS(XKS_OK, xks_seal_derive_signing_keys(key, NAME, NAME_LEN, sealed, len, days, 3, "us-east-1", 9, pages, 0));
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_STATUS(XKS_OK, xks_sigv4_derive(plain, days + (size_t)i * 8, "us-east-1", 9, pages, 3));
        CHECK(memcmp(xks_secret_pages_view(pages, i), xks_secret_pages_view(pages, 3), 32) == 0);
    }
    CHECK(memcmp(xks_secret_pages_view(pages, 0), xks_secret_pages_view(pages, 1), 32) != 0);
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_seal_derive_signing_keys(key, NAME, NAME_LEN, sealed, len, days, 3, "x", 1, pages, 2));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_seal_derive_signing_keys(key, NAME, NAME_LEN, sealed, len, days, 3, "x", 1, pages, UINT32_MAX));
    CHECK_STATUS(XKS_BAD_INPUT, xks_seal_derive_signing_keys(key, NAME, NAME_LEN, sealed, len, "2026112x", 1, "x", 1, pages, 0));
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_seal_derive_signing_keys(key, "x", 1, sealed, len, days, 1, "x", 1, pages, 0));
    xks_secret_pages_free(pages, 1);
    xks_secret_free(secret);
    xks_secret_free(key);
}

static void a_new_secret_access_key_is_shown_once(void)
{
    static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned seen[256] = {0};
    const char *text;
    size_t len;
    xks_secret *secret;
    for (size_t chars = 43; chars <= 64; chars++) {
        for (int i = 0; i < 20; i++) {
            CHECK_STATUS(XKS_OK, xks_secret_random_text(chars, &secret));
            CHECK_STATUS(XKS_OK, xks_secret_reveal(secret, &text, &len));
            CHECK(len == chars && holds(secret, text, len));
            for (size_t at = 0; at < len; at++) {
                CHECK(strchr(ALPHABET, text[at]) != NULL && text[at] != '\0');
                seen[(uint8_t)text[at]]++;
            }
            CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_reveal(secret, &text, &len));
            CHECK(text == NULL && len == 0);
            xks_secret_free(secret);
        }
    }
    for (size_t i = 0; i < 64; i++) { /* 23540 characters, 368 of each are expected: nine standard deviations either way */
        CHECK(seen[(uint8_t)ALPHABET[i]] > 195 && seen[(uint8_t)ALPHABET[i]] < 541);
    }
    CHECK_STATUS(XKS_BAD_INPUT, xks_secret_random_text(42, &secret));
    CHECK_STATUS(XKS_BAD_INPUT, xks_secret_random_text(65, &secret));
    secret = secret_of("0123456789012345678901234567890123456789012", 43);
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_reveal(secret, &text, &len));
    xks_secret_free(secret);
    CHECK_STATUS(XKS_OK, xks_secret_random(43, &secret));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_reveal(secret, &text, &len));
    xks_secret_free(secret);
}

static void a_stored_secret_access_key_is_handed_out_once_when_asked_for(void)
{
    xks_secret *key = key_of(11), *secret = secret_of("text", 4), *opened;
    uint8_t sealed[XKS_SEAL_MAX_BYTES];
    size_t len, chars;
    const char *text;
    CHECK_STATUS(XKS_OK, xks_seal_secret(key, NAME, NAME_LEN, secret, sealed, &len));
    CHECK_STATUS(XKS_OK, xks_seal_open_secret(key, NAME, NAME_LEN, sealed, len, &opened));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_reveal(opened, &text, &chars));
    xks_secret_free(opened);
    CHECK_STATUS(XKS_OK, xks_seal_open_text(key, NAME, NAME_LEN, sealed, len, &opened));
    CHECK_STATUS(XKS_OK, xks_secret_reveal(opened, &text, &chars));
    CHECK(chars == 4 && memcmp(text, "text", 4) == 0);
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_reveal(opened, &text, &chars));
    xks_secret_free(opened);
    CHECK_STATUS(XKS_NOT_AUTHENTIC, xks_seal_open_text(key, "x", 1, sealed, len, &opened));
    CHECK(opened == NULL);
    xks_secret_free(secret);
    xks_secret_free(key);
}

static void random_and_blank_secrets_keep_their_bounds(void)
{
    xks_secret *a, *b;
    uint8_t *room;
    size_t len;
    CHECK_STATUS(XKS_OK, xks_secret_random(32, &a));
    CHECK_STATUS(XKS_OK, xks_secret_random(32, &b));
    CHECK(!holds(a, xks_secret_view(b, &len), 32));
    xks_secret_free(a);
    xks_secret_free(b);
    CHECK_STATUS(XKS_BAD_INPUT, xks_secret_random(0, &a));
    CHECK_STATUS(XKS_TOO_LONG, xks_secret_random(XKS_SECRET_MAX_BYTES + 1, &a));
    CHECK_STATUS(XKS_OK, xks_secret_blank(XKS_SECRET_MAX_BYTES, &a, &room));
    memset(room, 1, XKS_SECRET_MAX_BYTES);
    CHECK(xks_secret_view(a, &len) == room && len == XKS_SECRET_MAX_BYTES);
    xks_secret_free(a);
}

static void write_file(const char *path, const void *data, size_t len, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len && fchmod(fd, mode) == 0 && close(fd) == 0);
}

static void keys_are_read_from_files_as_they_are(void)
{
    char path[] = "/tmp/xksfast-test-XXXXXX", hex[67];
    uint8_t raw[33];
    xks_secret *key;
    int fd = mkstemp(path);
    CHECK(fd >= 0 && close(fd) == 0);
    memset(raw, 0xab, sizeof raw);
    raw[31] = '\n'; /* one key in 256 ends with what elsewhere is a newline */
    write_file(path, raw, 32, 0600);
    CHECK_STATUS(XKS_OK, xks_secret_key_from_file(path, false, &key, error));
    CHECK(holds(key, raw, 32));
    xks_secret_free(key);
    for (size_t i = 0; i < 32; i++) {
        snprintf(hex + 2 * i, 3, "%02x", raw[i]);
    }
    memcpy(hex + 64, "\r\n", 3);
    for (size_t len = 64; len <= 66; len += 2) {
        write_file(path, hex, len, 0400);
        CHECK_STATUS(XKS_OK, xks_secret_key_from_file(path, false, &key, error));
        CHECK(holds(key, raw, 32));
        xks_secret_free(key);
    }
    static const size_t WRONG[] = {0, 1, 31, 33, 63};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; i++) {
        write_file(path, hex, WRONG[i], 0600);
        CHECK_STATUS(XKS_CONFIG, xks_secret_key_from_file(path, false, &key, error));
        CHECK(key == NULL && strstr(error, "32 bytes or 64") != NULL);
    }
    hex[5] = 'g';
    write_file(path, hex, 64, 0600);
    CHECK_STATUS(XKS_CONFIG, xks_secret_key_from_file(path, false, &key, error));
    write_file(path, raw, 32, 0440);
    CHECK_STATUS(XKS_CONFIG, xks_secret_key_from_file(path, false, &key, error));
    CHECK_STATUS(XKS_OK, xks_secret_key_from_file(path, true, &key, error));
    xks_secret_free(key);
    static const mode_t OPEN[] = {0460, 0444, 0404, 0450};
    for (size_t i = 0; i < sizeof OPEN / sizeof OPEN[0]; i++) {
        write_file(path, raw, 32, OPEN[i]);
        CHECK_STATUS(XKS_CONFIG, xks_secret_key_from_file(path, true, &key, error));
        CHECK(strstr(error, "run chmod 600") != NULL);
    }
    CHECK(unlink(path) == 0);
}

static void shared_pages_are_written_by_both(void)
{
    xks_secret_pages *ours, *theirs, *reader;
    xks_secret *key = key_of(10), *short_one = secret_of("x", 1), *taken;
    CHECK_STATUS(XKS_OK, xks_secret_pages_new(2, &ours, error));
    CHECK_STATUS(XKS_OK, xks_secret_pages_share(xks_secret_pages_fd(ours), &theirs, error));
    CHECK_STATUS(XKS_OK, xks_secret_pages_open(xks_secret_pages_fd(ours), &reader, error));
    CHECK(xks_secret_pages_fd(theirs) >= 0 && xks_secret_pages_fd(theirs) != xks_secret_pages_fd(ours));
    CHECK_STATUS(XKS_OK, xks_secret_pages_put(theirs, 1, key));
    CHECK_STATUS(XKS_BAD_INPUT, xks_secret_pages_put(theirs, 1, short_one));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_pages_put(theirs, 2, key));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_pages_put(reader, 1, key));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_pages_take(reader, 1, &taken));
    CHECK_STATUS(XKS_NOT_PERMITTED, xks_secret_pages_take(ours, 2, &taken));
    xks_secret_pages_free(theirs, 0);
    CHECK(holds(key, xks_secret_pages_view(reader, 1), 32));
    CHECK_STATUS(XKS_OK, xks_secret_pages_take(ours, 1, &taken));
    CHECK(holds(key, xks_secret_pages_view(reader, 1), 32) == false);
    size_t len;
    CHECK(holds(taken, xks_secret_view(key, &len), 32));
    CHECK_STATUS(XKS_BAD_INPUT, xks_secret_pages_share(0, &theirs, error));
    xks_secret_free(taken);
    xks_secret_free(short_one);
    xks_secret_free(key);
    xks_secret_pages_free(reader, 0);
    xks_secret_pages_free(ours, 1);
}

int main(void)
{
    RUN(subkeys_are_hkdf_expand);
    RUN(a_mac_is_for_one_key_label_and_text);
    RUN(secrets_of_every_length_open_again);
    RUN(nothing_opens_but_what_was_sealed);
    RUN(keys_of_both_formats_open_both_ways);
    RUN(many_keys_open_at_once);
    RUN(signing_keys_come_from_the_sealed_secret);
    RUN(a_new_secret_access_key_is_shown_once);
    RUN(a_stored_secret_access_key_is_handed_out_once_when_asked_for);
    RUN(random_and_blank_secrets_keep_their_bounds);
    RUN(keys_are_read_from_files_as_they_are);
    RUN(shared_pages_are_written_by_both);
    return 0;
}
