# SPDX-License-Identifier: Apache-2.0
"""What the routes read from the database itself: the event log, the nodes, and whether the log is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict

from xksfast.admin.api.parts import EventQuery, LogVerdict, NodeInfo
from xksfast.admin.api.replays import RunsInThread
from xksfast.admin.roster import Roster
from xksfast.state import chain
from xksfast.state.database import Database
from xksfast.state.events import Event


class LogReads:
    """run: runs a function in the thread of the database. open_another: the same database once more, to read all of it aside.

    is_mac: of (what a checkpoint's MAC is made over, the MAC). seq: of the newest event that this node knows.
    """

    def __init__(
        self,
        database: Callable[[], Database],
        run: RunsInThread,
        roster: Roster,
        *,
        open_another: Callable[[], Database],
        is_mac: Callable[[bytes, bytes], bool],
        seq: Callable[[], int],
    ) -> None:
        self._database = database
        self._run = run
        self._roster = roster
        self._open_another = open_another
        self._is_mac = is_mac
        self._seq = seq

    async def events(self, query: EventQuery) -> list[Event]:
        """Newest first."""
        return await self._run(lambda: self._database().events(**asdict(query)))

    async def nodes(self) -> list[NodeInfo]:
        """By name."""
        rows = await self._run(lambda: self._roster.read(self._database()))
        return [
            NodeInfo(
                name=row.name,
                version=row.version,
                url=row.url,
                started_at_ms=row.started_at_ms,
                heartbeat_ms=row.heartbeat_ms,
                applied_seq=row.acked_seq,
                restricted_seq=row.restricted_seq,
                seq=self._seq(),
                alive=self._roster.is_alive(row.name),
                stopped=row.is_stopped,
                problems=row.problems,
            )
            for row in rows
        ]

    async def verify(self) -> LogVerdict:
        """Seconds for a long log, so neither on the loop nor in the thread that everything else waits for."""
        report = await asyncio.to_thread(self._verify)
        return LogVerdict(
            ok=report.is_good,
            events=report.events,
            seq=report.seq,
            head=report.head.hex(),
            problems=tuple(problem.text for problem in report.problems),
        )

    def _verify(self) -> chain.Report:
        database = self._open_another()
        try:
            return chain.verify(database, self._is_mac)
        finally:
            database.close()
