# SPDX-License-Identifier: Apache-2.0
"""Answers that tell how far the work is: JSON lines.

A newcomer's trap: work that was begun goes on when its client has gone, since half of it is the worst of all ends; its outcome is in
the event log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from fastapi.responses import StreamingResponse

from xksfast.admin.api.parts import Parts
from xksfast.admin.api.problems import status_and_rule
from xksfast.errors import OperatorError
from xksfast.log import frames_of

MEDIA_TYPE = "application/x-ndjson"

Tell = Callable[[dict[str, Any]], None]


def streamed(parts: Parts, work: Callable[[Tell], Awaitable[dict[str, Any]]]) -> StreamingResponse:
    """work: is given what to tell by, and returns the last line."""
    lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def run() -> None:
        try:
            lines.put_nowait(await work(lines.put_nowait))
        except OperatorError as error:
            status, rule = status_and_rule(error)
            lines.put_nowait({"event": "failed", "status": status, "rule": rule, "detail": str(error)})
        except Exception as error:
            parts.log.error("request_failed", problem=type(error).__name__, where=frames_of(error))
            lines.put_nowait(
                {"event": "failed", "status": 500, "rule": "internal-error", "detail": "This is a fault of the proxy"}
            )
        finally:
            lines.put_nowait(None)

    task = asyncio.get_running_loop().create_task(run())
    parts.tasks.add(task)
    task.add_done_callback(parts.tasks.discard)

    async def told() -> AsyncIterator[bytes]:
        while (line := await lines.get()) is not None:
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    return StreamingResponse(told(), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
