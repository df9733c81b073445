# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of one worker: its process, whether it serves, how many connections it has."""

from __future__ import annotations

from time import monotonic

from xksfast.proxy.child import Child

HEARTBEAT_LOST_S = 5.0  # one comes every second


class WorkerSlot:
    """What the supervisor knows of worker `index`."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: Child
        self.started = False  # whether it is kept running
        self.ready = False
        self.ending = False  # its process was told to end by itself
        self.reload = 0  # number of the reload whose certificates its process was started with; 0: none
        self.healthy = False
        self.restarts = 0  # times that a process of it ended
        self.handed_over = 0
        self.closed = 0
        self.known = 0  # connections of it with an accepted signature
        self.heard_at = 0.0
        self.seq = 0

    @property
    def connections(self) -> int:
        """Connections of this worker that are open, those still on their way included."""
        return self.handed_over - self.closed

    @property
    def strangers(self) -> int:
        """Those of them on which no signature was accepted, as far as it has said."""
        return max(0, self.connections - self.known)

    @property
    def alive(self) -> bool:
        """Whether it was heard from lately."""
        return monotonic() - self.heard_at < HEARTBEAT_LOST_S

    def reset(self) -> None:
        """A new process: it has no connections."""
        self.ready = self.healthy = self.ending = False
        self.handed_over = self.closed = self.known = self.seq = 0
        self.heard_at = monotonic()
