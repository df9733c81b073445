# SPDX-License-Identifier: Apache-2.0
"""The state's database: SQLite or PostgreSQL, the same tables, the same promises.

What is committed is on disk; writers queue at one lock, so events have no gaps and follow on each other; what cannot be reached in
time is an error (errors.py), never a hang. A Database is used by one thread at a time; any number of them, in any number of processes
and nodes, may be open at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, Table, case, delete
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from xksfast.messages import CredentialUse, KeyUse
from xksfast.state import rows, schema
from xksfast.state.backend import Backend, open_backend
from xksfast.state.errors import OutcomeUnknown, StateCorrupt, StateError, StateTooNew
from xksfast.state.events import Event, decode_object
from xksfast.state.migrate import bring_up_to_date
from xksfast.state.objects import Stored
from xksfast.state.records import Checkpoint, Idempotency, Loaded, NodeRow, SealedSecret, Use, WrappedDataKey
from xksfast.state.writer import Writer, replacing

Resealed = tuple[WrappedDataKey, list[SealedSecret], list[Checkpoint]]


class Database:
    """An open database with this program's schema. description: where it is, for people; without a password."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.description = backend.description

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Database:
        """url: "sqlite:///relative.db", "sqlite:////absolute.db" or "postgresql://user@host/database".

        Brings the schema up to date; with `create`, makes what is not there. StateError when the database cannot be used, StateTooNew
        when a newer program has made it.
        """
        database = cls(open_backend(url, create=create))
        try:
            with database.explained():
                bring_up_to_date(database._backend, create=create)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close every connection."""
        self._backend.close()

    # --- events and objects

    def load(self) -> Loaded:
        """The whole state, as it was at one moment. StateTooNew, StateCorrupt when an object cannot be read."""
        with self.reading() as connection:
            seq, head = rows.head(connection)
            stored = rows.stream(connection, schema.objects, "made_seq", names=("kind", "id", "body", "seq", "made_seq"))
            objects = [(self._decoded(kind, id_, body), changed_seq) for kind, id_, body, changed_seq, _ in stored]
        return Loaded(objects, seq, head)

    def _decoded(self, kind: str, id_: str, body: str) -> Stored:
        try:
            return decode_object(kind, body)
        except (KeyError, ValueError) as error:
            raise StateTooNew(
                f"{self.description}: {kind} {id_!r} cannot be read ({error}): a newer xksfast wrote it, or it was changed by "
                "hand. Update this node; `xksfast audit verify` tells which it is"
            ) from None

    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the newest event."""
        with self.reading() as connection:
            return rows.head(connection)

    def events_since(self, seq: int, limit: int = 10_000) -> list[Event]:
        """Events after `seq`, whole transactions of them; more than `limit` only to end a transaction."""
        with self.reading() as connection:
            return rows.events_since(connection, seq, limit)

    def news(self, seq: int, limit: int = 10_000) -> tuple[bytes | None, tuple[int, bytes], list[Event]]:
        """At one moment: the hash at `seq` (None: no such event), the head, and events_since(seq)."""
        with self.reading() as connection:
            return rows.hash_at(connection, seq), rows.head(connection), rows.events_since(connection, seq, limit)

    def version(self) -> object | None:
        """See Backend. For one thread at a time."""
        with self.explained():
            return self._backend.version()

    def events(
        self,
        *,
        kind: str = "",
        id: str = "",
        actor: str = "",
        action: str = "",
        from_ms: int = 0,
        until_ms: int = 0,
        before_seq: int = 0,
        limit: int = 100,
    ) -> list[Event]:
        """Events that fulfil all that is given, newest first. until_ms: not included. before_seq: the last one of the page before."""
        column = schema.events.c
        conditions = [
            column[name] == value for name, value in (("kind", kind), ("id", id), ("actor", actor), ("action", action)) if value
        ]
        if from_ms:
            conditions.append(column.at_ms >= from_ms)
        if until_ms:
            conditions.append(column.at_ms < until_ms)
        if before_seq:
            conditions.append(column.seq < before_seq)
        with self.reading() as connection:
            return rows.read_events(connection, rows.events_of().where(*conditions).order_by(column.seq.desc()).limit(limit))

    # --- one writer at a time

    @contextmanager
    def write(self, node: str) -> Iterator[Writer]:
        """A transaction under the global write lock; committed at the end of the block, rolled back on any exception.

        Listeners are told of what was appended. OutcomeUnknown when the connection was lost during the commit.
        """
        with self.explained(), self._backend.begin_write() as connection:
            writer = Writer(connection, self._backend.insert, node, self.description)
            yield writer
            if writer.appended:
                self._backend.announce(connection, writer.seq)
            self._commit(connection, writer.transaction)

    def replace_sealed(self, node: str, reseal: Callable[[list[SealedSecret], list[Checkpoint]], Resealed]) -> int:
        """All secrets and checkpoints under a new data key, in one transaction; how many secrets.

        reseal: is given every row and returns the new data key and every row anew. Other nodes cannot write meanwhile. The former data
        keys are removed.
        """
        with self.write(node) as writer:
            former = writer.secrets()
            data_key, secrets, checkpoints = reseal(former, writer.checkpoints())
            if {secret.id for secret in secrets} != {secret.id for secret in former}:
                raise StateError("a secret was lost while it was sealed under the new data key: nothing was changed")
            old = [row.id for row in writer.data_keys() if row.id != data_key.id]
            writer.put_data_key(data_key)
            writer.put_secrets(secrets)
            writer.put_checkpoints(checkpoints)
            for data_key_id in old:
                writer.remove_data_key(data_key_id)
        return len(secrets)

    def _commit(self, connection: Connection, transaction: str) -> None:
        try:
            connection.commit()
        except DBAPIError as error:
            if not self._backend.may_have_committed(error):
                raise
            raise OutcomeUnknown(
                f"{self._backend.explain(error)}. Whether the change was made is not known: look before trying again",
                transaction,
            ) from None

    # --- secrets

    def secrets(self) -> list[SealedSecret]:
        """Every secret, sealed."""
        with self.reading() as connection:
            return rows.all_of(connection, schema.secrets, SealedSecret)

    def secret(self, secret_id: str) -> SealedSecret | None:
        """One secret, sealed."""
        with self.reading() as connection:
            found = rows.some_of(connection, schema.secrets, SealedSecret, schema.secrets.c.id == secret_id)
        return found[0] if found else None

    def data_keys(self) -> list[WrappedDataKey]:
        """Every data key, wrapped."""
        with self.reading() as connection:
            return rows.all_of(connection, schema.data_keys, WrappedDataKey)

    # --- nodes, counters, requests

    def heartbeat(self, node: NodeRow) -> None:
        """What a node says of itself, in the place of what it said before."""
        with self._changing() as connection:
            connection.execute(replacing(self._backend.insert, schema.nodes), [rows.values_of(node)])

    def nodes(self) -> list[NodeRow]:
        """Every node that ever told of itself and was not forgotten."""
        with self.reading() as connection:
            found = rows.all_of(connection, schema.nodes, NodeRow)
        return [row if isinstance(row.details, dict) else replace(row, details={}) for row in found]

    def forget_node(self, name: str) -> None:
        """A node that is no more. No error when there is none."""
        with self._changing() as connection:
            connection.execute(delete(schema.nodes).where(schema.nodes.c.name == name))

    def add_use(self, keys: Iterable[KeyUse], credentials: Iterable[CredentialUse]) -> None:
        """Count encryptions on top of those counted before, and note later uses of credentials. Nothing is ever lowered.

        Whoever is told OutcomeUnknown may add the same again: too many is the safe side. ValueError for a negative count.
        """
        with self._changing() as connection:
            self.add_use_within(connection, keys, credentials)

    def add_use_within(self, connection: Connection, keys: Iterable[KeyUse], credentials: Iterable[CredentialUse]) -> None:
        """The same in a transaction that there is already."""
        counted: dict[tuple[str, str, int], int] = {}
        for key in keys:
            if key.encryptions < 0:
                raise ValueError(f"{key.store}/{key.external_key_id}: a count of {key.encryptions}")
            named = (key.store, key.external_key_id, key.version)
            counted[named] = counted.get(named, 0) + key.encryptions
        # In one order on every node, so that no two of them wait for each other.
        counts = [
            {"store": store, "external_key_id": id_, "version": version, "encryptions": number}
            for (store, id_, version), number in sorted(counted.items())
        ]
        latest: dict[tuple[str, str], int] = {}
        for use in credentials:
            latest[use.store, use.access_key_id] = max(use.last_used, latest.get((use.store, use.access_key_id), 0))
        uses = [{"store": store, "access_key_id": id_, "last_used": at} for (store, id_), at in sorted(latest.items())]
        if counts:
            connection.execute(self._adding(schema.key_use, "encryptions", later=False), counts)
        if uses:
            connection.execute(self._adding(schema.credential_use, "last_used", later=True), uses)

    def _adding(self, table: Table, column: str, *, later: bool) -> Any:
        """INSERT that adds to the column of a row that is there; later: that keeps the greater of both."""
        statement = self._backend.insert(table)
        old, new = table.c[column], statement.excluded[column]
        value = case((new > old, new), else_=old) if later else old + new
        return statement.on_conflict_do_update(index_elements=[key.name for key in table.primary_key], set_={column: value})

    def use(self) -> Use:
        """All counters."""
        with self.reading() as connection:
            return rows.use(connection)

    def idempotency(self, key: str) -> Idempotency | None:
        """What was answered to the request with this key."""
        with self.reading() as connection:
            found = rows.some_of(connection, schema.idempotency, Idempotency, schema.idempotency.c.key == key)
        return found[0] if found else None

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note where the log ends; there must be such an event with this hash (StateCorrupt)."""
        with self._changing() as connection:
            if rows.hash_at(connection, checkpoint.seq) != checkpoint.hash:
                raise StateCorrupt(
                    f"{self.description}: event {checkpoint.seq} is not the one a checkpoint was made for: run `xksfast audit verify`"
                )
            connection.execute(replacing(self._backend.insert, schema.checkpoints), [rows.values_of(checkpoint)])

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, oldest first."""
        with self.reading() as connection:
            return rows.all_of(connection, schema.checkpoints, Checkpoint)

    # --- announcements

    def listen(self, on_hint: Callable[[int], None], stop: threading.Event) -> None:
        """For a thread of its own: on_hint(seq) as other nodes commit, on_hint(0) when something may have been missed.

        Comes back by itself when the connection is lost; returns when `stop` is set, within a few seconds even if the server hangs. On
        SQLite it returns at once: its nodes poll. A hint may be late or lost; events_since is the truth.
        """
        self._backend.listen(on_hint, stop)

    # --- transactions, also for verify and backup

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction all of whose reads see one moment."""
        with self.explained(), self._backend.engine.connect() as connection:
            if self._backend.one_moment:
                connection.execution_options(**self._backend.one_moment)
            yield connection

    @contextmanager
    def restoring(self) -> Iterator[Connection]:
        """A transaction under the write lock that may fill any table: for a restore, into an empty database."""
        with self.explained(), self._backend.begin_write() as connection:
            yield connection
            self._commit(connection, "")

    @contextmanager
    def _changing(self) -> Iterator[Connection]:
        """A transaction of its own that does not touch events or objects, so the global lock is not needed (SQLite has but one)."""
        with self.explained(), self._backend.begin_change() as connection:
            yield connection
            self._commit(connection, "")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns what a driver raises into a StateError. The driver's own error is not kept: its text may quote what was written."""
        try:
            yield
        except _driver_errors() as error:
            raise self._backend.explain(error) from None


def _driver_errors() -> tuple[type[Exception], ...]:
    """SQLAlchemy's, and those of the drivers that are loaded: raised while connecting, they are not all wrapped."""
    import sqlite3
    import sys

    found: list[type[Exception]] = [SQLAlchemyError, sqlite3.Error]
    with suppress(KeyError):
        found.append(sys.modules["psycopg"].Error)
    return tuple(found)
