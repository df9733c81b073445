# SPDX-License-Identifier: Apache-2.0
"""From the command to the answer that KMS gets: a real proxy with a worker, administered from the shell while it serves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.requests import Target, encrypt_document
from tests.client import Client
from tests.servers import running_dev, wait_until
from xksfast import cli

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with running_dev(tmp_path_factory.mktemp("dev"), "local") as (said, _):
        yield said


@pytest.fixture
def run(ready: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """A command's JSON, which must succeed."""
    monkeypatch.setenv("XKSFAST_ADMIN_URL", ready["admin_url"])
    monkeypatch.setenv("XKSFAST_ADMIN_TOKEN", ready["admin_token"])
    monkeypatch.setenv("XKSFAST_ADMIN_CA", ready["ca_file"])

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["xksfast", *arguments, "--json"])
        capfd.readouterr()
        code = cli.main()
        said = capfd.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    return run


def test_what_the_shell_says_is_what_the_proxy_does(ready: dict[str, Any], run: Run) -> None:
    made = run(
        "store", "create", "payments", "--uri-path-prefix", "/payments", "--region", "us-east-1", "--key-source", "local"
    )
    run("key", "create", "payments", "orders")
    credential = made["credential"]
    target = Target(ready["url"], "/payments", "us-east-1", credential["access_key_id"], credential["secret_access_key"])
    client = Client({**ready, "keys": {"default": "orders"}}, target)

    def encrypt(by: Client = client) -> tuple[int, str]:
        answer = by.call("encrypt", encrypt_document())
        return answer.status, answer.error

    assert encrypt() == (200, "")
    assert run("store", "block", "payments")["pending"] == []
    assert encrypt()[1] == "InvalidStateException"
    run("store", "unblock", "payments")
    assert encrypt() == (200, "")
    assert run("key", "block", "payments", "orders")["pending"] == []
    assert encrypt()[0] != 200
    run("key", "unblock", "payments", "orders")
    run("key", "disable", "payments", "orders")
    assert encrypt()[0] != 200
    run("key", "enable", "payments", "orders")
    run("key", "rotate", "payments", "orders")
    assert encrypt() == (200, "")
    issued = run("credential", "rotate", "payments")
    run("credential", "remove", "payments", credential["access_key_id"])
    assert encrypt()[1] == "AuthenticationFailedException"
    newer = Target(ready["url"], "/payments", "us-east-1", issued["access_key_id"], issued["secret_access_key"])
    newer_client = Client({**ready, "keys": {"default": "orders"}}, newer)
    assert encrypt(newer_client) == (200, "")
    client.close()
    newer_client.close()


def test_what_was_used_is_shown_where_operators_look(ready: dict[str, Any], run: Run) -> None:
    made = run("store", "create", "used", "--uri-path-prefix", "/used", "--region", "us-east-1", "--key-source", "local")
    run("key", "create", "used", "orders")
    first = made["credential"]
    (unused,) = run("credential", "list", "used")
    assert unused["last_used_at"] == 0
    assert run("key", "show", "used", "orders")["encryptions"] == 0
    target = Target(ready["url"], "/used", "us-east-1", first["access_key_id"], first["secret_access_key"])
    began = int(time.time())
    with closing(Client({**ready, "keys": {"default": "orders"}}, target)) as client:
        for _ in range(7):
            assert client.call("encrypt").status == 200
        run("key", "rotate", "used", "orders")
        sealed = [client.call("encrypt").document for _ in range(3)]
        assert client.call("decrypt", client.decrypt_document(sealed[0])).status == 200  # which counts for nothing
    second = run("credential", "rotate", "used")["access_key_id"]

    def counted() -> bool:
        return [each["encryptions"] for each in run("key", "versions", "used", "orders")] == [7, 3]

    wait_until(counted, "all encryptions are counted", 20)
    assert run("key", "show", "used", "orders")["encryptions"] == 3
    listed = {each["access_key_id"]: each["last_used_at"] for each in run("credential", "list", "used")}
    assert began <= listed[first["access_key_id"]] <= time.time()
    assert listed[second] == 0


def test_apply_serves_what_the_file_says(ready: dict[str, Any], run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "git.secret"
    secret.write_text("q" * 64)
    secret.chmod(0o600)
    file = tmp_path / "stores.toml"
    file.write_text(
        """
[key_stores.git]
uri_path_prefix = "/git"
region = "us-east-1"
key_source = "local"
[[key_stores.git.credentials]]
access_key_id = "GGGGGGGGGGGGGGGGGGGG"
secret_access_key_file = "git.secret"
[key_stores.git.keys.orders]
label = "git-orders-v1"
create = true
"""
    )
    assert run("apply", str(file))["failure"] == ""
    client = Client({**ready, "keys": {"default": "orders"}}, Target(ready["url"], "/git", "us-east-1", "G" * 20, "q" * 64))
    assert client.call("encrypt", encrypt_document()).status == 200
    client.close()
    assert run("apply", str(file))["steps"] == []
