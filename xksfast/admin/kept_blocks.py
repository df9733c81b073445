# SPDX-License-Identifier: Apache-2.0
"""What a database that was restored does not know any more, or never heard of: blocks, how each is recorded anew, and nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.plans import keys, stores
from xksfast.admin.roster import Peer
from xksfast.log import Log
from xksfast.state.database import Database
from xksfast.state.events import Change
from xksfast.state.local_copy import LocalCopy
from xksfast.state.objects import Key, KeyStore
from xksfast.state.projection import State
from xksfast.state.records import NodeRow


def keep_blocks(journal: BlockJournal, known: LocalCopy, state: State, node: str, log: Log) -> None:
    """What this node knew to be blocked stays so though the state, of a database that was restored from before the block, does not
    say it: the block goes to the journal. known: what the node last served.

    Whether the copy is genuine is not asked: the data key may be another one by now, and a block too many is the safe side.
    """
    for value, _ in known.objects:
        now = state.find(value.kind, value.id)
        if isinstance(value, KeyStore | Key) and value.blocked and isinstance(now, KeyStore | Key) and not now.blocked:
            journal.add(kept_block(value, known.seq, node))
            log.warning("block_kept", kind=value.kind, id=value.id, why="the database went back to before it")


def kept_block(value: KeyStore | Key, seq: int, node: str) -> PendingBlock:
    """As it is recorded again. seq: what the node knew last; the same block of the same state gets the same name everywhere."""
    return PendingBlock(
        block_id=f"restored-{seq}-{value.kind}-{value.id}",
        kind=value.kind,
        target=value.id,
        reason=value.blocked_reason or "it was blocked before the database was restored",
        actor="system:restore",
        address="local",
        node=node,
        at_ms=time.time_ns() // 1_000_000,
    )


def keep_nodes(database: Database, peers: Iterable[Peer], now_ms: int) -> None:
    """Nodes that this one knew, and a database that was restored from before their time does not: they may serve, so they are asked."""
    known = {row.name for row in database.nodes()}
    for peer in peers:
        if peer.name not in known:
            why = "it has not been heard of since the database was restored from before it was there"
            database.heartbeat(NodeRow(peer.name, "", peer.url, 0, now_ms, 0, 0, {"problems": [why]}))


def recording(block: PendingBlock) -> Callable[[State], list[Change]]:
    """What records it. Refused when its object is gone."""
    if block.kind == "key_store":
        return lambda state: stores.set_blocked(state, block.target, True, block.reason)
    store, _, external_key_id = block.target.partition("/")
    return lambda state: keys.set_blocked(state, store, external_key_id, True, block.reason)
