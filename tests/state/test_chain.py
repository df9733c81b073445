# SPDX-License-Identifier: Apache-2.0
"""`audit verify`: every edit, removal and truncation of the log is found, and the words name the first bad event."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from tests.fix_database import KINDS, new_database
from tests.state.making import DATA_KEY, NOW_MS, a_credential, a_key, a_secret, a_store, changed, created, removed, write
from tests.state.test_store import drop_guards
from xksfast.state import rows, schema
from xksfast.state.chain import ChainCheck, LogCheck, checkpoint_bytes, renewed, verify, write_checkpoint
from xksfast.state.database import Database
from xksfast.state.events import GENESIS, Event, event_hash
from xksfast.state.records import Checkpoint, NodeRow

MAC_KEY = b"k" * 32
EVENTS = 8


def mac(data: bytes) -> bytes:
    return hmac.digest(MAC_KEY, data, "sha256")


def verify_mac(data: bytes, given: bytes) -> bool:
    return hmac.compare_digest(mac(data), given)


def fill(database: Database) -> None:
    """EVENTS events in four transactions, one checkpoint at the end, and the secret that a credential names."""
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
        writer.put_secret(a_secret("payments." + "A" * 20))
    write(database, created(a_store()), created(a_credential()))
    write(database, created(a_key("payments", "a")), created(a_key("payments", "b")), created(a_key("payments", "c")))
    write(database, changed(a_key("payments", "a"), a_key("payments", "a", enabled=False)))
    write(database, removed(a_key("payments", "b")), changed(a_key("payments", "c"), a_key("payments", "c", alias="c")))
    write_checkpoint(database, mac, NOW_MS)


@pytest.fixture
def filled(database: Database) -> Database:
    fill(database)
    return database


class Undo(Exception):
    """Ends a transaction that shows what verify would say of a change."""


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One filled database, without its guards, for tests that put back what they change."""
    database = Database.open(new_database(request, str(request.param), tmp_path_factory.mktemp("chain") / "state.db"))
    fill(database)
    with database.restoring() as connection:
        drop_guards(connection)
    yield database
    database.close()


def after(database: Database, *statements: str, **values: Any) -> list[tuple[int, str]]:
    """What verify finds once the statements were run; then all is put back."""
    held = {table.name: _rows(database, table) for table in schema.metadata.sorted_tables}
    with database.restoring() as connection:
        for statement in statements:
            connection.execute(text(statement), values if ":" in statement else {})
    report = verify(database, verify_mac)
    with database.restoring() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(table.delete())
        for table in schema.metadata.sorted_tables:
            if held[table.name]:
                connection.execute(table.insert(), held[table.name])
    return [(problem.seq, problem.text) for problem in report.problems]


def _rows(database: Database, table: Any) -> list[dict[str, Any]]:
    with database.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(table.select())]


def test_a_log_that_nobody_touched_is_good(filled: Database) -> None:
    report = verify(filled, verify_mac)
    assert report.problems == ()
    assert (report.events, report.seq, report.objects, report.checkpoints) == (EVENTS, EVENTS, 4, 1)
    assert report.head == filled.head()[1]
    assert verify(filled).is_good


def test_an_empty_log_is_good(database: Database) -> None:
    assert write_checkpoint(database, mac, NOW_MS) is None
    assert verify(database, verify_mac).is_good


OTHER = {
    "at_ms": 7,
    "transaction": "other",
    "node": "other",
    "actor": "operator:mallory",
    "origin": "198.51.100.1",
    "action": "test.other",
    "kind": "operator",
    "id": "payments/other",
    "before": '{"store":"payments","external_key_id":"a","versions":[]}',
    "after": '{"store":"payments","external_key_id":"a","versions":[]}',
    "hash": b"\x07" * 32,
}


