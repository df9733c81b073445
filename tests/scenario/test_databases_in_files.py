# SPDX-License-Identifier: Apache-2.0
"""A node on an SQLite file whose file system is full, read-only or lost the file: it serves what it knows, writes nothing by half."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.scenario.nodes import Deployment, Node, deployment
from tests.scenario.trouble import (
    Scene,
    api,
    is_well,
    logged,
    may_mount,
    no_room,
    read_only,
    refused,
    run,
    says,
    small_file_system,
    status,
)
from tests.servers import wait_until
from xksfast.secret_file import write_secret_file

pytestmark = pytest.mark.skipif(not may_mount(), reason="a file system of its own can be mounted by root only")


class Single(Scene):
    """One node, a store "pay" with the keys k1 and k2. room: the small file system that the database is on."""

    def __init__(self, proxies: Deployment, room: Path) -> None:
        super().__init__(proxies)
        self.room = room
        (self.node,) = proxies.nodes
        self.file = room / "state.db"

    def block(self, key: str) -> bool:
        """In force when this returns; whether it is recorded."""
        with api(self.proxies) as client:
            blocked = client.post(f"/v1/stores/pay/keys/{key}/block").json()
        assert [each["node"] for each in blocked["confirmed"]] == ["n1"], blocked
        assert self.served(key) == {"InvalidStateException"}
        return bool(blocked["recorded"])

    def block_is_recorded_and_ends(self, key: str) -> None:
        """The database is well again."""
        is_well(self.node)
        with api(self.proxies) as client:
            query = {"kind": "key", "id": f"pay/{key}", "limit": 1}
            wait_until(
                lambda: client.get("/v1/events", params=query).json()["items"][0]["action"] == "key.block", "recorded", 30
            )
            assert client.post(f"/v1/stores/pay/keys/{key}/unblock").status_code == 200
            wait_until(lambda: self.served(key) == {"ok"}, "served again", 20)
            assert client.get("/v1/events/verification").json()["problems"] == []

    def restarted(self) -> Iterator[None]:
        """Stopped; what the test does then; started."""
        assert self.node.process is not None
        assert self.node.process.stop() == 0
        yield
        self.node.start()

    restart = contextmanager(restarted)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Single]:
    directory = tmp_path_factory.mktemp("single")
    with (
        small_file_system(directory / "room", 8) as room,
        deployment(directory, f"sqlite:///{room}/state.db", ("n1",)) as proxies,
    ):
        yield Single(proxies, room)


@pytest.mark.timeout(300)
def test_a_file_system_without_room_is_named_and_nothing_is_half_written(single: Single) -> None:
    changed = 0
    with single.is_served(), api(single.proxies) as client:
        with no_room(single.room):
            for number in range(2000):
                answer = client.patch("/v1/stores/pay/keys/k2", json={"description": f"{number} " * 200})
                if answer.status_code != 200:
                    break
                changed += 1
            problem = refused(answer)
            assert "cannot grow" in problem["detail"]
            assert "nothing was changed. Make room on its file system" in problem["detail"]
            says(single.node, "the state: no changes since", "cannot grow")
            assert len(logged(single.node, "state_not_written")) == 1
            assert not single.block("k1")
            code, _, err = run(single.proxies, "key", "create", "pay", "k3")
            assert code == 1
            assert "Make room on its file system" in err
        assert client.get("/v1/stores/pay/keys/k2").json()["description"] == (f"{changed - 1} " * 200 if changed else "")
        assert client.get("/v1/stores/pay/keys/k3").status_code == 404
    single.block_is_recorded_and_ends("k1")


@pytest.mark.timeout(300)
def test_a_file_system_that_is_read_only_is_named_and_the_copy_is_served(single: Single) -> None:
    with single.restart():
        declare_late_store(single.node)
        read_only(single.room, True)
    try:
        assert "mounted read-only: mount it for writing" in logged(single.node, "local_copy_served")[0]["why"]
        with single.is_served():
            says(single.node, "the state: no news since", "mounted read-only")
            assert not single.block("k1")
            with api(single.proxies) as client:
                problem = refused(client.patch("/v1/stores/pay/keys/k2", json={"description": "x"}))
            assert "mounted read-only: mount it for writing" in problem["detail"]
            code, _, err = run(single.proxies, "node", "list")
            assert code == 1
            assert "mounted read-only" in err
            read_only(single.room, False)
            single.block_is_recorded_and_ends("k1")
            with api(single.proxies) as client:  # what a node was to apply at its start, it applies when it can
                wait_until(lambda: client.get("/v1/stores/late").status_code == 200, "applied", 20)
    finally:
        read_only(single.room, False)


def declare_late_store(node: Node) -> None:
    """A key store that the node makes at its next start, or as soon after it as it can."""
    write_secret_file(node.directory / "late.secret", b"S" * 43)
    file = node.directory / "declared.toml"
    file.write_text(
        '[key_stores.late]\nregion = "us-east-1"\nuri_path_prefix = "/late"\nkey_source = "local"\n'
        f'[[key_stores.late.credentials]]\naccess_key_id = "{"L" * 20}"\nsecret_access_key_file = "late.secret"\n'
    )
    before = node.config.read_text()
    after = before.replace('["state"]\n', f'["state"]\napply = "{file}"\n')
    assert after != before
    node.config.write_text(after)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["gone", "empty"])
def test_no_new_state_is_made_where_the_known_one_has_gone(single: Single, what: str) -> None:
    aside = single.room / "aside"
    with single.restart():
        aside.mkdir()
        for file in single.room.glob("state.db*"):
            shutil.move(file, aside)
        if what == "empty":
            single.file.touch()
    why = logged(single.node, "local_copy_served")[0]["why"]
    assert ("there is no such file" if what == "gone" else "holds no state") in why
    assert any(why in problem for problem in status(single.node)["problems"])  # from the first moment that it serves
    with single.is_served():
        assert not single.block("k1")
        assert single.file.exists() == (what == "empty")
        if what == "empty":
            with closing(sqlite3.connect(single.file)) as found:
                assert found.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        for file in single.room.glob("state.db*"):
            file.unlink()
        for file in aside.iterdir():
            shutil.move(file, single.room)
        aside.rmdir()
        single.block_is_recorded_and_ends("k1")
