/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_sigv4.h"

#include "xks_clock.h"
#include "xks_hash.h"
#include "xks_hex.h"
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#define ALGORITHM "AWS4-HMAC-SHA256"
#define SERVICE "kms-xks-proxy"
#define TERMINATOR "aws4_request"
#define MAX_ACCESS_KEY_ID_BYTES 128
#define MIN_ACCESS_KEY_ID_BYTES 16
#define MAX_REGION_BYTES 32
#define MAX_SECRET_BYTES 256
#define DAY_BYTES 8
#define DATE_BYTES 16
#define SIGNATURE_HEX_BYTES 64
#define MAX_SCOPE_BYTES (DAY_BYTES + 1 + MAX_REGION_BYTES + sizeof "/" SERVICE "/" TERMINATOR)
#define STACK_REQUEST_BYTES 2048

typedef struct signing_day {
    char day[DAY_BYTES];
    xks_hmac_key key;
} signing_day;

typedef struct known_credential {
    size_t id_len;
    size_t day_count;
    signing_day days[XKS_SIGV4_MAX_DAYS];
    char id[]; /* id_len bytes */
} known_credential;

struct xks_sigv4_keyring {
    char region[MAX_REGION_BYTES];
    size_t region_len;
    xks_hmac_key nobody; /* a random key: what an unknown access key id is checked against */
    size_t credential_count;
    known_credential *credentials[XKS_SIGV4_MAX_CREDENTIALS];
};

/* The Authorization header taken apart; every span points into the header's value. */
typedef struct authorization {
    xks_span access_key_id;
    xks_span day;
    xks_span region;
    xks_span service;
    xks_span terminator;
    xks_span signed_headers;
    xks_span signature;
} authorization;

static bool is_space(uint8_t c)
{
    return c == ' ' || c == '\t';
}

static uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + ('a' - 'A')) : c;
}

static bool equals_text(xks_span span, const char *text, size_t text_len)
{
    return span.len == text_len && memcmp(span.data, text, text_len) == 0;
}

static bool name_equals(xks_span name, const char *lower_name, size_t len)
{
    if (name.len != len) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (lower(name.data[i]) != (uint8_t)lower_name[i]) {
            return false;
        }
    }
    return true;
}

static bool is_access_key_id(const uint8_t *text, size_t len)
{
    if (len < MIN_ACCESS_KEY_ID_BYTES || len > MAX_ACCESS_KEY_ID_BYTES) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        uint8_t c = lower(text[i]);
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))) {
            return false;
        }
    }
    return true;
}

static bool is_day(const char day[DAY_BYTES])
{
    char date[DATE_BYTES];
    int64_t seconds;
    memcpy(date, day, DAY_BYTES);
    memcpy(date + DAY_BYTES, "T000000Z", DATE_BYTES - DAY_BYTES);
    return xks_parse_amz_date(date, &seconds) == XKS_OK;
}

/* --- keyring */

xks_status xks_sigv4_keyring_new(const char *region, size_t region_len, xks_sigv4_keyring **out)
{
    uint8_t random[XKS_SHA256_BYTES];
    *out = NULL;
    if (region_len == 0 || region_len > MAX_REGION_BYTES) {
        return XKS_BAD_INPUT;
    }
    for (size_t i = 0; i < region_len; i++) {
        char c = region[i];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) {
            return XKS_BAD_INPUT;
        }
    }
    xks_sigv4_keyring *made = calloc(1, sizeof *made);
    if (made == NULL || RAND_priv_bytes(random, sizeof random) != 1) {
        free(made);
        return XKS_SYSTEM;
    }
    memcpy(made->region, region, region_len);
    made->region_len = region_len;
    xks_hmac_key_init(&made->nobody, random, sizeof random);
    xks_wipe(random, sizeof random);
    *out = made;
    return XKS_OK;
}

static void free_credential(known_credential *known)
{
    xks_wipe(known, sizeof *known + known->id_len);
    free(known);
}

