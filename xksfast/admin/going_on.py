# SPDX-License-Identifier: Apache-2.0
"""Work that goes on for as long as a node lives: a fault in it is said, and it begins again, since the cause may go away by itself.

So a row that somebody wrote into the database, and nobody can read, does not end a node's heartbeat for good.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from xksfast.log import Log, frames_of

PAUSE_S = 1.0
SAY_AGAIN_S = 60.0


async def go_on(work: Callable[[], Awaitable[None]], log: Log, pause_s: float = PAUSE_S) -> None:
    """Never returns. The same fault is logged once a minute."""
    said: object = None
    said_at = 0.0
    while True:
        try:
            await work()
        except Exception as fault:  # without its text, which could quote a secret
            problem, where = type(fault).__name__, frames_of(fault)
            if (problem, where) != said or time.monotonic() - said_at > SAY_AGAIN_S:
                said, said_at = (problem, where), time.monotonic()
                log.error("task_failed", problem=problem, where=where, next="tried again by itself")
        await asyncio.sleep(pause_s)
