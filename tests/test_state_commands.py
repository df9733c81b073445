# SPDX-License-Identifier: Apache-2.0
"""`xksfast state …` on real databases: a backup that is restored elsewhere, and the keys that secrets are sealed under."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.admin.states import NOW
from tests.servers import wait_until
from xksfast import cli, state_commands
from xksfast.admin.plans import stores
from xksfast.admin.requests import StoreCreate
from xksfast.config import load_config
from xksfast.state.database import Database
from xksfast.state.events import Origin
from xksfast.state.master_key import configured_master_key
from xksfast.state.objects import Credential
from xksfast.state.projection import State
from xksfast.state.records import NodeRow
from xksfast.state.sealing import Sealer
from xksfast.state.store import Plan, StateStore

SECRET_ID = "credential/payments/" + "A" * 20
Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process; what it printed as JSON, or its words when it ends with another code than 0."""

    def run_one(*arguments: str, code: int = 0) -> Any:
        monkeypatch.setattr(sys, "argv", ["xksfast", "state", *arguments, "--json"])
        assert cli.main() == code
        said = capsys.readouterr()
        return json.loads(said.out) if said.out else said.err

    return run_one


def write_config(directory: Path, name: str, url: str, master: str) -> Path:
    key = directory / f"{master}.key"
    if not key.exists():
        key.write_text(master.ljust(64, "0").encode().hex()[:64])
        key.chmod(0o600)
    path = directory / f"{name}.toml"
    path.write_text(f'[proxy]\nlisten = ["127.0.0.1:0"]\n[state]\nurl = "{url}"\nmaster_key_file = "{key}"\n')
    return path


def sealer_of(config: Path) -> Sealer:
    """By the master key of a configuration."""
    settings = load_config(config)
    database = Database.open(settings.state.url)
    try:
        return Sealer.open_with(configured_master_key(settings.state, lambda *_: pytest.fail("no token")), database.data_keys())
    finally:
        database.close()


@pytest.fixture
def filled(tmp_path: Path, database_url: str) -> Path:
    """The configuration of a state with one store and its sealed credential."""
    config = write_config(tmp_path, "first", database_url, "one")
    settings = load_config(config)
    database = Database.open(database_url)
    master = configured_master_key(settings.state, lambda *_: pytest.fail("no token"))
    sealer, row = Sealer.new(master, now=NOW)
    with database.write("n1") as writer:
        writer.put_data_key(row)
    store = StateStore(database, "n1")
    store.open()
    sealed, _ = sealer.new_credential_secret(SECRET_ID)

    def plan(state: State) -> Plan:
        request = StoreCreate(name="payments", uri_path_prefix="/p", region="us-east-1", key_source="local")
        credential = Credential(access_key_id="A" * 20, store="payments", secret_id=SECRET_ID, created_at=NOW)
        made = stores.new_store(state, request, groups=(), now=NOW)
        return Plan(changes=stores.create(made, [credential]), new_secrets=[sealed])

    store.transact(Origin("operator:test"), plan)
    database.close()
    return config


def test_a_backup_is_verified_and_restored_into_another_database(run: Run, filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    made = run("backup", str(file), "--config", str(filled))
    assert made["seq"] == 2
    assert run("verify-backup", str(file))["head"] == made["head"]
    elsewhere = write_config(tmp_path, "elsewhere", f"sqlite:///{tmp_path}/elsewhere.db", "one")
    assert run("restore", str(file), "--config", str(elsewhere))["head"] == made["head"]
    assert run("verify", "--config", str(elsewhere)) == {"ok": True, "events": 2, "head": made["head"], "problems": []}
    assert "empty" in run("restore", str(file), "--config", str(elsewhere), code=2)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    run("verify-backup", str(file), code=2)


def test_the_master_key_is_changed_without_touching_a_secret(run: Run, filled: Path, tmp_path: Path) -> None:
    url = load_config(filled).state.url
    new = write_config(tmp_path, "new", url, "two")
    assert run("rotate-master-key", "--config", str(new), "--former", str(filled)) == {"data_keys": 1}
    sealer_of(new)
    with pytest.raises(Exception, match="master_key_file"):
        sealer_of(filled)


def test_the_data_key_is_changed_while_nobody_runs(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_config(filled)
    database = Database.open(settings.state.url)
    before = database.secret(SECRET_ID)
    now = time.time_ns() // 1_000_000
    database.heartbeat(NodeRow("n1", "1", "", now, now, 2, 2))
    monkeypatch.setattr(state_commands, "LOOK_AGAIN_S", 0.05)
    refusal = run("rotate-data-key", "--config", str(filled), code=3)
    assert "node n1 runs. Each node holds the data key that it was started with" in refusal
    assert "Nothing was changed. Stop every node" in refusal
    assert database.secret(SECRET_ID) == before
    database.heartbeat(NodeRow("n1", "1", "", now, now, 2, 2, {"stopped": True}))
    database.heartbeat(NodeRow("n2", "1", "", now, now, 2, 2))
    assert "node n2 runs." in run("rotate-data-key", "--config", str(filled), code=3)
    assert run("forget-node", "n2", "--config", str(filled)) == {"forgotten": "n2"}
    assert [row.name for row in database.nodes()] == ["n1"]
    assert run("rotate-data-key", "--config", str(filled)) == {"secrets": 1}
    after = database.secret(SECRET_ID)
    database.close()
    assert before is not None
    assert after is not None
    assert (after.data_key_id != before.data_key_id, after.sealed != before.sealed) == (True, True)
    sealer_of(filled).open(after)
    assert run("verify", "--config", str(filled))["ok"]


def test_a_node_whose_clock_is_wrong_is_seen_to_run_by_its_heart_beating(
    run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_commands, "LOOK_AGAIN_S", 0.5)
    url = load_config(filled).state.url
    an_hour_ago_ms = time.time_ns() // 1_000_000 - 3_600_000
    stop = threading.Event()

    def beat() -> None:
        database = Database.open(url)
        for number in itertools.count():
            database.heartbeat(NodeRow("n1", "1", "", an_hour_ago_ms, an_hour_ago_ms + number, 2, 2))
            if stop.wait(0.1):
                break
        database.close()

    node = threading.Thread(target=beat)
    node.start()
    database = Database.open(url)
    wait_until(database.nodes, "the node was heard of")
    assert "node n1 runs" in run("rotate-data-key", "--config", str(filled), code=3)
    stop.set()
    node.join()
    assert run("rotate-data-key", "--config", str(filled)) == {"secrets": 1}
    database.close()
