# SPDX-License-Identifier: Apache-2.0
"""/v1/events: what was changed, by whom, from where; and whether the log is whole."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from xksfast.admin.api.paging import Filter, Limit, page_answer
from xksfast.admin.api.parts import ActorIn, EventQuery, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import BEARER, AdminRoute, answer
from xksfast.admin.api.views import EventView, Page, View, event_view
from xksfast.admin.plans.sight import may_see_event
from xksfast.state.events import Event

router = APIRouter(prefix="/v1/events", tags=["events"], route_class=AdminRoute, dependencies=[BEARER])

MAX_SEQ = 2**63 - 1
_LOOKED_THROUGH = 1000  # in one round, for an operator who may not see all: small pages must not count what is left out
_MAX_ROUNDS = 50  # of looking for events that the operator may see, before a page is sent that is not full

Moment = Annotated[int, Query(ge=0, le=MAX_SEQ, description="Unix milliseconds; 0: any.")]


class VerdictView(View):
    """Whether the log is whole. problems: a sentence each. head: the hash of its last event; whoever keeps it can prove the log."""

    ok: bool
    events: int
    seq: int
    head: str
    problems: list[str]


@router.get("", response_model=Page[EventView], summary="List events, newest first", responses=documented())
async def list_events(
    request: Request,
    parts: PartsIn,
    actor: ActorIn,
    limit: Limit = 100,
    cursor: Annotated[int, Query(ge=0, le=MAX_SEQ, description="`next` of the page before; 0: the newest page.")] = 0,
    kind: Filter = "",
    id: Filter = "",
    by: Annotated[Filter, Query(alias="actor")] = "",
    action: Filter = "",
    from_ms: Moment = 0,
    until_ms: Moment = 0,
) -> Response:
    """Of key stores that the operator is not granted, nothing is shown; of operators, only to those without such grants."""
    actor.require("read")
    found: list[Event] = []
    before = cursor
    more = True
    size = max(limit, _LOOKED_THROUGH if actor.stores else 0) + 1
    for _ in range(_MAX_ROUNDS):
        batch = await parts.events(EventQuery(kind, id, by, action, from_ms, until_ms, before, size))
        with parts.reading() as state:
            found += [event for event in batch if may_see_event(state, actor, event)]
        more = len(batch) == size
        if batch:
            before = batch[-1].seq
        if len(found) > limit or not more:
            break
    shown = found[:limit]
    if len(found) > limit:
        before, more = shown[-1].seq, True
    return page_answer(request, [event_view(event) for event in shown], str(before) if more else None)


@router.get("/verification", response_model=VerdictView, summary="Whether the log is whole", responses=documented())
async def verify_log(parts: PartsIn, actor: ActorIn) -> Response:
    """Recomputes the hash chain over all events; takes seconds for a long log."""
    actor.require("read")
    verdict = await parts.verify_log()
    problems = list(verdict.problems)
    if problems and actor.stores:
        problems = ["only those who may see every key store are shown what is wrong, since that names objects"]
    return answer(VerdictView(ok=verdict.ok, events=verdict.events, seq=verdict.seq, head=verdict.head, problems=problems))