void xks_sigv4_keyring_free(xks_sigv4_keyring *keyring)
{
    if (keyring != NULL) {
        for (size_t i = 0; i < keyring->credential_count; i++) {
            free_credential(keyring->credentials[i]);
        }
        xks_wipe(keyring, sizeof *keyring);
        free(keyring);
    }
}

/* The credential's index; credential_count when it is not known. */
static size_t index_of(const xks_sigv4_keyring *keyring, const void *access_key_id, size_t access_key_id_len)
{
    size_t i = 0;
    while (i < keyring->credential_count && (keyring->credentials[i]->id_len != access_key_id_len ||
                                             memcmp(keyring->credentials[i]->id, access_key_id, access_key_id_len) != 0)) {
        i++;
    }
    return i;
}

/* The day's index; day_count when there is no signing key for it. */
static size_t day_of(const known_credential *known, const void *day)
{
    size_t i = 0;
    while (i < known->day_count && memcmp(known->days[i].day, day, DAY_BYTES) != 0) {
        i++;
    }
    return i;
}

xks_status xks_sigv4_keyring_put(xks_sigv4_keyring *keyring, const char *access_key_id, size_t access_key_id_len,
                                 const char day[8], const xks_secret_pages *pages, uint32_t slot)
{
    const uint8_t *signing_key = xks_secret_pages_view(pages, slot);
    if (signing_key == NULL || !is_access_key_id((const uint8_t *)access_key_id, access_key_id_len) || !is_day(day)) {
        return XKS_BAD_INPUT;
    }
    size_t index = index_of(keyring, access_key_id, access_key_id_len);
    if (index == XKS_SIGV4_MAX_CREDENTIALS) {
        return XKS_TOO_LONG;
    }
    if (index == keyring->credential_count) {
        known_credential *added = calloc(1, sizeof *added + access_key_id_len);
        if (added == NULL) {
            return XKS_SYSTEM;
        }
        memcpy(added->id, access_key_id, access_key_id_len);
        added->id_len = access_key_id_len;
        keyring->credentials[keyring->credential_count++] = added;
    }
    known_credential *known = keyring->credentials[index];
    size_t at = day_of(known, day);
    if (at == XKS_SIGV4_MAX_DAYS) {
        return XKS_TOO_LONG;
    }
    known->day_count += at == known->day_count ? 1 : 0;
    memcpy(known->days[at].day, day, DAY_BYTES);
    xks_hmac_key_init(&known->days[at].key, signing_key, XKS_SECRET_SLOT_BYTES);
    return XKS_OK;
}

xks_status xks_sigv4_keyring_keep_days(xks_sigv4_keyring *keyring, const char *access_key_id, size_t access_key_id_len,
                                       const char *days, size_t day_count)
{
    size_t index = index_of(keyring, access_key_id, access_key_id_len);
    if (index == keyring->credential_count) {
        return XKS_NOT_FOUND;
    }
    known_credential *known = keyring->credentials[index];
    size_t kept = 0;
    for (size_t i = 0; i < known->day_count; i++) {
        bool wanted = false;
        for (size_t w = 0; w < day_count && !wanted; w++) {
            wanted = memcmp(known->days[i].day, days + w * DAY_BYTES, DAY_BYTES) == 0;
        }
        if (wanted) {
            known->days[kept++] = known->days[i];
        }
    }
    xks_wipe(&known->days[kept], (known->day_count - kept) * sizeof known->days[0]);
    known->day_count = kept;
    return XKS_OK;
}

xks_status xks_sigv4_keyring_remove(xks_sigv4_keyring *keyring, const char *access_key_id, size_t access_key_id_len,
                                    uint32_t *credential)
{
    size_t index = index_of(keyring, access_key_id, access_key_id_len);
    *credential = (uint32_t)index;
    if (index == keyring->credential_count) {
        return XKS_NOT_FOUND;
    }
    free_credential(keyring->credentials[index]);
    keyring->credential_count--;
    memmove(&keyring->credentials[index], &keyring->credentials[index + 1],
            (keyring->credential_count - index) * sizeof keyring->credentials[0]);
    return XKS_OK;
}

