# SPDX-License-Identifier: Apache-2.0
"""A network between nodes and their database that can be made slow: every packet arrives later, in order, in both directions."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

READ_BYTES = 65536


class SlowLink:
    """Listens on 127.0.0.1, `port`, and connects each client to 127.0.0.1, `target_port`. delay_s: of each packet, one way."""

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self._target_port = target_port
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        self.port = int(sock.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow link", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, sock=sock), self._loop).result(10)

    @contextmanager
    def slow(self, delay_s: float) -> Iterator[None]:
        """Every packet takes so long, one way."""
        self.delay_s = delay_s
        try:
            yield
        finally:
            self.delay_s = 0.0

    def close(self) -> None:
        """No connection goes on."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_target, to_target = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            to_client.transport.abort()
            return
        try:
            await asyncio.gather(self._carry(from_client, to_target), self._carry(from_target, to_client))
        finally:
            to_client.transport.abort()
            to_target.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its end; then the other end hears of it."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                if not data:
                    break
                writer.write(data)
            writer.close()

        delivery = asyncio.ensure_future(deliver())
        with suppress(OSError):  # a connection that is cut ends like one that is closed
            while data := await reader.read(READ_BYTES):
                under_way.put_nowait((self._loop.time() + self.delay_s, data))
        under_way.put_nowait((self._loop.time() + self.delay_s, b""))
        await delivery
