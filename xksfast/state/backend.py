# SPDX-License-Identifier: Apache-2.0
"""What SQLite and PostgreSQL do differently, behind one interface: connecting, the write lock, announcing, and what their errors mean.

What lives here: the interface and the choice by URL. What must not: a table. Only `sqlite.py` and `postgres.py` know a driver.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from xksfast.state.errors import StateError

CHANNEL = "xksfast_events"  # what a committed change is announced on
PATIENCE_S = 2.0  # a database that keeps us waiting for longer counts as away


class Backend(ABC):
    """One database. description: where it is, for people; without a password. engine: connections that fail rather than hang.

    one_moment: options of a connection all of whose reads see one moment. insert: the dialect's INSERT, which knows ON CONFLICT.
    """

    description: str
    engine: Engine
    one_moment: Mapping[str, Any] = {}
    insert: Callable[..., Any]

    @contextmanager
    def begin_write(self) -> Iterator[Connection]:
        """A transaction that holds the global write lock: whoever has it sees all that was committed, and nobody else writes.

        Whoever uses it commits; a transaction left open is rolled back.
        """
        with self.engine.connect() as connection:
            self.take_write_lock(connection)
            yield connection

    @contextmanager
    def begin_change(self) -> Iterator[Connection]:
        """A transaction that writes without the global lock, where there is a finer one."""
        with self.engine.connect() as connection:
            yield connection

    @abstractmethod
    def take_write_lock(self, connection: Connection) -> None:
        """The first statement of a transaction. Waits for at most PATIENCE_S."""

    @abstractmethod
    def take_your_time(self, connection: Connection) -> None:
        """For the rest of the transaction no statement is too slow: for changes of the schema, which may rewrite a table."""

    @abstractmethod
    def announce(self, connection: Connection, seq: int) -> None:
        """Tell the listeners of all nodes, once this transaction is committed, that there is an event `seq`."""

    @abstractmethod
    def explain(self, error: Exception) -> StateError:
        """A driver's error in words that say what is wrong, why, and what to do."""

    @abstractmethod
    def may_have_committed(self, error: DBAPIError) -> bool:
        """Whether a COMMIT that failed like this may have been carried out all the same."""

    @abstractmethod
    def listen(self, on_hint: Callable[[int], None], stop: threading.Event) -> None:
        """For a thread of its own: on_hint(seq) for every announcement, on_hint(0) when some may have been missed, until `stop` is set.

        Returns at once where there are no announcements.
        """

    def version(self) -> object | None:
        """What is equal as long as nobody commits anything, for who asks often; None: one must look."""
        return None

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_backend(url: str, *, create: bool) -> Backend:
    """By the URL's scheme. create: a SQLite file that is not there may be made. StateError when the URL is not one of ours."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from xksfast.state.sqlite import SqliteBackend

        return SqliteBackend(rest[1:], create=create)
    if separator and scheme in ("postgresql", "postgres"):
        from xksfast.state.postgres import PostgresBackend

        return PostgresBackend(url)
    raise StateError(
        f"{f'a state of scheme {scheme!r}' if separator else 'the state url'} is not known: set [state] url to "
        '"sqlite:///xksfast.db", "sqlite:////var/lib/xksfast/xksfast.db" or "postgresql://user@host/database"'
    )


def first_line(error: BaseException) -> str:
    """What the driver says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
