/* SPDX-License-Identifier: Apache-2.0 */
/* xks_base64.h - Base64 of RFC 4648 section 4, strict.
 *
 * Layer:   primitive.
 * Memory:  allocates nothing; out is the caller's and must not overlap the input.
 * Threads: pure functions of their arguments.
 * Strict:  standard alphabet only, padding required, no whitespace, unused trailing bits must be zero
 *          (one value has one encoding).
 */
#ifndef XKS_BASE64_H
#define XKS_BASE64_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

/* Number of characters that len bytes take, padding included. len <= SIZE_MAX / 2. */
size_t xks_base64_encoded_len(size_t len);

/* Upper bound of the bytes that text_len characters decode to: text_len / 4 * 3. */
size_t xks_base64_decoded_max(size_t text_len);

/* Writes exactly xks_base64_encoded_len(len) characters, no NUL. */
void xks_base64_encode(const uint8_t *data, size_t len, char *out);

/* XKS_BAD_INPUT when text is not strict Base64, XKS_NO_SPACE when out_capacity is too small.
 * On failure out may hold a part of the result and *out_len is 0. */
XKS_MUST_CHECK xks_status xks_base64_decode(const char *text, size_t text_len, uint8_t *out, size_t out_capacity,
                                            size_t *out_len);

#endif
