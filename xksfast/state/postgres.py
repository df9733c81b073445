# SPDX-License-Identifier: Apache-2.0
"""The state in PostgreSQL. A server that hangs is an error after PATIENCE_S, whatever it hangs in.

A newcomer's trap: the server's own time-outs end a slow statement, but a server that stands still does not look at its clock. So
the client has one as well: see PatientConnection.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.dialects import postgresql as dialect
from sqlalchemy.exc import DBAPIError

from xksfast.state.backend import CHANNEL, PATIENCE_S, Backend, first_line
from xksfast.state.errors import StateAbsent, StateCorrupt, StateError, StateFull, StateReadOnly, StateUnavailable

T = TypeVar("T")

_WRITE_LOCK = 0x786B736661737401  # "xksfast" and a one: of this database, whoever else uses the server
_MIGRATION_S = 600.0
_PING_S = 2.0
_LOOK_S = 0.25  # how soon a listener sees that it is to stop
_RETRY_S = 0.5

# Defaults of the connection; what the URL says wins. A primary is asked for, so that a list of hosts finds it after a fail-over.
# No tcp_user_timeout: the kernel would also end a connection whose server is only busy with what it was sent; our own patience is
# for both directions, and ends with the first byte that moves.
_CONNECTION = {
    "connect_timeout": "2",
    "keepalives_idle": "5",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "target_session_attrs": "read-write",
    "application_name": "xksfast",
    "client_encoding": "UTF8",
}

# A lock is given up before the statement is, so that it can be told from a slow server. A node that stands still with the lock in
# its hand loses it. Asynchronous commits are not for us; what is stronger than "on" stays.
_SETTINGS = """
SELECT set_config('lock_timeout', '1500', false), set_config('statement_timeout', '1900', false),
       set_config('idle_in_transaction_session_timeout', '30000', false),
       CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN set_config('synchronous_commit', 'on', false) END
"""


class PatientConnection(psycopg.Connection[Any]):
    """A connection on which a server that says nothing for PATIENCE_S is a lost one."""

    on_silent_ping: Callable[[], None] | None = None
    patience_s = PATIENCE_S

    def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Drives psycopg's protocol generator: it yields 1 to read, 2 to write, 3 for either, and wants to be sent what is possible.

        interval: unused, signals need no look between. timeout: unused, it is notifies' own.
        """
        poll = select.poll()
        try:
            wanted = next(gen)
            while True:
                poll.register(self.pgconn.socket, (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0))
                found = poll.poll(self.patience_s * 1000)
                if not found:
                    self._give_up()
                    raise psycopg.OperationalError(f"no answer within {self.patience_s:g} s")
                mask = found[0][1]
                ready = (1 if mask & ~select.POLLOUT else 0) | (2 if mask & ~select.POLLIN else 0)
                wanted = gen.send(ready & wanted or wanted)
        except StopIteration as done:
            value: T = done.value
            return value
        except psycopg.Error:
            raise
        except BaseException:  # interrupted in the middle of an answer: nobody can use this connection any more
            self.pgconn.finish()
            raise

    def _give_up(self) -> None:
        pinged = self._autocommit  # the pool asks outside of any transaction whether we are alive; nothing else does
        self.pgconn.finish()
        if pinged and self.on_silent_ping is not None:
            self.on_silent_ping()


