# SPDX-License-Identifier: Apache-2.0
"""What was used, read in part: of one key store, or of those key versions only that have encrypted often."""

from __future__ import annotations

from sqlalchemy import select

from xksfast.messages import CredentialUse, KeyUse
from xksfast.state import schema
from xksfast.state.database import Database
from xksfast.state.records import Use


def use_of_store(database: Database, store: str) -> Use:
    """All counters of one store, over all nodes."""
    keys, credentials = schema.key_use.c, schema.credential_use.c
    with database.reading() as connection:
        counted = connection.execute(
            select(keys.external_key_id, keys.version, keys.encryptions).where(keys.store == store)
        ).all()
        used = connection.execute(
            select(credentials.access_key_id, credentials.last_used).where(credentials.store == store)
        ).all()
    return Use(
        [KeyUse(store=store, external_key_id=id_, version=version, encryptions=number) for id_, version, number in counted],
        [CredentialUse(store=store, access_key_id=id_, last_used=at) for id_, at in used],
    )


def often_used(database: Database, at_least: int) -> list[KeyUse]:
    """Key versions that have encrypted so many times, over all nodes."""
    columns = schema.key_use.c
    with database.reading() as connection:
        found = connection.execute(select(schema.key_use).where(columns.encryptions >= at_least)).all()
    return [
        KeyUse(store=row.store, external_key_id=row.external_key_id, version=row.version, encryptions=row.encryptions)
        for row in found
    ]
