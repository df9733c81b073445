/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_router.h"

uint32_t xks_router_pick(const xks_partition_view *views, size_t count, uint32_t turn)
{
    uint32_t best = XKS_NO_PARTITION;
    for (size_t i = 0; i < count; i++) {
        size_t at = (i + turn) % count;
        if (views[at].ready && views[at].has_key &&
            (best == XKS_NO_PARTITION || views[at].in_flight < views[best].in_flight)) {
            best = (uint32_t)at;
        }
    }
    return best;
}
