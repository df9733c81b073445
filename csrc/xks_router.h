/* SPDX-License-Identifier: Apache-2.0 */
/* xks_router.h - which partition takes the next job.
 *
 * Layer:   below the engine; knows no threads, no tokens and no clock.
 * Memory:  allocates nothing.
 * Threads: pure function of its arguments.
 */
#ifndef XKS_ROUTER_H
#define XKS_ROUTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the router may know of one partition. */
typedef struct xks_partition_view {
    bool ready;         /* logged in, self-test passed */
    bool has_key;       /* the job's key is usable there */
    uint32_t in_flight; /* queued and running jobs */
} xks_partition_view;

#define XKS_NO_PARTITION UINT32_MAX

/* The index of the partition with the fewest jobs in flight among those that are ready and have the key; of equals, the first at or
 * after `turn`. XKS_NO_PARTITION when there is none. */
uint32_t xks_router_pick(const xks_partition_view *views, size_t count, uint32_t turn);

#endif