xks_status xks_sigv4_derive(xks_span secret_access_key, const char day[8], const char *region, size_t region_len,
                            xks_secret_pages *pages, uint32_t slot)
{
    uint8_t first[4 + MAX_SECRET_BYTES];
    uint8_t key[XKS_SHA256_BYTES];
    xks_hmac_key hmac;
    if (secret_access_key.len > MAX_SECRET_BYTES || !is_day(day)) {
        return XKS_BAD_INPUT;
    }
    memcpy(first, "AWS4", 4);
    memcpy(first + 4, secret_access_key.data, secret_access_key.len);
    const struct {
        const char *text;
        size_t len;
    } steps[4] = {{day, DAY_BYTES}, {region, region_len}, {SERVICE, sizeof SERVICE - 1}, {TERMINATOR, sizeof TERMINATOR - 1}};
    for (size_t i = 0; i < 4; i++) {
        xks_hmac_key_init(&hmac, i == 0 ? first : key, i == 0 ? 4 + secret_access_key.len : sizeof key);
        xks_hmac_once(&hmac, steps[i].text, steps[i].len, key);
    }
    xks_status status = xks_secret_pages_write(pages, slot, key);
    xks_wipe(first, sizeof first);
    xks_wipe(key, sizeof key);
    xks_wipe(&hmac, sizeof hmac);
    return status;
}

/* --- the Authorization header */

/* Takes from *rest up to the first `stop`, which is dropped. false when there is none. */
static bool take_until(xks_span *rest, uint8_t stop, xks_span *part)
{
    const uint8_t *found = rest->len > 0 ? memchr(rest->data, stop, rest->len) : NULL;
    if (found == NULL) {
        return false;
    }
    part->data = rest->data;
    part->len = (size_t)(found - rest->data);
    rest->data = found + 1;
    rest->len -= part->len + 1;
    return true;
}

static bool take_literal(xks_span *rest, const char *text, size_t text_len)
{
    if (rest->len < text_len || memcmp(rest->data, text, text_len) != 0) {
        return false;
    }
    rest->data += text_len;
    rest->len -= text_len;
    return true;
}

static void skip_spaces(xks_span *rest)
{
    while (rest->len > 0 && is_space(rest->data[0])) {
        rest->data++;
        rest->len--;
    }
}

static xks_sigv4_reason parse_authorization(xks_span value, authorization *out)
{
    xks_span rest = value, scope;
    if (!take_literal(&rest, ALGORITHM " ", sizeof ALGORITHM)) {
        return XKS_SIGV4_WRONG_ALGORITHM;
    }
    skip_spaces(&rest);
    if (!take_literal(&rest, "Credential=", 11) || !take_until(&rest, ',', &scope)) {
        return XKS_SIGV4_MALFORMED_AUTHORIZATION;
    }
    skip_spaces(&rest);
    if (!take_literal(&rest, "SignedHeaders=", 14) || !take_until(&rest, ',', &out->signed_headers)) {
        return XKS_SIGV4_MALFORMED_AUTHORIZATION;
    }
    skip_spaces(&rest);
    if (!take_literal(&rest, "Signature=", 10) || rest.len != SIGNATURE_HEX_BYTES) {
        return XKS_SIGV4_MALFORMED_AUTHORIZATION;
    }
    out->signature = rest;
    if (!take_until(&scope, '/', &out->access_key_id) || !take_until(&scope, '/', &out->day) ||
        !take_until(&scope, '/', &out->region) || !take_until(&scope, '/', &out->service)) {
        return XKS_SIGV4_MALFORMED_AUTHORIZATION;
    }
    out->terminator = scope;
    return XKS_SIGV4_ACCEPTED;
}

