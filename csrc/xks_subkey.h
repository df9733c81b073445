/* SPDX-License-Identifier: Apache-2.0 */
/* xks_subkey.h - keys derived from a key for one use each, and MACs under them.
 *
 * Layer:   crypto (over xks_hash, xks_secret).
 * Layout:  subkey = HKDF-Expand-SHA-256(key, info, 32 bytes); info = "xksfast " | use | " " | label. There is no extract step: the
 *          keys that come in are uniformly random already.
 * Memory:  allocates nothing; outputs are the caller's, who wipes a subkey.
 * Threads: pure functions of their arguments.
 * Source:  RFC 5869, RFC 2104.
 */
#ifndef XKS_SUBKEY_H
#define XKS_SUBKEY_H

#include "xks_bytes.h"
#include "xks_secret.h"
#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_SUBKEY_MAX_LABEL_BYTES 128
#define XKS_MAC_BYTES 32

/* use: a word without a space, ours; label: 0 to XKS_SUBKEY_MAX_LABEL_BYTES bytes, else XKS_BAD_INPUT. XKS_CONFIG for a key that is not
 * 32 bytes. */
XKS_MUST_CHECK xks_status xks_subkey_derive(const xks_secret *key, const char *use, const char *label, size_t label_len,
                                            uint8_t out[32]);
/* HMAC-SHA-256 of data under the subkey of use "mac" and this label. */
XKS_MUST_CHECK xks_status xks_subkey_mac(const xks_secret *key, const char *label, size_t label_len, xks_span data, uint8_t mac[32]);
/* XKS_NOT_AUTHENTIC: another key, label or data. In constant time. */
XKS_MUST_CHECK xks_status xks_subkey_check_mac(const xks_secret *key, const char *label, size_t label_len, xks_span data,
                                               xks_span mac);

#endif
