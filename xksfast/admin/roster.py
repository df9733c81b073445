# SPDX-License-Identifier: Apache-2.0
"""The other nodes that share the database, as it last told of them: whom the kill switch asks, and who counts as alive.

Newcomers' traps: a node that the database has not heard of for long is not a node that serves nothing. It may be cut off from the
database only, and goes on serving what it knew. Nor is one that said that it stopped, since it may have been started without the
database. So all of them are asked, and only from whom nothing can be expected no answer is missed. Whom to ask is kept in a file, since
a node that starts without the database knows nobody otherwise. And clocks of nodes may be wrong by any time: a node is heard of when
what it last said changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.secret_file import write_secret_file
from xksfast.state.database import Database
from xksfast.state.records import NodeRow

ALIVE_WITHIN_MS = 10_000  # a heartbeat is sent every second
MAY_SERVE_WITHIN_MS = 24 * 3600 * 1000  # what is silent for longer is taken for dead; what is forgotten by hand, at once
NEWS_FOR_S = 3.0  # the table is read every second


class Peer(msgspec.Struct, frozen=True):
    """heartbeat_ms: when it last told of itself, by its own clock. silent_ms: how long that was ago when the database last told.

    stopped: it served nothing any more then. twin: a sentence when two nodes run under this name.
    """

    name: str
    url: str
    heartbeat_ms: int = 0
    silent_ms: int = 0
    stopped: bool = False
    twin: str = ""

    @property
    def doubt(self) -> str:
        """What to add to a fault of it when it does not answer; "" when it was heard of just now."""
        if self.stopped:
            return "; it had stopped when the database last told, but may have been started since, and then serves what it knew"
        if self.silent_ms <= ALIVE_WITHIN_MS:
            return ""
        return (
            f"; it was last heard of {self.silent_ms // 1000} s ago: if it runs it serves what it knew then, if it is no more: "
            f"`xksfast state forget-node {self.name}`"
        )


class Roster:
    """node: our own name. file: keeps the others' names and addresses. clock: in seconds, monotonic."""

    def __init__(self, node: str, file: Path, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._file = file
        self._log = log
        self._clock = clock
        self._peers: dict[str, Peer] = {}
        self._heard: dict[str, tuple[int, float]] = {}  # other nodes' heartbeats, and when each was new by our clock
        self._told_at: float | None = None
        self._kept: object = None
        self._fails = False

    def read(self, database: Database) -> list[NodeRow]:
        """What the nodes table says now, every node of it. For the state thread; StateError."""
        rows = database.nodes()
        self.told(rows)
        return rows

    def told(self, rows: Iterable[NodeRow]) -> None:
        """What the database says now. While it is away the nodes that were alive then count as alive: one of them may not be.

        What was heard of before we ran is as old as it says, by comparison with what we said ourselves.
        """
        rows, now = list(rows), self._clock()
        own_ms = next((row.heartbeat_ms for row in rows if row.name == self._node), time.time_ns() // 1_000_000)
        former, self._heard = self._heard, {}
        peers = {}
        for row in rows:
            if row.name == self._node:
                continue
            heartbeat_ms, heard_at = former.get(row.name, (row.heartbeat_ms, now - max(0, own_ms - row.heartbeat_ms) / 1000))
            if heartbeat_ms != row.heartbeat_ms:
                heard_at = now
            self._heard[row.name] = row.heartbeat_ms, heard_at
            silent_ms = round(1000 * (now - heard_at))
            if silent_ms <= MAY_SERVE_WITHIN_MS:
                peers[row.name] = Peer(row.name, row.url, row.heartbeat_ms, silent_ms, row.is_stopped, row.twin)
        self._peers = peers
        self._told_at = now
        self._keep()

    def _keep(self) -> None:
        kept = {peer.name: peer.url for peer in self._peers.values()}
        if kept == self._kept:
            return
        try:
            write_secret_file(self._file, msgspec.json.encode(kept) + b"\n", over=True)
        except OperatorError as error:
            if not self._fails:
                self._log.warning(
                    "peers_not_kept", problem=str(error), why="a start without the database would not tell them of blocks"
                )
            self._fails = True
        else:
            self._kept, self._fails = kept, False

    def recall(self) -> None:
        """At the start, since the database may be away or go away at once: whom it told of when we last ran."""
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            self._log.error(
                "peers_not_known", problem=f"{self._file}: {error}", why="until the database is there no block is told to them"
            )
            return
        self._peers = {name: Peer(name, url) for name, url in kept.items()}

    def alive(self) -> list[str]:
        """Names of those that were heard of just now."""
        return sorted(peer.name for peer in self._peers.values() if not peer.stopped and peer.silent_ms <= ALIVE_WITHIN_MS)

    def is_alive(self, name: str) -> bool:
        """Of any node, also of our own, which asks."""
        return name == self._node or name in self.alive()

    def all(self) -> list[Peer]:
        """By name: the alive, the silent, and the stopped ones."""
        return sorted(self._peers.values(), key=lambda peer: peer.name)

    def find(self, name: str) -> Peer | None:
        """None: it is no more."""
        return self._peers.get(name)

    def has_news(self) -> bool:
        """Whether the database told just now."""
        return self._told_at is not None and self._clock() - self._told_at <= NEWS_FOR_S
