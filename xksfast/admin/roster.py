# SPDX-License-Identifier: Apache-2.0
"""The other nodes that share the database, as it last told of them: which are alive, and which may serve without being heard of.

A newcomer's trap: a node that the database has not heard of for long is not a node that serves nothing. It may be cut off from the
database only, and goes on serving what it knew; so the kill switch asks every node that did not say that it stopped. And while we are
cut off ourselves, what it said may be old: a stopped node may have been started since. Whom to ask then is kept in a file, since a
node that starts without the database knows nobody otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.secret_file import write_secret_file
from xksfast.state.records import NodeRow

ALIVE_WITHIN_MS = 10_000  # a heartbeat is sent every second
MAY_SERVE_WITHIN_MS = 24 * 3600 * 1000  # what is silent for longer is taken for dead; what is forgotten by hand, at once
NEWS_FOR_S = 3.0  # the table is read every second


class Peer(msgspec.Struct, frozen=True):
    """silent_ms: since it was last heard of, when the database last told. stopped: it served nothing any more then."""

    name: str
    url: str
    silent_ms: int = 0
    stopped: bool = False

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
        self._told_at: float | None = None
        self._kept: object = None
        self._fails = False

    def told(self, rows: Iterable[NodeRow]) -> None:
        """What the database says now. While it is away the nodes that were alive then count as alive: one of them may not be.

        By the newest heartbeat of all, since the nodes' clocks need not be ours.
        """
        rows = list(rows)
        newest = max((row.heartbeat_ms for row in rows), default=0)
        peers = [Peer(row.name, row.url, newest - row.heartbeat_ms, row.is_stopped) for row in rows if row.name != self._node]
        self._peers = {peer.name: peer for peer in peers if peer.silent_ms <= MAY_SERVE_WITHIN_MS}
        self._told_at = self._clock()
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
        """For a start without the database: whom it told of when we last ran."""
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

    def may_serve(self) -> list[str]:
        """Names of all that nobody can say of that they serve nothing."""
        return sorted(peer.name for peer in self._peers.values() if not (peer.stopped and self._has_news()))

    def find(self, name: str) -> Peer | None:
        """None: it is no more."""
        return self._peers.get(name)

    def _has_news(self) -> bool:
        return self._told_at is not None and self._clock() - self._told_at <= NEWS_FOR_S