static xks_sigv4_reason check_scope(const xks_sigv4_keyring *keyring, const authorization *auth, xks_span date)
{
    if (auth->day.len != DAY_BYTES || memcmp(auth->day.data, date.data, DAY_BYTES) != 0) {
        return XKS_SIGV4_SCOPE_DATE;
    }
    if (!equals_text(auth->region, keyring->region, keyring->region_len)) {
        return XKS_SIGV4_SCOPE_REGION;
    }
    if (!equals_text(auth->service, SERVICE, sizeof SERVICE - 1)) {
        return XKS_SIGV4_SCOPE_SERVICE;
    }
    return equals_text(auth->terminator, TERMINATOR, sizeof TERMINATOR - 1) ? XKS_SIGV4_ACCEPTED : XKS_SIGV4_SCOPE_TERMINATOR;
}

/* --- the canonical request */

/* The canonical request on its way into its hash, collected in a stack buffer: a dozen small hash updates cost more than one. */
typedef struct canonical {
    xks_sha256 hash;
    size_t used;
    uint8_t buffer[STACK_REQUEST_BYTES];
} canonical;

static void put(canonical *c, const void *data, size_t len)
{
    if (len > sizeof c->buffer - c->used) {
        xks_sha256_update(&c->hash, c->buffer, c->used);
        c->used = 0;
        if (len > sizeof c->buffer) {
            xks_sha256_update(&c->hash, data, len);
            return;
        }
    }
    memcpy(c->buffer + c->used, data, len);
    c->used += len;
}

/* A value trimmed, its inner runs of spaces folded into one. */
static void put_value(canonical *c, xks_span value)
{
    while (value.len > 0 && is_space(value.data[0])) {
        value.data++;
        value.len--;
    }
    while (value.len > 0 && is_space(value.data[value.len - 1])) {
        value.len--;
    }
    size_t start = 0;
    for (size_t i = 1; i < value.len; i++) {
        if (value.data[i] == ' ' && value.data[i - 1] == ' ') {
            put(c, value.data + start, i - start);
            while (i < value.len && value.data[i] == ' ') {
                i++;
            }
            start = i;
        }
    }
    put(c, value.data + start, value.len - start);
}

/* One line "name:value[,value...]\n" with every header of that name; false when there is none. */
static bool put_header(canonical *c, const xks_sigv4_request *request, xks_span name)
{
    bool found = false;
    for (size_t i = 0; i < request->header_count; i++) {
        const xks_header *header = &request->headers[i];
        if (!name_equals(header->name, (const char *)name.data, name.len)) {
            continue;
        }
        if (!found) {
            put(c, name.data, name.len);
        }
        put(c, found ? "," : ":", 1);
        put_value(c, header->value);
        found = true;
    }
    if (found) {
        put(c, "\n", 1);
    }
    return found;
}

/* Lines for all of SignedHeaders, which must be lower-case, sorted, without repetition and hold host and x-amz-date. */
static xks_sigv4_reason put_signed_headers(canonical *c, const xks_sigv4_request *request, xks_span signed_headers)
{
    bool host = false, date = false;
    xks_span rest = signed_headers, name, former = {NULL, 0};
    while (rest.len > 0) {
        if (!take_until(&rest, ';', &name)) {
            name = rest;
            rest.len = 0;
        } else if (rest.len == 0) {
            return XKS_SIGV4_MALFORMED_AUTHORIZATION; /* a semicolon at the end */
        }
        if (name.len == 0) {
            return XKS_SIGV4_MALFORMED_AUTHORIZATION;
        }
        for (size_t i = 0; i < name.len; i++) {
            if (name.data[i] <= ' ' || name.data[i] >= 0x7F || lower(name.data[i]) != name.data[i]) {
                return XKS_SIGV4_MALFORMED_AUTHORIZATION;
            }
        }
        if (former.len > 0) {
            int order = memcmp(former.data, name.data, former.len < name.len ? former.len : name.len);
            if (order > 0 || (order == 0 && former.len >= name.len)) {
                return XKS_SIGV4_MALFORMED_AUTHORIZATION;
            }
        }
        former = name;
        host = host || equals_text(name, "host", 4);
        date = date || equals_text(name, "x-amz-date", 10);
        if (!put_header(c, request, name)) {
            return XKS_SIGV4_SIGNED_HEADER_ABSENT;
        }
    }
    return host && date ? XKS_SIGV4_ACCEPTED : XKS_SIGV4_HEADER_NOT_SIGNED;
}

