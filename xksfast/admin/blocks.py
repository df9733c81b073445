# SPDX-License-Identifier: Apache-2.0
"""The kill switch: enforced here first, then recorded and told to the other nodes, all at the same time.

From the moment a node is listed as confirmed it serves nothing more for that store or key. A database that is away delays only the
record: the block stands in this node's journal, and in that of every node that heard of it, until the event log has it and this node's
local copy, too, since that is what a node serves that finds no database.
A newcomer's trap: news of a block come by two ways, as a message and by the log, and the message may be the later one, even later than
the end of the block. So the transaction that records a block bears the block's id: who finds it in the log does not record it again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from xksfast.admin.actors import Actor
from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.kept_blocks import recording
from xksfast.admin.publisher import Publisher
from xksfast.admin.refusals import Refused
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.state.delta import DeltaBuilder
from xksfast.state.events import Change, Event, Origin
from xksfast.state.projection import State
from xksfast.state.store import Committed, Plan, StateStore

LOCAL_PATIENCE_S = 1.0
PEERS_PATIENCE_S = 2.0
RECORD_PATIENCE_S = 3.0
MAX_LOGGED = 10_000  # block ids that are remembered as recorded
BLOCKED, SERVED = ("store.block", "key.block"), ("store.unblock", "key.unblock")


@dataclass(frozen=True)
class Confirmed:
    """A node that serves nothing more of it. ms: from the request to its confirmation."""

    node: str
    ms: float


@dataclass(frozen=True)
class Confirmation:
    """pending: nodes that did not confirm in time, with what is known of it. recorded: it stands in the event log."""

    confirmed: tuple[Confirmed, ...]
    pending: tuple[str, ...]
    recorded: bool

    @property
    def fault(self) -> str:
        """In a sentence, or "": all have confirmed."""
        return f"Not confirmed by {'; '.join(self.pending)}" if self.pending else ""


class NobodyThere(OperatorError):
    """A node from which nothing was heard for long does not answer: it may serve, but it is not waited for."""


class ServesNothing(OperatorError):
    """A node that has stopped or was forgotten does not answer: nothing needs to be confirmed."""


class Peers(Protocol):
    """The other nodes that share the state."""

    def alive(self) -> list[str]:
        """Names of those that are, as far as is known."""

    def names(self) -> list[str]:
        """Of all that may serve, heard of or not."""

    async def newcomers(self) -> list[str]:
        """Names of those that the database knows now."""

    def heartbeat_ms(self, node: str) -> int:
        """What it last said before now, to tell from what it says later."""

    async def tell_block(self, node: str, block: PendingBlock) -> None:
        """Returns when it has confirmed. NobodyThere, ServesNothing, another OperatorError, OSError: it has not."""

    async def restricted(self, node: str, seq: int, *, since_ms: int = 0) -> None:
        """Returns when it has said that its workers have restricted event `seq`. since_ms: a heartbeat that is too old to say so."""


class Blocks:
    """Blocks of this node. run: see Service."""

    def __init__(
        self,
        *,
        node: str,
        journal: BlockJournal,
        builder: DeltaBuilder,
        publisher: Publisher,
        store: StateStore,
        peers: Peers,
        run: Callable[[Callable[[], Committed]], Awaitable[Committed]],
        log: Log,
    ) -> None:
        self._node = node
        self._journal = journal
        self._builder = builder
        self._publisher = publisher
        self._store = store
        self._peers = peers
        self._run = run
        self._log = log
        self._stale: set[tuple[str, str]] = set()
        self._logged: dict[str, int] = {}  # block id -> the event that this state has it from, newest last
        self._withhold()

    # --- asked for here

    async def block(
        self, actor: Actor, kind: str, target: str, plan: Callable[[State], list[Change]], reason: str
    ) -> Confirmation:
        """Refused when there is no such object. Asking twice confirms twice."""
        began = time.monotonic()
        with self._store.reading() as state:
            plan(state)  # refuses what is not there
        block = PendingBlock(
            block_id=secrets.token_hex(16),
            kind=kind,
            target=target,
            reason=reason,
            actor=actor.name,
            address=actor.address,
            node=self._node,
            at_ms=int(time.time() * 1000),
        )
        record = asyncio.ensure_future(self._record(block, plan))
        asked = {self._node: asyncio.wait_for(self.enforce(block), LOCAL_PATIENCE_S)}
        asked |= {node: self._tell(node, block, record) for node in self._peers.names()}
        confirmed, pending = await _confirmed(asked, began)
        done, _ = await asyncio.wait((record,), timeout=RECORD_PATIENCE_S)
        recorded = bool(done) and record.exception() is None and record.result()
        if recorded:
            late = {node: self._tell(node, block, record) for node in await self._peers.newcomers() if node not in asked}
            also_confirmed, also_pending = await _confirmed(late, began)
            confirmed, pending = confirmed + also_confirmed, pending + also_pending
        self._log.warning(
            "blocked", kind=kind, id=target, actor=actor.name, confirmed=len(confirmed), pending=pending, recorded=recorded
        )
        return Confirmation(confirmed, pending, recorded)

    async def _tell(self, node: str, block: PendingBlock, record: asyncio.Future[bool]) -> None:
        """Returns when the node has confirmed, by message or by the log: one that is starting serves before it hears messages.

        OperatorError, OSError: what became of the message, when neither came in time.
        """
        since_ms = self._peers.heartbeat_ms(node)
        by_message = asyncio.ensure_future(self._peers.tell_block(node, block))
        by_log = asyncio.ensure_future(self._restricted(node, block, record, since_ms))
        ways = {by_message, by_log}
        until = time.monotonic() + PEERS_PATIENCE_S
        try:
            waiting = ways
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
                )
                if any(way.exception() is None for way in done):
                    return
                if not done or (by_message.done() and isinstance(by_message.exception(), (NobodyThere, ServesNothing))):
                    break
            if not by_message.done():
                raise TimeoutError
            if by_log.done() and isinstance(stopped := by_log.exception(), ServesNothing):
                raise stopped
            by_message.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _restricted(self, node: str, block: PendingBlock, record: asyncio.Future[bool], since_ms: int) -> None:
        if not await asyncio.shield(record):
            raise OperatorError("it is not in the log")
        await self._peers.restricted(node, self._logged.get(block.block_id, self._store.seq), since_ms=since_ms)

    async def unblock(self, actor: Actor, kind: str, target: str, plan: Callable[[State], list[Change]]) -> Confirmation:
        """Needs the database: what is not recorded must not be undone by a node that was not told.

        A block that the log has not heard of yet is recorded first, so that its end reaches every node that has it in a journal.
        """
        began = time.monotonic()
        for block in self._journal.pending():
            if (block.kind, block.target) == (kind, target) and block.block_id not in self._logged:
                await self._record(block, recording(block))
        committed = await self._run(lambda: self._store.transact(actor.origin, lambda state: Plan(changes=plan(state))))
        self._settle({block.block_id for block in self._journal.pending() if (block.kind, block.target) == (kind, target)})
        seq = committed.events[-1].seq if committed.events else 0
        await self._publisher.applied(seq, LOCAL_PATIENCE_S)
        here = Confirmed(self._node, _ms_since(began))
        asked = {node: asyncio.wait_for(self._peers.restricted(node, seq), PEERS_PATIENCE_S) for node in self._peers.alive()}
        confirmed, pending = await _confirmed(asked, began)
        return Confirmation((here, *confirmed), pending, True)

    # --- heard of

    async def enforce(self, block: PendingBlock) -> None:
        """Nothing more is served of it by this node when this returns, and it survives a restart; unless it has ended already."""
        if block.block_id in self._logged and not self._stands(block):
            return
        try:
            self._journal.add(block)
        finally:  # also when no file took it: then it is in force until a restart, and the error says so
            self._withhold()
            self._publisher.withhold([(block.kind, block.target)])
        answered = await self._publisher.withheld(LOCAL_PATIENCE_S)
        if answered.pending:
            raise OperatorError(f"workers {', '.join(map(str, answered.pending))} did not confirm in time")

    def on_events(self, events: Iterable[Event]) -> None:
        """The log tells of blocks, and of their ends: the journal keeps none that has ended."""
        ended: dict[tuple[str, str], int] = {}
        for event in events:
            if event.action in BLOCKED:
                self._is_logged(event.transaction, event.seq)
            elif event.action in SERVED:
                ended[event.kind, event.id] = event.seq
        if ended:
            self._settle_logged(lambda block, seq: seq < ended.get((block.kind, block.target), 0))

    def copied(self, seq: int) -> None:
        """The local copy has all events up to `seq`: the journal need not have their blocks any more."""
        self._settle_logged(lambda _, logged: logged <= seq)

    def _settle_logged(self, done: Callable[[PendingBlock, int], bool]) -> None:
        """done: of a block and the event by which it stands in the log."""
        logged = [(block, self._logged[block.block_id]) for block in self._journal.pending() if block.block_id in self._logged]
        self._settle({block.block_id for block, seq in logged if done(block, seq)})

    def _is_logged(self, block_id: str, seq: int) -> None:
        self._logged[block_id] = seq
        if len(self._logged) > MAX_LOGGED:
            del self._logged[next(iter(self._logged))]

    def withhold_stale(self, targets: set[tuple[str, str]]) -> None:
        """Stores that do not want to be served from old news; until the next call."""
        changed = targets ^ self._stale
        self._stale = targets
        self._withhold()
        self._publisher.withhold(changed)

    async def record_pending(self, plan_of: Callable[[PendingBlock], Callable[[State], list[Change]]]) -> None:
        """Once a second: what the database missed. A store or key that is gone since needs no block."""
        if self._journal.is_behind:
            self._settle(set())
        for block in self._journal.pending():
            if block.block_id in self._logged:
                continue
            try:
                await self._record(block, plan_of(block))
            except Refused:
                self._settle({block.block_id})

    async def _record(self, block: PendingBlock, plan: Callable[[State], list[Change]]) -> bool:
        origin = Origin(actor=block.actor, address=block.address)
        try:
            await self._run(
                lambda: self._store.transact(origin, lambda state: Plan(changes=plan(state), transaction=block.block_id))
            )
        except Refused:
            raise
        except OperatorError as error:
            self._log.error("block_not_recorded", kind=block.kind, id=block.target, problem=str(error))
            return False
        if self._stands(block):
            self._is_logged(block.block_id, self._store.seq)
        else:  # it has ended since
            self._settle({block.block_id})
        return True

    def _stands(self, block: PendingBlock) -> bool:
        """Whether the state has its store or key blocked."""
        with self._store.reading() as state:
            return bool(getattr(state.find(block.kind, block.target), "blocked", False))

    def _settle(self, block_ids: set[str]) -> None:
        before = self._journal.targets()
        was_behind = self._journal.is_behind
        try:
            self._journal.settle(block_ids)
        except OperatorError as error:
            if not was_behind:
                self._log.error("journal_not_written", problem=str(error), why="a restart would enforce again what is settled")
        self._withhold()
        freed = before - self._journal.targets()
        if freed:  # as the state says from now on: it may have been unblocked
            self._publisher.withhold(freed)

    def _withhold(self) -> None:
        self._builder.withheld = self._journal.targets() | self._stale


async def _confirmed(
    asked: Mapping[str, Coroutine[Any, Any, None]], began: float
) -> tuple[tuple[Confirmed, ...], tuple[str, ...]]:
    """All nodes at the same time: who has confirmed, in that order, and who has not, with what is known of it."""
    confirmed: list[Confirmed] = []
    pending: list[str] = []

    async def confirm(node: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ServesNothing:
            pass
        except (OperatorError, OSError, TimeoutError) as error:
            pending.append(f"{node}: {str(error) or 'no answer in time'}")
        else:
            confirmed.append(Confirmed(node, _ms_since(began)))

    await asyncio.gather(*(confirm(node, work) for node, work in asked.items()))
    return tuple(confirmed), tuple(pending)


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)
