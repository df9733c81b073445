/* SPDX-License-Identifier: Apache-2.0 */
/* xks_bytes.h - comparing, wiping and big-endian bytes.
 *
 * Layer:   primitive.
 * Memory:  allocates nothing.
 * Threads: pure functions of their arguments.
 */
#ifndef XKS_BYTES_H
#define XKS_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A borrowed run of bytes: valid as long as its owner says. data may be NULL only when len is 0. */
typedef struct xks_span {
    const uint8_t *data;
    size_t len;
} xks_span;

/* Overwrite len bytes in a way the compiler may not drop. data may be NULL when len is 0. */
void xks_wipe(void *data, size_t len);

/* Equality in time that depends on len alone. For anything an attacker may guess at. */
bool xks_equal_constant_time(const void *a, const void *b, size_t len);

/* Equality of two public runs of bytes. */
bool xks_span_equal(xks_span a, xks_span b);

void xks_put_u16be(uint8_t out[2], uint16_t value);

#endif