@pytest.mark.parametrize("column", OTHER)
def test_an_edit_of_any_column_of_any_event_is_found_at_that_event(shared: Database, column: str) -> None:
    for seq in range(1, EVENTS + 1):
        found = after(shared, f"UPDATE events SET {quoted(column)} = :value WHERE seq = {seq}", value=OTHER[column])
        assert found, (column, seq)
        assert found[0][0] == seq
        assert any(f"event {seq} was changed" in words for _, words in found)
        assert not any("was changed, or put here" in words for at, words in found if at != seq)


def quoted(column: str) -> str:
    return f'"{column}"'


def test_a_null_in_the_place_of_an_object_is_found(shared: Database) -> None:
    for seq in range(1, EVENTS + 1):
        for column in ("before", "after"):
            events = [event for event in shared.events() if event.seq == seq]
            if getattr(events[0], column) is None:
                continue
            found = after(shared, f"UPDATE events SET {column} = NULL WHERE seq = {seq}")
            assert found[0][0] == seq


def test_a_removed_event_is_found(shared: Database) -> None:
    for seq in range(1, EVENTS):
        found = after(shared, f"DELETE FROM events WHERE seq = {seq}")
        assert found[0] == (seq, f"event {seq} is missing")
    found = after(shared, "DELETE FROM events WHERE seq IN (3, 4)")
    assert found[0] == (3, "events 3 to 4 are missing")


def test_a_renumbered_event_is_found(shared: Database) -> None:
    found = after(shared, "UPDATE events SET seq = 20 WHERE seq = 8")
    assert found[0][0] == 8
    found = after(
        shared,
        "UPDATE events SET seq = 20 WHERE seq = 4",
        "UPDATE events SET seq = 4 WHERE seq = 5",
        "UPDATE events SET seq = 5 WHERE seq = 20",
    )
    assert found[0][0] == 4


def test_a_truncated_log_is_found_by_its_checkpoint(shared: Database) -> None:
    found = after(shared, "DELETE FROM events WHERE seq > 6")
    assert (7, "a checkpoint saw event 8, which was removed, with all after event 6") in found


def test_a_truncated_log_whose_checkpoint_and_objects_are_gone_too_is_found_by_what_nodes_served(database: Database) -> None:
    write(database, created(a_store()))
    write(database, created(a_key()))
    database.heartbeat(NodeRow("n7", "1.0", "", 1, 2, acked_seq=1, restricted_seq=2))
    assert verify(database).is_good
    with database.restoring() as connection:
        drop_guards(connection)
        connection.execute(text("DELETE FROM events WHERE seq = 2"))
        connection.execute(text("DELETE FROM objects WHERE seq = 2"))
    problems = verify(database).problems
    assert [(problem.seq, problem.text) for problem in problems] == [
        (2, "node 'n7' has served event 2, but the log ends at event 1")
    ]


def test_a_log_that_was_rewritten_with_right_hashes_is_found_by_its_checkpoint(filled: Database) -> None:
    with filled.restoring() as connection:
        drop_guards(connection)
        events = list(rows.stream_events(connection))
        connection.execute(text("DELETE FROM events"))
        head = GENESIS
        for event in events:
            event = msgspec.structs.replace(event, actor="operator:nobody")
            head = event_hash(event, head)
            connection.execute(schema.events.insert(), rows.event_values(msgspec.structs.replace(event, hash=head)))
    (problem,) = verify(filled, verify_mac).problems
    assert problem.text.startswith("event 8 is not the one its checkpoint saw")


def test_a_forged_checkpoint_is_found(shared: Database) -> None:
    found = after(shared, "UPDATE checkpoints SET mac = :mac", mac=b"x" * 32)
    assert found == [(8, "the checkpoint at event 8 is not genuine: its MAC is wrong")]
    found = after(shared, "UPDATE checkpoints SET at_ms = 1")
    assert found[0][1].startswith("the checkpoint at event 8 is not genuine")
    found = after(shared, "UPDATE checkpoints SET seq = 7")
    assert found[0][1].startswith("the checkpoint at event 7 is not genuine")


