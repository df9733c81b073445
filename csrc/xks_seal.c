/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_seal.h"

#include "xks_aes_gcm.h"
#include "xks_bytes.h"
#include "xks_hex.h"
#include "xks_sigv4.h"
#include "xks_subkey.h"
#include <openssl/rand.h>
#include <stdbool.h>
#include <string.h>

#define MAGIC_BYTES 4
#define HEADER_BYTES 5
#define IV_AT HEADER_BYTES
#define CIPHERTEXT_AT (IV_AT + XKS_GCM_IV_BYTES)
#define OVERHEAD_BYTES (CIPHERTEXT_AT + XKS_GCM_TAG_BYTES)
#define MAX_CONTEXT_BYTES 1024

#define FORMAT_KEY 1
#define FORMAT_SECRET 2

#define LENGTH_BYTES 2
#define BLOCK_BYTES 64
#define MAX_BLOCKS ((LENGTH_BYTES + XKS_SEAL_MAX_SECRET_BYTES + BLOCK_BYTES - 1) / BLOCK_BYTES)
#define MAX_PLAIN_BYTES (MAX_BLOCKS * BLOCK_BYTES)

#define DAY_CHARS 8

_Static_assert(OVERHEAD_BYTES + XKS_AES256_KEY_BYTES == XKS_SEALED_KEY_BYTES, "the layout of a sealed key");
_Static_assert(OVERHEAD_BYTES + MAX_PLAIN_BYTES == XKS_SEAL_MAX_BYTES, "the layout of a sealed secret");

static const uint8_t MAGIC[MAGIC_BYTES] = {'X', 'K', 'S', 'L'};

/* What is inside a sealed text. Secret: wiped by whoever has it. */
typedef struct opened {
    uint8_t plain[MAX_PLAIN_BYTES];
    const uint8_t *secret; /* into plain */
    size_t len;
} opened;

/* --- the key that encrypts, and the AAD */

/* Format 1: the key itself, from its 32 bytes or 64 hexadecimal digits. */
static xks_status master_key_new(const xks_secret *master, xks_aes_gcm_key **out)
{
    uint8_t key[XKS_AES256_KEY_BYTES];
    size_t len;
    const uint8_t *bytes = xks_secret_view(master, &len);
    xks_status status = XKS_CONFIG;
    *out = NULL;
    if (len == sizeof key) {
        status = xks_aes_gcm_key_new(bytes, out);
    } else if (len == 2 * sizeof key && xks_hex_decode((const char *)bytes, len, key) == XKS_OK) {
        status = xks_aes_gcm_key_new(key, out);
    }
    xks_wipe(key, sizeof key);
    return status;
}

/* Format 2. */
static xks_status sealing_key_new(const xks_secret *key, xks_aes_gcm_key **out)
{
    uint8_t subkey[XKS_AES256_KEY_BYTES];
    *out = NULL;
    xks_status status = xks_subkey_derive(key, "seal", NULL, 0, subkey);
    if (status == XKS_OK) {
        status = xks_aes_gcm_key_new(subkey, out);
    }
    xks_wipe(subkey, sizeof subkey);
    return status;
}

static void put_header(uint8_t format, uint8_t header[HEADER_BYTES])
{
    memcpy(header, MAGIC, MAGIC_BYTES);
    header[MAGIC_BYTES] = format;
}

static xks_status compose_aad(uint8_t format, const char *context, size_t context_len, uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES])
{
    if (context_len == 0 || context_len > MAX_CONTEXT_BYTES) {
        return XKS_BAD_INPUT;
    }
    put_header(format, aad);
    memcpy(aad + HEADER_BYTES, context, context_len);
    return XKS_OK;
}

/* --- both directions */

static xks_status encrypt(uint8_t format, const xks_secret *key, const char *context, size_t context_len, xks_span plain,
                          uint8_t *sealed)
{
    uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES];
    xks_aes_gcm_key *sealing;
    xks_status status = compose_aad(format, context, context_len, aad);
    if (status != XKS_OK) {
        return status;
    }
    status = format == FORMAT_KEY ? master_key_new(key, &sealing) : sealing_key_new(key, &sealing);
    if (status != XKS_OK) {
        return status;
    }
    put_header(format, sealed);
    if (RAND_bytes(sealed + IV_AT, XKS_GCM_IV_BYTES) == 1) {
        status = xks_aes_gcm_encrypt(sealing, (xks_span){sealed + IV_AT, XKS_GCM_IV_BYTES}, (xks_span){aad, HEADER_BYTES + context_len},
                                     plain, sealed + CIPHERTEXT_AT, sealed + CIPHERTEXT_AT + plain.len);
    } else {
        status = XKS_SYSTEM;
    }
    xks_aes_gcm_key_free(sealing);
    return status;
}

