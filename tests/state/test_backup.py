# SPDX-License-Identifier: Apache-2.0
"""Backups: one private file, consistent under writes, restored into either kind of database, refused when anything in it is wrong."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fix_database import KINDS, new_database
from tests.state.making import ALICE, DATA_KEY, NOW_MS, a_key, a_secret, a_store, all_of, created, opened, put, write
from tests.state.test_chain import fill, mac, verify_mac
from xksfast.messages import CredentialUse, KeyUse
from xksfast.state import schema
from xksfast.state.backup import TABLES, restore, verify_backup, write_backup
from xksfast.state.chain import verify, write_checkpoint
from xksfast.state.database import Database
from xksfast.state.errors import StateCorrupt, StateError, StateTooNew
from xksfast.state.records import NodeRow


def content(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.reading() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(table.select().order_by(*table.primary_key.columns)).all()]
            for table in TABLES
        }


@pytest.fixture
def filled(database: Database) -> Database:
    fill(database)
    database.add_use(
        [KeyUse(store="payments", external_key_id="a", version=1, encryptions=7)], [CredentialUse("payments", "A", 9)]
    )
    database.heartbeat(NodeRow("n1", "1", "", 1, 1, 8, 8))
    return database


@pytest.mark.parametrize("target", KINDS)
def test_a_backup_comes_back_whole_in_either_kind_of_database(
    filled: Database, target: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    info = write_backup(filled, tmp_path / "backup", NOW_MS, progress=lambda done, total: told.append((done, total)))
    assert (info.seq, info.head, info.at_ms) == (8, filled.head()[1], NOW_MS)
    assert info.counts["events"] == 8
    assert told == [(sum(info.counts.values()),) * 2]
    assert verify_backup(tmp_path / "backup") == info
    again = Database.open(new_database(request, target, tmp_path / "again.db"))
    assert restore(again, tmp_path / "backup") == info
    assert content(again) == content(filled)
    assert verify(again, verify_mac).problems == ()
    assert again.nodes() == []
    with opened(again).reading() as one, opened(filled).reading() as other:
        assert all_of(one) == all_of(other)
    opened(again).transact(ALICE, put(a_key("payments", "next")))
    again.close()


def test_a_backup_is_private_and_leaves_nothing_beside_it(filled: Database, tmp_path: Path) -> None:
    directory = tmp_path / "backups"
    directory.mkdir()
    write_backup(filled, directory / "one", NOW_MS)
    assert [path.name for path in directory.iterdir()] == ["one"]
    assert (directory / "one").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StateError, match="not overwritten"):
        write_backup(filled, directory / "one", NOW_MS)
    with pytest.raises(StateError, match="cannot be written"):
        write_backup(filled, directory / "nowhere" / "one", NOW_MS)
    assert [path.name for path in directory.iterdir()] == ["one"]


def test_a_backup_under_writes_is_of_one_moment(open_database: Any, tmp_path: Path) -> None:
    database, other = open_database(), open_database()
    write(database, created(a_store()))
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            write(other, created(a_key("payments", f"{number}-a")), created(a_key("payments", f"{number}-b")))
            number += 1

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for number in range(3):
            info = write_backup(database, tmp_path / f"{number}", NOW_MS)
            assert verify_backup(tmp_path / f"{number}") == info
            assert info.seq % 2 == 1
    finally:
        stop.set()
        writer.join()


def test_a_database_that_is_not_empty_is_not_restored_into(filled: Database, tmp_path: Path) -> None:
    write_backup(filled, tmp_path / "backup", NOW_MS)
    before = content(filled)
    with pytest.raises(StateError, match="is not empty"):
        restore(filled, tmp_path / "backup")
    assert content(filled) == before


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    database = Database.open(f"sqlite:///{tmp_path / 'source.db'}")
    fill(database)
    write_backup(database, tmp_path / "backup", NOW_MS)
    database.close()
    return tmp_path / "backup"


@pytest.fixture
def empty(tmp_path: Path) -> Any:
    database = Database.open(f"sqlite:///{tmp_path / 'target.db'}")
    yield database
    assert database.head()[0] == 0
    database.close()


def refused(path: Path, empty: Database, error: type[StateError] = StateCorrupt) -> str:
    """What a bad backup is refused with, before anything is written."""
    with pytest.raises(error) as caught:
        verify_backup(path)
    with pytest.raises(error):
        restore(empty, path)
    return str(caught.value)


def test_a_backup_of_which_any_line_is_missing_is_refused(backup: Path, empty: Database) -> None:
    lines = backup.read_bytes().splitlines(keepends=True)
    for number in range(1, len(lines)):
        backup.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        with pytest.raises(StateCorrupt):
            verify_backup(backup)
    backup.write_bytes(b"".join(lines[:-1]))
    assert "its end is missing" in refused(backup, empty)
    backup.write_bytes(b"".join(lines)[:-20])
    assert "cut off" in refused(backup, empty)
    backup.write_bytes(b"".join([*lines, lines[1]]))
    assert "something follows after the end" in refused(backup, empty)


def test_a_backup_of_which_any_byte_was_changed_is_refused(backup: Path) -> None:
    data = backup.read_bytes()
    for position in range(0, len(data) - 1, 7):
        changed = bytearray(data)
        changed[position] ^= 1
        backup.write_bytes(changed)
        with pytest.raises(StateError):
            verify_backup(backup)


def test_a_backup_that_was_edited_with_a_right_checksum_is_refused(backup: Path, empty: Database) -> None:
    import hashlib

    lines = [json.loads(line) for line in backup.read_text().splitlines()]
    for line in lines:
        if line.get("events", {}).get("seq") == 3:
            line["events"]["actor"] = "operator:mallory"
    body = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines[:-1])
    lines[-1]["sha256"] = hashlib.sha256(body).hexdigest()
    backup.write_bytes(body + json.dumps(lines[-1]).encode() + b"\n")
    assert "event 3 was changed" in refused(backup, empty)


def test_what_is_no_backup_or_of_another_version_is_told(backup: Path, empty: Database, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("something else\n")
    assert "not a backup of xksfast" in refused(tmp_path / "other", empty, StateError)
    assert "cannot be read" in refused(tmp_path / "nowhere", empty, StateError)
    header, rest = backup.read_bytes().split(b"\n", 1)
    backup.write_bytes(header.replace(b'"revision":"' + schema.REVISION.encode(), b'"revision":"9999') + b"\n" + rest)
    assert "schema 9999" in refused(backup, empty, StateTooNew)


def test_no_secret_is_in_a_backup_but_sealed(backup: Path) -> None:
    rows = [json.loads(line) for line in backup.read_text().splitlines()]
    sealed = [row["secrets"] for row in rows if "secrets" in row]
    assert [row["id"] for row in sealed] == ["payments." + "A" * 20]
    assert [row["data_keys"]["id"] for row in rows if "data_keys" in row] == [DATA_KEY.id]
    assert a_secret().sealed not in backup.read_bytes()


def test_checkpoints_survive_a_restore(backup: Path, tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'restored.db'}")
    restore(database, backup)
    assert verify(database, verify_mac).checkpoints == 1
    write(database, created(a_key("payments", "next")))
    write_checkpoint(database, mac, NOW_MS)
    assert verify(database, verify_mac).checkpoints == 2
    database.close()


def test_a_node_that_runs_on_while_its_database_is_restored_spoils_nothing(filled: Database, tmp_path: Path) -> None:
    write_backup(filled, tmp_path / "backup", NOW_MS)
    url = f"sqlite:///{tmp_path / 'target.db'}"
    database = Database.open(url)
    stop, first = threading.Event(), threading.Event()
    counted = 0

    def live() -> None:
        nonlocal counted
        node = Database.open(url)
        while not stop.is_set():
            node.heartbeat(NodeRow("n1", "1", "", 1, 1, 1000, 1000))
            use = KeyUse(store="payments", external_key_id="a", version=1, encryptions=1)
            node.add_use([use], [CredentialUse("payments", "A", 5), CredentialUse("payments", "B", 5)])
            counted += 1
            first.set()
        node.close()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        first.wait(10)
        info = restore(database, tmp_path / "backup")
    finally:
        stop.set()
        thread.join()
    report = verify(database, nodes=False)
    assert (report.seq, report.head, report.problems) == (info.seq, info.head, ())
    use = database.use()
    assert [key.encryptions for key in use.keys] == [7 + counted]
    assert [(each.access_key_id, each.last_used) for each in use.credentials] == [("A", 9), ("B", 5)]
    database.close()