def test_checkpoints_move_to_another_key(filled: Database) -> None:
    checkpoints = filled.checkpoints()
    again = renewed(checkpoints, lambda data: hashlib.sha256(data).digest())
    assert again == [
        Checkpoint(c.seq, c.hash, hashlib.sha256(checkpoint_bytes(c.seq, c.hash, c.at_ms)).digest(), c.at_ms)
        for c in checkpoints
    ]


@pytest.mark.parametrize(
    ("statement", "at", "words"),
    [
        (
            "UPDATE objects SET body = '{}' WHERE kind = 'key' AND id = 'payments/a'",
            6,
            "is not in the table of objects as event 6",
        ),
        ("UPDATE objects SET seq = 2 WHERE id = 'payments/a'", 6, "is not in the table of objects as event 6"),
        ("UPDATE objects SET made_seq = 100 WHERE id = 'payments/a'", 6, "is not in the table of objects as event 6"),
        ("DELETE FROM objects WHERE id = 'payments/a'", 6, "is missing from the table of objects"),
        (
            "INSERT INTO objects (kind, id, body, seq, made_seq) VALUES ('key', 'x', '{}', 5, 100)",
            5,
            "the events do not make it",
        ),
        ("DELETE FROM secrets", 2, "the sealed secret of credential"),
    ],
)
def test_a_table_that_does_not_agree_with_the_log_is_found(shared: Database, statement: str, at: int, words: str) -> None:
    found = after(shared, statement)
    assert [seq for seq, _ in found] == [at]
    assert words in found[0][1]


def test_a_boundary_between_two_columns_that_was_moved_is_found(database: Database) -> None:
    """What is hashed is the same bytes, but no longer two JSON documents."""
    tagged = a_key(tags={"x": "1", "after": "2"})
    write(database, created(a_store()))
    (event,) = write(database, created(tagged))
    (gone,) = write(database, removed(tagged))
    assert gone.before is not None
    head, tail = gone.before.split(b',"after":', 1)
    moved = msgspec.structs.replace(gone, before=head, after=tail + b',"after":null')
    assert event_hash(moved, event.hash) == gone.hash
    check = LogCheck()
    for each in (*database.events_since(0)[:2], moved):
        check.follow(each)
    assert {problem.seq for problem in check.problems} == {3}


def test_the_chain_of_another_log_is_followed_the_same_way() -> None:
    def hash_of(record: bytes, head: bytes) -> bytes:
        return hashlib.sha256(head + record).digest()

    log, head = [], GENESIS
    for number in range(5, 10):
        head = hash_of(b"line %d" % number, head)
        log.append((number, b"line %d" % number, head))

    def problems(log: list[tuple[int, bytes, bytes]]) -> list[int]:
        check = ChainCheck(hash_of, noun="record", seq=4)
        return [problem.seq for number, record, hash in log for problem in check.follow(record, number, hash)]

    assert problems(log) == []
    assert problems([*log[:2], (7, b"line x", log[2][2]), *log[3:]]) == [7]
    assert problems([*log[:2], *log[3:]]) == [7]
    assert problems([log[0], log[0], *log[1:]]) == [5, 5]


def test_many_problems_are_cut_short(database: Database) -> None:
    check = LogCheck()
    events: list[Event] = write(database, *(created(a_key("s", f"k{i}")) for i in range(150)))
    for event in events:
        check.follow(msgspec.structs.replace(event, actor="x"))
    assert len(check.problems) == 100


def test_progress_is_told(database: Database) -> None:
    told: list[tuple[int, int]] = []
    write(database, *(created(a_key("s", f"k{i}")) for i in range(5001)))
    progress: Callable[[int, int], None] = lambda done, total: told.append((done, total))  # noqa: E731
    verify(database, progress=progress)
    assert told == [(5000, 5001)]
