# SPDX-License-Identifier: Apache-2.0
"""How long a thread may compute before another gets its turn."""

from __future__ import annotations

from xksfast.native.loader import check, ffi, lib

SHORTEST_US = 100  # that the kernel takes


def set_slice(slice_us: int, thread: int = 0) -> int:
    """Microseconds, SHORTEST_US to 100,000 (the kernel brings others there), or 0: the kernel's own. Returns what is in force now.

    thread: its id; 0: the caller. What it starts later inherits the slice. 0 is returned where there is nothing to set: Linux before
    6.12, or a policy of its own (chrt). NativeError: not permitted, by a sandbox for instance, or there is no such thread.
    """
    in_force = ffi.new("uint64_t *")
    check(lib.xks_schedule_slice(thread, 1000 * slice_us, in_force), what="sched_setattr")
    return int(in_force[0]) // 1000