class PostgresBackend(Backend):
    """url: "postgresql://user@host:port/database", with whatever libpq understands; its password may stand in ~/.pgpass."""

    insert = staticmethod(dialect.insert)
    one_moment: Mapping[str, Any] = {"isolation_level": "REPEATABLE READ"}

    def __init__(self, url: str) -> None:
        self._parameters = _parse(url)
        self.description = _describe(self._parameters)
        self._ping_was_silent = False
        self.engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_pre_ping=True,  # a server that was started anew costs a round trip, not an error
            use_native_hstore=False,
            hide_parameters=True,
        )

    def _connect(self) -> PatientConnection:
        if self._ping_was_silent:  # this connection is to replace one that let us wait just now: once is enough
            self._ping_was_silent = False
            raise psycopg.OperationalError(f"no answer within {PATIENCE_S:g} s")
        connection = PatientConnection.connect(
            prepare_threshold=None, **self._parameters
        )  # a prepared plan may outlive a migration
        connection.on_silent_ping = self._note_silent_ping
        try:
            encoding = connection.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise psycopg.NotSupportedError(
                    f"it is encoded as {encoding}: create a database with ENCODING 'UTF8' TEMPLATE template0"
                )
            connection.execute(_SETTINGS)
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection

    def _note_silent_ping(self) -> None:
        self._ping_was_silent = True

    def take_write_lock(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITE_LOCK})

    def take_your_time(self, connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        driver = connection.connection.driver_connection
        assert isinstance(driver, PatientConnection)
        driver.patience_s = _MIGRATION_S  # and so it stays: the pool drops a connection that was used for this
        connection.detach()

    def announce(self, connection: Connection, seq: int) -> None:
        connection.execute(text("SELECT pg_notify(:channel, :seq)"), {"channel": CHANNEL, "seq": str(seq)})

    def listen(self, on_hint: Callable[[int], None], stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._listen_once(on_hint, stop)
            except (psycopg.Error, OSError):  # polling reports what is wrong; here we only come back
                stop.wait(_RETRY_S)

    def _listen_once(self, on_hint: Callable[[int], None], stop: threading.Event) -> None:
        with self._connect() as connection:
            connection.on_silent_ping = None  # it belongs to no pool
            connection.autocommit = True
            connection.add_notify_handler(lambda notice: on_hint(int(notice.payload) if notice.payload.isdigit() else 0))
            connection.execute(f"LISTEN {CHANNEL}")
            on_hint(0)  # what was announced before we listened
            asked_at = time.monotonic()
            while not stop.is_set():
                readable, _, _ = select.select([connection], [], [], _LOOK_S)
                if readable or time.monotonic() - asked_at > _PING_S:
                    connection.execute("SELECT 1")  # takes in announcements, and shows whether the server is alive
                    asked_at = time.monotonic()

    def may_have_committed(self, error: DBAPIError) -> bool:
        """The server answers a COMMIT that it refuses; without an answer nobody knows."""
        return getattr(error.orig, "sqlstate", None) is None or error.connection_invalidated

    def explain(self, error: Exception) -> StateError:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        code, where, says = getattr(cause, "sqlstate", None) or "", self.description, first_line(cause)
        if code == "55P03":
            return StateUnavailable(
                f"{where}: another node holds the write lock and does not let go of it: nothing was changed. Try again; "
                "if it stays so, look for its session in pg_locks (locktype advisory)"
            )
        if code == "42P01":
            return StateAbsent(f"{where} holds no state ({says}): restore a backup, or correct [state] url")
        if code == "57014":
            return StateUnavailable(
                f"{where} is too slow: it needed more than {PATIENCE_S:g} s for a statement. Look at its load"
            )
        if code == "53100":
            return StateFull(f"{where} has no room on its disk: nothing was changed. Make room on the server and try again")
        if code == "25006" or (not code and "read-only" in says):
            return StateReadOnly(
                f"{where} takes no changes ({says}): it is a standby or was made read-only. Name the primary in [state] url, "
                "or several hosts, of which the primary is then found"
            )
        if code == "42501":
            return StateReadOnly(f"{where}: {says}. Make the role of [state] url the owner of the database")
        if code.startswith("XX00"):
            return StateCorrupt(f"{where} is damaged ({says}): see the server's log, and restore a backup")
        if code.startswith("23"):
            return StateCorrupt(f"{where} contradicts what was to be written ({says}): run `xksfast audit verify`")
        if code[:2] in ("", "08", "28", "3D", "40", "53", "57") or code == "25P03":
            return StateUnavailable(f"{where} cannot be used ({says}): see that it runs, and that [state] url is right")
        return StateError(f"{where}: {says} (SQLSTATE {code})")


def _parse(url: str) -> dict[str, Any]:
    """libpq's own parser. What it says of a wrong URL quotes it with the password, so it is not repeated."""
    try:
        given = conninfo_to_dict("postgresql://" + url.partition("://")[2])
    except psycopg.Error:
        raise StateError(
            "[state] url is not a PostgreSQL URL: it must look like postgresql://user@host:5432/database?sslmode=verify-full, "
            "and special characters in a part are written as %XX"
        ) from None
    return {**_CONNECTION, **{name: value for name, value in given.items() if value is not None}}


def _describe(parameters: Mapping[str, Any]) -> str:
    """Where it is, for people: no user, no password."""
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "a local socket")
    port = f", port {parameters['port']}" if parameters.get("port") else ""
    return f"PostgreSQL database {parameters.get('dbname') or 'of the default name'} at {hosts}{port}"
