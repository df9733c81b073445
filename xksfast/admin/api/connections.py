# SPDX-License-Identifier: Apache-2.0
"""/v1/aws-connections: how to reach AWS KMS for linked key stores. No credential of AWS stands here."""

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
from xksfast.admin.api.views import ConnectionView, Page, connection_view
from xksfast.admin.refusals import no_such
from xksfast.admin.requests import ConnectionCreate
from xksfast.state.objects import AwsConnection
from xksfast.state.projection import State
from xksfast.toml_reader import nearest

router = APIRouter(prefix="/v1/aws-connections", tags=["aws-connections"], route_class=AdminRoute, dependencies=[BEARER])


@router.post(
    "", status_code=201, response_model=ConnectionView, summary="Create an AWS connection", responses=documented(409, 413)
)
@needs("manage", made="name")
async def create_connection(request: ConnectionCreate, parts: PartsIn, actor: ActorIn, asked: AskedIn) -> Response:
    """boto3 finds the credential itself: by profile, by role, or in the environment of the proxy."""

    def made(state: State, _: object) -> ConnectionView:
        return connection_view(state, state.aws_connections[request.name])

    connection = await parts.service.create_connection(actor, request, once=once_for(asked, 201, made))
    with parts.reading() as state:
        view = connection_view(state, connection)
    return answer(view, 201, revision=view.revision, headers={"Location": f"/v1/aws-connections/{connection.name}"})


@router.get("", response_model=Page[ConnectionView], summary="List AWS connections", responses=documented())
async def list_connections(
    request: Request,
    parts: PartsIn,
    actor: ActorIn,
    limit: Limit = 100,
    cursor: Cursor = "",
    name_prefix: Filter = "",
    region: Filter = "",
) -> Response:
    """By name."""

    def wanted(connection: AwsConnection) -> bool:
        return connection.name.startswith(name_prefix) and region in ("", connection.region)

    found = parts.service.list_connections(actor)
    with parts.reading() as state:
        return page(request, found, lambda each: connection_view(state, each), limit, cursor, wanted)


@router.get("/{name}", response_model=ConnectionView, summary="Show an AWS connection", responses=documented(404))
async def get_connection(name: str, parts: PartsIn, actor: ActorIn) -> Response:
    """One of them."""
    found = parts.service.list_connections(actor)
    if name not in found:
        raise no_such("AWS connection", name, nearest(name, found))
    with parts.reading() as state:
        view = connection_view(state, found[name])
    return answer(view, revision=view.revision)


@router.delete(
    "/{name}",
    status_code=204,
    response_class=Response,
    summary="Delete an AWS connection that no key store uses",
    responses={200: {"model": DryRunResult, "description": "Dry run"}, **documented(404, 409, 412)},
)
async def delete_connection(
    name: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None, dry_run: DryRun = False
) -> Response:
    """Nothing changes in AWS."""
    await parts.service.delete_connection(actor, name, revision_of(if_match), dry_run=dry_run)
    return gone(dry_run, f"delete AWS connection {name}")
