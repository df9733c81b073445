# SPDX-License-Identifier: Apache-2.0
"""StateStore: many nodes on one database, each with the whole truth, whatever is interleaved, killed or restored."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.fix_database import KINDS, new_database
from tests.state.making import (
    ALICE,
    DATA_KEY,
    NOW_MS,
    a_credential,
    a_key,
    a_secret,
    a_store,
    all_of,
    an_operator,
    changed,
    created,
    opened,
    put,
    removed,
    write,
)
from xksfast.state import rows, schema
from xksfast.state.chain import verify
from xksfast.state.database import Database
from xksfast.state.errors import StateCorrupt, StateTooNew, StateUnavailable, StateWentBack
from xksfast.state.events import Event
from xksfast.state.objects import Stored
from xksfast.state.projection import State
from xksfast.state.records import Idempotency
from xksfast.state.store import Once, Plan, StateStore

ROOT = Path(__file__).resolve().parents[2]
Open = Callable[[], Database]


def everything(store: StateStore) -> dict[str, Any]:
    with store.reading() as state:
        return all_of(state)


def test_what_is_transacted_is_in_the_state_and_in_the_database(database: Database) -> None:
    store = opened(database, now_ms=lambda: NOW_MS)
    plan = Plan(changes=[created(a_store()), created(a_credential())], answer="done")
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
    committed = store.transact(ALICE, lambda state: plan)
    assert committed.answer == "done"
    assert [(event.seq, event.node, event.at_ms, event.actor) for event in committed.events] == [
        (1, "n1", NOW_MS, "operator:alice"),
        (2, "n1", NOW_MS, "operator:alice"),
    ]
    with store.reading() as state:
        assert state.key_stores == {"payments": a_store()}
        assert state.revision_of(state.key_stores["payments"]) == 1
    assert everything(opened(database, "n2")) == everything(store)


def test_secrets_come_and_go_with_the_changes_or_not_at_all(database: Database) -> None:
    store = opened(database)
    with database.write("n1") as writer:
        writer.put_data_key(DATA_KEY)
    store.transact(ALICE, lambda state: Plan(changes=[created(a_store())], new_secrets=[a_secret("s-1"), a_secret("s-2")]))
    store.transact(ALICE, lambda state: Plan(changes=[created(a_key())], removed_secrets=["s-1"]))
    assert [secret.id for secret in database.secrets()] == ["s-2"]
    with pytest.raises(StateCorrupt):
        store.transact(
            ALICE,
            lambda state: Plan(
                changes=[created(a_credential())], new_secrets=[a_secret("s-3", data_key_id="no such data key")]
            ),
        )
    assert [secret.id for secret in database.secrets()] == ["s-2"]
    assert store.seq == database.head()[0] == 2


def test_a_plan_that_refuses_changes_nothing_and_sees_what_others_did(open_database: Open) -> None:
    one, two = opened(open_database(), "n1"), opened(open_database(), "n2")
    one.transact(ALICE, put(a_store()))
    seen: list[int] = []

    def refuse(state: State) -> Plan:
        seen.append(state.seq)
        raise LookupError("refused by a rule")

    with pytest.raises(LookupError, match="refused by a rule"):
        two.transact(ALICE, refuse)
    assert seen == [1]
    assert everything(two) == everything(one)


def test_every_event_is_told_once_and_in_order_whoever_made_it(open_database: Open) -> None:
    told: list[Event] = []
    one, two = opened(open_database(), "n1"), opened(open_database(), "n2", on_events=told.extend)
    one.transact(ALICE, put(a_store()))
    two.transact(ALICE, put(a_key()))
    one.transact(ALICE, put(a_credential()))
    assert [event.seq for event in two.catch_up()] == [3]
    assert two.catch_up() == []
    one.transact(ALICE, put(an_operator()))
    with pytest.raises(LookupError):
        two.transact(ALICE, _refuse)
    assert [(event.seq, event.node) for event in told] == [(1, "n1"), (2, "n2"), (3, "n1"), (4, "n1")]


def test_polling_finds_what_others_committed_and_looks_no_further_when_it_was_nothing(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opened(open_database(), "n1"), opened(database := open_database(), "n2")
    looks = []
    monkeypatch.setattr(database, "news", lambda seq: looks.append(seq) or Database.news(database, seq))
    two.poll()
    looks.clear()
    assert two.poll() == two.poll() == []
    assert len(looks) == (0 if database.version() is not None else 2)
    one.transact(ALICE, put(a_store()))
    assert [event.seq for event in two.poll()] == [1]
    two.transact(ALICE, put(a_key()))
    one.poll()
    one.transact(ALICE, put(a_credential()))
    assert [event.seq for event in two.poll()] == [3]
    assert everything(two) == everything(one)


def test_polling_that_failed_is_done_again(open_database: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = opened(open_database(), "n1"), opened(database := open_database(), "n2")
    two.poll()
    one.transact(ALICE, put(a_store()))
    with monkeypatch.context() as patched:
        patched.setattr(database, "news", _unavailable)
        for _ in range(2):
            with pytest.raises(StateUnavailable):
                two.poll()
    assert [event.seq for event in two.poll()] == [1]


def test_polling_sees_that_another_file_has_the_database_s_name(tmp_path: Path) -> None:
    file = tmp_path / "xksfast.db"
    one = opened(Database.open(f"sqlite:///{file}"), "n1")
    one.transact(ALICE, put(a_store()))
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(tmp_path / "older.db")) as older:
        source.backup(older)
    one.transact(ALICE, put(a_key()))
    one.poll()
    for beside in tmp_path.glob("xksfast.db-*"):
        beside.unlink()
    (tmp_path / "older.db").rename(file)
    with pytest.raises(StateWentBack):
        one.poll()
    file.unlink()
    with pytest.raises(StateUnavailable):
        one.poll()


def _unavailable(seq: int) -> None:
    raise StateUnavailable("away")


def _refuse(state: State) -> Plan:
    raise LookupError


def test_catching_up_reads_page_after_page(open_database: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = opened(open_database(), "n1"), opened(open_database(), "n2")
    for number in range(7):
        one.transact(ALICE, lambda state, n=number: Plan(changes=[created(a_key("s", f"{n}-{i}")) for i in range(3)]))  # type: ignore[misc]
    monkeypatch.setattr(Database.news, "__defaults__", (5,))
    assert len(two.catch_up()) == 21
    assert everything(two) == everything(one)


@pytest.mark.parametrize(
    "changes",
    [
        [created(a_store())],
        [changed(a_store(region="eu-west-1"), a_store())],
        [removed(a_key())],
        [removed(a_store()), changed(a_store(), a_store(region="eu-west-1"))],
        [created(a_key()), created(a_key())],
        [changed(a_store(), a_store("other"))],
    ],
)
def test_a_plan_that_does_not_start_from_what_there_is_is_a_mistake_of_ours(database: Database, changes: list[Any]) -> None:
    store = opened(database)
    store.transact(ALICE, put(a_store()))
    with pytest.raises(ValueError, match=r"starts from something else|makes it a"):
        store.transact(ALICE, lambda state: Plan(changes=changes))
    assert database.head()[0] == store.seq == 1


def once(key: str, at_ms: int = NOW_MS, forget_before_ms: int = 0) -> Once:
    """Its answer tells what the change leaves, and what the plan said."""

    def answer(state: State, said: str) -> Idempotency:
        text = f"{state.seq} {sorted(state.key_stores)} {said}"
        return Idempotency(key, "operator:alice", "ab" * 32, 201, text.encode(), at_ms)

    return Once(key, answer, forget_before_ms)


def saying(plan: Callable[[State], Plan], text: str) -> Callable[[State], Plan]:
    return lambda state: Plan(changes=plan(state).changes, answer=text)


def test_a_request_that_is_repeated_is_answered_as_before_by_every_node(open_database: Open) -> None:
    one, two = opened(open_database(), "n1"), opened(open_database(), "n2")
    first = one.transact(ALICE, saying(put(a_store()), "made"), once=once("key-1"))
    assert (first.answer, first.repeated) == ("made", None)
    again = two.transact(ALICE, saying(put(a_store()), "made twice"), once=once("key-1"))
    assert again.events == []
    assert again.repeated is not None
    assert again.repeated.response == b"1 ['payments'] made"
    assert two.transact(ALICE, put(a_key()), once=once("key-2")).repeated is None
    assert two.seq == 2


def test_an_answer_that_is_too_old_is_none_any_more(database: Database) -> None:
    store = opened(database)
    store.transact(ALICE, put(a_store()), once=once("key-1"))
    assert store.transact(ALICE, put(a_key()), once=once("key-1", forget_before_ms=NOW_MS)).repeated is not None
    made = store.transact(ALICE, put(a_key()), once=once("key-1", NOW_MS + 9, forget_before_ms=NOW_MS + 1))
    assert (made.repeated, store.seq) == (None, 2)
    kept = database.idempotency("key-1")
    assert kept is not None
    assert kept.at_ms == NOW_MS + 9


def test_there_is_no_change_without_its_answer_and_no_answer_without_its_change(database: Database) -> None:
    store = opened(database)

    def no_answer(_state: State, _said: object) -> Idempotency:
        raise LookupError("the view is broken")

    with pytest.raises(LookupError):
        store.transact(ALICE, put(a_store()), once=Once("key-1", no_answer))
    assert (database.head()[0], store.seq, database.idempotency("key-1")) == (0, 0, None)

    def refuse(_state: State) -> Plan:
        raise LookupError("refused by a rule")

    with pytest.raises(LookupError):
        store.transact(ALICE, refuse, once=once("key-1"))
    assert database.idempotency("key-1") is None
    store.transact(ALICE, put(a_store()), once=once("key-1"))
    assert (database.head()[0], database.idempotency("key-1") is not None) == (1, True)


# --- a database that is not the one we knew


def test_an_older_backup_is_noticed_and_not_taken_over(tmp_path: Path) -> None:
    path, older = tmp_path / "state.db", tmp_path / "older.db"
    database = Database.open(f"sqlite:///{path}")
    store = opened(database)
    store.transact(ALICE, put(a_store()))
    _restore_file(path, older, database)
    store.transact(ALICE, put(a_key()))
    before = everything(store)
    _restore_file(older, path, database)
    for action in (store.catch_up, lambda: store.transact(ALICE, put(a_credential()))):
        with pytest.raises(StateWentBack, match=r"knows event 2 .* ends at event 1 .* never heard of it") as caught:
            action()
    assert (caught.value.ours[0], caught.value.theirs[0]) == (2, 1)
    assert everything(store) == before
    # Another node goes on from the older state: the same number, another event.
    other = opened(Database.open(f"sqlite:///{path}"), "n2")
    for value in (a_credential(), an_operator()):
        other.transact(ALICE, put(value))
    for action in (store.catch_up, lambda: store.transact(ALICE, put(a_credential()))):
        with pytest.raises(StateWentBack, match="another event in its place"):
            action()
    assert everything(store) == before
    store.open()
    assert everything(store) == everything(other)
    other._database.close()
    database.close()


def _restore_file(source: Path, target: Path, database: Database) -> None:
    """Copy a SQLite state, with all that is in its write-ahead log."""
    database.close()
    for suffix in ("-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(source, target)


def test_a_file_that_is_put_in_the_place_of_ours_is_noticed_while_ours_is_open(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'state.db'}")
    store = opened(database)
    store.transact(ALICE, put(a_store()))
    Database.open(f"sqlite:///{tmp_path / 'empty.db'}").close()
    for path in tmp_path.glob("state.db-*"):
        path.unlink()
    (tmp_path / "empty.db").replace(tmp_path / "state.db")
    with pytest.raises(StateWentBack):
        store.catch_up()
    with pytest.raises(StateWentBack):
        store.transact(ALICE, put(a_key()))
    (tmp_path / "state.db").unlink()
    with pytest.raises(StateUnavailable, match="look at its disk and its directory"):
        store.transact(ALICE, put(a_key()))
    assert not (tmp_path / "state.db").exists()
    assert store.seq == 1
    database.close()


def test_an_event_that_was_tampered_with_is_not_applied(open_database: Open) -> None:
    one, two = opened(open_database(), "n1"), opened(open_database(), "n2")
    one.transact(ALICE, put(a_store()))
    with one._database.restoring() as connection:
        drop_guards(connection)
        connection.execute(text("UPDATE events SET actor = 'operator:mallory' WHERE seq = 1"))
    with pytest.raises(StateCorrupt, match="event 1 was changed"):
        two.catch_up()
    assert two.seq == 0


def test_events_of_a_newer_program_wait_until_the_node_is_updated(open_database: Open) -> None:
    import msgspec

    from xksfast.state import events as log

    one, two = opened(open_database(), "n1"), opened(open_database(), "n2")
    one.transact(ALICE, put(a_store()))
    assert len(two.catch_up()) == 1

    class Encoder:
        def encode(self, value: Any) -> bytes:
            encoded = msgspec.json.encode(value)
            return encoded[:-1] + b',"from_the_future":1}' if isinstance(value, Stored) else encoded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_encoder", Encoder())
        write(one._database, created(a_key()))
    with pytest.raises(StateTooNew, match="Update this node"):
        two.catch_up()
    assert two.seq == 1


def drop_guards(connection: Any) -> None:
    """What somebody with the owner's rights can do."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("DROP TRIGGER events_no_update"))
        connection.execute(text("DROP TRIGGER events_no_delete"))
    else:
        connection.execute(text("DROP TRIGGER events_no_change ON events"))


