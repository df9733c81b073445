# SPDX-License-Identifier: Apache-2.0
"""Work that a fault must not end."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from xksfast.admin.going_on import go_on
from xksfast.log import Log


def test_work_begins_again_after_a_fault_which_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 4:
            raise AttributeError("a secret")
        await asyncio.sleep(3600)

    async def live() -> None:
        task = asyncio.create_task(go_on(work, Log("test"), 0.0))
        async with asyncio.timeout(30):
            while begun < 4:
                await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(live())
    (line,) = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert (line["event"], line["problem"]) == ("task_failed", "AttributeError")
    assert "a secret" not in json.dumps(line)
