# SPDX-License-Identifier: Apache-2.0
"""Two nodes of one name: the second one is refused, and two that run all the same both say so and confirm no block."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.peers import HttpPeers
from xksfast.admin.roster import MAY_SERVE_WITHIN_MS, Roster
from xksfast.admin.twin import FILE, SUCCESSOR_S, WATCH_S, SameName, Twin, instance_of
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.native.crypto import Secret
from xksfast.state.database import Database
from xksfast.state.master_key import KeyMaster
from xksfast.state.records import NodeRow
from xksfast.state.sealing import Sealer

SEALER, _ = Sealer.new(KeyMaster("file", {}, lambda: Secret.from_bytes(bytes(32))), now=100)
BLOCK = PendingBlock("b1", "key", "pay/k1", "", "operator:root", "local", "n1", 1)


class Clock:
    """now: in seconds."""

    now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def row(twin: Twin, heartbeat_ms: int, url: str = "", *, stopped: bool = False) -> NodeRow:
    return NodeRow("n1", "1", url, 1, heartbeat_ms, 1, 1, {**twin.details, **({"stopped": True} if stopped else {})})


def test_a_node_has_one_instance_for_ever_and_each_process_another_run(tmp_path: Path) -> None:
    first = instance_of(tmp_path, Log("test"))
    assert instance_of(tmp_path, Log("test")) == first
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").mkdir()
    assert instance_of(tmp_path / "other", Log("test")) != first
    runs = {Twin("n1", first, "").details["run"] for _ in range(3)}
    assert len(runs) == 3


def test_an_instance_that_no_file_takes_is_no_reason_not_to_serve(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert instance_of(tmp_path / "nowhere", Log("test"))
    assert "instance_not_kept" in capfd.readouterr().err


def test_a_start_is_refused_while_another_instance_writes_under_its_name(database: Database) -> None:
    clock = Clock()
    runs, comes = Twin("n1", "a", "https://one"), Twin("n1", "b", "https://two", clock)
    database.heartbeat(row(runs, 1000, "https://one"))

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        database.heartbeat(row(runs, round(clock.now), "https://one"))

    with pytest.raises(
        SameName, match=r"'n1' runs already, at https://one, and this one is https://two\. .* another \[admin\] node"
    ):
        comes.refuse_start(database, sleep)


@pytest.mark.parametrize("what", ["silent", "stopped", "own", "unknown", "nobody", "stops"])
def test_a_start_is_not_refused_for_a_row_that_nobody_writes(database: Database, what: str) -> None:
    clock = Clock()
    comes = Twin("n1", "b", "https://two", clock)
    former = Twin("n1", "b" if what == "own" else "a", "https://one")
    if what == "unknown":  # of a version that knew no instances
        database.heartbeat(NodeRow("n1", "1", "https://one", 1, 1000, 1, 1, {}))
    elif what != "nobody":
        database.heartbeat(row(former, 1000, "https://one", stopped=what == "stopped"))

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if what == "stops":
            database.heartbeat(row(former, 2000, "https://one", stopped=True))

    comes.refuse_start(database, sleep)
    assert (clock.now > 50 + WATCH_S - 1) == (what == "silent")


def test_two_that_run_both_say_so_until_one_says_that_it_stops() -> None:
    one, two = Twin("n1", "a", "https://one"), Twin("n1", "b", "https://two")
    one.look([])
    one.wrote()
    two.wrote()
    for heartbeat in (1, 2):
        one.look([row(two, heartbeat, "https://two")])
        two.look([row(one, heartbeat, "https://one")])
    assert "another node named 'n1' runs at https://two, and this one at https://one" in one.problem
    assert "another node named 'n1' runs at https://one, and this one at https://two" in two.problem
    assert one.details["twin"] == one.problem
    one.look([row(one, 3)])  # its own row, as it stands between two words of the other
    assert one.problem
    one.look([row(two, 4, stopped=True)])
    assert (one.problem, "twin" in one.details) == ("", False)


def test_one_that_is_cut_off_stays_named_for_as_long_as_it_may_serve() -> None:
    clock = Clock()
    one, two = Twin("n1", "a", "https://one", clock), Twin("n1", "b", "https://two")
    one.wrote()
    one.look([row(two, 1, "https://two")])
    one.look([row(two, 2, "https://two")])
    clock.now += 60
    assert "last heard of" in one.problem
    assert "restart this node" in one.problem
    assert one.problem == one.problem
    clock.now += MAY_SERVE_WITHIN_MS / 1000
    assert one.problem == ""


def test_a_former_process_of_the_same_node_is_no_twin_but_a_cloned_directory_is() -> None:
    clock = Clock()
    now, former = Twin("n1", "a", "https://one", clock), Twin("n1", "a", "https://one")
    now.look([row(former, 1)])
    now.wrote()
    now.look([row(former, 2)])
    assert now.problem == ""
    clock.now += SUCCESSOR_S
    now.look([row(former, 3)])
    now.look([row(former, 4)])
    assert "another node named 'n1'" in now.problem


def test_a_twin_is_pending_of_each_block_whatever_it_answers(tmp_path: Path) -> None:
    one, two = Twin("n1", "a", ""), Twin("n1", "b", "")
    rows: list[NodeRow] = [row(one, 1)]
    roster = Roster("n1", tmp_path / "peers.json", Log("test"))

    async def read() -> list[NodeRow]:
        return rows

    peers = HttpPeers(roster, lambda: SEALER, "", read, one)
    assert peers.names() == []
    one.wrote()
    one.look([row(two, 1)])
    one.look([row(two, 2)])
    (name,) = peers.names()
    assert asyncio.run(peers.newcomers()) == [name]
    for asked in (peers.tell_block(name, BLOCK), peers.restricted(name, 1)):
        with pytest.raises(OperatorError, match="another node named 'n1' runs"):
            asyncio.run(asked)


def test_other_nodes_do_not_take_the_word_of_one_for_both(tmp_path: Path) -> None:
    one, two = Twin("n1", "a", ""), Twin("n1", "b", "")
    one.wrote()
    one.look([row(two, 1)])
    one.look([row(two, 2)])
    rows = [row(one, 3), NodeRow("n2", "1", "", 1, 3, 1, 1, {})]
    roster = Roster("n2", tmp_path / "peers.json", Log("test"))
    roster.told(rows)

    async def read() -> list[NodeRow]:
        return rows

    async def confirms(*_: object) -> None:
        """One of the two."""

    peers = HttpPeers(roster, lambda: SEALER, "", read)
    peers._send = confirms  # type: ignore[method-assign]
    for asked in (peers.tell_block("n1", BLOCK), peers.restricted("n1", 1)):
        with pytest.raises(OperatorError, match="another node named 'n1' runs"):
            asyncio.run(asked)


def test_a_row_that_a_restored_database_has_from_before_is_no_twin() -> None:
    clock = Clock()
    now, former = Twin("n1", "a", "https://one", clock), Twin("n1", "a", "https://one")
    now.wrote()
    clock.now += 2 * SUCCESSOR_S
    for _ in range(3):  # the same row, however often it is restored
        now.look([row(former, 3)])
        now.look([row(now, 4)])
    assert now.problem == ""
