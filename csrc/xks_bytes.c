/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_bytes.h"

#include <openssl/crypto.h>
#include <string.h>

void xks_wipe(void *data, size_t len)
{
    if (len > 0) {
        OPENSSL_cleanse(data, len);
    }
}

bool xks_equal_constant_time(const void *a, const void *b, size_t len)
{
    const volatile uint8_t *left = a;
    const volatile uint8_t *right = b;
    uint8_t difference = 0;
    for (size_t i = 0; i < len; i++) {
        difference |= (uint8_t)(left[i] ^ right[i]);
    }
    return difference == 0;
}

bool xks_span_equal(xks_span a, xks_span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

void xks_put_u16be(uint8_t out[2], uint16_t value)
{
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)(value & 0xFF);
}
