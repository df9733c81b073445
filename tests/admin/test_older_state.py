# SPDX-License-Identifier: Apache-2.0
"""The local copies that are kept: under a name of their own, whole, and for as long as they hold a key that nothing else has."""

from __future__ import annotations

import asyncio
import errno
import os
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from xksfast.admin.block_journal import BlockJournal
from xksfast.admin.blocks import Peers
from xksfast.admin.older_state import KEPT_AT_LEAST, Older, OlderState
from xksfast.admin.roster import Roster
from xksfast.admin.state_thread import StateThread
from xksfast.admin.went_back import WentBack
from xksfast.log import Log
from xksfast.native.crypto import Secret
from xksfast.state.database import Database
from xksfast.state.events import Change, Origin
from xksfast.state.local_copy import keep_copy, kept_copies, read_copy, write_copy
from xksfast.state.master_key import KeyMaster
from xksfast.state.objects import Key, KeyStore, KeyVersion, SourceKey, Stored
from xksfast.state.records import Loaded, SealedSecret
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Plan, StateStore

MASTER = KeyMaster("file", {}, lambda: Secret.from_bytes(bytes(32)))
STORE = KeyStore(name="pay", uri_path_prefix="/pay", region="us-east-1", key_source="local")


class Place:
    """An open database with a store, and the directory of a node."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.file = directory / "state" / "copy.jsonl"
        self.file.parent.mkdir()
        self.sealer, self.data_key = Sealer.new(MASTER, now=1)
        with database.write("n1") as writer:
            writer.put_data_key(self.data_key)
        secrets = SecretRows(database, self.sealer)
        self.store = StateStore(database, "n1", secrets=secrets)
        self.store.open()
        self.store.transact(
            Origin("operator:test"), lambda _: Plan([Change("store.create", STORE.kind, STORE.id, None, STORE)])
        )
        self.older = Older(database, self.sealer, self.store, secrets, MASTER)

    def knows(self, seq: int, *objects: Stored, secrets: list[SealedSecret]) -> bytes:
        """The local copy says this; its bytes."""
        known = Loaded([(STORE, 1), *((value, seq) for value in objects)], seq, bytes([seq]) * 32)
        write_copy(self.file, known, [self.data_key], secrets, self.sealer)
        return self.file.read_bytes()

    def key(self, name: str) -> tuple[list[Stored], list[SealedSecret]]:
        source = SourceKey(place="local", label=name, secret_id=f"local_key/{name}", owned=True, ready=True)
        key = Key(store="pay", external_key_id=name, versions=(KeyVersion(number=1, label=name),))
        return [source, key], [self.sealer.new_local_key(source.secret_id)]

    def went_back(self, *, accept: bool = False) -> OlderState:
        older = OlderState(self.file, Log("test"), accept=accept)
        self.outcome = older.went_back(self.older)
        return older


@pytest.fixture
def place(tmp_path: Path, database: Database) -> Place:
    return Place(tmp_path, database)


def test_a_copy_is_kept_once_and_over_nothing(place: Place) -> None:
    first = place.knows(7, secrets=[])
    kept = keep_copy(place.file, 7)
    assert keep_copy(place.file, 7) == kept
    second = place.knows(7, *place.key("k1")[0], secrets=[])
    other = keep_copy(place.file, 7)
    assert (kept.read_bytes(), other.read_bytes()) == (first, second)
    assert kept_copies(place.file.parent) == [kept, other]
    assert other.stat().st_mode & 0o777 == 0o600


def test_a_key_that_only_the_copy_has_is_put_back_once(place: Place) -> None:
    objects, secrets = place.key("k1")
    place.knows(7, *objects, secrets=secrets)
    for _ in range(2):  # as after a crash
        assert place.went_back().problems() == ()
        assert place.outcome.served is None
    events = place.older.database.events(actor="system:restore")
    assert [(event.action, event.id) for event in events] == [("key.restore", "pay/k1"), ("source_key.restore", "local/k1")]
    assert place.older.secrets.rows() == secrets
    assert len(kept_copies(place.file.parent)) == 1


def test_a_copy_that_somebody_changed_puts_nothing_back_and_is_no_reason_to_lose_it(place: Place) -> None:
    objects, secrets = place.key("k1")
    content = place.knows(7, *objects, secrets=secrets)
    place.file.write_bytes(
        content.replace(b'"usage"', b'"usage" ') if b'"usage"' in content else content.replace(b"/pay", b"/paz")
    )
    with pytest.raises(
        Exception, match=r"lacks key pay/k1 version 1.* cannot be served instead: it was changed.*--accept-older-state"
    ):
        place.went_back()
    assert place.older.database.events(actor="system:restore") == []
    older = place.went_back(accept=True)
    (problem,) = older.problems()
    assert "keys that are gone: key pay/k1 version 1" in problem
    assert len(kept_copies(place.file.parent)) == 1


@pytest.mark.parametrize("accept", [False, True])
def test_a_copy_that_cannot_be_kept_is_served_in_the_place_of_the_older_state(
    place: Place, monkeypatch: pytest.MonkeyPatch, accept: bool
) -> None:
    objects, secrets = place.key("k1")
    place.knows(7, *objects, secrets=secrets)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "link", full)
        (problem,) = place.went_back(accept=accept).problems()
    assert "cannot be kept under another name: No space left on device" in problem
    assert place.outcome.served is not None
    assert kept_copies(place.file.parent) == []
    place.went_back(accept=accept)  # there is room again
    assert place.outcome.served is None
    assert len(kept_copies(place.file.parent)) == 1


def test_what_was_named_is_named_after_a_restart_until_its_file_is_removed(place: Place) -> None:
    objects, secrets = place.key("k1")
    place.knows(7, *objects, secrets=secrets)
    told = place.went_back(accept=True).problems()
    again = OlderState(place.file, Log("test"))
    assert again.problems() == told
    (file,) = place.file.parent.glob("copy-*.txt")
    assert file.stat().st_mode & 0o777 == 0o600
    file.unlink()
    assert again.problems() == ()


def test_copies_are_let_go_only_when_the_state_has_their_keys(place: Place) -> None:
    objects, secrets = place.key("lost")
    place.knows(5, *objects, secrets=secrets)
    holder = keep_copy(place.file, 5)
    os.utime(holder, ns=(1, 1))
    for seq in range(6, 6 + KEPT_AT_LEAST + 3):
        place.knows(seq, secrets=[])
        os.utime(place.file, ns=(seq, seq))
        place.went_back(accept=True)
    kept = kept_copies(place.file.parent)
    assert holder in kept
    assert len(kept) == KEPT_AT_LEAST + 1
    assert read_copy(kept[-1]) is not None


def test_keys_come_back_into_a_database_from_before_the_data_key_was_rotated(place: Place) -> None:
    objects, (row,) = place.key("k1")
    rotation = place.sealer.rotate_data_key(MASTER, [row], now=2)
    write_copy(
        place.file,
        Loaded([(value, 7) for value in (STORE, *objects)], 7, b"7" * 32),
        [rotation.data_key],
        rotation.rows,
        rotation.sealer,
    )
    for _ in range(2):  # as after a crash, or by another node
        assert place.went_back().problems() == ()
        assert place.outcome.served is None
    (there,) = place.older.database.secrets()
    assert there.data_key_id == place.data_key.id
    assert place.sealer.holds_same(row, place.sealer, there)


class Silence:
    """No other nodes."""

    def names(self) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("master", "recorded", "says"),
    [
        (MASTER, ["store.block"], "key store pay is blocked: recorded there again"),
        (KeyMaster("file", {}, lambda: Secret.from_bytes(b"\1" * 32)), [], "another master key"),
    ],
)
def test_a_running_node_records_its_blocks_also_under_a_former_data_key_but_not_in_what_others_have_sealed(
    place: Place, database: Database, master: KeyMaster, recorded: list[str], says: str
) -> None:
    rotation = place.sealer.rotate_data_key(MASTER, [], now=2)
    opened = Sealer.open_with(MASTER, [rotation.data_key])
    served = StateStore(database, "n1")
    served.adopt(Loaded([(replace(STORE, blocked=True), 7)], 7, b"7" * 32))

    async def find() -> str:
        lacking = WentBack(
            node="n1",
            store=served,
            secrets=SecretRows(database, opened),
            sealer=lambda: opened,
            opens=partial(Sealer.open_with, master),
            journal=BlockJournal(place.file.parent),
            peers=cast(Peers, Silence()),
            roster=Roster("n1", place.file.with_name("peers.json"), Log("test")),
            run=StateThread(lambda _: None),
            log=Log("test"),
        )
        await lacking.found(database)
        return " ".join(lacking.problems())

    assert says in asyncio.run(find())
    assert [event.action for event in database.events(actor="system:restore")] == recorded
