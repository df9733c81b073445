# SPDX-License-Identifier: Apache-2.0
"""/v1/operators: who may administrate. A token is shown in the answer that makes it, and never again."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from xksfast.admin.api.paging import Cursor, Filter, Limit, page
from xksfast.admin.api.parts import ActorIn, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import (
    BEARER,
    AdminRoute,
    AskedIn,
    DryRun,
    DryRunResult,
    IfMatch,
    answer,
    gone,
    needs,
    once_for,
    revision_of,
)
from xksfast.admin.api.views import OperatorCreated, OperatorView, Page, WhoAmI, operator_view
from xksfast.admin.refusals import no_such
from xksfast.admin.requests import OperatorCreate
from xksfast.state.objects import Operator
from xksfast.state.projection import State
from xksfast.toml_reader import nearest

router = APIRouter(tags=["operators"], route_class=AdminRoute, dependencies=[BEARER])


@router.get("/v1/whoami", response_model=WhoAmI, summary="Whose token this is", responses=documented())
async def whoami(actor: ActorIn) -> Response:
    """Name, role and grants."""
    return answer(WhoAmI(name=actor.name.removeprefix("operator:"), role=actor.role, stores=list(actor.stores)))


@router.post(
    "/v1/operators",
    status_code=201,
    response_model=OperatorCreated,
    summary="Create an operator and its token",
    responses=documented(404, 409, 413),
)
@needs("manage", made="name")
async def create_operator(request: OperatorCreate, parts: PartsIn, actor: ActorIn, asked: AskedIn) -> Response:
    """The token is in this answer and never again."""

    def made(state: State, result: tuple[Operator, str]) -> OperatorCreated:
        return OperatorCreated(**operator_view(state, result[0]).model_dump(), token=result[1])

    result = await parts.service.create_operator(actor, request, once=once_for(asked, 201, made))
    operator = result[0]
    with parts.reading() as state:
        view = made(state, result)
    headers = {"Location": f"/v1/operators/{operator.name}"}
    return answer(view, 201, revision=view.revision, secret=True, headers=headers)


@router.get("/v1/operators", response_model=Page[OperatorView], summary="List operators", responses=documented())
async def list_operators(
    request: Request, parts: PartsIn, actor: ActorIn, limit: Limit = 100, cursor: Cursor = "", name_prefix: Filter = ""
) -> Response:
    """By name."""

    def wanted(operator: Operator) -> bool:
        return operator.name.startswith(name_prefix)

    found = parts.service.list_operators(actor)
    with parts.reading() as state:
        return page(request, found, lambda each: operator_view(state, each), limit, cursor, wanted)


@router.get("/v1/operators/{name}", response_model=OperatorView, summary="Show an operator", responses=documented(404))
async def get_operator(name: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Without its token."""
    found = parts.service.list_operators(actor)
    if name not in found:
        raise no_such("operator", name, nearest(name, found))
    with parts.reading() as state:
        view = operator_view(state, found[name])
    return answer(view, revision=view.revision)


@router.delete(
    "/v1/operators/{name}",
    status_code=204,
    response_class=Response,
    summary="Delete an operator",
    responses={200: {"model": DryRunResult, "description": "Dry run"}, **documented(404, 409, 412)},
)
async def delete_operator(
    name: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None, dry_run: DryRun = False
) -> Response:
    """Its token is refused from then on. The last admin stays."""
    await parts.service.delete_operator(actor, name, revision_of(if_match), dry_run=dry_run)
    return gone(dry_run, f"delete operator {name}; its token is refused from then on")
