# SPDX-License-Identifier: Apache-2.0
"""The kill switch where its journal cannot be written: in force all the same, and the error says what that means."""

from __future__ import annotations

import asyncio
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
