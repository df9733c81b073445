# SPDX-License-Identifier: Apache-2.0
"""A database that is put back to an earlier backup: what only the nodes still know outlives their restart, if nobody says otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench.postgres import PostgresServer
from tests.client import Client
from tests.scenario.nodes import Deployment, Node, deployment
from tests.scenario.trouble import answers, api, is_well, logged, made, says
from tests.servers import Process, wait_until

DATABASE = "older"
WRITE_LOCK = 0x786B736661737401
PLAIN = "SGVsbG8gV29ybGQh"


class Place:
    """Nodes whose database can be put back to where `remember` was called."""

    def __init__(self, proxies: Deployment, database: PostgresServer | Path, backup: Path) -> None:
        self.proxies = proxies
        self.database = database
        self.backup = backup
        self.credential = made(proxies)
        self._clients: dict[str, list[Client]] = {}

    def clients(self, key: str) -> list[Client]:
        """One for each node, the same each time."""
        if key not in self._clients:
            self._clients[key] = self.proxies.clients(self.credential, "/pay", key)
        return self._clients[key]

    def state(self, command: str, *arguments: str) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "xksfast", "state", command, *arguments, "--config", str(self.proxies.nodes[0].config)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr

    def remember(self) -> None:
        self.state("backup", str(self.backup))

    def go_back(self) -> None:
        """To what it was when `remember` was called. An SQLite file is exchanged while nobody has it open."""
        if isinstance(self.database, Path):
            for node in self.proxies.nodes:
                stop(node)
            for file in self.database.parent.glob(self.database.name + "*"):
                file.unlink()
            self.state("restore", str(self.backup))
            return
        self.database.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        self.database.execute(f"CREATE DATABASE {DATABASE}")
        self.state("restore", str(self.backup))

    def sealed(self, key: str) -> dict[str, Any]:
        """An answer to Encrypt, by the first node."""
        client = self.clients(key)[0]
        answer = client.call("encrypt")
        client.close()
        assert answer.status == 200, answer
        return answer.document

    def opens(self, key: str, sealed: dict[str, Any]) -> list[str]:
        """What each node says to a Decrypt of it: the plaintext, or the error."""
        answers = [client.call("decrypt", client.decrypt_document(sealed)) for client in self.clients(key)]
        for client in self.clients(key):
            client.close()  # a node that stops waits for connections that are kept
        return [answer.error or answer.document["plaintext"] for answer in answers]

    def made_after_the_backup(self) -> dict[str, dict[str, Any]]:
        """Keys and a version that no backup has, and what they sealed."""
        self.proxies.shell("key", "create", "pay", "fresh")
        self.proxies.shell("key", "rotate", "pay", "k2")
        wait_until(
            lambda: all('"fresh"' in copy.read_text() and '"number":2' in copy.read_text() for copy in self.copies()),
            "copied by every node",
            30,
        )
        wait_until(
            lambda: all(client.call("encrypt").status == 200 for client in self.clients("fresh")),
            "served by every node",
            30,
        )
        return {key: self.sealed(key) for key in ("fresh", "k1", "k2")}

    def copies(self) -> list[Path]:
        return [node.directory / "state" / "copy.jsonl" for node in self.proxies.nodes]

    def kept(self, node: Node) -> list[Path]:
        """Local copies of the node that were put aside."""
        return sorted((node.directory / "state").glob("copy-*.jsonl"))

    def open_everywhere(self, sealed: dict[str, dict[str, Any]]) -> None:
        for key, document in sealed.items():
            wait_until(
                lambda key=key, document=document: self.opens(key, document) == [PLAIN] * len(self.proxies.nodes),
                f"{key} is decrypted by every node",
                30,
            )


def stop(node: Node, number: int = signal.SIGTERM) -> None:
    assert node.process is not None
    node.process.stop(number)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """One node on SQLite, two on PostgreSQL."""
    backup = tmp_path / "backup"
    if request.param == "sqlite":
        file = tmp_path / "database" / "state.db"
        file.parent.mkdir()
        with deployment(tmp_path, f"sqlite:///{file}", ("n1",)) as proxies:
            yield Place(proxies, file, backup)
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    try:
        with deployment(tmp_path, postgres.url(DATABASE), ("n1", "n2")) as proxies:
            yield Place(proxies, postgres, backup)
    finally:
        postgres.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.mark.timeout(600)
def test_keys_and_versions_that_only_the_nodes_know_outlive_their_restart(place: Place) -> None:
    place.remember()
    sealed = place.made_after_the_backup()
    place.go_back()
    for node in place.proxies.nodes:
        stop(node, signal.SIGKILL)
        node.start()
        assert not logged(node, "loop_fault")
    place.open_everywhere(sealed)


@pytest.mark.timeout(600)
def test_a_node_that_is_killed_at_any_point_of_its_start_loses_nothing(place: Place) -> None:
    place.remember()
    sealed = place.made_after_the_backup()
    place.go_back()
    for node in place.proxies.nodes:
        stop(node, signal.SIGKILL)
        for tenths in (3, 5, 7, 9, 12):
            process = Process(["serve", "--config", str(node.config)], node.directory)
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(tenths / 10)
            for pid in (*process.children("_control"), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.popen.wait(10)
        node.start()
        assert len(place.kept(node)) <= 1
    place.open_everywhere(sealed)
    assert place.proxies.shell("audit", "verify")["ok"]


@pytest.mark.timeout(600)
def test_who_accepts_the_older_state_gets_it_as_it_is_and_the_copy_can_be_served_again(place: Place) -> None:
    place.remember()
    sealed = place.made_after_the_backup()
    place.proxies.shell("key", "disable", "pay", "k1")
    place.proxies.shell("key", "block", "pay", "k2")
    wait_until(lambda: all('"enabled":false' in copy.read_text() for copy in place.copies()), "copied by every node", 30)
    place.go_back()
    for node in place.proxies.nodes:
        stop(node)
        before = (node.directory / "state" / "copy.jsonl").read_bytes()
        node.start(None, "--accept-older-state")
        (kept,) = place.kept(node)
        assert kept.read_bytes() == before
        assert kept.stat().st_mode & 0o777 == 0o600
        says(node, "an older state is served", "key pay/fresh version 1", "key pay/k2 version 2", str(kept))
    first = place.proxies.nodes[0]
    says(first, "key pay/k1 was disabled")
    (line,) = logged(first, "older_state_served")
    assert set(line["keys_lost"]) == {"key pay/fresh version 1", "key pay/k2 version 2"}
    assert place.opens("fresh", sealed["fresh"]) == ["KeyNotFoundException"] * len(place.proxies.nodes)
    assert place.opens("k1", sealed["k1"]) == [PLAIN] * len(place.proxies.nodes)
    assert place.opens("k2", sealed["k1"]) == ["InvalidStateException"] * len(place.proxies.nodes)  # a block stays

    # What the names stand for is somebody else's now: what was known is served, and nothing of it is mixed with the other.
    place.proxies.shell("key", "create", "pay", "fresh")
    theirs = place.sealed("fresh")
    wait_until(lambda: all('"fresh"' in copy.read_text() for copy in place.copies()), "copied by every node", 30)
    for node in place.proxies.nodes:
        stop(node)
        (kept,) = place.kept(node)
        copy = node.directory / "state" / "copy.jsonl"
        copy.rename(copy.with_name("later.jsonl"))
        shutil.copyfile(kept, copy)
        node.start()
        assert logged(node, "older_state_not_followed")
        says(node, "went back", "lacks key pay/fresh version 1")
        with api(place.proxies, place.proxies.nodes.index(node)) as client:
            assert "went back" in client.patch("/v1/stores/pay/keys/k2", json={"description": "never"}).json()["detail"]
    place.open_everywhere({"fresh": sealed["fresh"]})
    for node in place.proxies.nodes:
        stop(node)
        copy = node.directory / "state" / "copy.jsonl"
        copy.with_name("later.jsonl").rename(copy)
        node.start()
        assert not logged(node, "older_state_served")
    place.open_everywhere({"fresh": theirs})

    # What was named stays named until somebody has seen to it.
    for node in place.proxies.nodes:
        (kept,) = place.kept(node)
        says(node, "an older state is served", "key pay/fresh version 1")
        kept.with_suffix(".txt").unlink()
        is_well(node)


@pytest.mark.timeout(600)
def test_what_a_restored_database_allows_again_is_named(place: Place) -> None:
    place.remember()
    place.proxies.shell("key", "disable", "pay", "k1")
    place.proxies.shell("credential", "rotate", "pay")
    place.proxies.shell("credential", "remove", "pay", place.credential["access_key_id"], "--yes")
    place.proxies.shell("store", "update", "pay", "--allowed-principal", "arn:aws:iam::111122223333:role/only")
    wait_until(lambda: all("role/only" in copy.read_text() for copy in place.copies()), "copied by every node", 30)
    place.go_back()
    for node in place.proxies.nodes:
        stop(node)
        node.start()
        words = (
            "key pay/k1 was disabled",
            f"credential pay/{place.credential['access_key_id']} was removed",
            "key store pay had other allowed principals",
        )
        says(node, *words)
        (line,) = logged(node, "older_state_served")
        assert set(words) <= set(line["allowed_again"])


@pytest.fixture
def pair(tmp_path: Path, postgres: PostgresServer) -> Iterator[Place]:
    """Two nodes on PostgreSQL."""
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    try:
        with deployment(tmp_path, postgres.url(DATABASE), ("n1", "n2")) as proxies:
            yield Place(proxies, postgres, tmp_path / "backup")
    finally:
        postgres.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@pytest.mark.timeout(600)
def test_a_block_that_a_running_node_knows_reaches_nodes_that_never_heard_of_it(pair: Place) -> None:
    n1, n2 = pair.proxies.nodes
    stop(n2)
    pair.remember()
    assert pair.proxies.shell("key", "block", "pay", "k1", "--reason", "drill")["recorded"]
    pair.proxies.shell(
        "store", "create", "gone", "--uri-path-prefix", "/gone", "--region", "us-east-1", "--key-source", "local"
    )
    pair.go_back()
    says(n1, "went back", "the older state did not know that key pay/k1 is blocked: recorded there again")
    (seen,) = logged(n1, "older_state_seen")
    assert seen["blocks_lacking"] == ["key pay/k1"]
    assert "key_store gone" in [word.replace(" ", "_", 1) for word in seen["gone"]]
    n2.start()  # on the older state, with a copy that never knew of the block
    assert answers(pair.proxies, pair.credential, "k1") == {"InvalidStateException"}
    assert answers(pair.proxies, pair.credential, "k2") == {"ok"}
    with api(pair.proxies, 1) as client:
        (event,) = client.get("/v1/events", params={"actor": "system:restore"}).json()["items"]
        assert (event["action"], event["id"]) == ("key.block", "pay/k1")
        assert client.get("/v1/stores/pay/keys/k1").json()["blocked_reason"] == "drill"
        assert (
            client.post("/v1/stores/pay/keys/k1/unblock").status_code == 200
        )  # an operator who lifts it there is not overruled
    wait_until(
        lambda: [client.call("encrypt").error or "ok" for client in pair.clients("k1")] == ["InvalidStateException", "ok"],
        "served by the node that follows the older state",
        30,
    )


@pytest.mark.timeout(600)
def test_a_block_is_told_to_running_nodes_when_the_older_database_takes_no_changes(pair: Place) -> None:
    n1, n2 = pair.proxies.nodes
    stop(n2)
    pair.remember()
    assert pair.proxies.shell("key", "block", "pay", "k1")["recorded"]
    assert isinstance(pair.database, PostgresServer)
    pair.go_back()
    lock = psycopg.connect(pair.database.admin_conninfo.replace("dbname=postgres", f"dbname={DATABASE}"))
    with lock:
        lock.execute("SELECT pg_advisory_xact_lock(%s)", (WRITE_LOCK,))
        n2.start()
        wait_until(
            lambda: [client.call("encrypt").error or "ok" for client in pair.clients("k1")] == ["InvalidStateException"] * 2,
            "told by the other node",
            60,
        )
        lock.rollback()
    says(n1, "recorded there again")
    assert pair.opens("k2", pair.sealed("k2")) == [PLAIN] * 2