# --- properties


STORES = [
    a_store(f"s{i}", uri_path_prefix=prefix, partition_group=group)
    for i, prefix in enumerate(("/a", "/b", ""))
    for group in ("main", "other")
]
NEXT: list[Stored] = [
    *STORES,
    *(a_key(f"s{s}", f"k{k}", *labels) for s in range(2) for k in range(3) for labels in (("x",), ("x", "y"))),
    *(a_credential(f"s{s}", letter * 20, secret_id="", superseded_at=at) for s in range(2) for letter in "AB" for at in (0, 5)),
    *(an_operator(name, token) for name, token in (("alice", "aa"), ("alice", "bb"), ("bob", "cc"))),
]
steps = st.lists(
    st.tuples(
        st.sampled_from(("n1", "n2")),
        st.one_of(st.just("catch up"), st.lists(st.tuples(st.sampled_from(NEXT), st.booleans()), min_size=1, max_size=4)),
    ),
    max_size=12,
)


def _plan(wanted: list[tuple[Stored, bool]]) -> Callable[[State], Plan]:
    """Each object is to be so, or is to go, one after the other."""

    def plan(state: State) -> Plan:
        now: dict[tuple[str, str], Stored | None] = {}
        changes = []
        for value, stays in wanted:
            named = (value.kind, value.id)
            before = now[named] if named in now else state.find(*named)
            after = value if stays else None
            if before == after:
                continue
            if before is None:
                changes.append(created(value))
            elif after is None:
                changes.append(removed(before))
            else:
                changes.append(changed(before, after))
            now[named] = after
        return Plan(changes=changes)

    return plan


