# SPDX-License-Identifier: Apache-2.0
"""Another node that runs under the name of this one, as happens to clones and containers: both write the same row of the nodes table.

Each node has a random id of its own (the file `instance` of its state directory), each of its processes another one. A newcomer's trap:
a row of another id proves nothing, since a node may have been moved or installed again: only who goes on writing is there. Clocks
differ, so what counts is that a heartbeat moves while we watch. A directory that was cloned has the same instance, not the same run.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from xksfast.admin.roster import ALIVE_WITHIN_MS, MAY_SERVE_WITHIN_MS
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.secret_file import FileThere, write_secret_file
from xksfast.state.database import Database
from xksfast.state.records import NodeRow

FILE = "instance"
WATCH_S = 3.5  # a heartbeat is sent every second
LOOK_AGAIN_S = 0.25
SUCCESSOR_S = 10.0  # for so long a former process of the same node may still end


class SameName(OperatorError):
    """A start is refused, since another node of this name runs: exit code 2."""


def instance_of(directory: Path, log: Log) -> str:
    """The node's id, made once. Where it can be neither read nor made, one for this process: that is no reason not to serve."""
    path = directory / FILE
    made = secrets.token_hex(16)
    try:
        if not path.exists():
            with suppress(FileThere):  # somebody was faster
                write_secret_file(path, made.encode() + b"\n")
        return path.read_text().strip() or made
    except (OSError, ValueError, OperatorError) as error:
        log.warning(
            "instance_not_kept", problem=str(error), why="a clone of this node that runs under its name is told from it later"
        )
        return made


class Twin:
    """What a node knows of others under its own name. url: its own. clock: in seconds, monotonic."""

    def __init__(self, name: str, instance: str, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._instance = instance
        self._url = url
        self._clock = clock
        self._run = secrets.token_hex(8)
        self._began = clock()
        self._wrote = False
        self._suspect: tuple[NodeRow, float] | None = None  # what was in the place of our row, and when
        self._seen: NodeRow | None = None
        self._seen_at = 0.0
        self._seen_time = ""
        self.alias = f"{name} (another node of this name)"

    @property
    def details(self) -> dict[str, str]:
        """Of this node, for its row."""
        return {"instance": self._instance, "run": self._run} | ({"twin": self.problem} if self.problem else {})

    # --- at the start

    def refuse_start(self, database: Database, sleep: Callable[[float], None] = time.sleep) -> None:
        """In the state thread. SameName: a node of this name and another instance goes on writing while we watch."""
        first = self._other_instance(database)
        until = self._clock() + WATCH_S
        while first is not None and self._clock() < until:
            sleep(LOOK_AGAIN_S)
            now = self._other_instance(database)
            if now is None:
                return
            if now.heartbeat_ms != first.heartbeat_ms:
                raise SameName(
                    f"[admin] node: another node named {self._name!r} runs already, at {_at(now.url)}, and this one is "
                    f"{_at(self._url)}. Two nodes of one name are one for the kill switch: a block would be confirmed by both "
                    "when one has heard of it. Give this one another [admin] node (the default is the host's name)"
                )

    def _other_instance(self, database: Database) -> NodeRow | None:
        row = next((row for row in database.nodes() if row.name == self._name), None)
        instance = row.details.get("instance") if row is not None else None
        return row if row is not None and instance and instance != self._instance and not row.is_stopped else None

    # --- while it runs

    def look(self, rows: Iterable[NodeRow]) -> None:
        """The nodes table as it is before this node writes into it again, about once a second."""
        row = next((row for row in rows if row.name == self._name), None)
        if row is None or not self._wrote or row.details.get("run") in (None, self._run):
            return
        if row.is_stopped:  # its last word
            self._seen = None
            return
        if row.details.get("instance") == self._instance and self._clock() - self._began < SUCCESSOR_S:
            return  # what ran before us is about to end
        former, self._suspect = self._suspect, (row, self._clock())
        if former is None or self._clock() - former[1] > SUCCESSOR_S or former[0].details.get("run") != row.details["run"]:
            return  # a restored database has such a row, too, once
        if former[0].heartbeat_ms == row.heartbeat_ms:
            return
        self._seen, self._seen_at = row, self._clock()
        self._seen_time = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    def wrote(self) -> None:
        """This node's own row is in the table."""
        self._wrote = True

    @property
    def problem(self) -> str:
        """A sentence while there is one, also one that is cut off from the database by now, since it may serve; else ""."""
        silent_ms = 1000 * (self._clock() - self._seen_at)
        if self._seen is None or silent_ms > MAY_SERVE_WITHIN_MS:
            return ""
        heard = (
            "" if silent_ms <= ALIVE_WITHIN_MS else f" (last heard of {self._seen_time}; if it is no more, restart this node)"
        )
        return (
            f"another node named {self._name!r} runs at {_at(self._seen.url)}{heard}, and this one at {_at(self._url)}: no block is "
            "confirmed for the two of them. Give one of them another [admin] node and restart it"
        )

    @property
    def url(self) -> str:
        """Where it may be told of blocks; "": nobody knows, or it is our own address."""
        return "" if self._seen is None or self._seen.url == self._url else self._seen.url


def _at(url: str) -> str:
    return url or "(no [admin] url)"
