# SPDX-License-Identifier: Apache-2.0
"""How a block is told to other nodes: by whom an answer is missed, and that those who answer nothing keep nobody waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.servers import free_port
from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.blocks import NobodyThere, ServesNothing
from xksfast.admin.kept_blocks import keep_nodes
from xksfast.admin.peers import ANSWER_WITHIN_S, PEER_PATH, HttpPeers
from xksfast.admin.roster import ALIVE_WITHIN_MS, Peer, Roster
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.native.crypto import Secret
from xksfast.state.database import Database
from xksfast.state.master_key import KeyMaster
from xksfast.state.records import NodeRow
from xksfast.state.sealing import Sealer

SEALER, _ = Sealer.new(KeyMaster("file", {}, lambda: Secret.from_bytes(bytes(32))), now=100)
BLOCK = PendingBlock("b1", "key", "pay/k1", "", "operator:root", "local", "n1", 1)
NOW_MS = 1_800_000_000_000
SILENT_MS = NOW_MS - 2 * ALIVE_WITHIN_MS


class Door(ThreadingHTTPServer):
    """A node's admin listener; without TLS. heard: paths that were asked for. waits_s: before each answer."""

    daemon_threads = True
    waits_s = 0.0

    def __init__(self) -> None:
        self.heard: list[str] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                door.heard.append(self.path)
                self.rfile.read(int(self.headers["content-length"]))
                time.sleep(door.waits_s)
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as server:
        yield server
        server.shutdown()


class Table:
    """The nodes table, as node n1 reads it."""

    def __init__(self, directory: Path, *rows: NodeRow) -> None:
        self.rows = [NodeRow("n1", "1", "", NOW_MS, NOW_MS, 1, 1), *rows]
        self.reads = 0
        self.roster = Roster("n1", directory / "peers.json", Log("test"))
        self.roster.told(self.rows)
        self.peers = HttpPeers(self.roster, lambda: SEALER, "", self.read)

    async def read(self) -> list[NodeRow]:
        self.reads += 1
        self.roster.told(self.rows)
        return self.rows


def node(name: str, url: str, heartbeat_ms: int = NOW_MS, restricted_seq: int = 1, **details: Any) -> NodeRow:
    return NodeRow(name, "1", url, NOW_MS, heartbeat_ms, 1, restricted_seq, details)


def tell(peers: HttpPeers, name: str = "n2") -> None:
    asyncio.run(peers.tell_block(name, BLOCK))


@pytest.mark.parametrize("row", [node("n2", ""), node("n2", "", SILENT_MS), node("n2", "", SILENT_MS, stopped=True)])
def test_who_answers_has_confirmed_whatever_the_database_says_of_it(tmp_path: Path, door: Door, row: NodeRow) -> None:
    table = Table(tmp_path, replace(row, url=door.url))
    tell(table.peers)
    assert door.heard == [PEER_PATH]


def test_an_answer_is_missed_of_all_but_those_that_have_stopped(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    table = Table(
        tmp_path,
        node("n2", url),
        node("n3", url, SILENT_MS),
        node("n4", url, stopped=True),
        node("n5", url, SILENT_MS, stopped=True),
    )
    with pytest.raises(OperatorError, match=r"ConnectError$") as alive:
        tell(table.peers)
    assert type(alive.value) is OperatorError
    with pytest.raises(NobodyThere, match="ConnectError; it was last heard of 20 s ago"):
        tell(table.peers, "n3")
    for stopped in ("n4", "n5"):
        with pytest.raises(ServesNothing):
            tell(table.peers, stopped)
    with pytest.raises(ServesNothing, match="forgotten"):
        tell(table.peers, "n6")


def test_a_stopped_node_is_missed_when_the_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path, node("n2", f"http://127.0.0.1:{free_port()}", stopped=True))
    monkeypatch.setattr(table.roster, "has_news", lambda: False)
    with pytest.raises(NobodyThere, match="may have been started since"):
        tell(table.peers)


def test_many_blocks_do_not_wait_each_for_a_node_that_is_silent(tmp_path: Path, door: Door) -> None:
    door.waits_s = ANSWER_WITHIN_S + 0.5
    table = Table(tmp_path, node("n2", door.url, SILENT_MS))

    async def work() -> list[float]:
        took = []
        for _ in range(4):
            began = time.monotonic()
            with pytest.raises(NobodyThere, match=f"no answer in time from {door.url}; it was last heard of"):
                await table.peers.tell_block("n2", BLOCK)
            took.append(time.monotonic() - began)
        door.waits_s = 0
        with pytest.raises(NobodyThere):  # told all the same, and this time it answers
            await table.peers.tell_block("n2", BLOCK)
        while len(door.heard) < 5 or table.peers._messages:
            await asyncio.sleep(0.01)
        await table.peers.tell_block("n2", BLOCK)
        await table.peers.close()
        return took

    first, *others = asyncio.run(asyncio.wait_for(work(), 60))
    assert first >= ANSWER_WITHIN_S
    assert all(each < ANSWER_WITHIN_S for each in others)
    assert len(door.heard) == 6


def test_what_a_node_said_before_it_was_asked_confirms_nothing(tmp_path: Path) -> None:
    table = Table(tmp_path, node("n2", "", restricted_seq=7))

    async def work() -> None:
        since_ms = table.peers.heartbeat_ms("n2")
        waits = asyncio.ensure_future(table.peers.restricted("n2", 7, since_ms=since_ms))
        while table.reads < 3:
            await asyncio.sleep(0.01)
        assert not waits.done()
        table.rows[1] = node("n2", "", NOW_MS + 1, restricted_seq=7)
        await waits
        await table.peers.restricted("n2", 7)

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("rows", [[], [node("n2", "", stopped=True)]])
def test_who_stopped_or_was_forgotten_meanwhile_confirms_nothing_and_need_not(tmp_path: Path, rows: list[NodeRow]) -> None:
    table = Table(tmp_path, *rows)
    with pytest.raises(ServesNothing):
        asyncio.run(asyncio.wait_for(table.peers.restricted("n2", 1), 10))


def test_newcomers_are_known_as_soon_as_the_database_knows_them(tmp_path: Path) -> None:
    table = Table(tmp_path, node("n2", ""))
    table.rows.append(node("n3", ""))
    assert table.peers.names() == ["n2"]
    assert asyncio.run(table.peers.newcomers()) == ["n2", "n3"]


def test_nodes_that_a_restored_database_does_not_know_are_put_back(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'state.db'}")
    database.heartbeat(node("n3", "https://n3"))
    keep_nodes(database, [Peer("n2", "https://n2"), Peer("n3", "https://elsewhere")], NOW_MS)
    rows = {row.name: row for row in database.nodes()}
    assert (rows["n2"].url, rows["n2"].heartbeat_ms, rows["n3"].url) == ("https://n2", NOW_MS, "https://n3")
    assert "before it was there" in rows["n2"].details["problems"][0]
    database.close()
