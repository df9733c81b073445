# SPDX-License-Identifier: Apache-2.0
"""`xksfast partition verify|replicate GROUP` take the labels of a group from the database, also while a proxy serves from it."""

from __future__ import annotations

import secrets
from pathlib import Path

import httpx
import pytest

from tests.admin.hsms import Hsms, make_hsms
from tests.servers import Process, free_port, wait_until
from xksfast.admin.actors import system_actor
from xksfast.state.database import Database
from xksfast.state.events import Change
from xksfast.state.objects import Key, KeyStore, KeyVersion
from xksfast.state.store import Plan, StateStore


@pytest.fixture(scope="module")
def ready_hsms(tmp_path_factory: pytest.TempPathFactory) -> Hsms:
    hsms = make_hsms(tmp_path_factory.mktemp("ready"))
    hsms.run("replicate", "main", "--make-transport-key")
    return hsms


@pytest.fixture
def hsms(tmp_path: Path, ready_hsms: Hsms) -> Hsms:
    """With a transport key on both, and "orders-v1" and "orders-v2" on the first."""
    hsms = make_hsms(tmp_path, ready_hsms)
    for label in ("orders-v1", "orders-v2"):
        hsms.token(0, label, "generate", "extractable")
    return hsms


def store_of(name: str, group: str | None) -> KeyStore:
    source = "pkcs11" if group else "local"
    return KeyStore(name=name, uri_path_prefix=f"/{name}", region="us-east-1", key_source=source, partition_group=group)  # type: ignore[arg-type]


def key_of(store: str, *labels: str) -> Key:
    return Key(
        store=store, external_key_id="k", versions=tuple(KeyVersion(number=n, label=label) for n, label in enumerate(labels, 1))
    )


def fill(url: str) -> None:
    """A key with two versions in group "main", and keys elsewhere that are not its business."""
    objects = [
        store_of("payments", "main"), store_of("elsewhere", "other"), store_of("here", None),
        key_of("payments", "orders-v1", "orders-v2"), key_of("elsewhere", "theirs"), key_of("here", "local-one"),
    ]  # fmt: skip
    database = Database.open(url)
    store = StateStore(database, "n1")
    store.open()
    changes = [Change(f"{each.kind}.create", each.kind, each.id, None, each) for each in objects]
    store.transact(system_actor("test").origin, lambda state: Plan(changes=changes))
    database.close()


def test_every_version_of_the_keys_of_a_group_is_replicated_and_verified(hsms: Hsms, database_url: str) -> None:
    hsms.config["state"] = {"url": database_url}
    hsms.write()
    fill(database_url)
    before = hsms.json("verify", "main", code=1)
    assert [report["key"] for report in before["keys"]] == ["orders-v1", "orders-v2"]
    replicated = hsms.json("replicate", "main")
    assert [(report["key"], report["ok"]) for report in replicated["keys"]] == [("orders-v1", True), ("orders-v2", True)]
    after = hsms.json("verify", "main")
    assert [(report["key"], report["ok"]) for report in after["keys"]] == [("orders-v1", True), ("orders-v2", True)]


def test_a_group_without_keys_in_the_database_is_said_with_what_to_do(hsms: Hsms, database_url: str) -> None:
    hsms.config["state"] = {"url": database_url}
    hsms.write()
    said = hsms.run("verify", "main", code=2).stderr
    assert "no key of group 'main' stands in" in said
    assert "name keys with --key" in said
    assert "xksfast: .:" not in said


def test_a_database_that_is_not_there_is_said_and_not_made(hsms: Hsms, tmp_path: Path) -> None:
    hsms.config["state"] = {"url": "sqlite:///absent.db"}
    hsms.write()
    assert "absent.db" in hsms.run("verify", "main", code=2).stderr
    assert not (tmp_path / "absent.db").exists()


def test_keys_are_verified_while_a_proxy_serves_from_the_same_database(hsms: Hsms) -> None:
    master = hsms.directory / "master.key"
    master.write_text(secrets.token_hex(32))
    master.chmod(0o600)
    admin = free_port()
    hsms.config["state"] = {"url": "sqlite:///xksfast.db", "master_key_file": "master.key"}
    hsms.config["proxy"] = {
        "listen": [f"127.0.0.1:{free_port()}"],
        "workers": 1,
        "health": {"listen": f"127.0.0.1:{free_port()}"},
    }
    hsms.config["admin"] = {"listen": f"127.0.0.1:{admin}"}
    hsms.write()
    process = Process(["serve", "--config", str(hsms.file)], hsms.directory / "served")
    try:
        wait_until(lambda: process.events("admin_listening"), "it serves", 60)
        token = (hsms.directory / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{admin}", headers=headers, timeout=60, trust_env=False) as rest:
            body = {"name": "payments", "uri_path_prefix": "/payments", "region": "us-east-1", "partition_group": "main"}
            assert rest.post("/v1/stores", json=body).status_code == 201
            made = rest.post("/v1/stores/payments/keys", json={"external_key_id": "orders"})
            assert made.status_code == 201, made.text
            first = made.json()["label"]
            second = rest.post("/v1/stores/payments/keys/orders/rotate").json()["label"]
        for command in ("verify", "replicate"):
            answer = hsms.json(command, "main")
            assert [(report["key"], report["ok"]) for report in answer["keys"]] == [(first, True), (second, True)]
    finally:
        assert process.stop() == 0
