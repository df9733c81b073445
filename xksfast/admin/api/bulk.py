# SPDX-License-Identifier: Apache-2.0
"""/v1/bulk: block, unblock, enable or disable many, with progress."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from xksfast.admin.api import streams
from xksfast.admin.api.parts import ActorIn, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import BEARER, AdminRoute
from xksfast.admin.bulk import bulk as carry_out
from xksfast.admin.requests import BulkRequest

router = APIRouter(prefix="/v1/bulk", tags=["bulk"], route_class=AdminRoute, dependencies=[BEARER])


class BulkLine(BaseModel):
    """One line. progress: done of total; result: name, and problem unless it was done; end: how many failed."""

    event: Literal["progress", "result", "end", "failed"]
    done: int | None = None
    total: int | None = None
    name: str | None = None
    problem: str | None = None
    failed: int | None = None
    status: int | None = None
    rule: str | None = None
    detail: str | None = Field(None, description="Why nothing more was done.")


@router.post(
    "",
    summary="The same for many key stores and keys",
    response_class=Response,
    responses={
        200: {
            "model": BulkLine,
            "description": "JSON lines: progress while it runs, then a result for each name, then the end",
        },
        **documented(413),
    },
)
async def bulk(request: BulkRequest, parts: PartsIn, actor: ActorIn) -> Response:
    """Goes on after a refusal, and when the client has gone. All of it may be asked for again: what is so already stays so."""
    actor.require("block" if request.action == "block" else "operate")

    async def work(tell: streams.Tell) -> dict[str, Any]:
        results = await carry_out(
            parts.service, actor, request, lambda done, total: tell({"event": "progress", "done": done, "total": total})
        )
        for name, fault in results:
            tell({"event": "result", "name": name, "problem": fault})
        return {"event": "end", "done": len(results), "failed": sum(bool(fault) for _, fault in results)}

    return streams.streamed(parts, work)
