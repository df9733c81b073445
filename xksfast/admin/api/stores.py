# SPDX-License-Identifier: Apache-2.0
"""/v1/stores: external key stores."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from xksfast.admin.api.paging import Cursor, Filter, Limit, page
from xksfast.admin.api.parts import ActorIn, Parts, PartsIn
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
from xksfast.admin.api.views import (
    ConfirmationView,
    CredentialsFile,
    ObstacleView,
    Page,
    StoreCreated,
    StoreView,
    TeardownView,
    confirmation_view,
    credentials_file,
    store_created,
    store_view,
)
from xksfast.admin.requests import Block, StoreCreate, StoreUpdate
from xksfast.admin.service import IssuedCredential
from xksfast.state.objects import KeyStore
from xksfast.state.projection import State

router = APIRouter(prefix="/v1/stores", tags=["stores"], route_class=AdminRoute, dependencies=[BEARER])


@router.post(
    "",
    status_code=201,
    response_model=StoreCreated,
    summary="Create a key store, with its first credential",
    responses=documented(404, 409, 413),
)
@needs("manage", made="name")
async def create_store(request: StoreCreate, parts: PartsIn, actor: ActorIn, asked: AskedIn) -> Response:
    """A trial operation on its key source comes first. The secret of the credential is in this answer and never again."""

    def made(state: State, result: tuple[KeyStore, list[IssuedCredential]]) -> StoreCreated:
        return store_created(state, *result)

    result = await parts.service.create_store(actor, request, once=once_for(asked, 201, made))
    store = result[0]
    with parts.reading() as state:
        view = made(state, result)
    return answer(view, 201, revision=view.revision, secret=True, headers={"Location": f"/v1/stores/{store.name}"})


@router.get("", response_model=Page[StoreView], summary="List key stores", responses=documented())
async def list_stores(
    request: Request,
    parts: PartsIn,
    actor: ActorIn,
    limit: Limit = 100,
    cursor: Cursor = "",
    name_prefix: Filter = "",
    region: Filter = "",
    partition_group: Filter = "",
    key_source: Filter = "",
    blocked: Annotated[bool | None, Query()] = None,
    linked: Annotated[bool | None, Query()] = None,
) -> Response:
    """Those that the operator is granted, by name."""

    def wanted(store: KeyStore) -> bool:
        return (
            store.name.startswith(name_prefix)
            and region in ("", store.region)
            and partition_group in ("", store.partition_group)
            and key_source in ("", store.key_source)
            and blocked in (None, store.blocked)
            and linked in (None, store.link is not None)
        )

    found = parts.service.list_stores(actor)
    with parts.reading() as state:
        return page(request, found, lambda store: store_view(state, store), limit, cursor, wanted)


@router.get("/{store}", response_model=StoreView, summary="Show a key store", responses=documented(404))
async def get_store(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """One key store."""
    return _shown(parts, parts.service.store(actor, store))


@router.patch("/{store}", response_model=StoreView, summary="Change a key store", responses=documented(404, 409, 412, 413))
async def update_store(store: str, request: StoreUpdate, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None) -> Response:
    """What the request names; the rest stays."""
    return _shown(parts, await parts.service.update_store(actor, store, request, revision_of(if_match)))


@router.delete(
    "/{store}",
    status_code=204,
    response_class=Response,
    summary="Delete a key store that has no keys",
    responses={200: {"model": DryRunResult, "description": "Dry run"}, **documented(404, 409, 412)},
)
async def delete_store(
    store: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None, dry_run: DryRun = False
) -> Response:
    """Its credentials go with it."""
    await parts.service.delete_store(actor, store, revision_of(if_match), dry_run=dry_run)
    return gone(dry_run, f"delete key store {store} with its credentials")


@router.post(
    "/{store}/block",
    response_model=ConfirmationView,
    summary="Block a key store: nothing of it is served any more",
    responses=documented(404, 413),
)
async def block_store(store: str, parts: PartsIn, actor: ActorIn, request: Block | None = None) -> Response:
    """The kill switch. Says which nodes have confirmed, and after how many milliseconds. Asking again confirms again."""
    return answer(confirmation_view(await parts.service.block_store(actor, store, request.reason if request else "")))


@router.post(
    "/{store}/unblock", response_model=ConfirmationView, summary="Serve a key store again", responses=documented(404, 409)
)
async def unblock_store(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Says which nodes serve it."""
    return answer(confirmation_view(await parts.service.unblock_store(actor, store)))


@router.get(
    "/{store}/teardown",
    response_model=TeardownView,
    summary="What stands in the way of deleting a key store",
    responses=documented(404),
)
async def teardown(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """In the order in which it is to be cleared, each with the command that does it."""
    steps = parts.service.teardown(actor, store)
    return answer(
        TeardownView(
            items=[ObstacleView(what=step.what, command=step.command, count=step.count, waits=step.waits) for step in steps]
        )
    )


@router.post(
    "/{store}/credentials-file",
    status_code=201,
    response_model=CredentialsFile,
    summary="Issue a credential as a file for the AWS console",
    responses=documented(404, 409),
)
@needs("operate")
async def make_credentials_file(store: str, parts: PartsIn, actor: ActorIn, asked: AskedIn) -> Response:
    """A new credential, since the secrets of those that there are cannot be read any more. Those stay valid until they are removed."""

    def made(state: State, issued: IssuedCredential) -> CredentialsFile:
        return credentials_file(state.key_stores[store], issued)

    issued = await parts.service.rotate_credential(actor, store, once=once_for(asked, 201, made))
    with parts.reading() as state:
        found = state.key_stores.get(store)
    if found is None:
        found = parts.service.store(actor, store)
    headers = {"Content-Disposition": f'attachment; filename="{store}-credentials.json"'}
    return answer(credentials_file(found, issued), 201, secret=True, headers=headers)


def _shown(parts: Parts, store: KeyStore) -> Response:
    with parts.reading() as state:
        view = store_view(state, store)
    return answer(view, revision=view.revision)
