# SPDX-License-Identifier: Apache-2.0
"""Blocks that the database does not know (any more): which they are, and how each is recorded anew."""

from __future__ import annotations

import time
from collections.abc import Callable

from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.plans import keys, stores
from xksfast.log import Log
from xksfast.state.events import Change
from xksfast.state.local_copy import LocalCopy
from xksfast.state.projection import State


def keep_blocks(journal: BlockJournal, known: LocalCopy, state: State, node: str, log: Log) -> None:
    """What this node knew to be blocked stays so though the state, of a database that was restored from before the block, does not
    say it: the block goes to the journal. known: what the node last served.

    Whether the copy is genuine is not asked: the data key may be another one by now, and a block too many is the safe side.
    """
    for value, _ in known.objects:
        blocked = getattr(value, "blocked", False)
        now = state.find(value.kind, value.id)
        if blocked and now is not None and not getattr(now, "blocked", False):
            journal.add(
                PendingBlock(
                    block_id=f"restored-{known.seq}-{value.kind}-{value.id}",
                    kind=value.kind,
                    target=value.id,
                    reason=getattr(value, "blocked_reason", "") or "it was blocked before the database was restored",
                    actor="system:restore",
                    address="local",
                    node=node,
                    at_ms=time.time_ns() // 1_000_000,
                )
            )
            log.warning("block_kept", kind=value.kind, id=value.id, why="the database went back to before it")


def recording(block: PendingBlock) -> Callable[[State], list[Change]]:
    """What records it. Refused when its object is gone."""
    if block.kind == "key_store":
        return lambda state: stores.set_blocked(state, block.target, True, block.reason)
    store, _, external_key_id = block.target.partition("/")
    return lambda state: keys.set_blocked(state, store, external_key_id, True, block.reason)
