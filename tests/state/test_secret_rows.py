# SPDX-License-Identifier: Apache-2.0
"""Secrets follow the log, and a database that goes away between a change and its secrets makes nobody miss either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.state.making import ALICE, DATA_KEY, a_credential, a_secret, a_store, created, opened, removed
from xksfast.state.away import AwayDatabase
from xksfast.state.database import Database
from xksfast.state.errors import StateUnavailable
from xksfast.state.events import Event
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Plan

SEALER, AWAY = cast(Any, None), cast(Database, AwayDatabase("the cable is out"))
CREDENTIAL, SECRET = a_credential(), a_secret(a_credential().secret_id)
MADE = Plan(changes=[created(a_store()), created(CREDENTIAL)], new_secrets=[SECRET])
Open = Callable[[], Database]


def with_data_key(database: Database) -> Database:
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
    return database


def test_what_a_node_has_committed_itself_needs_no_database_any_more(database: Database) -> None:
    rows, told = SecretRows(AWAY, SEALER), list[Event]()
    store = opened(with_data_key(database), secrets=rows, on_events=told.extend)
    committed = store.transact(ALICE, lambda state: MADE)
    assert told == committed.events
    assert rows.rows() == [SECRET]


def test_events_whose_secrets_cannot_be_fetched_now_come_again(database: Database, open_database: Open) -> None:
    rows, told = SecretRows(AWAY, SEALER), list[Event]()
    store = opened(database, "n2", secrets=rows, on_events=told.extend)
    committed = opened(with_data_key(open_database())).transact(ALICE, lambda state: MADE)
    with pytest.raises(StateUnavailable, match="the cable is out"):
        store.catch_up()
    assert (store.seq, told, rows.rows()) == (0, [], [])
    rows.connect(open_database(), SEALER)
    store.catch_up()
    assert (told, rows.rows()) == (committed.events, [SECRET])


def test_what_is_removed_is_let_go_of(database: Database) -> None:
    rows = SecretRows(database, SEALER)
    store = opened(with_data_key(database), secrets=rows)
    store.transact(ALICE, lambda state: MADE)
    store.transact(ALICE, lambda state: Plan(changes=[removed(CREDENTIAL)], removed_secrets=[SECRET.id]))
    assert rows.rows() == []
