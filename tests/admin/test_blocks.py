# SPDX-License-Identifier: Apache-2.0
"""The kill switch where its journal cannot be written: in force all the same, and the error says what that means."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any, cast

import pytest

from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.blocks import Blocks
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.state.delta import DeltaBuilder

BLOCK = PendingBlock("b1", "key", "pay/k1", "", "operator:root", "local", "n1", 1)


class Told:
    """A publisher that keeps what it is told."""

    def __init__(self) -> None:
        self.targets: list[tuple[str, str]] = []

    def withhold(self, targets: list[tuple[str, str]]) -> None:
        self.targets += targets


def test_a_block_that_no_file_takes_is_in_force(tmp_path: Path) -> None:
    journal = BlockJournal(tmp_path)
    (tmp_path / "blocks.jsonl").mkdir()
    builder, publisher, nothing = DeltaBuilder(cast(Any, None), lambda _: None), Told(), cast(Any, None)
    blocks = Blocks(
        node="n1",
        journal=journal,
        builder=builder,
        publisher=cast(Any, publisher),
        store=nothing,
        peers=nothing,
        run=nothing,
        log=Log("test"),
    )
    with pytest.raises(OperatorError, match="a restart would forget it"):
        asyncio.run(blocks.enforce(BLOCK))
    assert publisher.targets == [("key", "pay/k1")]
    assert builder.withheld == {("key", "pay/k1")}


def test_what_is_settled_is_not_enforced_any_more_though_the_file_cannot_say_so_yet(tmp_path: Path) -> None:
    journal = BlockJournal(tmp_path)
    journal.add(BLOCK)
    path = tmp_path / "blocks.jsonl"
    path.rename(tmp_path / "aside")
    path.mkdir()
    with pytest.raises(OperatorError, match="cannot be written"):
        journal.settle({BLOCK.block_id})
    assert (journal.targets(), journal.is_behind) == (set(), True)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    assert BlockJournal(tmp_path).targets() == {("key", "pay/k1")}  # a restart now would enforce it again
    journal.settle(set())
    assert not journal.is_behind
    assert BlockJournal(tmp_path).targets() == set()


def test_half_a_line_was_never_acknowledged(tmp_path: Path) -> None:
    BlockJournal(tmp_path).add(BLOCK)
    with (tmp_path / "blocks.jsonl").open("ab") as file:
        file.write(b'{"block_id":"b2","kind"')
    journal = BlockJournal(tmp_path)
    assert journal.pending() == [BLOCK]
    journal.add(PendingBlock("b3", "key", "pay/k3", "", "operator:root", "local", "n1", 1))
    assert [block.block_id for block in BlockJournal(tmp_path).pending()] == ["b1", "b3"]


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path: Path) -> None:
    journal = BlockJournal(tmp_path)
    journal.add(BLOCK)
    path = tmp_path / "blocks.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))  # the line's first bytes only find room
    try:
        with pytest.raises(OperatorError, match="a restart would forget it"):
            journal.add(PendingBlock("b2", "key", "pay/k2", "", "operator:root", "local", "n1", 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.targets() == {("key", "pay/k1"), ("key", "pay/k2")}
    journal.add(PendingBlock("b3", "key", "pay/k3", "", "operator:root", "local", "n1", 1))
    assert [block.block_id for block in BlockJournal(tmp_path).pending()] == ["b1", "b3"]
