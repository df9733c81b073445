# SPDX-License-Identifier: Apache-2.0
"""The gate in front of TLS handshakes: a connection that fails in its turn costs nobody else theirs."""

from __future__ import annotations

import asyncio

from xksfast.proxy.handshakes import MAX_WAITING, HandshakeGate


class Waiting:
    """A connection at the gate."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.resumed = asyncio.Event()
        self.evicted = False

    def resume_handshake(self) -> None:
        self.resumed.set()
        if self.fails:
            raise RuntimeError("a bug of the owner")

    def evict(self) -> None:
        self.evicted = True


def test_a_connection_that_fails_in_its_turn_leaves_the_others_theirs() -> None:
    async def body() -> None:
        reports: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reports.append(context["exception"]))
        gate = HandshakeGate(loop)
        others = [Waiting() for _ in range(3)]
        for connection in (*others, Waiting(fails=True)):  # the newest comes first
            gate.wait(connection)
        async with asyncio.timeout(20):
            for connection in others:
                await connection.resumed.wait()
        assert len(reports) == 1
        assert gate.waiting == 0

    asyncio.run(body())


def test_over_the_bound_the_oldest_is_let_go() -> None:
    async def body() -> None:
        gate = HandshakeGate(asyncio.get_running_loop())
        waiting = [Waiting() for _ in range(MAX_WAITING + 1)]
        for connection in waiting:
            gate.wait(connection)
        assert [connection.evicted for connection in waiting] == [True] + [False] * MAX_WAITING

    asyncio.run(body())
