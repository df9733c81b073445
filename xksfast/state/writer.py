# SPDX-License-Identifier: Apache-2.0
"""One transaction under the write lock: what it may read and what it may change.

A newcomer's trap: nothing that a Writer did is true before the `with` block that gave it has ended without an exception.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update
from sqlalchemy.engine import CursorResult

from xksfast.state import rows, schema
from xksfast.state.errors import StateCorrupt
from xksfast.state.events import Change, Event, Origin, chain
from xksfast.state.records import Checkpoint, Idempotency, SealedSecret, WrappedDataKey

Insert = Callable[..., Any]
Named = tuple[str, str]  # (kind, id)


class Writer:
    """seq, head: of the newest event, with those that were appended here. transaction: the id that its events carry."""

    def __init__(self, connection: Connection, insert_: Insert, node: str, where: str) -> None:
        self._connection = connection
        self._insert = insert_
        self._node = node
        self._where = where
        self.transaction = uuid.uuid4().hex
        self.seq, self.head = rows.head(connection)
        self.appended = False

    # --- events

    def events_since(self, seq: int, limit: int = 10_000) -> list[Event]:
        """Events after `seq`, whole transactions of them; more than `limit` only to end a transaction."""
        return rows.events_since(self._connection, seq, limit)

    def hash_at(self, seq: int) -> bytes | None:
        """The hash of event `seq`; None: there is no such event."""
        return rows.hash_at(self._connection, seq)

    def append(self, changes: Sequence[Change], origin: Origin, now_ms: int) -> list[Event]:
        """Write the events and what they do to the objects. StateCorrupt when an object is not there, or is there already."""
        events = chain(
            changes,
            after_seq=self.seq,
            head=self.head,
            at_ms=now_ms,
            transaction=self.transaction,
            node=self._node,
            origin=origin,
        )
        if events:
            self._connection.execute(insert(schema.events), [rows.event_values(event) for event in events])
            self._put_objects(events)
            self.seq, self.head, self.appended = events[-1].seq, events[-1].hash, True
        return events

    def _put_objects(self, events: Iterable[Event]) -> None:
        """Only how each object ends up is written, however often the transaction changed it."""
        gone: dict[Named, None] = {}
        made: dict[Named, dict[str, Any]] = {}
        changed: dict[Named, dict[str, Any]] = {}
        for event in events:
            named = (event.kind, event.id)
            if event.after is None:
                if made.pop(named, None) is None:
                    changed.pop(named, None)
                    gone[named] = None
            elif event.before is None:
                made[named] = {
                    "kind": event.kind,
                    "id": event.id,
                    "body": event.after.decode(),
                    "seq": event.seq,
                    "made_seq": event.seq,
                }
            elif named in made:
                made[named].update(body=event.after.decode(), seq=event.seq)
            else:
                changed[named] = {"k": event.kind, "i": event.id, "new_body": event.after.decode(), "new_seq": event.seq}
        table = schema.objects
        this = (table.c.kind == bindparam("k")) & (table.c.id == bindparam("i"))
        if gone:
            self._each(delete(table).where(this), [{"k": kind, "i": id_} for kind, id_ in gone])
        if changed:
            self._each(
                update(table).where(this).values(body=bindparam("new_body"), seq=bindparam("new_seq")), list(changed.values())
            )
        if made:
            self._connection.execute(insert(table), list(made.values()))

    def _each(self, statement: Any, values: list[dict[str, Any]]) -> None:
        """The statement for each of the values, each of which must hit one row."""
        result: CursorResult[Any] = self._connection.execute(statement, values)
        if result.rowcount != len(values):
            raise StateCorrupt(
                f"{self._where}: {len(values) - result.rowcount} of {len(values)} objects that were to be changed are not in the "
                "table of objects, though the log made them: run `xksfast audit verify`"
            )

    # --- secrets

    def secrets(self) -> list[SealedSecret]:
        """Every secret, sealed."""
        return rows.all_of(self._connection, schema.secrets, SealedSecret)

    def data_keys(self) -> list[WrappedDataKey]:
        """Every data key, wrapped."""
        return rows.all_of(self._connection, schema.data_keys, WrappedDataKey)

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint, oldest first."""
        return rows.all_of(self._connection, schema.checkpoints, Checkpoint)

    def put_secret(self, secret: SealedSecret) -> None:
        """A new one, or the same sealed anew. Its data key must be there."""
        self.put_secrets([secret])

    def put_secrets(self, secrets: Iterable[SealedSecret]) -> None:
        """Many at once."""
        self._put(schema.secrets, [rows.values_of(secret) for secret in secrets])

    def remove_secret(self, secret_id: str) -> None:
        """Its bytes are gone with it. No error when there is none."""
        self._connection.execute(delete(schema.secrets).where(schema.secrets.c.id == secret_id))

    def put_data_key(self, data_key: WrappedDataKey) -> None:
        """A new one, or the same wrapped anew."""
        self._put(schema.data_keys, [rows.values_of(data_key)])

    def remove_data_key(self, data_key_id: str) -> None:
        """No secret may be sealed under it any more: StateCorrupt."""
        self._connection.execute(delete(schema.data_keys).where(schema.data_keys.c.id == data_key_id))

    def put_checkpoints(self, checkpoints: Iterable[Checkpoint]) -> None:
        """New ones, or the same with another MAC."""
        self._put(schema.checkpoints, [rows.values_of(checkpoint) for checkpoint in checkpoints])

    # --- requests that were carried out

    def idempotency(self, key: str) -> Idempotency | None:
        """What was answered to the request with this key."""
        found = rows.some_of(self._connection, schema.idempotency, Idempotency, schema.idempotency.c.key == key)
        return found[0] if found else None

    def put_idempotency(self, row: Idempotency) -> None:
        """Remember an answer; the key must be new."""
        self._connection.execute(insert(schema.idempotency), rows.values_of(row))

    def forget_idempotency(self, before_ms: int) -> int:
        """Those older than this; how many there were."""
        result: CursorResult[Any] = self._connection.execute(
            delete(schema.idempotency).where(schema.idempotency.c.at_ms < before_ms)
        )
        return int(result.rowcount)

    def forget_idempotency_of(self, actor: str) -> None:
        """Those that were given to this actor: they may show secrets, and it is gone."""
        self._connection.execute(delete(schema.idempotency).where(schema.idempotency.c.actor == actor))

    def has_transaction(self, transaction: str) -> bool:
        """Whether a transaction's events are there. Under the write lock nobody can still be about to commit it."""
        found = select(schema.events.c.seq).where(schema.events.c.transaction == transaction).limit(1)
        return self._connection.execute(found).first() is not None

    def _put(self, table: Table, values: list[Mapping[str, Any]]) -> None:
        if values:
            self._connection.execute(replacing(self._insert, table), values)


def replacing(insert_: Insert, table: Table) -> Any:
    """INSERT that takes the place of a row with the same primary key."""
    statement = insert_(table)
    keys = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys},
    )