@pytest.fixture(scope="module", params=KINDS)
def two_nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StateStore, StateStore]]:
    url = new_database(request, str(request.param), tmp_path_factory.mktemp("property") / "state.db")
    stores = [opened(Database.open(url), node) for node in ("n1", "n2")]
    yield stores[0], stores[1]
    for store in stores:
        store._database.close()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_whatever_two_nodes_do_in_turn_both_end_with_the_state_that_a_third_loads(
    two_nodes: tuple[StateStore, StateStore], steps: list[tuple[str, Any]]
) -> None:
    nodes = dict(zip(("n1", "n2"), two_nodes, strict=True))

    def clear(state: State) -> Plan:
        return Plan(changes=[removed(value) for value in state.objects()])

    nodes["n1"].transact(ALICE, clear)
    for node, step in steps:
        if step == "catch up":
            nodes[node].catch_up()
        else:
            nodes[node].transact(ALICE, _plan(step))
    for store in two_nodes:
        store.catch_up()
    third = opened(two_nodes[0]._database, "n3")
    assert everything(two_nodes[0]) == everything(two_nodes[1]) == everything(third)
    assert verify(two_nodes[0]._database).problems == ()


def test_nodes_that_write_at_once_lose_nothing_and_leave_no_gap(open_database: Open) -> None:
    nodes = [opened(open_database(), f"n{i}") for i in range(3)]
    acknowledged: list[str] = []

    def work(store: StateStore, name: str) -> None:
        for number in range(12):
            key = a_key("payments", f"{name}-{number}")
            store.transact(ALICE, put(key))
            acknowledged.append(key.id)

    threads = [threading.Thread(target=work, args=(store, f"n{i}")) for i, store in enumerate(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(acknowledged) == 36
    for store in nodes:
        store.catch_up()
    assert everything(nodes[0]) == everything(nodes[1]) == everything(nodes[2])
    with nodes[0].reading() as state:
        assert set(state.keys) == set(acknowledged)
    assert [event.seq for event in nodes[0]._database.events_since(0)] == list(range(1, 37))
    assert verify(nodes[0]._database).is_good


def test_a_thread_reads_whole_transactions_only(database: Database) -> None:
    store = opened(database)
    store.transact(ALICE, lambda state: Plan(changes=[created(a_key("s", "a", "v0")), created(a_key("s", "b", "v0"))]))
    stop = threading.Event()
    torn: list[Any] = []

    def look() -> None:
        while not stop.is_set():
            with store.reading() as state:
                keys = state.keys_of("s")
                if keys["a"].versions != keys["b"].versions:
                    torn.append(keys)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(1, 20):
        store.transact(
            ALICE,
            lambda state, n=number: Plan(  # type: ignore[misc]
                changes=[changed(state.keys[f"s/{name}"], a_key("s", name, f"v{n}")) for name in "ab"]
            ),
        )
    stop.set()
    reader.join()
    assert torn == []


# --- killed


def test_a_writer_that_is_killed_leaves_whole_transactions_and_all_that_it_acknowledged(database_url: str) -> None:
    database = Database.open(database_url)
    rng = random.Random(7)
    acknowledged: list[str] = []
    for round_number in range(3):
        nodes = [f"r{round_number}a", f"r{round_number}b"] if round_number == 0 else [f"r{round_number}"]
        writers = {
            node: subprocess.Popen(
                [sys.executable, "-m", "tests.state.writing_process", database_url, node],
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for node in nodes
        }
        try:
            for writer in writers.values():
                assert writer.stdout is not None
                writer.stdout.readline()
            threading.Event().wait(rng.uniform(0.02, 0.3))  # a random point of whatever it is doing
        finally:
            for writer in writers.values():
                writer.send_signal(signal.SIGKILL)
        for node, writer in writers.items():
            output, _ = writer.communicate(timeout=10)
            acknowledged += [f"{node}-{number}" for number in ["0", *output.decode().split("\n")[:-1]]]
        report = verify(database)
        assert report.problems == ()
        store = opened(database)
        with store.reading() as state:
            made: dict[str, int] = {}
            for key in state.keys.values():
                name = key.external_key_id.rpartition("-")[0]
                made[name] = made.get(name, 0) + 1
        assert set(made.values()) == {5}
        assert set(acknowledged) <= set(made)
        assert {secret.id for secret in database.secrets()} == set(made)
        for name in made:
            answer = database.idempotency(name)
            assert answer is not None, f"{name} was made, but its answer is not kept"
            assert answer.response.decode() == f"{name} with 5 keys"
        assert idempotency_keys(database) == set(made)
        store.transact(ALICE, put(a_key("payments", f"after-{round_number}")))
        store.transact(ALICE, lambda state, n=round_number: Plan(changes=[removed(state.keys[f"payments/after-{n}"])]))  # type: ignore[misc]
    database.close()


def idempotency_keys(database: Database) -> set[str]:
    with database.reading() as connection:
        return {row.key for row in rows.stream(connection, schema.idempotency, "key")}
