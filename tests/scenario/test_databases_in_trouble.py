# SPDX-License-Identifier: Apache-2.0
"""Two nodes on a PostgreSQL database that is locked, read-only, full, away for long, or goes back to a backup.

In each case keys go on being served by the rule of their store, a block is in force at once, and whoever asks is told what is wrong.
The deployment is one for all tests: each leaves it as it was.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from bench.postgres import PostgresServer
from tests.scenario.nodes import Deployment, deployment
from tests.scenario.slow_link import SlowLink
from tests.scenario.trouble import (
    Scene,
    api,
    is_well,
    logged,
    may_mount,
    no_room,
    refused,
    run,
    says,
    small_file_system,
    status,
)
from tests.servers import wait_until

NAMES = ("n1", "n2")
DATABASE = "in_trouble"
WRITE_LOCK = 0x786B736661737401


class Pair(Scene):
    """Two nodes, a store "pay" with the keys k1 and k2 that is served whatever happens. room: the small file system, or None."""

    def __init__(self, proxies: Deployment, postgres: PostgresServer, link: SlowLink, room: Path | None) -> None:
        super().__init__(proxies)
        self.postgres, self.link, self.room = postgres, link, room
        self.n1, self.n2 = proxies.nodes

    def block(self, key: str, reason: str = "") -> dict[str, Any]:
        """Confirmed by both nodes and in force; what was answered."""
        with api(self.proxies) as client:
            blocked: dict[str, Any] = client.post(f"/v1/stores/pay/keys/{key}/block", json={"reason": reason}).json()
        assert sorted(each["node"] for each in blocked["confirmed"]) == list(NAMES), blocked
        assert blocked["pending"] == []
        assert self.served(key) == {"InvalidStateException"}
        return blocked

    def block_is_recorded_and_ends(self, key: str = "k1") -> None:
        """The database is well again: the block is recorded, and can be lifted."""
        for node in self.proxies.nodes:
            is_well(node)
        wait_until(lambda: self.newest(key)["action"] == "key.block", "recorded", 30)
        assert self.served(key) == {"InvalidStateException"}
        with api(self.proxies) as client:
            assert client.post(f"/v1/stores/pay/keys/{key}/unblock").json()["pending"] == []
            wait_until(lambda: self.served(key) == {"ok"}, "served again", 20)
            assert self.newest(key)["action"] == "key.unblock"
            assert client.get("/v1/events/verification").json()["problems"] == []

    def newest(self, key: str) -> dict[str, Any]:
        """The newest event of a key."""
        with api(self.proxies) as client:
            return dict(client.get("/v1/events", params={"kind": "key", "id": f"pay/{key}", "limit": 1}).json()["items"][0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Pair]:
    """On a small file system where that can be had, by a network that can be made slow."""
    directory = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        room: Path | None = None
        if may_mount():  # where PostgreSQL's user may enter
            room = stack.enter_context(small_file_system(Path("/tmp") / f"xksfast-small-{time.time_ns()}", 48))
            space = room / "space"
            space.mkdir()
            shutil.chown(space, "postgres")
            postgres.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
            stack.callback(postgres.execute, "DROP TABLESPACE small")
        create(postgres, DATABASE, room)
        stack.callback(postgres.execute, f"DROP DATABASE {DATABASE} WITH (FORCE)")
        url = urlsplit(postgres.url(DATABASE))
        assert url.port is not None
        link = SlowLink(url.port)
        stack.callback(link.close)
        proxies = stack.enter_context(deployment(directory, url.geturl().replace(f":{url.port}/", f":{link.port}/"), NAMES))
        yield Pair(proxies, postgres, link, room)


def create(postgres: PostgresServer, name: str, room: Path | None) -> None:
    """An empty database."""
    postgres.execute(f"CREATE DATABASE {name} STRATEGY file_copy" + (" TABLESPACE small" if room else ""))


@pytest.mark.timeout(600)
def test_a_lock_that_somebody_keeps_stops_changes_and_nothing_else(pair: Pair) -> None:
    conninfo = pair.postgres.admin_conninfo.replace("dbname=postgres", f"dbname={DATABASE}")
    with pair.is_served(), psycopg.connect(conninfo) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (WRITE_LOCK,))
        code, out, err = run(pair.proxies, "key", "create", "pay", "k3")
        assert (code, out) == (1, "")
        assert "another node holds the write lock" in err
        assert "pg_locks" in err
        with api(pair.proxies) as client:
            problem = refused(client.post("/v1/stores/pay/keys", json={"external_key_id": "k3"}))
            assert "nothing was changed" in problem["detail"]
            assert [key["external_key_id"] for key in client.get("/v1/stores/pay/keys").json()["items"]] == ["k1", "k2"]
        assert not pair.block("k1")["recorded"]
        other.rollback()
    pair.block_is_recorded_and_ends()


@pytest.mark.timeout(600)
def test_a_slow_network_to_the_database_slows_changes_and_nothing_else(pair: Pair) -> None:
    with pair.is_served(), api(pair.proxies) as client:
        silences = len(logged(pair.n1, "state_not_heard"))
        with pair.link.slow(0.1):
            answer = client.patch("/v1/stores/pay/keys/k2", json={"description": "slowly"})
            assert (answer.status_code, answer.json()["description"]) == (200, "slowly")
            began = time.monotonic()
            pair.block("k1")  # recorded or not: that takes as long as it takes
            assert time.monotonic() - began < 6
        assert len(logged(pair.n1, "state_not_heard")) == silences
        pair.block_is_recorded_and_ends()
        with pair.link.slow(3):
            for node in (pair.n1, pair.n2):
                says(node, "the state: no news since", "cannot be used", "see that it runs")
            problem = refused(client.patch("/v1/stores/pay/keys/k2", json={"description": "never"}))
            assert re.search("no answer within 2 s|connection timeout expired", problem["detail"])
            assert "see that it runs" in problem["detail"]
            assert not pair.block("k1")["recorded"]
            assert pair.served("k1") == {"InvalidStateException"}
        pair.block_is_recorded_and_ends()
        assert client.get("/v1/stores/pay/keys/k2").json()["description"] == "slowly"


@pytest.mark.timeout(600)
def test_a_database_that_becomes_read_only_is_named_and_what_is_known_is_served(pair: Pair) -> None:
    before = {node.name: len(logged(node, "state_not_heard")) for node in (pair.n1, pair.n2)}
    pair.postgres.execute(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on")
    try:
        disconnect(pair)
        with pair.is_served():
            for node in (pair.n1, pair.n2):
                says(node, "the state: no news since", "takes no changes", "Name the primary in [state] url")
                assert len(logged(node, "state_not_heard")) == before[node.name] + 1
            code, _, err = run(pair.proxies, "key", "create", "pay", "k3")
            assert code == 1
            assert "takes no changes" in err
            assert "Name the primary" in err
            with api(pair.proxies) as client:
                refused(client.post("/v1/stores/pay/keys", json={"external_key_id": "k3"}))
            assert not pair.block("k1")["recorded"]
        # A node that is started now has nothing but its copy and its journal.
        process = pair.n2.process
        assert process is not None
        assert process.stop() == 0
        pair.n2.start()
        assert "takes no changes" in logged(pair.n2, "local_copy_served")[0]["why"]
        assert pair.served("k1") == {"InvalidStateException"}
        assert pair.served("k2") == {"ok"}
        says(pair.n2, "takes no changes")
    finally:
        pair.postgres.execute(f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only")
    pair.block_is_recorded_and_ends()


@pytest.mark.timeout(600)
def test_a_database_without_room_is_named_and_nothing_is_half_written(pair: Pair) -> None:
    if pair.room is None:
        pytest.skip("a file system of its own can be mounted by root only")
    changed = 0
    with pair.is_served(), api(pair.proxies) as client:
        former = client.get("/v1/stores/pay/keys/k2").json()["description"]
        with no_room(pair.room):
            for number in range(500):
                answer = client.patch("/v1/stores/pay/keys/k2", json={"description": f"{number} " * 200})
                if answer.status_code != 200:
                    break
                changed += 1
            problem = refused(answer)
            assert "has no room on its disk: nothing was changed" in problem["detail"]
            assert "Make room on the server" in problem["detail"]
            pair.block("k1")  # recorded or not, by the room that its pages still have: in force it is in any case
            code, _, err = run(pair.proxies, "key", "update", "pay", "k2", "--description", "x" * 1000)
            assert code == 1
            assert "has no room on its disk" in err
        shown = client.get("/v1/stores/pay/keys/k2").json()
        assert shown["description"] == (f"{changed - 1} " * 200 if changed else former)
    pair.block_is_recorded_and_ends()
    with api(pair.proxies) as client:
        updates = client.get("/v1/events", params={"action": "key.update", "limit": 1000}).json()["items"]
    assert len(updates) == changed + bool(former)


@pytest.mark.timeout(600)
def test_a_store_that_wants_no_service_without_news_is_refused_until_there_are_some(pair: Pair) -> None:
    store = pair.proxies.shell(
        "store", "create", "strict", "--uri-path-prefix", "/strict", "--region", "us-east-1", "--key-source", "local",
        "--on-stale", "refuse", "--stale-after-s", "10",
    )  # fmt: skip
    pair.proxies.shell("key", "create", "strict", "k1")
    clients = pair.proxies.clients(store["credential"], "/strict", "k1")

    def strict() -> set[str]:
        return {client.call("encrypt").error or "ok" for client in clients}

    wait_until(lambda: strict() == {"ok"}, "served", 20)
    with pair.is_served(), pair.postgres.away():
        went_away = time.monotonic()
        while time.monotonic() - went_away < 8:
            assert strict() == {"ok"}
            time.sleep(0.5)
        wait_until(lambda: strict() == {"InvalidStateException"}, "refused", 20)
        for node, client in zip((pair.n1, pair.n2), clients, strict=True):
            says(node, "no news since", "key stores strict are refused", "stale_after_s")
            assert logged(node, "stale_stores")[-1]["refused"] == ["strict"]
            health = client.call("health")
            assert health.error == "InvalidStateException", health
    wait_until(lambda: strict() == {"ok"}, "served again", 30)
    for node in (pair.n1, pair.n2):
        is_well(node)
        assert logged(node, "stale_stores")[-1]["refused"] == []


@pytest.mark.timeout(600)
def test_a_database_that_went_back_undoes_no_block(pair: Pair, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    state(pair, "backup", str(backup))
    assert pair.block("k1", "after the backup")["recorded"]
    copies = [node.directory / "state" / "copy.jsonl" for node in pair.proxies.nodes]
    wait_until(lambda: all("after the backup" in copy.read_text() for copy in copies), "copied by every node", 30)
    with pair.is_served():
        pair.postgres.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        for node in (pair.n1, pair.n2):
            says(node, "no news since", "does not exist")
        create(pair.postgres, DATABASE, pair.room)
        for node in (pair.n1, pair.n2):
            says(node, "no news since", "holds no state", "restore a backup")
        state(pair, "restore", str(backup))
        for node in (pair.n1, pair.n2):
            says(node, "went back: this node knows event", "Bring the newer database back", "puts back keys and blocks")
            assert len(logged(node, "state_went_back")) <= 2  # while it was empty, and now
        wait_until(
            lambda: any(
                "key pay/k1 is blocked: recorded there again" in " ".join(status(node)["problems"])
                for node in (pair.n1, pair.n2)
            ),
            "the first to record the block names it",
            20,
        )
        wait_until(
            lambda: all("went back" in " ".join(each["problems"]) for each in nodes(pair)), "every node says so itself", 20
        )  # fmt: skip
        assert "node n2: since" in run(pair.proxies, "node", "list")[2]
        assert pair.served("k1") == {"InvalidStateException"}
        code, _, err = run(pair.proxies, "key", "create", "pay", "k3")
        assert code == 1
        assert "went back" in err
    assert not pair.block("k2")["recorded"]

    # One after the other is restarted to serve the older state, the second one after it was killed.
    for node, number in ((pair.n1, signal.SIGTERM), (pair.n2, signal.SIGKILL)):
        assert node.process is not None
        node.process.stop(number)
        node.start()
        assert len(logged(node, "older_state_served")) == 1
        assert pair.served("k1") == {"InvalidStateException"}
        assert pair.served("k2") == {"InvalidStateException"}
    for key in ("k1", "k2"):
        pair.block_is_recorded_and_ends(key)
    with api(pair.proxies) as client:
        assert client.get("/v1/events", params={"actor": "system:restore"}).json()["items"][0]["id"] == "pay/k1"


def nodes(pair: Pair) -> list[dict[str, Any]]:
    """As `node list` shows them."""
    with api(pair.proxies) as client:
        return list(client.get("/v1/nodes").json()["items"])


def state(pair: Pair, command: str, *arguments: str) -> None:
    """`xksfast state …`, by the configuration of the first node."""
    ran = subprocess.run(
        [sys.executable, "-m", "xksfast", "state", command, *arguments, "--config", str(pair.n1.config)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def disconnect(pair: Pair) -> None:
    """Every session on the database ends, as when the primary fails over."""
    pair.postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{DATABASE}'")
