# SPDX-License-Identifier: Apache-2.0
"""What an open Database promises, on SQLite and on PostgreSQL alike; opening is in test_database_opening.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from bench.postgres import PostgresServer
from tests.servers import wait_until
from tests.state.making import (
    ALICE,
    DATA_KEY,
    NOW_MS,
    a_credential,
    a_key,
    a_secret,
    a_store,
    changed,
    created,
    removed,
    write,
)
from xksfast.messages import CredentialUse, KeyUse
from xksfast.state.database import Database
from xksfast.state.errors import StateCorrupt, StateError, StateTooNew
from xksfast.state.events import GENESIS, Origin, event_hash
from xksfast.state.records import Checkpoint, Idempotency, NodeRow, WrappedDataKey

Open = Callable[[], Database]

# --- events and objects


def test_an_empty_state(database: Database) -> None:
    loaded = database.load()
    assert (loaded.objects, loaded.seq, loaded.head) == ([], 0, GENESIS)
    assert database.events_since(0) == []
    assert database.events() == []


def test_appended_events_are_chained_and_come_back_as_they_were(database: Database) -> None:
    weird = a_key(description='ünïcode \x00 " \\ \U0001f511', tags={"a": "ü"})
    events = write(database, created(a_store()), created(weird), changed(weird, a_key()), at_ms=42, node="node-1")
    assert [event.seq for event in events] == [1, 2, 3]
    assert {(event.node, event.at_ms, event.actor, event.origin) for event in events} == {
        ("node-1", 42, ALICE.actor, ALICE.address)
    }
    assert len({event.transaction for event in events}) == 1
    head = GENESIS
    for event in events:
        head = event_hash(event, head)
        assert event.hash == head
    assert database.events_since(0) == events
    assert database.events_since(2) == events[2:]
    assert database.head() == (3, events[2].hash)
    assert database.load().head == events[2].hash


def test_objects_are_what_the_events_make_of_them_in_the_order_of_their_making(database: Database) -> None:
    write(
        database,
        created(a_store()),
        created(a_key("payments", "a")),
        created(a_key("payments", "b")),
        created(a_key("payments", "c")),
    )
    write(database, changed(a_key("payments", "a"), a_key("payments", "a", enabled=False)))
    write(database, removed(a_key("payments", "b")))
    assert database.load().objects == [(a_store(), 1), (a_key("payments", "a", enabled=False), 5), (a_key("payments", "c"), 4)]


def test_one_transaction_may_change_an_object_many_times(database: Database) -> None:
    first, second, third = a_key(alias="1"), a_key(alias="2"), a_key(alias="3")
    write(database, created(first), changed(first, second), removed(second), created(second), changed(second, third))
    assert database.load().objects == [(third, 5)]
    write(database, changed(third, first), changed(first, second), removed(second), created(third))
    assert database.load().objects == [(third, 9)]
    write(database, removed(third), created(first), removed(first))
    assert database.load().objects == []
    assert len(database.events_since(0)) == 12


def test_events_since_never_cuts_a_transaction(database: Database) -> None:
    write(database, created(a_store()))
    write(database, *(created(a_key("payments", f"k{i}")) for i in range(5)))
    write(database, created(a_credential()))
    assert [event.seq for event in database.events_since(0, limit=1)] == [1]
    assert [event.seq for event in database.events_since(0, limit=3)] == [1, 2, 3, 4, 5, 6]
    assert [event.seq for event in database.events_since(1, limit=2)] == [2, 3, 4, 5, 6]
    assert [event.seq for event in database.events_since(6, limit=5)] == [7]


def test_the_audit_filters_are_all_held_and_paged_newest_first(database: Database) -> None:
    bob = Origin("operator:bob", "local")
    write(database, created(a_store()), at_ms=1000)
    write(database, *(created(a_key("payments", f"k{i}")) for i in range(4)), at_ms=2000, origin=bob)
    write(database, removed(a_key("payments", "k2")), at_ms=3000)
    found: dict[str, list[int]] = {
        "all": [event.seq for event in database.events()],
        "kind": [event.seq for event in database.events(kind="key")],
        "id": [event.seq for event in database.events(kind="key", id="payments/k2")],
        "actor": [event.seq for event in database.events(actor="operator:bob")],
        "action": [event.seq for event in database.events(action="test.delete")],
        "from": [event.seq for event in database.events(from_ms=2000)],
        "until": [event.seq for event in database.events(until_ms=2000)],
        "page": [event.seq for event in database.events(limit=2)],
        "next": [event.seq for event in database.events(limit=2, before_seq=5)],
        "both": [event.seq for event in database.events(id="payments/k2", actor="operator:bob")],
    }
    assert found == {
        "all": [6, 5, 4, 3, 2, 1],
        "kind": [6, 5, 4, 3, 2],
        "id": [6, 4],
        "actor": [5, 4, 3, 2],
        "action": [6],
        "from": [6, 5, 4, 3, 2],
        "until": [1],
        "page": [6, 5],
        "next": [4, 3],
        "both": [4],
    }


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET actor = 'x'", "DELETE FROM events", "DELETE FROM events WHERE seq = 2"]
)
def test_the_database_refuses_to_change_or_remove_events(database: Database, statement: str) -> None:
    events = write(database, created(a_store()), created(a_key()))
    with pytest.raises(StateError, match="never"), database.restoring() as connection:
        connection.execute(text(statement))
    assert database.events_since(0) == events


def test_postgresql_refuses_to_truncate_events(postgres: PostgresServer) -> None:
    database = Database.open(postgres.migrated_database())
    write(database, created(a_store()))
    with pytest.raises(StateError, match="never"), database.restoring() as connection:
        connection.execute(text("TRUNCATE events"))
    assert database.head()[0] == 1
    database.close()


def test_an_exception_in_the_block_leaves_nothing(database: Database) -> None:
    class Refused(Exception):
        pass

    def refused() -> None:
        with database.write("n1") as writer:
            writer.put_data_key(DATA_KEY)
            writer.put_secret(a_secret())
            writer.append([created(a_store())], ALICE, NOW_MS)
            raise Refused

    with pytest.raises(Refused):
        refused()
    assert database.load().objects == []
    assert database.head() == (0, GENESIS)
    assert database.secrets() == []
    assert len(write(database, created(a_store()))) == 1


def test_a_change_of_an_object_that_is_not_there_is_refused(database: Database) -> None:
    for change in (changed(a_key(), a_key(alias="x")), removed(a_key())):
        with pytest.raises(StateCorrupt, match="audit verify"):
            write(database, change)
    write(database, created(a_store()))
    with pytest.raises(StateCorrupt, match="contradicts"):
        write(database, created(a_store()))
    assert database.head()[0] == 1


def test_writers_queue_and_see_what_was_committed_before_them(open_database: Open) -> None:
    first, second = open_database(), open_database()
    entered, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def slow() -> None:
        with first.write("n1") as writer:
            entered.set()
            go_on.wait(10)
            writer.append([created(a_store())], ALICE, NOW_MS)

    def quick() -> None:
        with second.write("n2") as writer:
            seen.append(writer.seq)
            writer.append([created(a_key())], ALICE, NOW_MS)

    threads = [threading.Thread(target=slow), threading.Thread(target=quick)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert second_reads_while_another_writes(open_database()) == 0
    assert seen == []
    go_on.set()
    for thread in threads:
        thread.join()
    assert seen == [1]
    assert [event.node for event in first.events_since(0)] == ["n1", "n2"]


def second_reads_while_another_writes(database: Database) -> int:
    return database.load().seq


def test_an_object_of_a_newer_program_is_not_dropped_silently(database: Database) -> None:
    write(database, created(a_store()))
    with database.restoring() as connection:
        connection.execute(text("UPDATE objects SET body = :body"), {"body": '{"name":"payments","from_the_future":1}'})
    with pytest.raises(StateTooNew, match="payments"):
        database.load()


def test_loading_reads_pages_as_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xksfast.state.rows._PAGE", 3)
    write(database, created(a_store()), *(created(a_key("payments", f"k{i}")) for i in range(9)))
    assert [value.id for value, _ in database.load().objects] == ["payments", *(f"payments/k{i}" for i in range(9))]


# --- secrets


def test_secrets_are_put_replaced_and_removed(database: Database) -> None:
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
        writer.put_secret(a_secret("s-1"))
        writer.put_secrets([a_secret("s-2", b"\x00\xff", purpose="local_key"), a_secret("s-3")])
    assert database.data_keys() == [DATA_KEY]
    assert database.secret("s-2") == a_secret("s-2", b"\x00\xff", purpose="local_key")
    with database.write("n1") as writer:
        writer.put_secret(a_secret("s-2", b"anew", version=2))
        writer.remove_secret("s-1")
        writer.remove_secret("never there")
    assert database.secrets() == [a_secret("s-2", b"anew", version=2), a_secret("s-3")]
    assert database.secret("s-1") is None


def test_a_secret_needs_its_data_key_and_a_data_key_in_use_stays(database: Database) -> None:
    with pytest.raises(StateCorrupt), database.write("n1") as writer:
        writer.put_secret(a_secret())
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
        writer.put_secret(a_secret())
    with pytest.raises(StateCorrupt), database.write("n1") as writer:
        writer.remove_data_key(DATA_KEY.id)
    assert database.data_keys() == [DATA_KEY]


def test_sealed_bytes_of_a_removed_secret_are_not_in_the_file(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'state.db'}")
    marker = b"sealed bytes that must be gone"
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
        writer.put_secret(a_secret(sealed=marker))
    with database.write("n1") as writer:
        writer.remove_secret("s-1")
    with database.reading() as connection:
        assert connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)")).first() is not None
    database.close()
    assert marker not in (tmp_path / "state.db").read_bytes()


def test_all_secrets_move_to_a_new_data_key_or_none(database: Database) -> None:
    newer = WrappedDataKey("dk-2", "file", {}, b"w2", 1_790_000_001)
    events = write(database, created(a_store()))
    database.checkpoint(Checkpoint(1, events[0].hash, b"mac under dk-1", NOW_MS))
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
        writer.put_secrets([a_secret("s-1"), a_secret("s-2")])

    def reseal(rows: Any, checkpoints: Any, keep: int = 2) -> Any:
        again = [a_secret(row.id, b"anew", version=row.version + 1, data_key_id="dk-2") for row in rows[:keep]]
        return newer, again, [Checkpoint(c.seq, c.hash, b"mac under dk-2", c.at_ms) for c in checkpoints]

    with pytest.raises(StateError, match="nothing was changed"):
        database.replace_sealed("n1", lambda rows, checkpoints: reseal(rows, checkpoints, keep=1))
    assert database.data_keys() == [DATA_KEY]
    assert database.replace_sealed("n1", reseal) == 2
    assert database.data_keys() == [newer]
    assert {(row.id, row.sealed, row.version) for row in database.secrets()} == {("s-1", b"anew", 2), ("s-2", b"anew", 2)}
    assert database.checkpoints() == [Checkpoint(1, events[0].hash, b"mac under dk-2", NOW_MS)]


# --- nodes, counters, requests, checkpoints


def test_nodes_replace_what_they_said_before(database: Database) -> None:
    first = NodeRow("n1", "1.0", "https://n1", 1, 2, 3, 4, {"workers": [1, 2]})
    other = NodeRow("n2", "1.0", "https://n2", 1, 2, 3, 4)
    later = NodeRow("n1", "1.1", "https://n1", 10, 20, 30, 40, {"workers": []})
    for node in (first, other, later):
        database.heartbeat(node)
    assert database.nodes() == [later, other]
    database.forget_node("n1")
    database.forget_node("n1")
    assert database.nodes() == [other]


@pytest.mark.parametrize("details", [[], "problems", None, 7])
def test_a_node_whose_details_nobody_can_read_has_none(database: Database, details: Any) -> None:
    database.heartbeat(NodeRow("n1", "1.0", "https://n1", 1, 2, 3, 4, details))
    assert database.nodes() == [NodeRow("n1", "1.0", "https://n1", 1, 2, 3, 4)]


def test_use_adds_up_and_is_never_lowered(open_database: Open) -> None:
    first, second = open_database(), open_database()
    orders = KeyUse(store="payments", external_key_id="orders", version=1, encryptions=5)
    newer = KeyUse(store="payments", external_key_id="orders", version=2, encryptions=2**40)
    first.add_use([orders, newer, orders], [CredentialUse("payments", "A", 100), CredentialUse("payments", "A", 90)])
    second.add_use([orders], [CredentialUse("payments", "A", 50), CredentialUse("refunds", "A", 70)])
    first.add_use([], [])
    use = first.use()
    assert {(key.version, key.encryptions) for key in use.keys} == {(1, 15), (2, 2**40)}
    assert use.credentials == [CredentialUse("payments", "A", 100), CredentialUse("refunds", "A", 70)]
    with pytest.raises(ValueError, match="-1"):
        first.add_use([KeyUse(store="payments", external_key_id="orders", version=1, encryptions=-1)], [])


def test_nodes_that_count_at_once_lose_nothing(open_database: Open) -> None:
    databases = [open_database() for _ in range(3)]
    keys = [KeyUse(store="s", external_key_id=f"k{i}", version=1, encryptions=1) for i in range(4)]

    def count(database: Database, order: list[KeyUse]) -> None:
        for _ in range(8):
            database.add_use(order, [CredentialUse("s", "A", 1)])

    threads = [threading.Thread(target=count, args=(d, keys[i:] + keys[:i])) for i, d in enumerate(databases)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.encryptions for key in databases[0].use().keys} == {24}


def test_an_answer_is_remembered_with_what_it_answers(database: Database) -> None:
    row = Idempotency("key-1", "operator:alice", "ab" * 32, 201, b'{"name":"payments"}', NOW_MS)
    with database.write("n1") as writer:
        assert writer.idempotency("key-1") is None
        writer.put_idempotency(row)
    assert database.idempotency("key-1") == row
    with pytest.raises(StateCorrupt), database.write("n1") as writer:
        writer.put_idempotency(row)
    with database.write("n1") as writer:
        assert writer.forget_idempotency(NOW_MS) == 0
        assert writer.forget_idempotency(NOW_MS + 1) == 1
    assert database.idempotency("key-1") is None


def test_a_checkpoint_is_made_for_an_event_that_is_there(database: Database) -> None:
    (event,) = write(database, created(a_store()))
    database.checkpoint(Checkpoint(1, event.hash, b"mac", NOW_MS))
    assert database.checkpoints() == [Checkpoint(1, event.hash, b"mac", NOW_MS)]
    for wrong in (Checkpoint(2, event.hash, b"mac", NOW_MS), Checkpoint(1, bytes(32), b"mac", NOW_MS)):
        with pytest.raises(StateCorrupt):
            database.checkpoint(wrong)


# --- announcements


def test_postgresql_announces_what_was_committed_and_nothing_else(postgres: PostgresServer) -> None:
    database = Database.open(postgres.migrated_database())
    hints: list[int] = []
    stop = threading.Event()
    listener = threading.Thread(target=database.listen, args=(hints.append, stop))
    listener.start()
    try:
        wait_until(lambda: hints == [0], "the listener is there")
        with pytest.raises(StateCorrupt):  # rolled back: nobody is told
            write(database, created(a_store()), removed(a_key()))
        database.heartbeat(NodeRow("n1", "1.0", "", 1, 2, 3, 4))
        write(database, created(a_store()), created(a_key()))
        wait_until(lambda: hints == [0, 2], "the announcement")
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT 1' OR query LIKE 'LISTEN%'"
        )
        wait_until(lambda: hints == [0, 2, 0], "the listener is back")
        write(database, created(a_credential()))
        wait_until(lambda: hints == [0, 2, 0, 3], "the next announcement")
    finally:
        stop.set()
        listener.join(5)
        database.close()
    assert not listener.is_alive()


def test_on_sqlite_nobody_listens(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'state.db'}")
    hints: list[int] = []
    database.listen(hints.append, threading.Event())
    assert hints == []
    database.close()
