# SPDX-License-Identifier: Apache-2.0
"""Deltas into the table that serves: what they forbid at once, what they allow in their turn.

Two tasks. One takes deltas in as they arrive: checks that they follow on each other, puts in force what they block, disable or remove,
and acknowledges that. The other finishes them, one after the other: has new keys looked for, waits for the tokens, sets what is new.
All work on the table is done on the event loop, in slices between which requests are served.

A newcomer's trap: an earlier delta may wait for a token while later ones arrive. What those forbid must outlast its end: see change.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any

from xksfast import messages
from xksfast.ekm.base import KeyBinding, KeySource
from xksfast.ekm.pkcs11 import TokenEngine
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.model import Delta, Key, KeyStore
from xksfast.native.crypto import SecretPages
from xksfast.proxy.change import Change, Pages
from xksfast.proxy.pipeline import Pipeline
from xksfast.proxy.serving import ServingTable

SLICE_S = 0.001  # of the loop's time, then requests have their turn
SETTLE_PATIENCE_S = 15.0  # without any key or partition having been found
RELEASE_AFTER_S = 30.0  # far above any request's deadline
LOOKED_AT_ONCE = 1000  # keys of the engine, without a thread
MAX_PROBLEMS = 1000
MAX_NOTES = 100  # a partition that is out concerns every key: the first of them tell enough


class DeltaApplier:
    """Keeps pipeline.table as the control process says.

    sources: "local" and "group:<partition group>" -> KeySource. tokens: the engine behind the groups; None: there are none.
    send: to the control process. on_applied(seq): a delta is served as a whole. on_refused(problems): none of the partitions of a
    group can ever serve, found out before the first delta is served.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sources: Mapping[str, KeySource],
        tokens: TokenEngine | None,
        *,
        worker: int,
        log: Log,
        send: Callable[[messages.WorkerToControl], None],
        on_applied: Callable[[int], None],
        on_refused: Callable[[list[str]], None],
    ) -> None:
        self._pipeline = pipeline
        self._sources = sources
        self._tokens = tokens
        self._worker = worker
        self._log = log
        self._send = send
        self._on_applied = on_applied
        self._on_refused = on_refused
        self._arrived: asyncio.Queue[tuple[int, Delta, Pages]] = asyncio.Queue()
        self._restricted: asyncio.Queue[Change] = asyncio.Queue()
        self._changes: list[Change] = []  # taken in and not finished, oldest first; the last one may lack parts
        self._seq: int | None = 0  # of the last one that is complete; None: nothing can follow on what there is
        self._served_once = False
        self._tasks: set[asyncio.Task[None]] = set()

    def receive(self, delta: Delta, fd: int | None, number: int = 0) -> None:
        """A message of the control process and its number. fd: its secret pages; closed by this call."""
        pages = None
        if fd is not None:
            try:
                pages = SecretPages.open(fd)
            except OperatorError as error:
                self._log.error("secret_pages_refused", seq=delta.seq, problem=str(error))  # what points into them is reported
            finally:
                os.close(fd)
        self._arrived.put_nowait((number, delta, pages))

    def forget_unfinished(self) -> None:
        """Another control process took over, and begins with everything: parts that are not there will not come."""
        while not self._arrived.empty():
            self._arrived.get_nowait()
        if self._changes and not self._changes[-1].complete:
            self._abandon_last()

    async def run(self) -> None:
        """For ever."""
        await asyncio.gather(self._take_in(), self._finish_in_order())

    # --- as they arrive

    async def _take_in(self) -> None:
        while True:
            await self._take_part(*await self._arrived.get())

    async def _take_part(self, number: int, part: Delta, pages: Pages) -> None:
        change = self._change_of(number, part)
        if change is None:
            return
        change.add(part, pages)
        change.number = number
        await _in_slices(change.restrict_by(self._pipeline.table, part))
        if part.complete and change in self._changes:
            change.complete = True
            if change.reset:
                await _in_slices(change.remove_others(self._pipeline.table))
            self._seq = change.seq
            self._release_later(self._pipeline.table.take_dropped())
            self._send(messages.DeltaRestricted(number=change.number, seq=change.seq, worker=self._worker))
            self._restricted.put_nowait(change)

    def _change_of(self, number: int, part: Delta) -> Change | None:
        """The change that the part belongs to; None: it follows on nothing that is here, and was refused."""
        last = self._changes[-1] if self._changes else None
        if last is not None and not last.complete:
            if last.continues(part):
                return last
            self._abandon_last()
        if not part.reset:
            problem = self._problem(part)
            if problem:
                self._refuse(number, part, problem)
                return None
            if self._seq is None:
                return None  # refused already: everything is on its way
        if part.reset:
            gc.disable()  # it would walk through what is being made again and again
        change = Change(part)
        self._changes.append(change)
        return change

    def _problem(self, part: Delta) -> str:
        """Why the part cannot be taken in; "" when it can, or when that was said already."""
        if self._seq is None:
            return ""
        if part.base_seq != self._seq:
            return f"it changes what event {part.base_seq} left, and event {self._seq} is served here"
        for store in part.key_stores:
            served = self._pipeline.table.names.get(store.name)
            if served is None or store.name in part.removed_stores:
                continue
            if served.region != store.region or served.source is not self._source(store):
                return f"key store {store.name}: region, key source and partition group never change"
        return ""

    def _refuse(self, number: int, part: Delta, problem: str) -> None:
        has_seq = self._seq or 0
        self._send(messages.DeltaRefused(number=number, seq=part.seq, worker=self._worker, has_seq=has_seq, problem=problem))
        self._seq = None

    def _abandon_last(self) -> None:
        """What its parts forbid stays forbidden, so nothing but a whole state can follow."""
        change = self._changes.pop()
        self._log.warning("delta_abandoned", seq=change.seq)
        self._seq = None
        self._collect_garbage()

    # --- in their turn

    async def _finish_in_order(self) -> None:
        while True:
            change = await self._restricted.get()
            try:
                await self._finish(change)
            except OperatorError as error:
                self._log.error("delta_not_applied", seq=change.seq, problem=str(error))
            self._changes.remove(change)
            self._collect_garbage()

    def _collect_garbage(self) -> None:
        """Again, unless another whole state is being put in place."""
        if not any(change.reset for change in self._changes):
            gc.enable()

    async def _finish(self, change: Change) -> None:
        finish = _Finish(change, self._changes, ServingTable() if change.reset else self._pipeline.table, self._source)
        await _in_slices(finish.request_keys())
        await self._settle(finish.engine_keys)
        refusals = self._tokens.refusals() if self._tokens and not self._served_once else []
        if refusals:
            self._on_refused(refusals)
            return
        await _in_slices(finish.set_all())
        table = finish.table
        dropped = table.take_dropped()
        if change.reset:
            await self._restrict_by_later(finish)
            former = self._pipeline.table  # no await between the last look at what is later and the swap
            self._pipeline.replace_table(table)
            dropped += [*table.take_dropped(), *former.take_dropped(), *former.everything()]
            gc.freeze()  # it lives long: collecting garbage must not walk through it
        self._release_later(dropped)
        table.seq = change.seq
        self._served_once = True
        self._send(
            messages.DeltaApplied(
                number=change.number,
                seq=change.seq,
                worker=self._worker,
                problems=_at_most(MAX_PROBLEMS, finish.problems),
                notes=tuple(finish.notes[:MAX_NOTES]),
            )
        )
        self._on_applied(change.seq)

    async def _restrict_by_later(self, finish: _Finish) -> None:
        """Forbid in its table what every later change forbids, those that arrive while it goes on included.

        Note: while this waits for its turn, a change may go and another come to its place, so what was done is known by the change
        itself and never by its position.
        """
        done: set[Change] = set()
        while waiting := [later for later in finish.later() if later not in done]:
            done.add(waiting[0])
            await _in_slices(waiting[0].restrict(finish.table))

    async def _settle(self, keys: list[int]) -> None:
        """Until the tokens have been asked for these keys; before anything was served, until all is known that can be."""
        if self._tokens is None:
            return
        engine = self._tokens.engine
        loop = asyncio.get_running_loop()
        if not self._served_once:
            settled = await loop.run_in_executor(None, engine.wait_settled, SETTLE_PATIENCE_S)
        elif not keys or (len(keys) <= LOOKED_AT_ONCE and engine.wait_keys(keys, 0)):
            return
        else:
            settled = await loop.run_in_executor(None, engine.wait_keys, keys, SETTLE_PATIENCE_S)
        if not settled:
            self._log.warning("tokens_not_settled", after_s=SETTLE_PATIENCE_S)

    def _source(self, store: KeyStore) -> KeySource | None:
        return self._sources.get("local" if store.key_source == "local" else f"group:{store.partition_group}")

    # --- afterwards

    def _release_later(self, dropped: list[tuple[KeySource, Any]]) -> None:
        """Give back what is served no more, when no job can use it any more."""
        if dropped:
            asyncio.get_running_loop().call_later(RELEASE_AFTER_S, self._release, dropped)

    def _release(self, dropped: list[tuple[KeySource, Any]]) -> None:
        def steps() -> Iterator[None]:
            for source, served in dropped:
                for ticket in served.tickets():
                    source.release(ticket)
                    yield

        task = asyncio.get_running_loop().create_task(_in_slices(steps()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Finish:
    """Setting in `table` what a change has to say. changes: this one and, behind it, later ones that must not be undone."""

    def __init__(
        self, change: Change, changes: list[Change], table: ServingTable, source: Callable[[KeyStore], KeySource | None]
    ) -> None:
        self.table = table
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.engine_keys: list[int] = []  # that were asked for
        self._change = change
        self._changes = changes
        self._source = source
        self._asked: list[tuple[KeySource, list[Any]] | None] = []  # for each key: its source, a ticket for each version

    def later(self) -> list[Change]:
        """The changes after this one that are here now: true until the next await."""
        return self._changes[self._changes.index(self._change) + 1 :]

    def request_keys(self) -> Iterator[None]:
        """Ask the sources for every version of every key."""
        for key, pages in self._change.all_keys():
            source = self._source_of(key)
            if source is None:
                self._asked.append(None)
            else:
                tickets: list[Any] = []
                self._asked.append((source, tickets))
                try:
                    for version in key.versions:
                        ticket = source.request(version, pages)
                        tickets.append(ticket)
                        if isinstance(ticket, int):
                            self.engine_keys.append(ticket)
                except OperatorError as error:
                    self._report(self.problems, key, str(error))
            yield

    def set_all(self) -> Iterator[None]:
        """What the tokens and pages gave, object by object, each followed by what later changes forbid of it."""
        for store in self._change.stores.values():
            self._set_store(store)
            for later in self.later():
                later.hold_store(self.table, store.name)
            yield
        for credential, pages in self._change.all_credentials():
            try:
                self.table.put_credential(credential, pages)
            except OperatorError as error:
                self.problems.append(f"key store {credential.store}: {error}")
            for later in self.later():
                later.hold_credential(self.table, credential.store, credential.access_key_id)
            yield
        for (key, _), asked in zip(self._change.all_keys(), self._asked, strict=True):
            if asked is not None:
                self._set_key(key, *asked)
                for later in self.later():
                    later.hold_key(self.table, key.store, key.external_key_id)
            yield

    def _set_store(self, store: KeyStore) -> None:
        source = self._source(store)
        if source is None:
            self.problems.append(
                f"key store {store.name}: there is no partition group {store.partition_group!r} in the configuration"
            )
            return
        try:
            self.table.put_store(store, source)
        except ValueError as error:
            self.problems.append(str(error))

    def _set_key(self, key: Key, source: KeySource, tickets: list[Any]) -> None:
        bindings: list[KeyBinding] = []
        for version, ticket in zip(key.versions, tickets, strict=False):
            binding = source.binding(ticket, key, version)
            which = f"version {version.number}: " if len(key.versions) > 1 else ""
            if binding.problem:
                self._report(self.problems, key, which + binding.problem)
            if binding.note:
                self._report(self.notes, key, which + binding.note)
            bindings.append(binding)
        if len(bindings) != len(key.versions) or not self.table.put_key(key, bindings):
            for ticket in tickets:
                source.release(ticket)

    def _source_of(self, key: Key) -> KeySource | None:
        """Where the key's store keeps its keys; None when the store is not served."""
        store = self._change.stores.get(key.store)
        if store is not None:
            return self._source(store)
        served = None if self._change.reset else self.table.names.get(key.store)
        return None if served is None else served.source

    @staticmethod
    def _report(where: list[str], key: Key, what: str) -> None:
        where.append(f"key store {key.store}: key {key.external_key_id}: {what}")


def _at_most(number: int, sentences: list[str]) -> tuple[str, ...]:
    """The first of them, and how many there are beside them."""
    if len(sentences) <= number:
        return tuple(sentences)
    return (*sentences[:number], f"and {len(sentences) - number} more like these")


async def _in_slices(steps: Iterator[None]) -> None:
    """Take all steps, and let the loop have its turn between slices of them."""
    due = monotonic() + SLICE_S
    for _ in steps:
        if monotonic() >= due:
            await asyncio.sleep(0)
            due = monotonic() + SLICE_S
