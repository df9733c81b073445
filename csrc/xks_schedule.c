/* SPDX-License-Identifier: Apache-2.0 */
#include "xks_schedule.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's struct sched_attr as of its first version; C libraries have begun to declare one, under the same name. */
struct attributes {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime; /* of the ordinary policy: the slice */
    uint64_t deadline;
    uint64_t period;
};

static xks_status status_of_errno(void)
{
    switch (errno) {
    case ESRCH:
        return XKS_NOT_FOUND;
    case EINVAL:
        return XKS_BAD_INPUT;
    default: /* EPERM; ENOSYS and EACCES of sandboxes */
        return XKS_NOT_PERMITTED;
    }
}

xks_status xks_schedule_slice(uint32_t thread, uint64_t slice_ns, uint64_t *in_force)
{
    struct attributes now = {0};
    *in_force = 0;
    if (syscall(SYS_sched_getattr, thread, &now, sizeof now, 0) != 0) {
        return status_of_errno();
    }
    if (now.policy != SCHED_OTHER && now.policy != SCHED_BATCH) {
        return XKS_OK;
    }
    now.size = sizeof now;
    now.runtime = slice_ns;
    if (syscall(SYS_sched_setattr, thread, &now, 0) != 0 || syscall(SYS_sched_getattr, thread, &now, sizeof now, 0) != 0) {
        return status_of_errno();
    }
    *in_force = now.runtime;
    return XKS_OK;
}
