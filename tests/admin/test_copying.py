# SPDX-License-Identifier: Apache-2.0
"""A local copy that cannot be written is told once, stays a problem of the node, and is written when it can be."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from tests.admin.api.rig import Rig
from tests.admin.api.test_stores import new_store
from xksfast.admin.copying import TIME_SHARE, Copying
from xksfast.log import Log
from xksfast.native.crypto import Secret
from xksfast.state.errors import StateUnavailable
from xksfast.state.local_copy import read_copy, read_position
from xksfast.state.master_key import KeyMaster
from xksfast.state.records import WrappedDataKey
from xksfast.state.sealing import Sealer


def test_a_copy_that_cannot_be_written_is_a_problem_until_it_can(
    rig: Rig, admin: httpx.Client, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "state"
    directory.touch()  # no directory, so nothing can be written in it
    copying = Copying(directory / "copy.jsonl", rig._run, Log("test"))

    def write() -> bool:
        secrets = rig._secrets
        return rig.call(copying.write(rig.store, rig.database, secrets, lambda: rig.sealer))

    assert not write()
    told = copying.problem
    assert "copy.jsonl cannot be written: Not a directory" in told
    assert "make it writable" in told
    new_store(admin, "copied")
    assert not write()
    assert copying.problem == told
    directory.unlink()
    directory.mkdir()
    assert write()
    assert (copying.problem, copying.seq) == ("", rig.read(lambda state: state.seq))
    assert read_position(copying.file) == (copying.seq, rig.read(lambda state: state.head))
    assert not write()  # there is nothing new
    events = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert [event for event in events if "copy" in event] == ["local_copy_not_written", "local_copy_written_again"]


def test_a_database_that_kept_the_copy_waiting_does_not_make_the_next_one_late(
    rig: Rig, admin: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(admin, "kept-waiting")
    really = rig.database.data_keys

    def slowly() -> list[WrappedDataKey]:
        time.sleep(1)
        return really()

    monkeypatch.setattr(rig.database, "data_keys", slowly)
    copying = Copying(tmp_path / "copy.jsonl", rig._run, Log("test"))
    assert rig.call(copying.write(rig.store, rig.database, rig._secrets, lambda: rig.sealer))
    assert copying.interval_s < 1 / TIME_SHARE


def test_what_the_database_lost_before_it_went_away_is_copied_all_the_same(
    rig: Rig, admin: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying = Copying(tmp_path / "copy.jsonl", rig._run, Log("test"))

    def write() -> bool:
        return rig.call(copying.write(rig.store, rig.database, rig._secrets, lambda: rig.sealer))

    def away() -> list[WrappedDataKey]:
        raise StateUnavailable("it is away")

    new_store(admin, "before")
    with monkeypatch.context() as patched:
        patched.setattr(rig.database, "data_keys", away)
        assert not write()  # nobody knows by what its secrets could be opened
    assert write()
    data_keys = rig.database.data_keys()
    new_store(admin, "last-second")
    monkeypatch.setattr(rig.database, "data_keys", away)
    assert write()
    _, other = Sealer.new(KeyMaster("file", {}, lambda: Secret.from_bytes(bytes(32))), now=1)
    new_store(admin, "after")
    monkeypatch.setattr(rig.database, "data_keys", lambda: [other])  # it went back to before a rotation
    assert write()
    found = read_copy(copying.file)
    assert found is not None
    assert found[0].data_keys == data_keys
    assert {"last-second", "after"} <= {value.id for value, _ in found[0].objects}
