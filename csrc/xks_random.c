/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_random.h"

#include "xks_bytes.h"
#include <openssl/rand.h>
#include <string.h>
#include <sys/mman.h>

/* The mark has a place of its own, so that the bytes stay aligned. */
#define MARK_BYTES 16U
#define PAGE_BYTES (MARK_BYTES + XKS_RANDOM_POOL_BYTES)

void xks_random_pool_init(xks_random_pool *pool)
{
    pool->used = XKS_RANDOM_POOL_BYTES;
    pool->page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool->page == MAP_FAILED) {
        pool->page = NULL;
    } else if (madvise(pool->page, PAGE_BYTES, MADV_WIPEONFORK) != 0) {
        (void)munmap(pool->page, PAGE_BYTES);
        pool->page = NULL;
    }
}

void xks_random_pool_wipe(xks_random_pool *pool)
{
    if (pool->page != NULL) {
        xks_wipe(pool->page, PAGE_BYTES);
        (void)munmap(pool->page, PAGE_BYTES);
        pool->page = NULL;
    }
}

static xks_status draw_directly(uint8_t *out, size_t len)
{
    if (len > INT32_MAX || RAND_priv_bytes(out, (int)len) != 1) {
        memset(out, 0, len);
        return XKS_SYSTEM;
    }
    return XKS_OK;
}

xks_status xks_random_draw(xks_random_pool *pool, uint8_t *out, size_t len)
{
    if (len > XKS_RANDOM_POOL_BYTES || pool->page == NULL) {
        return draw_directly(out, len);
    }
    uint8_t *bytes = pool->page + MARK_BYTES;
    if (pool->page[0] == 0 || XKS_RANDOM_POOL_BYTES - pool->used < len) {
        pool->used = XKS_RANDOM_POOL_BYTES;
        if (RAND_priv_bytes(bytes, XKS_RANDOM_POOL_BYTES) != 1) {
            memset(out, 0, len);
            return XKS_SYSTEM;
        }
        pool->page[0] = 1;
        pool->used = 0;
    }
    memcpy(out, bytes + pool->used, len);
    xks_wipe(bytes + pool->used, len);
    pool->used += len;
    return XKS_OK;
}
