# SPDX-License-Identifier: Apache-2.0
"""Hands the state to the workers of this node and collects what they acknowledge.

A worker is given everything once, when it is linked, then what changes. Two acknowledgements follow each delta: "restricted" (all that
it blocks, disables or removes is in force, for answers in flight too), at once, and "applied" (all of it is served), which may wait for
a token. A newcomer's trap: secret pages are wiped when nobody refers to them any more, so they are kept, in order, until the worker has
acknowledged the delta they belong to.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

from xksfast import messages
from xksfast.channel import Channel
from xksfast.log import Log
from xksfast.model import Delta
from xksfast.native.crypto import SecretPages
from xksfast.state.delta import Days, DeltaBuilder, covered_days
from xksfast.state.events import Event
from xksfast.state.projection import State

WHOLE_KEPT_S = 5.0  # workers are started one after the other

Part = tuple[Delta, SecretPages | None]
Reading = Callable[[], AbstractContextManager[State]]  # the state, which nothing changes within the with block


@dataclass
class _Worker:
    """One worker's line. given, restricted, applied: sequence numbers of events that it was told and has acknowledged.

    sent_number, restricted_number, applied_number: the same in messages. awaited: message number and secret pages of each delta under
    way.
    """

    channel: Channel
    given: int = 0
    restricted: int = 0
    applied: int = 0
    sent_number: int = 0
    restricted_number: int = 0
    applied_number: int = 0
    awaited: deque[tuple[int, SecretPages]] = field(default_factory=deque)


@dataclass(frozen=True)
class Acknowledged:
    """workers: that confirmed, with the milliseconds it took; pending: that did not in time."""

    workers: dict[int, float]
    pending: tuple[int, ...]


class Publisher:
    """The workers of this node. on_use: is handed every UsageReport."""

    def __init__(self, builder: DeltaBuilder, log: Log, on_use: Callable[[messages.UsageReport], None]) -> None:
        self._builder = builder
        self._log = log
        self._on_use = on_use
        self._reading: Reading | None = None
        self._seq = 0
        self._days: Days | None = None
        self._workers: dict[int, _Worker] = {}
        self._whole: list[Part] | None = None  # of the newest state, for workers that begin at the same time
        self._whole_ends: asyncio.TimerHandle | None = None
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what is served

    def serve(self, reading: Reading) -> None:
        """Everything, to every worker. reading: see there; used from now on."""
        self._reading, self._days = reading, covered_days(int(time.time()))
        self._forget_whole()
        with reading() as state:
            self._seq = state.seq
        for number in self._workers:
            self._give_whole(number)

    def publish(self, events: list[Event]) -> None:
        """What the state, which has taken these events over, has new. In order, whole transactions, each event once."""
        if self._reading is None or not events or events[-1].seq <= self._seq:
            return
        assert self._days is not None
        self._seq = events[-1].seq
        with self._reading() as state:
            self._give_all(self._builder.since(state, events, self._days))

    def withhold(self, targets: Iterable[tuple[str, str]]) -> None:
        """(kind, id) of stores and keys that the builder now withholds, or does not any more."""
        if self._reading is not None:
            assert self._days is not None
            with self._reading() as state:
                self._give_all(self._builder.withholding(state, targets, self._days, self._seq))

    def renew_signing_keys(self) -> bool:
        """When the day has changed since the last time; True when new keys went out."""
        days = covered_days(int(time.time()))
        if self._reading is None or days == self._days:
            return False
        self._days = days
        with self._reading() as state:
            self._give_all(self._builder.signing_keys(state, days, self._seq))
        return True

    def _give_all(self, parts: Iterator[Part]) -> None:
        rendered = list(parts)
        self._forget_whole()
        for worker in self._workers.values():
            if rendered[0][0].base_seq >= worker.given:  # else it was given everything meanwhile
                self._give(worker, rendered)

    def _give_whole(self, number: int) -> None:
        assert self._reading is not None
        assert self._days is not None
        if self._whole is not None:
            self._give(self._workers[number], self._whole)
            return
        parts = []
        with self._reading() as state:
            for part in self._builder.whole(state, self._days):  # the worker begins with the first while the next is made
                parts.append(part)
                self._give(self._workers[number], [part])
        self._whole = parts
        self._whole_ends = asyncio.get_running_loop().call_later(WHOLE_KEPT_S, self._forget_whole)

    def _forget_whole(self) -> None:
        """At once when it is old, so that its secret pages are wiped as soon as every worker has newer ones."""
        self._whole = None
        if self._whole_ends is not None:
            self._whole_ends.cancel()
            self._whole_ends = None

    def _give(self, worker: _Worker, parts: list[Part]) -> None:
        worker.given = parts[-1][0].seq
        for delta, pages in parts:
            worker.sent_number += 1
            if pages is not None:
                worker.awaited.append((worker.sent_number, pages))
            message = messages.ApplyDelta(number=worker.sent_number, delta=delta)
            worker.channel.send(message, pages.fd if pages is not None else None)

    # --- workers

    def link(self, number: int, fd: int) -> None:
        """A worker was started; fd: a socket to it, ours from now on."""
        former = self._workers.pop(number, None)
        if former is not None:
            former.channel.close()
        self._workers[number] = _Worker(
            Channel(
                socket.socket(fileno=fd),
                messages.WorkerToControl,
                on_message=lambda message, _: self._on_worker(number, message),
                on_close=lambda: self._forget(number),
            )
        )
        if self._reading is not None:
            self._give_whole(number)

    def ask_usage(self) -> None:
        """The answers go to on_use."""
        for worker in self._workers.values():
            worker.channel.send(messages.AskUsage())

    def _forget(self, number: int) -> None:
        self._workers.pop(number, None)
        self._notify()

    def _on_worker(self, number: int, message: messages.WorkerToControl) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        match message:
            case messages.DeltaRestricted():
                worker.restricted, worker.restricted_number = message.seq, message.number
            case messages.DeltaApplied():
                worker.restricted = worker.applied = message.seq
                worker.restricted_number = worker.applied_number = message.number
                while worker.awaited and worker.awaited[0][0] <= message.number:
                    worker.awaited.popleft()
                self._report(message)
            case messages.DeltaRefused():
                self._log.error(
                    "delta_refused", worker=number, seq=message.seq, has_seq=message.has_seq, problem=message.problem
                )
                worker.awaited.clear()
                if self._reading is not None:
                    self._give_whole(number)
            case messages.UsageReport():
                self._on_use(message)
                return
        self._notify()

    def _report(self, message: messages.DeltaApplied) -> None:
        for problem in message.problems:
            self._log.error("key_not_served", worker=message.worker, problem=problem)
        for note in message.notes:
            self._log.warning("key_served_in_part", worker=message.worker, note=note)
        self._log.info("delta_applied", worker=message.worker, seq=message.seq, problems=len(message.problems))

    def _notify(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- acknowledgements

    @property
    def restricted_seq(self) -> int:
        """What every worker has restricted."""
        return min((worker.restricted for worker in self._workers.values()), default=0)

    @property
    def applied_seq(self) -> int:
        """What every worker serves."""
        return min((worker.applied for worker in self._workers.values()), default=0)

    async def served(self, patience_s: float) -> None:
        """Wait until there are workers and all of them serve what they were given at first, but no longer than patience_s."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(self._all_serve), patience_s)

    def _all_serve(self) -> bool:
        return bool(self._workers) and all(worker.applied_number for worker in self._workers.values())

    async def restricted(self, seq: int, patience_s: float) -> Acknowledged:
        """Wait until every worker has restricted event `seq`. A worker that ends meanwhile serves nothing, so it does not count."""
        return await self._acknowledged(lambda worker: worker.restricted >= seq, patience_s)

    async def applied(self, seq: int, patience_s: float) -> Acknowledged:
        """Wait until every worker serves event `seq`."""
        return await self._acknowledged(lambda worker: worker.applied >= seq, patience_s)

    async def withheld(self, patience_s: float) -> Acknowledged:
        """Wait until every worker has restricted all that it was sent until now."""
        sent = {id(worker): worker.sent_number for worker in self._workers.values()}
        return await self._acknowledged(
            lambda worker: worker.restricted_number >= sent.get(id(worker), worker.restricted_number), patience_s
        )

    async def _acknowledged(self, done: Callable[[_Worker], bool], patience_s: float) -> Acknowledged:
        began = time.monotonic()
        confirmed: dict[int, float] = {}

        def complete() -> bool:
            for number, worker in self._workers.items():
                if number not in confirmed and done(worker):
                    confirmed[number] = round((time.monotonic() - began) * 1000, 1)
            return all(number in confirmed for number in self._workers)

        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(complete), patience_s)
        pending = tuple(number for number, worker in self._workers.items() if not done(worker))
        return Acknowledged(confirmed, pending)
