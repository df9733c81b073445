# SPDX-License-Identifier: Apache-2.0
"""Whom a block asks: every node that may serve, heard of or not, whatever its clock says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from xksfast.admin.roster import ALIVE_WITHIN_MS, MAY_SERVE_WITHIN_MS, NEWS_FOR_S, Roster
from xksfast.log import Log
from xksfast.state.records import NodeRow

NOW_MS = 1_800_000_000_000
A_DAY_S = MAY_SERVE_WITHIN_MS / 1000


class Clock:
    """now: in seconds."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def row(name: str, silent_ms: int = 0, *, stopped: bool = False) -> NodeRow:
    heard_ms = NOW_MS - silent_ms
    return NodeRow(name, "1", f"https://{name}", heard_ms, heard_ms, 1, 1, {"stopped": True} if stopped else {})


def told(directory: Path, *rows: NodeRow, clock: Clock | None = None) -> Roster:
    """Of node n1."""
    roster = Roster("n1", directory / "peers.json", Log("test"), clock or Clock())
    roster.told([row("n1"), *rows])
    return roster


def names(roster: Roster) -> list[str]:
    return [peer.name for peer in roster.all()]


def test_a_silent_node_is_not_alive_but_may_serve_for_a_day(tmp_path: Path) -> None:
    roster = told(
        tmp_path,
        row("n2", ALIVE_WITHIN_MS), row("n3", ALIVE_WITHIN_MS + 1), row("n4", MAY_SERVE_WITHIN_MS), row("n5", MAY_SERVE_WITHIN_MS + 1),
    )  # fmt: skip
    assert roster.alive() == ["n2"]
    assert names(roster) == ["n2", "n3", "n4"]
    doubts = {peer.name: peer.doubt for peer in roster.all()}
    assert doubts["n2"] == ""
    assert "last heard of 10 s ago: if it runs it serves what it knew then" in doubts["n3"]
    assert "`xksfast state forget-node n4`" in doubts["n4"]
    roster.told([row("n1"), row("n2")])
    assert (names(roster), roster.find("n3")) == (["n2"], None)


def test_a_node_that_stopped_is_known_but_not_alive(tmp_path: Path) -> None:
    clock = Clock()
    roster = told(tmp_path, row("n2", stopped=True), row("n3"), clock=clock)
    assert (roster.alive(), names(roster), roster.has_news()) == (["n3"], ["n2", "n3"], True)
    clock.now += NEWS_FOR_S + 0.1  # the database is away
    assert (roster.alive(), names(roster), roster.has_news()) == (["n3"], ["n2", "n3"], False)
    assert "may have been started since" in roster.all()[0].doubt


@pytest.mark.parametrize("wrong_by_ms", [MAY_SERVE_WITHIN_MS + 3_600_000, -MAY_SERVE_WITHIN_MS - 3_600_000])
def test_a_clock_that_is_wrong_makes_neither_itself_nor_others_silent(tmp_path: Path, wrong_by_ms: int) -> None:
    clock = Clock()
    roster = told(tmp_path, row("n2", -wrong_by_ms), row("n3"), clock=clock)
    for second in range(1, 20):
        clock.now += 1
        later = -1000 * second
        roster.told([row("n1", later), row("n2", later - wrong_by_ms), row("n3", later)])
        assert roster.alive() == ["n2", "n3"]
    for second in range(20, 40):  # n3 falls silent
        clock.now += 1
        roster.told([row("n1", -1000 * second), row("n2", -1000 * second - wrong_by_ms), row("n3", -19_000)])
    assert (roster.alive(), names(roster)) == (["n2"], ["n2", "n3"])
    clock.now += A_DAY_S
    roster.told([row("n1", 0), row("n2", -wrong_by_ms), row("n3", -19_000)])
    assert names(roster) == ["n2"]


def test_a_start_without_the_database_knows_whom_to_ask(tmp_path: Path) -> None:
    told(tmp_path, row("n2"), row("n3", stopped=True), row("n4", MAY_SERVE_WITHIN_MS + 1))
    assert (tmp_path / "peers.json").stat().st_mode & 0o777 == 0o600
    roster = Roster("n1", tmp_path / "peers.json", Log("test"))
    assert names(roster) == []
    roster.recall()
    assert (names(roster), roster.has_news()) == (["n2", "n3"], False)
    roster.told([row("n1"), row("n3")])
    assert names(roster) == ["n3"]


def test_a_first_start_knows_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    roster = Roster("n1", tmp_path / "peers.json", Log("test"))
    roster.recall()
    assert names(roster) == []
    assert capfd.readouterr().err == ""


def test_names_that_cannot_be_read_are_no_reason_not_to_serve_but_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers.json").write_text('{"n2": 5}')
    roster = Roster("n1", tmp_path / "peers.json", Log("test"))
    roster.recall()
    assert names(roster) == []
    line = msgspec.json.decode(capfd.readouterr().err)
    assert line["event"] == "peers_not_known"
    assert "peers.json" in line["problem"]


def test_names_are_written_when_they_change_and_one_failure_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "peers.json"
    roster = told(tmp_path, row("n2"))
    written = file.stat().st_ino
    roster.told([row("n1"), row("n2", 3000)])
    assert file.stat().st_ino == written
    file.unlink()
    file.mkdir()
    for _ in range(3):
        roster.told([row("n1"), row("n2"), row("n3")])
    assert names(roster) == ["n2", "n3"]
    (line,) = capfd.readouterr().err.splitlines()
    assert msgspec.json.decode(line)["event"] == "peers_not_kept"
    file.rmdir()
    roster.told([row("n1"), row("n2"), row("n3")])
    assert msgspec.json.decode(file.read_bytes()) == {"n2": "https://n2", "n3": "https://n3"}
