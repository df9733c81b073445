# SPDX-License-Identifier: Apache-2.0
"""Ends workers that hang: one that served and has not been heard of for a while is killed, and started again as any that dies.

A newcomer's trap: on a machine that was suspended, or a process tree that was stopped, nobody was heard of, and nobody hangs. So the
watchdog looks at its own delay first: when it did not run itself, every worker is given its time again.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from time import monotonic

from xksfast.log import Log
from xksfast.proxy.worker_slot import WorkerSlot

HUNG_AFTER_S = 10.0  # a heartbeat comes every second
LOOKS_PER_PATIENCE = 10
LATE_FACTOR = 2  # a look that comes so many intervals after the one before: we have not run ourselves


class Watchdog:
    """Watches `workers`."""

    def __init__(self, workers: Sequence[WorkerSlot], log: Log, hung_after_s: float = HUNG_AFTER_S) -> None:
        self._workers = workers
        self._log = log
        self._hung_after_s = hung_after_s

    async def run(self) -> None:
        """For ever."""
        interval_s = self._hung_after_s / LOOKS_PER_PATIENCE
        looked_at = monotonic()
        while True:
            await asyncio.sleep(interval_s)
            now = monotonic()
            self.look(now, now - looked_at > LATE_FACTOR * interval_s)
            looked_at = now

    def look(self, now: float, late: bool) -> None:
        """Once. late: this process has not run for a while, so nobody could be heard."""
        for worker in self._workers:
            if late:
                worker.heard_at = now
            elif (worker.ready or worker.ending) and now - worker.heard_at > self._hung_after_s:
                self._log.error(
                    "worker_hangs", worker=worker.index, silent_s=round(now - worker.heard_at, 1), sent=signal.SIGKILL.name
                )
                worker.ready = False  # it gets no more connections; its end is noticed in a moment
                worker.child.terminate(signal.SIGKILL)
