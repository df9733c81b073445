# SPDX-License-Identifier: Apache-2.0
"""The bound on TLS handshakes: a flood of them may take a share of a worker's time, never all of it.

A handshake costs 165 us (P-256) to over a millisecond (RSA), a request on a served connection 15 us; without a bound, anyone who
can open connections stops everyone who is served. Time, not number, is what is counted, so that the bound holds for any key
type. Connections over the budget wait, newest first: KMS gives up after 250 ms, so the newest is the one still worth serving,
and a flood cannot put a queue in front of it.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from time import monotonic_ns
from typing import Protocol

SHARE = 0.30  # of one core
BURST_NS = 40_000_000  # 40 ms: about 200 handshakes at once after a quiet time
TICK_S = 0.004
MAX_WAITING = 512


class WaitingHandshake(Protocol):
    """A connection whose handshake is put off."""

    def resume_handshake(self) -> None: ...
    def evict(self) -> None: ...


class HandshakeGate:
    """A token bucket of nanoseconds, shared by the connections of one worker."""

    def __init__(self, loop: AbstractEventLoop, *, share: float = SHARE, burst_ns: int = BURST_NS) -> None:
        self._loop = loop
        self._share = share
        self._burst_ns = burst_ns
        self._budget_ns = float(burst_ns)
        self._refilled_at_ns = monotonic_ns()
        self._waiting: list[WaitingHandshake] = []
        self._timer: TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Number of connections that wait for their turn."""
        return len(self._waiting)

    def admit(self) -> bool:
        """True when handshake work may be done now; report its cost with spent()."""
        self._refill()
        return self._budget_ns > 0

    def spent(self, ns: int) -> None:
        """Handshake work took this long."""
        self._budget_ns -= ns

    def wait(self, connection: WaitingHandshake) -> None:
        """Put a connection off. Its resume_handshake() is called when there is budget; over the bound the oldest is evicted."""
        self._waiting.append(connection)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.pop(0).evict()
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def forget(self, connection: WaitingHandshake) -> None:
        """The connection is gone."""
        if connection in self._waiting:
            self._waiting.remove(connection)

    def _refill(self) -> None:
        now = monotonic_ns()
        self._budget_ns = min(self._budget_ns + (now - self._refilled_at_ns) * self._share, float(self._burst_ns))
        self._refilled_at_ns = now

    def _tick(self) -> None:
        """Resume the newest while there is budget, but never for longer than one tick's share, so that requests get through."""
        self._timer = None
        began = monotonic_ns()
        try:
            while self._waiting and self.admit() and monotonic_ns() - began < TICK_S * 1e9 * self._share:
                self._waiting.pop().resume_handshake()
        finally:  # one that fails must not leave the others waiting
            if self._waiting and self._timer is None:
                self._timer = self._loop.call_later(TICK_S, self._tick)
