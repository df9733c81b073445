/* SPDX-License-Identifier: Apache-2.0 */
/* xks_schedule.h - how long a thread may compute before another gets its turn.
 *
 * Layer:   primitive.
 * Threads: any.
 * Linux 6.12 and newer let a thread of the ordinary policy ask for a slice of its own (sched(7), EEVDF). One with a short slice
 * gets its turn sooner when it wakes, and no more time in all: what answers requests asks for it, beside processes that compute.
 */
#ifndef XKS_SCHEDULE_H
#define XKS_SCHEDULE_H

#include "xks_status.h"
#include <stdint.h>

/* thread: its id, 0 for the caller; what it starts later inherits the slice. slice_ns: 0 for the kernel's own; the kernel holds
 * the others between 100,000 and 100,000,000. Policy and nice value stay as they are.
 * *in_force: the slice that it has now, 0 where the kernel knows of none (before 6.12, or another policy: nothing was done).
 * XKS_NOT_FOUND: there is no such thread. XKS_NOT_PERMITTED: it is another's, or a sandbox forbids the call. XKS_BAD_INPUT: the
 * kernel does not know the call as it was written. */
XKS_MUST_CHECK xks_status xks_schedule_slice(uint32_t thread, uint64_t slice_ns, uint64_t *in_force);

#endif
