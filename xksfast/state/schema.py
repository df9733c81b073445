# SPDX-License-Identifier: Apache-2.0
"""The tables, the same in SQLite and PostgreSQL. The revisions in migrations/ make exactly them; a test compares.

JSON of objects is text, so that a person may read it in either database; what is hashed is its UTF-8, byte for byte.
A newcomer's trap: `objects` is what `events` add up to, kept so that a start need not fold years of events. The events are the truth.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

REVISION = "0001"  # the newest one in migrations/versions

# A rowid in SQLite, where only INTEGER is one.
Sequence = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("transaction", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("hash", LargeBinary, nullable=False),
    Index(None, "transaction"),
    Index(None, "kind", "id", "seq"),
    Index(None, "actor", "seq"),
)

# made_seq: the event that made the object. Each event concerns one object, so it is unique, and it is the order of their making.
objects = Table(
    "objects",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("body", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("made_seq", BigInteger, nullable=False),
    Index(None, "made_seq", unique=True),
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("data_key_id", Text, ForeignKey("data_keys.id"), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index(None, "data_key_id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("heartbeat_ms", BigInteger, nullable=False),
    Column("acked_seq", BigInteger, nullable=False),
    Column("restricted_seq", BigInteger, nullable=False),
    Column("details", JSON, nullable=False),
)

key_use = Table(
    "key_use",
    metadata,
    Column("store", Text, primary_key=True),
    Column("external_key_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("encryptions", BigInteger, nullable=False),
)

credential_use = Table(
    "credential_use",
    metadata,
    Column("store", Text, primary_key=True),
    Column("access_key_id", Text, primary_key=True),
    Column("last_used", BigInteger, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("actor", Text, nullable=False),
    Column("request_sha256", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index(None, "at_ms"),
)
