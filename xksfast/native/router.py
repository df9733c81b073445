# SPDX-License-Identifier: Apache-2.0
"""Wrapper of the router (csrc/xks_router.h): which partition takes the next call. For tests, simulation and tools.

Sets of partitions are integers with bit p for partition p; times are nanoseconds of one clock that never goes back. A newcomer's trap:
requests are never served through this class, the engine calls the C itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from xksfast.native.loader import check, ffi, lib

MAX_PARTITIONS = int(lib.XKS_ROUTER_MAX_PARTITIONS)
MAX_CALLS = int(lib.XKS_ROUTER_MAX_CALLS)
NEVER_NS = (1 << 64) - 1


class Purpose(IntEnum):
    """What a call is for."""

    FIRST = lib.XKS_ROUTE_FIRST
    RETRY = lib.XKS_ROUTE_RETRY
    HEDGE = lib.XKS_ROUTE_HEDGE
    CHECK = lib.XKS_ROUTE_CHECK


class Verdict(IntEnum):
    """What pick said; a partition was chosen with CHOSEN only."""

    CHOSEN = lib.XKS_ROUTE_CHOSEN
    FULL = lib.XKS_ROUTE_FULL
    OUT = lib.XKS_ROUTE_OUT
    NO_KEY = lib.XKS_ROUTE_NO_KEY
    LATE = lib.XKS_ROUTE_LATE
    NO_BUDGET = lib.XKS_ROUTE_NO_BUDGET


class CallResult(IntEnum):
    """How a call ended."""

    SERVED = lib.XKS_CALL_SERVED
    FAULT = lib.XKS_CALL_FAULT
    NOT_MADE = lib.XKS_CALL_NOT_MADE


class Reason(IntEnum):
    """Why a partition would or would not be considered."""

    ELIGIBLE = lib.XKS_REASON_ELIGIBLE
    OUT_OF_SERVICE = lib.XKS_REASON_OUT_OF_SERVICE
    FULL = lib.XKS_REASON_FULL
    TOO_SLOW = lib.XKS_REASON_TOO_SLOW
    STALLED = lib.XKS_REASON_STALLED
    REMOTE = lib.XKS_REASON_REMOTE
    TRIED = lib.XKS_REASON_TRIED
    NO_KEY = lib.XKS_REASON_NO_KEY
    BUSY = lib.XKS_REASON_BUSY


@dataclass(frozen=True, slots=True)
class RouteView:
    """What the router knows of one partition. Fields and units as in csrc/xks_router.h, xks_route_view."""

    in_service: bool
    reason: Reason
    score: float
    in_flight: int
    written_off: int
    limit: int
    concurrency: float
    median_ns: int
    p95_ns: int
    oldest_call_ns: int
    slow_start: float
    faults_in_row: int
    firsts: int
    retries: int
    hedges: int
    checks: int
    served: int
    faults: int
    opens: int


class Router:
    """One router. Arguments that the C takes unchecked are checked here: a test must not write where nothing is."""

    def __init__(self, partitions: int, *, seed: int = 0, retry_budget: float = 0.2, hedge_budget: float = 0.05) -> None:
        config = ffi.new("xks_router_config *", (seed, partitions, retry_budget, hedge_budget))
        out = ffi.new("xks_router **")
        check(lib.xks_router_new(config, out), what="router")
        self.partitions = partitions
        self.pointer = ffi.gc(out[0], lib.xks_router_free)
        self._request = ffi.new("xks_route_request *")
        self._partition = ffi.new("uint32_t *")

    def _index(self, partition: int) -> int:
        if not 0 <= partition < self.partitions:
            raise IndexError(f"no partition {partition}")
        return partition

    def _fill(self, members: int, usable: int | None, tried: int, local: int, remaining_ns: int, purpose: Purpose) -> Any:
        request = self._request
        request.members, request.usable = members, members if usable is None else usable
        request.tried, request.local, request.remaining_ns, request.purpose = tried, local, remaining_ns, purpose
        return request

    def set_sessions(self, partition: int, sessions: int) -> None:
        """Threads that can take a call of this partition now."""
        lib.xks_router_set_sessions(self.pointer, self._index(partition), sessions)

    def set_in_service(self, partition: int, in_service: bool, now: int) -> None:
        """Logged in, and its last probes were good; or not."""
        lib.xks_router_set_in_service(self.pointer, self._index(partition), in_service, now)

    def pick(
        self,
        now: int,
        *,
        members: int,
        usable: int | None = None,
        tried: int = 0,
        local: int = 0,
        remaining_ns: int = 200_000_000,
        purpose: Purpose = Purpose.FIRST,
    ) -> tuple[Verdict, int]:
        """(verdict, partition); the partition means something with CHOSEN only. usable: every member when None."""
        request = self._fill(members, usable, tried, local, remaining_ns, purpose)
        verdict = lib.xks_router_pick(self.pointer, request, now, self._partition)
        return Verdict(verdict), int(self._partition[0])

    def explain(
        self,
        partition: int,
        now: int,
        *,
        members: int,
        usable: int | None = None,
        tried: int = 0,
        local: int = 0,
        remaining_ns: int = 200_000_000,
        purpose: Purpose = Purpose.FIRST,
    ) -> Reason:
        """Why pick with the same arguments would or would not consider the partition."""
        request = self._fill(members, usable, tried, local, remaining_ns, purpose)
        return Reason(lib.xks_router_explain(self.pointer, request, self._index(partition), now))

    def begin(self, partition: int, purpose: Purpose, now: int) -> int:
        """A call was handed over; the result is for end."""
        return int(lib.xks_router_begin(self.pointer, self._index(partition), purpose, now))

    def end(self, partition: int, call: int, result: CallResult, took_ns: int, now: int) -> bool:
        """It came back; True when the breaker must open now."""
        return bool(lib.xks_router_end(self.pointer, self._index(partition), call, result, took_ns, now))

    def overdue(self, now: int) -> int:
        """The set of partitions whose breaker must open now because a call hangs."""
        return int(lib.xks_router_overdue(self.pointer, now))

    def hedge_delay_ns(self, partition: int) -> int:
        """How long a call may be out before a hedge is worth asking for."""
        return int(lib.xks_router_hedge_delay_ns(self.pointer, self._index(partition)))

    def wait_ns(self, members: int, waiting: int, now: int) -> int:
        """How long a job behind `waiting` others would wait; NEVER_NS when no member is in service."""
        return int(lib.xks_router_wait_ns(self.pointer, members, waiting, now))

    def view(self, partition: int, now: int) -> RouteView:
        """What is known of one partition."""
        out = ffi.new("xks_route_view *")
        lib.xks_router_view(self.pointer, self._index(partition), now, out)
        fields = {name: getattr(out, name) for name in RouteView.__slots__}
        return RouteView(**fields | {"reason": Reason(out.reason)})
