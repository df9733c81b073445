/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_random.h"

#include "xks_bytes.h"
#include <openssl/rand.h>
#include <string.h>
#include <unistd.h>

void xks_random_pool_init(xks_random_pool *pool)
{
    memset(pool, 0, sizeof *pool);
    pool->used = XKS_RANDOM_POOL_BYTES;
    pool->pid = getpid();
}

void xks_random_pool_wipe(xks_random_pool *pool)
{
    xks_wipe(pool->bytes, sizeof pool->bytes);
    pool->used = XKS_RANDOM_POOL_BYTES;
}

xks_status xks_random_draw(xks_random_pool *pool, uint8_t *out, size_t len)
{
    if (len > XKS_RANDOM_POOL_BYTES) {
        if (len > INT32_MAX || RAND_priv_bytes(out, (int)len) != 1) {
            memset(out, 0, len);
            return XKS_SYSTEM;
        }
        return XKS_OK;
    }
    if (XKS_RANDOM_POOL_BYTES - pool->used < len || pool->pid != getpid()) {
        pool->pid = getpid();
        pool->used = XKS_RANDOM_POOL_BYTES;
        if (RAND_priv_bytes(pool->bytes, XKS_RANDOM_POOL_BYTES) != 1) {
            memset(out, 0, len);
            return XKS_SYSTEM;
        }
        pool->used = 0;
    }
    memcpy(out, pool->bytes + pool->used, len);
    xks_wipe(pool->bytes + pool->used, len);
    pool->used += len;
    return XKS_OK;
}
