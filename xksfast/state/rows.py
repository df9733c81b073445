# SPDX-License-Identifier: Apache-2.0
"""Rows to values and back, and the reads that both Database and Writer need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, Table, select

from xksfast.messages import CredentialUse, KeyUse
from xksfast.state import schema
from xksfast.state.events import GENESIS, Event
from xksfast.state.records import Record, Use

Kind = TypeVar("Kind", bound=Record)

_PAGE = 5_000  # rows that are read at once: what a database gives in a fraction of PATIENCE_S

_events = schema.events
_event = select(
    *(
        _events.c[name]
        for name in (
            "seq",
            "at_ms",
            "transaction",
            "node",
            "actor",
            "origin",
            "action",
            "kind",
            "id",
            "before",
            "after",
            "hash",
        )
    )
)


def head(connection: Connection) -> tuple[int, bytes]:
    """(seq, hash) of the newest event; (0, GENESIS) when there is none."""
    found = connection.execute(select(_events.c.seq, _events.c.hash).order_by(_events.c.seq.desc()).limit(1)).first()
    return (0, GENESIS) if found is None else (found[0], bytes(found[1]))


def hash_at(connection: Connection, seq: int) -> bytes | None:
    """The hash of event `seq`; None: there is no such event; GENESIS for 0."""
    if seq == 0:
        return GENESIS
    found = connection.execute(select(_events.c.hash).where(_events.c.seq == seq)).scalar()
    return None if found is None else bytes(found)


def events_since(connection: Connection, seq: int, limit: int) -> list[Event]:
    """Events after `seq`: `limit` of them, and those that complete the last one's transaction."""
    statement = _event.where(_events.c.seq > seq).order_by(_events.c.seq)
    found = read_events(connection, statement.limit(limit))
    if len(found) == limit:
        last = found[-1]
        rest = _event.where(_events.c.seq > last.seq, _events.c.transaction == last.transaction).order_by(_events.c.seq)
        found += read_events(connection, rest)
    return found


def stream_events(connection: Connection) -> Iterator[Event]:
    """All events, oldest first, a page at a time."""
    seq = None
    while True:
        statement = _event.order_by(_events.c.seq).limit(_PAGE)
        page = read_events(connection, statement if seq is None else statement.where(_events.c.seq > seq))
        yield from page
        if len(page) < _PAGE:
            return
        seq = page[-1].seq


def stream(connection: Connection, table: Table, *order: str, names: Sequence[str] = ()) -> Iterator[Any]:
    """All rows of a table in the order of columns that make each row unique, a page at a time. names: of the columns; (): all."""
    columns = [table.c[name] for name in order]
    wanted: list[Any] = [table.c[name] for name in names] or [table]
    after: ColumnElement[bool] | None = None
    while True:
        statement = select(*wanted).order_by(*columns).limit(_PAGE)
        page = connection.execute(statement if after is None else statement.where(after)).all()
        yield from page
        if len(page) < _PAGE:
            return
        after = _beyond(columns, [page[-1]._mapping[name] for name in order])


def _beyond(columns: list[Any], values: list[Any]) -> ColumnElement[bool]:
    """(a, b) > (x, y), spelt out for both databases: a > x OR a = x AND b > y."""
    condition: ColumnElement[bool] = columns[0] > values[0]
    if len(columns) > 1:
        condition = condition | ((columns[0] == values[0]) & _beyond(columns[1:], values[1:]))
    return condition


def read_events(connection: Connection, statement: Select[Any]) -> list[Event]:
    """Of a statement over `events_of`'s columns."""
    return [
        Event(
            seq=row[0],
            at_ms=row[1],
            transaction=row[2],
            node=row[3],
            actor=row[4],
            origin=row[5],
            action=row[6],
            kind=row[7],
            id=row[8],
            before=_utf8(row[9]),
            after=_utf8(row[10]),
            hash=_utf8(row[11]) or b"",
        )
        for row in connection.execute(statement).all()
    ]


def _utf8(value: Any) -> bytes | None:
    """SQLite gives back whatever type somebody has put into a column; what is wrong with it is for verify to say."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def events_of() -> Select[Any]:
    """A statement for read_events, to be narrowed."""
    return _event


def event_values(event: Event) -> dict[str, Any]:
    """The row of an event."""
    return {
        "seq": event.seq,
        "at_ms": event.at_ms,
        "transaction": event.transaction,
        "node": event.node,
        "actor": event.actor,
        "origin": event.origin,
        "action": event.action,
        "kind": event.kind,
        "id": event.id,
        "before": None if event.before is None else event.before.decode(),
        "after": None if event.after is None else event.after.decode(),
        "hash": event.hash,
    }


def values_of(record: Record) -> Mapping[str, Any]:
    """The row of a record."""
    return msgspec.structs.asdict(record)


def all_of(connection: Connection, table: Table, record: type[Kind]) -> list[Kind]:
    """Every row as a record, in the order of the primary key."""
    order = [column.name for column in table.primary_key]
    return [record(*row) for row in stream(connection, table, *order, names=record.__struct_fields__)]


def some_of(connection: Connection, table: Table, record: type[Kind], where: ColumnElement[bool]) -> list[Kind]:
    """The rows that fulfil a condition."""
    columns = [table.c[name] for name in record.__struct_fields__]
    return [record(*row) for row in connection.execute(select(*columns).where(where)).all()]


def use(connection: Connection) -> Use:
    """All counters."""
    keys = [
        KeyUse(store=row.store, external_key_id=row.external_key_id, version=row.version, encryptions=row.encryptions)
        for row in stream(connection, schema.key_use, "store", "external_key_id", "version")
    ]
    credentials = [
        CredentialUse(store=row.store, access_key_id=row.access_key_id, last_used=row.last_used)
        for row in stream(connection, schema.credential_use, "store", "access_key_id")
    ]
    return Use(keys, credentials)
