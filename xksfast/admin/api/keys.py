# SPDX-License-Identifier: Apache-2.0
"""/v1/stores/{store}/keys: HYOK keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

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
from xksfast.admin.api.views import ConfirmationView, KeyView, Page, VersionsView, confirmation_view, key_view, versions_view
from xksfast.admin.requests import Block, KeyCreate, KeyRotate, KeyUpdate
from xksfast.admin.usage import StoreUse
from xksfast.state.objects import Key, key_id
from xksfast.state.projection import State

router = APIRouter(prefix="/v1/stores/{store}/keys", tags=["keys"], route_class=AdminRoute, dependencies=[BEARER])


@router.post("", status_code=201, response_model=KeyView, summary="Create a key", responses=documented(404, 409, 413))
@needs("operate", made="external_key_id")
async def create_key(store: str, request: KeyCreate, parts: PartsIn, actor: ActorIn, asked: AskedIn) -> Response:
    """Its source key is made, brought to every partition and proven, unless `label` names one that is there."""
    once = once_for(asked, 201, _key_of(store, request.external_key_id))
    key = await parts.service.create_key(actor, store, request, once)
    return await _shown(parts, key, 201, location=f"/v1/stores/{store}/keys/{key.external_key_id}")


@router.get("", response_model=Page[KeyView], summary="List the keys of a key store", responses=documented(404))
async def list_keys(
    store: str,
    request: Request,
    parts: PartsIn,
    actor: ActorIn,
    limit: Limit = 100,
    cursor: Cursor = "",
    name_prefix: Filter = "",
    enabled: Annotated[bool | None, Query()] = None,
    blocked: Annotated[bool | None, Query()] = None,
    linked: Annotated[bool | None, Query()] = None,
) -> Response:
    """By external key id."""

    def wanted(key: Key) -> bool:
        return (
            key.external_key_id.startswith(name_prefix)
            and enabled in (None, key.enabled)
            and blocked in (None, key.blocked)
            and linked in (None, key.link is not None)
        )

    found = parts.service.list_keys(actor, store)
    used = await parts.used(store)
    with parts.reading() as state:
        return page(request, found, lambda key: key_view(state, key, used), limit, cursor, wanted)


@router.get("/{key}", response_model=KeyView, summary="Show a key", responses=documented(404))
async def get_key(store: str, key: str, parts: PartsIn, actor: ActorIn) -> Response:
    """One key."""
    return await _shown(parts, parts.service.key(actor, store, key))


@router.get("/{key}/versions", response_model=VersionsView, summary="List the versions of a key", responses=documented(404))
async def list_versions(store: str, key: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Oldest first. The last one encrypts, all decrypt."""
    found = parts.service.key(actor, store, key)
    return answer(versions_view(found, await parts.used(store)))


@router.patch("/{key}", response_model=KeyView, summary="Change a key", responses=documented(404, 409, 412, 413))
async def update_key(
    store: str, key: str, request: KeyUpdate, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None
) -> Response:
    """What the request names; the rest stays."""
    return await _shown(parts, await parts.service.update_key(actor, store, key, request, revision_of(if_match)))


@router.delete(
    "/{key}",
    status_code=204,
    response_class=Response,
    summary="Delete a key that is disabled",
    responses={200: {"model": DryRunResult, "description": "Dry run"}, **documented(404, 409, 412)},
)
async def delete_key(
    store: str, key: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None, dry_run: DryRun = False
) -> Response:
    """Key material in an HSM stays where it is."""
    await parts.service.delete_key(actor, store, key, revision_of(if_match), dry_run=dry_run)
    return gone(dry_run, f"delete key {key} of key store {store}; key material in an HSM stays")


@router.post(
    "/{key}/rotate",
    response_model=KeyView,
    summary="Rotate a key: a new version encrypts from now on",
    responses=documented(404, 409, 412, 413),
)
@needs("operate")
async def rotate_key(
    store: str,
    key: str,
    parts: PartsIn,
    actor: ActorIn,
    asked: AskedIn,
    request: KeyRotate | None = None,
    if_match: IfMatch = None,
) -> Response:
    """All former versions go on decrypting."""
    once = once_for(asked, 200, _key_of(store, key))
    revision = revision_of(if_match)
    return await _shown(parts, await parts.service.rotate_key(actor, store, key, request or KeyRotate(), revision, once))


@router.post("/{key}/enable", response_model=KeyView, summary="Enable a key", responses=documented(404, 409, 412))
async def enable_key(store: str, key: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None) -> Response:
    """KMS may use it again."""
    return await _shown(parts, await parts.service.enable_key(actor, store, key, True, revision_of(if_match)))


@router.post("/{key}/disable", response_model=KeyView, summary="Disable a key", responses=documented(404, 409, 412))
async def disable_key(store: str, key: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None) -> Response:
    """KMS is told that the key is disabled."""
    return await _shown(parts, await parts.service.enable_key(actor, store, key, False, revision_of(if_match)))


@router.post(
    "/{key}/block",
    response_model=ConfirmationView,
    summary="Block a key: it is not served any more",
    responses=documented(404, 413),
)
async def block_key(store: str, key: str, parts: PartsIn, actor: ActorIn, request: Block | None = None) -> Response:
    """The kill switch for one key. Asking again confirms again."""
    return answer(confirmation_view(await parts.service.block_key(actor, store, key, request.reason if request else "")))


@router.post("/{key}/unblock", response_model=ConfirmationView, summary="Serve a key again", responses=documented(404, 409))
async def unblock_key(store: str, key: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Says which nodes serve it."""
    return answer(confirmation_view(await parts.service.unblock_key(actor, store, key)))


def _key_of(store: str, key: str) -> Callable[[State, Any], KeyView]:
    """The view of a key in the state that a change leaves; its newest version has encrypted nothing yet."""
    return lambda state, _: key_view(state, state.keys[key_id(store, key)], StoreUse())


async def _shown(parts: Parts, key: Key, status: int = 200, *, location: str = "") -> Response:
    used = await parts.used(key.store)
    with parts.reading() as state:
        view = key_view(state, key, used)
    return answer(view, status, revision=view.revision, headers={"Location": location} if location else None)