/* Where the secret stands in what was decrypted. It is authentic, so a wrong length is a bug, and refused all the same. */
static xks_status find_secret(uint8_t format, size_t plain_len, opened *out)
{
    out->secret = out->plain;
    out->len = plain_len;
    if (format == FORMAT_SECRET) {
        out->secret += LENGTH_BYTES;
        out->len = (size_t)out->plain[0] << 8 | out->plain[1];
        if (out->len == 0 || out->len > plain_len - LENGTH_BYTES) {
            return XKS_BAD_INPUT;
        }
    }
    return XKS_OK;
}

/* The key schedules of one master key, each made when it is first needed. Freed by whoever has it. */
typedef struct opener {
    const xks_secret *key;
    xks_aes_gcm_key *of_format[FORMAT_SECRET + 1];
} opener;

static xks_status opening_key(opener *with, uint8_t format, xks_aes_gcm_key **out)
{
    xks_aes_gcm_key **known = &with->of_format[format];
    xks_status status = XKS_OK;
    if (*known == NULL) {
        status = format == FORMAT_KEY ? master_key_new(with->key, known) : sealing_key_new(with->key, known);
    }
    *out = *known;
    return status;
}

static void opener_free(opener *with)
{
    for (size_t i = 0; i < sizeof with->of_format / sizeof with->of_format[0]; i++) {
        xks_aes_gcm_key_free(with->of_format[i]);
    }
}

/* Whatever the result, the caller wipes *out. */
static xks_status decrypt_with(opener *with, const char *context, size_t context_len, const uint8_t *sealed, size_t sealed_len,
                               opened *out)
{
    uint8_t aad[HEADER_BYTES + MAX_CONTEXT_BYTES];
    xks_aes_gcm_key *key;
    if (sealed_len < OVERHEAD_BYTES || memcmp(sealed, MAGIC, MAGIC_BYTES) != 0) {
        return XKS_BAD_INPUT;
    }
    uint8_t format = sealed[MAGIC_BYTES];
    size_t plain_len = sealed_len - OVERHEAD_BYTES;
    bool is_key = format == FORMAT_KEY && plain_len == XKS_AES256_KEY_BYTES;
    bool is_secret = format == FORMAT_SECRET && plain_len > 0 && plain_len <= MAX_PLAIN_BYTES && plain_len % BLOCK_BYTES == 0;
    if (!is_key && !is_secret) {
        return XKS_BAD_INPUT;
    }
    xks_status status = compose_aad(format, context, context_len, aad);
    if (status != XKS_OK) {
        return status;
    }
    status = opening_key(with, format, &key);
    if (status != XKS_OK) {
        return status;
    }
    status = xks_aes_gcm_decrypt(key, (xks_span){sealed + IV_AT, XKS_GCM_IV_BYTES}, (xks_span){aad, HEADER_BYTES + context_len},
                                 (xks_span){sealed + CIPHERTEXT_AT, plain_len},
                                 (xks_span){sealed + CIPHERTEXT_AT + plain_len, XKS_GCM_TAG_BYTES}, out->plain);
    return status == XKS_OK ? find_secret(format, plain_len, out) : status;
}

/* The same for one text. */
static xks_status decrypt(const xks_secret *key, const char *context, size_t context_len, const uint8_t *sealed, size_t sealed_len,
                          opened *out)
{
    opener with = {.key = key};
    xks_status status = decrypt_with(&with, context, context_len, sealed, sealed_len, out);
    opener_free(&with);
    return status;
}