/* SHA-256 of the canonical request, in hexadecimal. */
static xks_sigv4_reason hash_canonical_request(const xks_sigv4_request *request, const authorization *auth, char hex[64])
{
    canonical c;
    uint8_t digest[XKS_SHA256_BYTES];
    xks_sha256_init(&c.hash);
    c.used = 0;
    put(&c, request->method.data, request->method.len);
    put(&c, "\n", 1);
    put(&c, request->path.data, request->path.len);
    put(&c, "\n\n", 2); /* XKS requests have no query */
    xks_sigv4_reason reason = put_signed_headers(&c, request, auth->signed_headers);
    if (reason != XKS_SIGV4_ACCEPTED) {
        return reason;
    }
    put(&c, "\n", 1);
    put(&c, auth->signed_headers.data, auth->signed_headers.len);
    put(&c, "\n", 1);
    xks_sha256_once(request->body.data, request->body.len, digest);
    xks_hex_encode(digest, sizeof digest, hex);
    put(&c, hex, 2 * sizeof digest);
    xks_sha256_update(&c.hash, c.buffer, c.used);
    xks_sha256_final(&c.hash, digest);
    xks_hex_encode(digest, sizeof digest, hex);
    return XKS_SIGV4_ACCEPTED;
}

/* HMAC over algorithm, date, scope and the hash of the canonical request. */
static void compute_signature(const xks_sigv4_keyring *keyring, const xks_hmac_key *key, xks_span date, const char hash_hex[64],
                              uint8_t signature[32])
{
    uint8_t text[sizeof ALGORITHM + DATE_BYTES + 1 + MAX_SCOPE_BYTES + 1 + 64];
    size_t used = 0;
    memcpy(text, ALGORITHM "\n", sizeof ALGORITHM);
    used = sizeof ALGORITHM;
    memcpy(text + used, date.data, DATE_BYTES);
    used += DATE_BYTES;
    text[used++] = '\n';
    memcpy(text + used, date.data, DAY_BYTES);
    used += DAY_BYTES;
    text[used++] = '/';
    memcpy(text + used, keyring->region, keyring->region_len);
    used += keyring->region_len;
    memcpy(text + used, "/" SERVICE "/" TERMINATOR "\n", sizeof SERVICE + sizeof TERMINATOR + 1);
    used += sizeof SERVICE + sizeof TERMINATOR + 1;
    memcpy(text + used, hash_hex, 64);
    used += 64;
    xks_hmac_once(key, text, used, signature);
}

/* --- verification */

static xks_sigv4_reason find_headers(const xks_sigv4_request *request, xks_span *authorization_value, xks_span *date)
{
    authorization_value->data = date->data = NULL;
    for (size_t i = 0; i < request->header_count; i++) {
        const xks_header *header = &request->headers[i];
        xks_span *wanted = name_equals(header->name, "authorization", 13) ? authorization_value
                           : name_equals(header->name, "x-amz-date", 10)  ? date
                                                                          : NULL;
        if (wanted != NULL) {
            if (wanted->data != NULL) {
                return XKS_SIGV4_DUPLICATE_HEADER;
            }
            *wanted = header->value;
        }
    }
    if (authorization_value->data == NULL) {
        return XKS_SIGV4_NO_AUTHORIZATION;
    }
    return date->data == NULL ? XKS_SIGV4_NO_DATE : XKS_SIGV4_ACCEPTED;
}

