# SPDX-License-Identifier: Apache-2.0
"""How late a generator itself is, whatever the server does: the difference between a slow proxy and a machine that cannot load it.

A request may be late since all connections wait for the server, which is the server's fault, or since the generator got no CPU. Two
measures tell them apart: a greenlet that has nothing to do but to wake up on time, and how much CPU the generator wanted (what it got
and what it stood in the run queue for).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from loadtests.series import Recorder

INTERVAL_S = 0.02
SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a CPU, ns in the run queue, slices
STAT = Path("/proc/stat")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def wanted_s() -> float:
    """Seconds for which this thread has wanted a CPU; without the kernel's statistics those for which it had one.

    What the hypervisor took counts as wanted: the kernel gives it to no thread, and takes it from who runs.
    """
    try:
        running, waiting, _ = SCHEDSTAT.read_text().split()
        taken_s = (
            int(STAT.read_text().split("\n", 1)[0].split()[8]) / TICKS_PER_S / (os.cpu_count() or 1)
        )  # "steal" of all CPUs
    except (OSError, ValueError, IndexError):
        return time.thread_time()
    return (int(running) + int(waiting)) / 1e9 + taken_s


def watch(
    recorder: Recorder,
    start: float,
    seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    wanted: Callable[[], float] = wanted_s,
) -> None:
    """Record until start + seconds on `clock`. Every moment counts, also those that were slept through."""
    sleep(max(0.0, start - clock()))
    began, wanted_before, number = clock(), wanted(), 0
    while number * INTERVAL_S < seconds:
        due = start + number * INTERVAL_S
        wait = due - clock()
        if wait > 0:
            sleep(wait)
        recorder.lag.record(max(0, round((clock() - due) * 1e6)))
        number += 1
        if number % 10 == 0:
            now, wanted_now = clock(), wanted()
            recorder.busy(wanted_now - wanted_before, now - began)
            began, wanted_before = now, wanted_now
