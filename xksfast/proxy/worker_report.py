# SPDX-License-Identifier: Apache-2.0
"""What a worker tells of itself: counters copied, nothing asked of a token, nothing waited for.

A newcomer's trap: this runs on the loop that serves requests, so it takes what others have written down and does no arithmetic on it;
the supervisor adds the workers up.
"""

from __future__ import annotations

import asyncio
import os
from time import monotonic, monotonic_ns

import msgspec

from xksfast import messages
from xksfast.ekm.pkcs11 import TokenEngine
from xksfast.native.engine import LATENCY_BOUNDS_NS, PartitionStatus
from xksfast.proxy.metrics import BOUNDS_NS
from xksfast.proxy.pipeline import Pipeline

LAG_PROBE_INTERVAL_S = 0.1
LAG_WINDOW_S = 15.0  # about the time between two scrapes


class LoopLag:
    """How late the event loop runs its timers: the longest of the last one to two windows."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._current = self._former = 0.0
        self._window_began = self._due = monotonic()

    @property
    def longest_s(self) -> float:
        """Reading it changes nothing, so that several readers see the same."""
        return max(self._current, self._former)

    def start(self) -> None:
        """Measure from now on."""
        self._window_began = monotonic()
        self._schedule(self._window_began)

    def _schedule(self, now: float) -> None:
        self._due = now + LAG_PROBE_INTERVAL_S
        self._loop.call_later(LAG_PROBE_INTERVAL_S, self._look)

    def _look(self) -> None:
        now = monotonic()
        self.note(now - self._due, now)
        self._schedule(now)

    def note(self, lag_s: float, now: float) -> None:
        """Take a measurement in."""
        if now - self._window_began > LAG_WINDOW_S:
            self._former, self._current, self._window_began = self._current, 0.0, now
        self._current = max(self._current, lag_s)


def make_report(
    number: int, *, pipeline: Pipeline, tokens: TokenEngine | None, connections: int, loop_lag_s: float
) -> messages.WorkerReport:
    """The report of this worker now."""
    metrics = pipeline.metrics
    return messages.WorkerReport(
        number=number,
        pid=os.getpid(),
        seq=pipeline.table.seq,
        connections=connections,
        loop_lag_s=loop_lag_s,
        requests=tuple(messages.RequestCount(*row) for row in metrics.requests()),
        request_durations=tuple(messages.RequestDurations(*row) for row in metrics.durations()),
        request_bounds_ns=BOUNDS_NS,
        engine=_engine_report(tokens),
        partitions=_partition_reports(tokens),
        call_bounds_ns=LATENCY_BOUNDS_NS if tokens else (),
    )


def _engine_report(tokens: TokenEngine | None) -> messages.EngineReport | None:
    if tokens is None:
        return None
    totals = tokens.engine.totals()
    return messages.EngineReport(**{name: totals[name] for name in messages.EngineReport.__struct_fields__})


def _partition_reports(tokens: TokenEngine | None) -> dict[str, messages.PartitionReport]:
    if tokens is None:
        return {}
    return {name: partition_report(tokens.engine.partition_status(index)) for index, name in enumerate(tokens.partition_names)}


def partition_report(status: PartitionStatus) -> messages.PartitionReport:
    """The engine's words as they travel: the fields of the same name, and the age of the last good probe."""
    report = msgspec.convert(status, messages.PartitionReport, from_attributes=True)
    if not status.last_good_probe_ns:
        return report
    age_s = max(0.0, (monotonic_ns() - status.last_good_probe_ns) / 1e9)
    return msgspec.structs.replace(report, last_good_probe_age_s=age_s)
