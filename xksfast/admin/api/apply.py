# SPDX-License-Identifier: Apache-2.0
"""/v1/apply: make the state what a declaration says; and /v1/apply/plan: what that would take."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from xksfast.admin.actors import Actor
from xksfast.admin.api import streams
from xksfast.admin.api.parts import ActorIn, Parts, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import BEARER, AdminRoute, answer
from xksfast.admin.applying import carry_out, check_labels, check_rights, check_sight, steps_of
from xksfast.admin.declaration import ApplyRequest, Plan, plan_of
from xksfast.admin.refusals import Refused

router = APIRouter(prefix="/v1/apply", tags=["apply"], route_class=AdminRoute, dependencies=[BEARER])


class StepView(BaseModel):
    """One step. sign: + makes, ~ changes, - takes away."""

    sign: Literal["+", "~", "-"]
    target: str
    what: str
    why: str


class PlanView(BaseModel):
    """What it would take, in this order. problems: why it cannot be done; then nothing of it is."""

    steps: list[StepView]
    problems: list[str]
    notes: list[str]


class ApplyLine(BaseModel):
    """One line: plan (how many steps), begin and done (the number of a step, from 1), end or failed."""

    event: Literal["plan", "begin", "done", "end", "failed"]
    steps: int | None = None
    number: int | None = None
    target: str | None = None
    what: str | None = None
    done: int | None = None
    status: int | None = None
    rule: str | None = None
    detail: str | None = None


@router.post(
    "/plan",
    response_model=PlanView,
    summary="What it takes to make the state what a declaration says",
    responses=documented(413),
)
async def plan(request: ApplyRequest, parts: PartsIn, actor: ActorIn) -> Response:
    """Changes nothing. An empty plan: the state is so already."""
    check_sight(actor, request)
    made = _plan(parts, actor, request)
    return answer(
        PlanView(
            steps=[StepView(sign=step.sign, target=step.target, what=step.what, why=step.why) for step in made.steps],
            problems=list(made.problems),
            notes=list(made.notes),
        )
    )


@router.post(
    "",
    summary="Make the state what a declaration says",
    response_class=Response,
    responses={
        200: {"model": ApplyLine, "description": "JSON lines: the plan, each step as it is done, then the end"},
        **documented(409, 413),
    },
)
async def apply(request: ApplyRequest, parts: PartsIn, actor: ActorIn) -> Response:
    """Stops at the first step that is refused, but for blocks: those come first, and one that a node does not confirm does not keep the
    others. May be asked for again: what is so already stays so.
    """
    check_sight(actor, request)
    made = _plan(parts, actor, request)
    check_rights(actor, made)
    made.raise_problems()

    async def work(tell: streams.Tell) -> dict[str, Any]:
        tell({"event": "plan", "steps": len(made.steps)})
        number, refused = 0, None
        async for step in steps_of(parts.service, actor, made):
            if refused is not None and not step.blocks:
                break
            number += 1
            tell({"event": "begin", "number": number, "target": step.target, "what": step.what})
            try:
                await carry_out(parts.service, actor, step)
            except Refused as refusal:
                if not step.blocks:
                    raise
                refused = refused or refusal
            else:
                tell({"event": "done", "number": number})
        if refused is not None:
            raise refused
        return {"event": "end", "done": len(made.steps)}

    return streams.streamed(parts, work)


def _plan(parts: Parts, actor: Actor, request: ApplyRequest) -> Plan:
    with parts.reading() as state:
        made = plan_of(state, request, groups=parts.groups, sees=actor.may_see)
        if not made.problems:
            check_labels(parts.service.labels, state, actor, made)
        return made
