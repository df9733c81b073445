# SPDX-License-Identifier: Apache-2.0
"""The state in one SQLite file: write-ahead log, every commit on disk before it is answered.

Newcomers' traps: Python's sqlite3 begins transactions by itself, and too late. It is told not to (isolation_level None); BEGIN and
BEGIN IMMEDIATE are ours. And whoever opens the file by himself and closes it lets go of all locks that this process has on it (POSIX:
they belong to the process, not to who took them); then the next process that is done with the file takes itself for the last one, and
removes the write-ahead log from under us, with what was committed to it. So nothing but SQLite opens a file that is there.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects import sqlite as dialect
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from xksfast.state.backend import PATIENCE_S, Backend, first_line
from xksfast.state.errors import StateAbsent, StateCorrupt, StateError, StateFull, StateReadOnly, StateUnavailable

_IMMEDIATE = "xksfast_immediate"  # execution option: the transaction takes the write lock as it begins


class SqliteBackend(Backend):
    """path: of the file, absolute or relative to the working directory."""

    insert = staticmethod(dialect.insert)

    def __init__(self, path: str, *, create: bool) -> None:
        self._path = Path(path).absolute()
        self.description = f"SQLite database {self._path}"
        self._make_private(create)
        self.engine = create_engine("sqlite://", creator=self._connect, poolclass=QueuePool, hide_parameters=True)
        self._watch: tuple[tuple[int, int], sqlite3.Connection] | None = None  # of this file
        event.listen(self.engine, "connect", self._prepare)
        event.listen(self.engine, "checkout", self._check_same_file)
        event.listen(self.engine, "begin", _begin)

    def _make_private(self, create: bool) -> None:
        """The file, for its owner's eyes only; SQLite gives the files beside it the same mode."""
        try:
            if create:
                with suppress(FileExistsError):
                    os.close(os.open(os.path.realpath(self._path), os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o600))
            mode = self._path.stat().st_mode
            if not stat.S_ISREG(mode):
                raise StateUnavailable(f"{self.description} is no file: correct [state] url")
            if mode & 0o077:
                self._path.chmod(0o600)
            if not os.access(self._path, os.R_OK | os.W_OK, effective_ids=os.geteuid() != os.getuid()):
                read_only = os.statvfs(self._path).f_flag & os.ST_RDONLY
                raise OSError(errno.EROFS, "") if read_only else PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except FileNotFoundError:
            what = "its directory is not there" if not self._path.parent.is_dir() else "there is no such file"
            raise StateUnavailable(f"{self.description}: {what}: create it, or correct [state] url") from None
        except PermissionError as error:
            raise StateReadOnly(
                f"{self.description} cannot be opened for writing: {error.strerror}: "
                "give the file and its directory to the user that xksfast runs as"
            ) from None
        except OSError as error:
            if error.errno == errno.EROFS:
                raise StateReadOnly(
                    f"{self.description} is on a file system that is mounted read-only: mount it for writing"
                ) from None
            raise StateUnavailable(f"{self.description} cannot be opened: {error.strerror}: correct [state] url") from None

    def _connect(self) -> sqlite3.Connection:
        """mode=rw: a file that has gone is an error, not a new and empty state."""
        return sqlite3.connect(f"file:{quote(str(self._path))}?mode=rw", uri=True, timeout=PATIENCE_S, check_same_thread=False)

    def _prepare(self, connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        record.info["file"] = self._file()
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(PATIENCE_S * 1000)}")
        mode = _in_wal_mode(connection)
        if mode != "wal":
            raise sqlite3.OperationalError(
                f"its journal mode stays {mode!r}: it needs a local file system, for its write-ahead log"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what was removed is not to be found in the file

    @contextmanager
    def begin_change(self) -> Iterator[Connection]:
        """The file's only lock: a transaction that reads first and writes then could be refused half way."""
        with self.begin_write() as connection:
            yield connection

    def _check_same_file(self, _connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        """A file that was put in the place of ours is opened anew: what is written to the former one nobody finds again."""
        if record.info["file"] != self._file():
            raise DisconnectionError("another file has its name")

    def _file(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def take_write_lock(self, connection: Connection) -> None:
        connection.execution_options(**{_IMMEDIATE: True}).begin()

    def take_your_time(self, connection: Connection) -> None:
        """Nothing but the lock is waited for in a time that is limited."""

    def announce(self, connection: Connection, seq: int) -> None:
        """Nobody listens: the nodes of a SQLite state poll."""

    def listen(self, on_hint: Callable[[int], None], stop: threading.Event) -> None:
        """There are no announcements."""

    def version(self) -> object | None:
        """SQLite's count of what other connections than the asking one have committed: that one does nothing else."""
        file = self._file()
        if self._watch is not None and self._watch[0] != file:
            self._watch[1].close()
            self._watch = None
        if file is None:
            return None
        if self._watch is None:
            self._watch = file, self._connect()
        return file, self._watch[1].execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        super().close()
        if self._watch is not None:
            self._watch[1].close()
            self._watch = None

    def may_have_committed(self, error: DBAPIError) -> bool:
        """A commit that could not be synced may be found in the write-ahead log at the next start."""
        return _name(error.orig).startswith("SQLITE_IOERR")

    def explain(self, error: Exception) -> StateError:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        name, where, says = _name(cause), self.description, first_line(cause)
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StateUnavailable(
                f"{where} is locked: another process has been writing to it for {PATIENCE_S:g} s. Try again; if it stays so, "
                "look for the process that has the file open (fuser)"
            )
        if name == "SQLITE_FULL":
            return StateFull(f"{where} cannot grow ({says}): nothing was changed. Make room on its file system and try again")
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
            return StateReadOnly(
                f"{where} cannot be written ({says}): nothing was changed. "
                "Give the file and its directory to the user that xksfast runs as"
            )
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StateCorrupt(f"{where} is damaged ({says}): stop xksfast, keep the file, and restore a backup")
        if isinstance(cause, sqlite3.IntegrityError):
            return StateCorrupt(f"{where} contradicts what was to be written ({says}): run `xksfast audit verify`")
        if says.startswith("no such table"):
            return StateAbsent(f"{where} holds no state ({says}): restore a backup, or correct [state] url")
        if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) or isinstance(cause, sqlite3.OperationalError):
            return StateUnavailable(f"{where} cannot be used ({says}): look at its disk and its directory, then try again")
        return StateError(f"{where}: {says}")


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_IMMEDIATE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _in_wal_mode(connection: sqlite3.Connection) -> Any:
    """The journal mode; while several processes change it at once SQLite says BUSY without waiting, so we wait."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not _name(error).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _name(error: BaseException | None) -> str:
    """SQLite's name of the error, "" when it has none."""
    return getattr(error, "sqlite_errorname", None) or ""
