# SPDX-License-Identifier: Apache-2.0
"""The one thread of a control process that uses the database: it may wait there, the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from xksfast.state.events import Event

Answer = TypeVar("Answer")


class StateThread:
    """on_events: called on the loop with what was newly applied, in order, before whoever caused it goes on."""

    def __init__(self, on_events: Callable[[list[Event]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._on_events = on_events

    async def __call__(self, work: Callable[[], Answer]) -> Answer:
        """The result of work(), run in the thread after all that was asked before."""
        return await self._loop.run_in_executor(self._executor, work)

    def applied(self, events: list[Event]) -> None:
        """To be called in the thread, as StateStore does."""
        self._loop.call_soon_threadsafe(self._on_events, events)

    def close(self) -> None:
        """Does not wait for a database that hangs."""
        self._executor.shutdown(wait=False, cancel_futures=True)
