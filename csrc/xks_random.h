/* SPDX-License-Identifier: Apache-2.0 */
/* xks_random.h - random bytes drawn from libcrypto's CSPRNG in blocks.
 *
 * Layer:   primitive over libcrypto.
 * Memory:  a pool is the caller's storage and owns one page, from _init to _wipe; served bytes are wiped from it.
 * Threads: a pool belongs to one thread.
 * Fork:    the kernel wipes the page in a child, which draws bytes of its own, so that no two processes serve the same ones. A process
 *          that may not have such a page asks the CSPRNG for each draw.
 */
#ifndef XKS_RANDOM_H
#define XKS_RANDOM_H

#include "xks_status.h"
#include <stddef.h>
#include <stdint.h>

/* One page with its mark. */
#define XKS_RANDOM_POOL_BYTES 4080

typedef struct xks_random_pool {
    uint8_t *page; /* a mark that is 0 in a child, then the bytes; NULL: there is none */
    size_t used;
} xks_random_pool;

void xks_random_pool_init(xks_random_pool *pool);
void xks_random_pool_wipe(xks_random_pool *pool);

/* Any len; requests larger than the pool go to the CSPRNG directly. XKS_SYSTEM when the CSPRNG fails: out is zeroed. */
XKS_MUST_CHECK xks_status xks_random_draw(xks_random_pool *pool, uint8_t *out, size_t len);

#endif
