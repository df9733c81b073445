# SPDX-License-Identifier: Apache-2.0
"""While a node serves what it knows because its database went back: the blocks that the older state lacks are recorded there, and told.

So a node that never knew of such a block refuses, too, whether it follows the older state already or starts on it later.
What lives here: looking at the older state beside the one that is served, and saying what it lacks. What must not: following it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.blocks import Peers
from xksfast.admin.kept_blocks import keep_nodes, kept_block, recording
from xksfast.admin.refusals import Refused
from xksfast.admin.roster import Roster
from xksfast.admin.state_thread import StateThread
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.state.database import Database
from xksfast.state.difference import Difference, SealedRows, compare, some
from xksfast.state.errors import StateError, StateWentBack
from xksfast.state.events import Origin
from xksfast.state.projection import State
from xksfast.state.records import WrappedDataKey
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Plan, StateStore

INTERVAL_S = 1.0


class WentBack:
    """Of one node. store, secrets: what it serves. sealer: opens its secrets. opens: data keys, with the master key; OperatorError."""

    def __init__(
        self,
        *,
        node: str,
        store: StateStore,
        secrets: SecretRows,
        sealer: Callable[[], Sealer],
        opens: Callable[[list[WrappedDataKey]], Sealer],
        journal: BlockJournal,
        peers: Peers,
        roster: Roster,
        run: StateThread,
        log: Log,
    ) -> None:
        self._node = node
        self._store = store
        self._secrets = secrets
        self._sealer = sealer
        self._opens = opens
        self._journal = journal
        self._peers = peers
        self._roster = roster
        self._run = run
        self._log = log
        self.over()

    def over(self) -> None:
        """The database goes on from what this node knows."""
        self._next = 0.0
        self._older: StateStore | None = None
        self._difference = Difference()
        self._theirs: tuple[list[WrappedDataKey], Sealer | None] = [], None  # opens its secrets; None: nothing here does
        self._blocks: dict[str, PendingBlock] = {}
        self._recorded: set[str] = set()
        self._told: set[tuple[str, str]] = set()  # (node, block)
        self._finished: set[str] = set()  # blocks that every node has from the log from now on

    def problems(self) -> tuple[str, ...]:
        """What the older state lacks, a sentence each."""
        found = []
        rows, theirs = self._theirs
        if rows and theirs is None:
            found.append(
                "the master key of this node does not open the data keys of the database: it belongs to another deployment, or to "
                "another master key"
            )
        if self._difference.keys:
            found.append(
                f"the older state lacks {some(self._difference.keys)}, which this node serves: a restart of this node puts them back, "
                "or serves its local copy where something else has their place"
            )
        if self._blocks:
            names = tuple(sorted({f"{block.kind.replace('_', ' ')} {block.target}" for block in self._blocks.values()}))
            missing = len(self._blocks.keys() - self._recorded)
            found.append(
                f"the older state did not know that {some(names)} is blocked"
                + (f"; {missing} of these blocks could not be recorded there yet" if missing else ": recorded there again")
            )
        return tuple(found)

    async def found(self, database: Database) -> None:
        """Whenever the database was found to be older; does something once a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL_S
        with suppress(StateError):  # it is away again, which the poll tells
            await self._run(lambda: self._look(database))
        await self._tell()

    # --- in the state thread

    def _look(self, database: Database) -> None:
        theirs = self._sealer_of(database)
        if theirs is None:
            return
        try:
            if self._older is None:
                raise StateWentBack(database.description, (0, b""), (0, b""))
            self._older.poll()
        except StateWentBack:  # again, or for the first time
            older = StateStore(database, self._node)
            older.open()
            keep_nodes(database, self._roster.all(), time.time_ns() // 1_000_000)
            self._compare(database, older, theirs)
            self._older = older
        for block in self._blocks.values():
            if block.block_id not in self._recorded:
                self._record(self._older, block)

    def _sealer_of(self, database: Database) -> Sealer | None:
        """Its data key may be one from before a rotation."""
        rows, sealer = database.data_keys(), self._sealer()
        if any(row.id == sealer.data_key_id for row in rows):
            self._theirs = rows, sealer
        elif rows != self._theirs[0]:
            self._theirs = rows, None
            with suppress(OperatorError):
                self._theirs = rows, self._opens(rows)
        return self._theirs[1]

    def _compare(self, database: Database, older: StateStore, sealer: Sealer) -> None:
        known = State()
        with self._store.reading() as state:
            objects, seq, head = list(state.with_revisions()), state.seq, state.head
        known.load(objects, seq, head)
        ours, theirs = SealedRows(self._secrets.rows(), self._sealer()), SealedRows(database.secrets(), sealer)
        with older.reading() as state:
            self._difference = compare(known, state, ours.is_same(theirs))
            lacking = [
                *(kept_block(value, seq, self._node) for value in self._difference.blocked),
                *(block for block in self._journal.pending() if _is_lacking(block, state)),
            ]
        self._blocks = {block.block_id: block for block in lacking}
        self._recorded, self._told, self._finished = set(), set(), set()
        self._log.error(
            "older_state_seen",
            known_seq=seq,
            seq=older.seq,
            keys_lacking=self._difference.keys,
            blocks_lacking=[f"{block.kind} {block.target}" for block in lacking],
            allowed_again=self._difference.lifted,
            gone=self._difference.lost,
        )

    def _record(self, older: StateStore, block: PendingBlock) -> None:
        """Once: it may be lifted there later."""
        plan = recording(block)
        with suppress(Refused):  # it is gone there
            older.transact(Origin(block.actor, block.address), lambda state: Plan(plan(state), transaction=block.block_id))
        self._recorded.add(block.block_id)

    # --- on the loop

    async def _tell(self) -> None:
        """Every other node, also one that comes later, until the log has it: then it may be lifted there, which news would undo."""
        names, recorded = self._peers.names(), set(self._recorded)
        blocks = [block for block in self._blocks.values() if block.block_id not in self._finished]
        await asyncio.gather(
            *(self._tell_one(name, each) for each in blocks for name in names if (name, each.block_id) not in self._told)
        )
        self._finished |= recorded

    async def _tell_one(self, name: str, block: PendingBlock) -> None:
        with suppress(OperatorError, OSError):  # again in a second
            await self._peers.tell_block(name, block)
            self._told.add((name, block.block_id))


def _is_lacking(block: PendingBlock, state: State) -> bool:
    now = state.find(block.kind, block.target)
    return now is not None and not getattr(now, "blocked", False)
