# SPDX-License-Identifier: Apache-2.0
"""Asks every worker for its report, and keeps what workers that have ended had counted.

One round at a time: who asks while one is under way gets its outcome. A worker that does not answer in time is told apart from one
that did, and is not asked again until it has answered. A newcomer's trap: sums over workers must never go down, or Prometheus would
take it for a restart and invent requests. So the last report of a silent worker still counts, and that of an ended one is kept in
`ended`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xksfast import messages
from xksfast.proxy.worker_slot import WorkerSlot
from xksfast.status import Counters, WorkerView

REPORT_TIMEOUT_S = 0.5


@dataclass
class _Desk:
    """What is known of one worker's reports."""

    last: messages.WorkerReport | None = None  # of the process that runs now
    asked: int = 0  # number of the question it has not answered; 0: none


class ReportCollector:
    """Reports of `workers`. The supervisor hands in each report and each end of a worker."""

    def __init__(self, workers: Sequence[WorkerSlot], timeout_s: float = REPORT_TIMEOUT_S) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._desks = {worker.index: _Desk() for worker in workers}
        self._number = 0
        self._round: asyncio.Future[None] | None = None
        self.ended = Counters()  # of workers that are gone

    def received(self, worker: WorkerSlot, report: messages.WorkerReport) -> None:
        """A worker has answered, perhaps late."""
        desk = self._desks[worker.index]
        desk.last = report
        if report.number >= desk.asked:
            desk.asked = 0
        self._end_round_when_complete()

    def worker_ended(self, worker: WorkerSlot) -> None:
        """Its process is gone; what it had counted stays counted."""
        desk = self._desks[worker.index]
        if desk.last is not None:
            self.ended = self.ended.plus(desk.last)
        self._desks[worker.index] = _Desk()
        self._end_round_when_complete()

    def _end_round_when_complete(self) -> None:
        if self._round is not None and not self._round.done() and not any(desk.asked for desk in self._desks.values()):
            self._round.set_result(None)

    async def collect(self, why: Callable[[str], str] = lambda _: "") -> list[WorkerView]:
        """Every worker, with its newest report; at most the time-out later. why: by a child's name, why it does not work."""
        if self._round is None:
            self._round = asyncio.get_running_loop().create_future()
            try:
                await self._ask(self._round)
            finally:
                if not self._round.done():
                    self._round.set_result(None)
                self._round = None
        else:
            await asyncio.shield(self._round)
        return [self._view(worker, why(worker.child.name)) for worker in self._workers]

    async def _ask(self, over: asyncio.Future[None]) -> None:
        self._number += 1
        for worker in self._workers:
            desk = self._desks[worker.index]
            if not desk.asked and worker.child.send(messages.AskReport(number=self._number)):
                desk.asked = self._number
        if any(desk.asked for desk in self._desks.values()):
            await asyncio.wait([over], timeout=self._timeout_s)

    def _view(self, worker: WorkerSlot, problem: str) -> WorkerView:
        desk = self._desks[worker.index]
        return WorkerView(
            worker=worker.index,
            ready=worker.ready,
            healthy=worker.healthy,
            alive=worker.alive,
            answered=desk.last is not None and not desk.asked,
            restarts=worker.restarts,
            connections=worker.connections,
            report=desk.last,
            problem=problem,
        )