static xks_status seal_bytes(const xks_secret *key, const char *context, size_t context_len, const uint8_t *secret, size_t len,
                             uint8_t *sealed, size_t *sealed_len)
{
    uint8_t plain[MAX_PLAIN_BYTES] = {0};
    *sealed_len = 0;
    if (len == 0) {
        return XKS_BAD_INPUT;
    }
    if (len > XKS_SEAL_MAX_SECRET_BYTES) {
        return XKS_TOO_LONG;
    }
    size_t padded = (LENGTH_BYTES + len + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
    xks_put_u16be(plain, (uint16_t)len);
    memcpy(plain + LENGTH_BYTES, secret, len);
    xks_status status = encrypt(FORMAT_SECRET, key, context, context_len, (xks_span){plain, padded}, sealed);
    xks_wipe(plain, sizeof plain);
    if (status == XKS_OK) {
        *sealed_len = OVERHEAD_BYTES + padded;
    }
    return status;
}

/* --- keys */

xks_status xks_seal_new_key(const xks_secret *master, const char *context, size_t context_len, uint8_t sealed[65])
{
    uint8_t key[XKS_AES256_KEY_BYTES] = {0};
    xks_status status = XKS_SYSTEM;
    if (RAND_priv_bytes(key, sizeof key) == 1) {
        status = encrypt(FORMAT_KEY, master, context, context_len, (xks_span){key, sizeof key}, sealed);
    }
    xks_wipe(key, sizeof key);
    return status;
}

static xks_status open_with(opener *with, const char *context, size_t context_len, const uint8_t *sealed, size_t sealed_len,
                            xks_secret_pages *pages, uint32_t slot)
{
    opened inside;
    xks_status status = decrypt_with(with, context, context_len, sealed, sealed_len, &inside);
    if (status == XKS_OK) {
        status = inside.len == XKS_AES256_KEY_BYTES ? xks_secret_pages_write(pages, slot, inside.secret) : XKS_BAD_INPUT;
    }
    xks_wipe(&inside, sizeof inside);
    return status;
}

xks_status xks_seal_open(const xks_secret *master, const char *context, size_t context_len, const uint8_t *sealed,
                         size_t sealed_len, xks_secret_pages *pages, uint32_t slot)
{
    opener with = {.key = master};
    xks_status status = open_with(&with, context, context_len, sealed, sealed_len, pages, slot);
    opener_free(&with);
    return status;
}

xks_status xks_seal_open_all(const xks_secret *master, size_t count, const char *contexts, const uint32_t *context_lens,
                             const uint8_t *sealed, const uint32_t *sealed_lens, xks_secret_pages *pages, const uint32_t *slots,
                             uint8_t *results)
{
    opener with = {.key = master};
    xks_status first_failure = XKS_OK;
    for (size_t i = 0; i < count; i++) {
        xks_status status = open_with(&with, contexts, context_lens[i], sealed, sealed_lens[i], pages, slots[i]);
        results[i] = (uint8_t)status;
        first_failure = first_failure == XKS_OK ? status : first_failure;
        contexts += context_lens[i];
        sealed += sealed_lens[i];
    }
    opener_free(&with);
    return first_failure;
}

/* --- secrets */

xks_status xks_seal_secret(const xks_secret *key, const char *context, size_t context_len, const xks_secret *secret,
                           uint8_t sealed[1121], size_t *sealed_len)
{
    size_t len;
    const uint8_t *bytes = xks_secret_view(secret, &len);
    return seal_bytes(key, context, context_len, bytes, len, sealed, sealed_len);
}

/* make: what becomes of the bytes. */
static xks_status open_as(xks_status (*make)(const uint8_t *, size_t, xks_secret **), const xks_secret *key, const char *context,
                          size_t context_len, const uint8_t *sealed, size_t sealed_len, xks_secret **out)
{
    opened inside;
    *out = NULL;
    xks_status status = decrypt(key, context, context_len, sealed, sealed_len, &inside);
    if (status == XKS_OK) {
        status = make(inside.secret, inside.len, out);
    }
    xks_wipe(&inside, sizeof inside);
    return status;
}

xks_status xks_seal_open_secret(const xks_secret *key, const char *context, size_t context_len, const uint8_t *sealed,
                                size_t sealed_len, xks_secret **out)
{
    return open_as(xks_secret_from_bytes, key, context, context_len, sealed, sealed_len, out);
}

xks_status xks_seal_open_text(const xks_secret *key, const char *context, size_t context_len, const uint8_t *sealed,
                              size_t sealed_len, xks_secret **out)
{
    return open_as(xks_secret_text_from_bytes, key, context, context_len, sealed, sealed_len, out);
}

xks_status xks_seal_move(const xks_secret *old_key, const char *old_context, size_t old_context_len, const uint8_t *old_sealed,
                         size_t old_sealed_len, const xks_secret *new_key, const char *new_context, size_t new_context_len,
                         uint8_t sealed[1121], size_t *sealed_len)
{
    opened inside;
    *sealed_len = 0;
    xks_status status = decrypt(old_key, old_context, old_context_len, old_sealed, old_sealed_len, &inside);
    if (status == XKS_OK) {
        status = seal_bytes(new_key, new_context, new_context_len, inside.secret, inside.len, sealed, sealed_len);
    }
    xks_wipe(&inside, sizeof inside);
    return status;
}

/* --- signing keys */

xks_status xks_seal_derive_signing_keys(const xks_secret *key, const char *context, size_t context_len, const uint8_t *sealed,
                                        size_t sealed_len, const char *days, size_t day_count, const char *region,
                                        size_t region_len, xks_secret_pages *pages, uint32_t first_slot)
{
    opened inside; /* not an xks_secret: locking and unlocking memory would take longer than all that is computed here */
    xks_status status = decrypt(key, context, context_len, sealed, sealed_len, &inside);
    for (size_t i = 0; status == XKS_OK && i < day_count; i++) {
        xks_span secret = {inside.secret, inside.len};
        status = xks_sigv4_derive(secret, days + i * DAY_CHARS, region, region_len, pages, first_slot + (uint32_t)i);
    }
    xks_wipe(&inside, sizeof inside);
    return status;
}
