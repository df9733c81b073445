# SPDX-License-Identifier: Apache-2.0
"""The whole state in one file, and back, from either kind of database into either kind.

Format, a JSON object a line, the file for its owner only:
    {"format": "xksfast backup 1", "revision": …, "seq": …, "head": …, "at_ms": …}
    {"<table>": {"<column>": …, …}}      events, objects, data_keys, secrets, key_use, credential_use, checkpoints; bytes as Base64
    {"counts": {"<table>": …}, "sha256": …}      over every byte before this line
Secrets are in it sealed, as they are in the database: the file is of no use without the master key, which is not in it.
What is of the moment (nodes, requests that were carried out) is left out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
from sqlalchemy import Connection, LargeBinary, Table, delete, func, insert, select

from xksfast.secret_file import sync_directory
from xksfast.state import rows, schema
from xksfast.state.chain import LogCheck, Progress, verify
from xksfast.state.database import Database
from xksfast.state.errors import StateCorrupt, StateError, StateTooNew
from xksfast.state.events import Event

FORMAT = "xksfast backup 1"
# A table stands after those that its rows name.
TABLES = (
    schema.events,
    schema.objects,
    schema.data_keys,
    schema.secrets,
    schema.key_use,
    schema.credential_use,
    schema.checkpoints,
)
_COUNTERS = {schema.key_use.name, schema.credential_use.name}
_BATCH = 500
_PROGRESS_ROWS = 5_000

_encoder = msgspec.json.Encoder()


class _Header(msgspec.Struct, frozen=True):
    format: str
    revision: str
    seq: int
    head: str
    at_ms: int


class _Trailer(msgspec.Struct, frozen=True):
    counts: dict[str, int]
    sha256: str


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What is in a backup: the state as of event `seq`, taken at at_ms; rows by table."""

    seq: int
    head: bytes
    at_ms: int
    revision: str
    counts: dict[str, int]


def write_backup(database: Database, path: Path, now_ms: int, *, progress: Progress | None = None) -> BackupInfo:
    """All of the state as it is at one moment, while others go on writing. StateError when the file is there, or cannot be written."""
    try:
        unfinished, name = tempfile.mkstemp(dir=path.parent, prefix=".new-backup-")  # 0600
        try:
            with os.fdopen(unfinished, "wb") as file:
                info = _write(database, file, now_ms, progress)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)  # fails where a rename would overwrite
        finally:
            os.unlink(name)
        sync_directory(path.parent)
    except FileExistsError:
        raise StateError(f"{path} is there already, and is not overwritten: give the backup another name") from None
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}: choose a directory that is there and has room") from None
    return info


def _write(database: Database, file: IO[bytes], now_ms: int, progress: Progress | None) -> BackupInfo:
    counts = {table.name: 0 for table in TABLES}
    with database.reading() as connection:
        seq, head = rows.head(connection)
        total = seq + sum(_count(connection, table) for table in TABLES if table is not schema.events)
        hashing = hashlib.sha256()

        def put(line: object) -> None:
            data = _encoder.encode(line) + b"\n"
            hashing.update(data)
            file.write(data)

        put(_Header(FORMAT, schema.REVISION, seq, head.hex(), now_ms))
        done = 0
        for table in TABLES:
            for row in rows.stream(connection, table, *(column.name for column in table.primary_key)):
                put({table.name: dict(row._mapping)})
                counts[table.name] += 1
                done += 1
                if progress is not None and (done % _PROGRESS_ROWS == 0 or done == total):
                    progress(done, total)
        put(_Trailer(counts, hashing.hexdigest()))
    return BackupInfo(seq, head, now_ms, schema.REVISION, counts)


def verify_backup(path: Path, *, progress: Progress | None = None) -> BackupInfo:
    """Read it all: its checksum, the chain of its events, and that they add up to its objects.

    StateCorrupt names the line or event; StateTooNew when a newer program made it; StateError when it is no backup.
    """
    reader = _Reader(path)
    check = LogCheck()
    objects: list[tuple[str, str, str, int, int]] = []
    secrets: set[str] = set()
    for done, (table, row) in enumerate(reader.rows(), 1):
        if table is schema.events:
            check.follow(_event(row))
        elif table is schema.objects:
            objects.append((row["kind"], row["id"], row["body"], row["seq"], row["made_seq"]))
        elif table is schema.secrets:
            secrets.add(row["id"])
        if progress is not None and done % _PROGRESS_ROWS == 0:
            progress(done, 0)
    info = reader.info()
    check.compare(objects, secrets)
    if (check.seq, check.head) != (info.seq, info.head):
        check.note(check.seq, f"its header speaks of event {info.seq}, but its events end at {check.seq}")
    if check.problems:
        raise StateCorrupt(f"{path} is damaged: " + "; ".join(problem.text for problem in check.problems[:5]))
    return info


