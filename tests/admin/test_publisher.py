# SPDX-License-Identifier: Apache-2.0
"""The publisher and workers at the other end of real sockets: everything at the start, in parts, and who is waited for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import uvloop

from tests.state.test_delta import AWAY, SEALER, local_state
from xksfast import messages
from xksfast.admin.publisher import Publisher
from xksfast.channel import Channel
from xksfast.log import Log
from xksfast.state import delta
from xksfast.state.delta import DeltaBuilder
from xksfast.state.projection import State
from xksfast.state.secret_rows import SecretRows

STORES, KEYS = 3, 5
OBJECTS = STORES * (2 + KEYS)


class PlayedWorker:
    """A worker's end of the line. parts: the messages, each with the descriptor that came with it."""

    def __init__(self, number: int, publisher: Publisher) -> None:
        ours, theirs = socket.socketpair()
        self.number = number
        self.parts: list[tuple[messages.ApplyDelta, int | None]] = []
        self.channel = Channel(ours, messages.ControlToWorker, on_message=self._on_message)
        publisher.link(number, theirs.detach())

    def _on_message(self, message: messages.ApplyDelta, fd: int | None) -> None:
        self.parts.append((message, fd))

    async def everything(self) -> None:
        async with asyncio.timeout(20):
            while not self.parts or not self.parts[-1][0].delta.complete:
                await asyncio.sleep(0.01)

    def local_keys(self) -> list[bytes]:
        """The bytes of every version of every key, in the order in which they came."""
        found = []
        for message, fd in self.parts:
            for version in [version for key in message.delta.keys for version in key.versions]:
                assert fd is not None
                assert version.local_slot is not None
                found.append(os.pread(fd, 32, 32 * version.local_slot))
        return found

    def say_applied(self) -> None:
        last, _ = self.parts[-1]
        self.channel.send(messages.DeltaApplied(seq=last.delta.seq, worker=self.number, number=last.number))


@asynccontextmanager
async def linked(publisher: Publisher, count: int) -> AsyncIterator[list[PlayedWorker]]:
    """So many workers, which leave at the end, and let the publisher see it, so that it closes its ends."""
    workers = [PlayedWorker(number, publisher) for number in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.channel.close()
            for _, fd in worker.parts:
                if fd is not None:
                    os.close(fd)
        await asyncio.sleep(0.05)


@pytest.fixture
def publisher_of_one_object_a_part(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Publisher]:
    """A maker, since a publisher belongs to a loop."""
    monkeypatch.setattr(delta, "PART_OBJECTS", 1)
    state, secrets = local_state(STORES, KEYS)

    @contextmanager
    def reading() -> Iterator[State]:
        yield state

    def make() -> Publisher:
        rows = SecretRows(AWAY, SEALER)
        rows.adopt(secrets)
        publisher = Publisher(DeltaBuilder(rows, pytest.fail), Log("test"), lambda _: None)
        publisher.serve(reading)
        return publisher

    return make


def run(body: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


def test_a_worker_is_given_everything_and_one_that_comes_soon_after_the_same(
    publisher_of_one_object_a_part: Callable[[], Publisher],
) -> None:
    async def body() -> None:
        publisher = publisher_of_one_object_a_part()
        async with linked(publisher, 2) as workers:
            for worker in workers:
                await worker.everything()
                numbers = [message.number for message, _ in worker.parts]
                assert numbers == list(range(1, OBJECTS + 1))
                assert sum(len(message.delta.keys) for message, _ in worker.parts) == STORES * KEYS
            keys = [worker.local_keys() for worker in workers]
            assert keys[0] == keys[1]
            assert len(set(keys[0])) == STORES * KEYS * 2

    run(body)


def test_who_waits_until_all_serve_waits_for_each_worker(publisher_of_one_object_a_part: Callable[[], Publisher]) -> None:
    async def body() -> None:
        publisher = publisher_of_one_object_a_part()
        waiting = asyncio.ensure_future(publisher.served(20))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "there is no worker yet"
        async with linked(publisher, 2) as workers:
            for worker in workers:
                await worker.everything()
                await asyncio.sleep(0.05)
                assert not waiting.done()
                worker.say_applied()
            await asyncio.wait_for(waiting, 20)

    run(body)


def test_who_waits_until_all_serve_does_not_wait_for_ever(publisher_of_one_object_a_part: Callable[[], Publisher]) -> None:
    async def body() -> None:
        publisher = publisher_of_one_object_a_part()
        async with linked(publisher, 1):
            waiting = asyncio.ensure_future(publisher.served(0.2))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await asyncio.wait_for(waiting, 20)

    run(body)
