# SPDX-License-Identifier: Apache-2.0
"""A database that is put back to an earlier backup: what only the nodes still know outlives their restart, unless they are told not to keep it."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.postgres import PostgresServer
from tests.client import Client
from tests.scenario.nodes import Deployment, Node, deployment
from tests.scenario.trouble import api, logged, made, run, says
from tests.servers import wait_until

DATABASE = "older"
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
        answer = self.clients(key)[0].call("encrypt")
        assert answer.status == 200, answer
        return answer.document

    def opens(self, key: str, sealed: dict[str, Any]) -> list[str]:
        """What each node says to a Decrypt of it: the plaintext, or the error."""
        answers = [client.call("decrypt", client.decrypt_document(sealed)) for client in self.clients(key)]
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
    place.open_everywhere(sealed)