def restore(database: Database, path: Path, *, progress: Progress | None = None) -> BackupInfo:
    """Fill an empty database from a backup, all of it or nothing, and verify it.

    StateError when the database is not empty; what verify_backup raises when the file is not good, before anything is written.
    """
    info = verify_backup(path)
    total = sum(info.counts.values())
    with database.restoring() as connection:
        held = [table.name for table in TABLES if connection.execute(select(table).limit(1)).first() is not None]
        counted = rows.use(connection)
        if set(held) - _COUNTERS:
            raise StateError(
                f"{database.description} is not empty (it has {', '.join(held)}): a backup is restored into an empty database only"
            )
        # Nodes that run meanwhile: what they served belongs to the log that is gone, what they counted since is counted on top.
        for table in (schema.nodes, schema.key_use, schema.credential_use):
            connection.execute(delete(table))
        done = 0
        for table, batch in _batches(_Reader(path).rows()):
            connection.execute(insert(table), batch)
            done += len(batch)
            if progress is not None:
                progress(done, total)
        database.add_use_within(connection, counted.keys, counted.credentials)
    report = verify(database, nodes=False)  # nodes that run meanwhile tell of the log that is gone
    if not report.is_good or (report.seq, report.head) != (info.seq, info.head):
        problems = "; ".join(problem.text for problem in report.problems[:5]) or "it ends at another event"
        raise StateCorrupt(f"{database.description} is not what {path} holds: {problems}")
    return info


class _Reader:
    """A backup, line by line. rows() first, to the end; then info()."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: _Header | None = None
        self._counts = {table.name: 0 for table in TABLES}

    def rows(self) -> Iterator[tuple[Table, dict[str, Any]]]:
        """Every row, as the database takes it. StateCorrupt, StateTooNew, StateError as verify_backup."""
        tables = {table.name: table for table in TABLES}
        hashing = hashlib.sha256()
        try:
            with self._path.open("rb") as file:
                first = file.readline()
                self._header = self._read_header(first)
                hashing.update(first)
                for number, line in enumerate(file, 2):
                    value = self._decoded(line, number)
                    if "sha256" in value:
                        self._check_trailer(line, number, hashing.hexdigest(), rest=file.read(1))
                        return
                    hashing.update(line)
                    ((name, row),) = value.items() if len(value) == 1 else (("", None),)
                    if name not in tables or not isinstance(row, dict):
                        raise self._damaged(number, "it is no row of a table")
                    self._counts[name] += 1
                    yield tables[name], self._row(tables[name], row, number)
        except OSError as error:
            raise StateError(f"{self._path} cannot be read: {error.strerror}") from None
        raise StateCorrupt(f"{self._path} is damaged: its end is missing")

    def info(self) -> BackupInfo:
        """What the header and the trailer say, once all rows were read."""
        assert self._header is not None
        header = self._header
        return BackupInfo(header.seq, bytes.fromhex(header.head), header.at_ms, header.revision, self._counts)

    def _read_header(self, line: bytes) -> _Header:
        try:
            header = msgspec.json.decode(line, type=_Header)
            bytes.fromhex(header.head)
        except ValueError:
            raise StateError(f"{self._path} is not a backup of xksfast: its first line is none of a backup") from None
        if header.format != FORMAT or header.revision != schema.REVISION:
            raise StateTooNew(
                f"{self._path} was made by another version of xksfast ({header.format}, schema {header.revision}; this one reads "
                f"{FORMAT}, schema {schema.REVISION}): restore it with that version, then update"
            )
        return header

    def _decoded(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = msgspec.json.decode(line) if line.endswith(b"\n") else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._damaged(number, "it is cut off, or no JSON")
        return value

    def _row(self, table: Table, row: dict[str, Any], number: int) -> dict[str, Any]:
        if set(row) != set(table.columns.keys()):
            raise self._damaged(number, f"it has not the columns of {table.name}")
        for column in table.columns:
            if isinstance(column.type, LargeBinary):
                try:
                    row[column.name] = base64.b64decode(row[column.name], validate=True)
                except (binascii.Error, ValueError, TypeError):
                    raise self._damaged(number, f"its {column.name} is no Base64") from None
        return row

    def _check_trailer(self, line: bytes, number: int, sha256: str, *, rest: bytes) -> None:
        try:
            trailer = msgspec.json.decode(line, type=_Trailer)
        except ValueError:
            raise self._damaged(number, "it is no end of a backup") from None
        if rest:
            raise self._damaged(number + 1, "something follows after the end")
        if trailer.sha256 != sha256:
            raise StateCorrupt(f"{self._path} is damaged: its checksum does not match what is in it")
        if trailer.counts != self._counts:
            raise StateCorrupt(f"{self._path} is damaged: it counts other rows than it has")

    def _damaged(self, number: int, what: str) -> StateCorrupt:
        return StateCorrupt(f"{self._path} is damaged: line {number}: {what}")


def _event(row: dict[str, Any]) -> Event:
    try:
        return Event(
            **{
                **row,
                "before": None if row["before"] is None else row["before"].encode(),
                "after": None if row["after"] is None else row["after"].encode(),
            }
        )
    except AttributeError:
        raise StateCorrupt("an event of the backup is no event: its objects are not text") from None


def _batches(
    stream: Iterator[tuple[Table, dict[str, Any]]],
) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """Runs of rows of one table."""
    batch: list[dict[str, Any]] = []
    current: Table | None = None
    for table, row in stream:
        if current is not None and batch and (table is not current or len(batch) >= _BATCH):
            yield current, batch
            batch = []
        current = table
        batch.append(row)
    if current is not None and batch:
        yield current, batch


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())
