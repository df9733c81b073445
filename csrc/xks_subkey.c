/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_subkey.h"

#include "xks_hash.h"
#include <string.h>

#define KEY_BYTES 32
#define MAX_USE_BYTES 16

static const char PREFIX[8] = {'x', 'k', 's', 'f', 'a', 's', 't', ' '};

_Static_assert(XKS_MAC_BYTES == XKS_SHA256_BYTES, "a MAC is one SHA-256");

xks_status xks_subkey_derive(const xks_secret *key, const char *use, const char *label, size_t label_len, uint8_t out[32])
{
    uint8_t info[sizeof PREFIX + MAX_USE_BYTES + 1 + XKS_SUBKEY_MAX_LABEL_BYTES + 1];
    xks_hmac_key hmac;
    size_t key_len, len = 0, use_len = strlen(use);
    const uint8_t *bytes = xks_secret_view(key, &key_len);
    if (key_len != KEY_BYTES) {
        return XKS_CONFIG;
    }
    if (label_len > XKS_SUBKEY_MAX_LABEL_BYTES || use_len == 0 || use_len > MAX_USE_BYTES || strchr(use, ' ') != NULL) {
        return XKS_BAD_INPUT;
    }
    memcpy(info, PREFIX, sizeof PREFIX);
    len += sizeof PREFIX;
    memcpy(info + len, use, use_len);
    len += use_len;
    info[len++] = ' ';
    if (label_len > 0) {
        memcpy(info + len, label, label_len);
        len += label_len;
    }
    info[len++] = 1; /* HKDF's counter: one block is all that is asked for */
    xks_hmac_key_init(&hmac, bytes, key_len);
    xks_hmac_once(&hmac, info, len, out);
    xks_wipe(&hmac, sizeof hmac);
    return XKS_OK;
}

xks_status xks_subkey_mac(const xks_secret *key, const char *label, size_t label_len, xks_span data, uint8_t mac[32])
{
    uint8_t subkey[KEY_BYTES];
    xks_hmac_key hmac;
    xks_status status = xks_subkey_derive(key, "mac", label, label_len, subkey);
    if (status != XKS_OK) {
        return status;
    }
    xks_hmac_key_init(&hmac, subkey, sizeof subkey);
    xks_hmac_once(&hmac, data.data, data.len, mac);
    xks_wipe(&hmac, sizeof hmac);
    xks_wipe(subkey, sizeof subkey);
    return XKS_OK;
}

xks_status xks_subkey_check_mac(const xks_secret *key, const char *label, size_t label_len, xks_span data, xks_span mac)
{
    uint8_t expected[XKS_MAC_BYTES];
    xks_status status = xks_subkey_mac(key, label, label_len, data, expected);
    if (status != XKS_OK) {
        return status;
    }
    bool same = mac.len == sizeof expected && xks_equal_constant_time(mac.data, expected, sizeof expected);
    xks_wipe(expected, sizeof expected);
    return same ? XKS_OK : XKS_NOT_AUTHENTIC;
}
