/* SPDX-License-Identifier: Apache-2.0 */
/* xks_random.h - random bytes drawn from libcrypto's CSPRNG in blocks.
 *
 * Layer:   primitive over libcrypto.
 * Memory:  a pool is the caller's storage; served bytes are wiped from it.
 * Threads: a pool belongs to one thread.
 * Fork:    the pool remembers its pid and starts anew in a child, so that no two processes serve the same bytes.
 */
#ifndef XKS_RANDOM_H
#define XKS_RANDOM_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

#define XKS_RANDOM_POOL_BYTES 3072

typedef struct xks_random_pool {
    uint8_t bytes[XKS_RANDOM_POOL_BYTES];
    size_t used;
    int64_t pid;
} xks_random_pool;

void xks_random_pool_init(xks_random_pool *pool);
void xks_random_pool_wipe(xks_random_pool *pool);

/* Any len; requests larger than the pool go to the CSPRNG directly. XKS_SYSTEM when the CSPRNG fails: out is zeroed. */
XKS_MUST_CHECK xks_status xks_random_draw(xks_random_pool *pool, uint8_t *out, size_t len);

#endif