static xks_sigv4_reason check_date(xks_span date, int64_t now)
{
    int64_t at;
    if (date.len != DATE_BYTES || xks_parse_amz_date((const char *)date.data, &at) != XKS_OK) {
        return XKS_SIGV4_MALFORMED_DATE;
    }
    int64_t skew = now > at ? now - at : at - now;
    return skew > XKS_SIGV4_MAX_SKEW_S ? XKS_SIGV4_CLOCK_SKEW : XKS_SIGV4_ACCEPTED;
}

/* The credential's key for the day; that of nobody, with the reason, when there is none. */
static const xks_hmac_key *find_key(const xks_sigv4_keyring *keyring, const authorization *auth, uint32_t *index,
                                    xks_sigv4_reason *reason)
{
    size_t found = index_of(keyring, auth->access_key_id.data, auth->access_key_id.len);
    if (found == keyring->credential_count) {
        *reason = XKS_SIGV4_UNKNOWN_ACCESS_KEY_ID;
        return &keyring->nobody;
    }
    *index = (uint32_t)found;
    const known_credential *known = keyring->credentials[found];
    size_t day = day_of(known, auth->day.data); /* check_scope has seen that it has eight characters */
    if (day == known->day_count) {
        *reason = XKS_SIGV4_NO_KEY_FOR_DAY;
        return &keyring->nobody;
    }
    *reason = XKS_SIGV4_ACCEPTED;
    return &known->days[day].key;
}

static xks_sigv4_reason verify(const xks_sigv4_keyring *keyring, const xks_sigv4_request *request, int64_t now,
                               uint32_t *credential_index)
{
    xks_span authorization_value, date;
    authorization auth;
    char hash_hex[64];
    uint8_t expected[XKS_SHA256_BYTES], given[XKS_SHA256_BYTES];

    xks_sigv4_reason reason = find_headers(request, &authorization_value, &date);
    if (reason == XKS_SIGV4_ACCEPTED) {
        reason = parse_authorization(authorization_value, &auth);
    }
    if (reason == XKS_SIGV4_ACCEPTED) {
        reason = check_date(date, now);
    }
    if (reason == XKS_SIGV4_ACCEPTED) {
        reason = check_scope(keyring, &auth, date);
    }
    if (reason == XKS_SIGV4_ACCEPTED) {
        reason = hash_canonical_request(request, &auth, hash_hex);
    }
    if (reason != XKS_SIGV4_ACCEPTED) {
        return reason; /* so far nothing depended on a credential */
    }
    xks_sigv4_reason key_reason;
    const xks_hmac_key *key = find_key(keyring, &auth, credential_index, &key_reason);
    compute_signature(keyring, key, date, hash_hex, expected);
    bool well_formed = xks_hex_decode((const char *)auth.signature.data, auth.signature.len, given) == XKS_OK;
    bool equal = xks_equal_constant_time(expected, given, sizeof expected);
    xks_wipe(expected, sizeof expected);
    if (key_reason != XKS_SIGV4_ACCEPTED) {
        return key_reason;
    }
    return well_formed && equal ? XKS_SIGV4_ACCEPTED : XKS_SIGV4_WRONG_SIGNATURE;
}

xks_status xks_sigv4_verify(const xks_sigv4_keyring *keyring, const xks_sigv4_request *request, int64_t now_unix_seconds,
                            uint32_t *credential, xks_sigv4_reason *reason)
{
    *credential = 0;
    *reason = XKS_SIGV4_MALFORMED_AUTHORIZATION;
    if (request->header_count > XKS_SIGV4_MAX_HEADERS) {
        return XKS_TOO_LONG;
    }
    *reason = verify(keyring, request, now_unix_seconds, credential);
    return *reason == XKS_SIGV4_ACCEPTED ? XKS_OK : XKS_NOT_AUTHENTIC;
}
