# SPDX-License-Identifier: Apache-2.0
"""/v1/stores/{store}/credentials: SigV4 credentials. A secret is shown in the answer that makes it, and never again."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from xksfast.admin.api.paging import Cursor, Limit, page
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
from xksfast.admin.api.views import CredentialView, IssuedView, Page, credential_view, issued_view
from xksfast.admin.requests import CredentialGiven

router = APIRouter(prefix="/v1/stores/{store}/credentials", tags=["credentials"], route_class=AdminRoute, dependencies=[BEARER])


@router.post(
    "",
    status_code=201,
    response_model=IssuedView,
    summary="Rotate: issue a new credential beside those that there are",
    responses=documented(404, 409, 413),
)
@needs("operate")
async def rotate_credential(
    store: str, parts: PartsIn, actor: ActorIn, asked: AskedIn, request: CredentialGiven | None = None
) -> Response:
    """Without a body one is made. With one it is a credential that exists elsewhere, whose secret is not shown."""
    issued = await parts.service.rotate_credential(actor, store, request, once=once_for(asked, 201, issued_view))
    with parts.reading() as state:
        view = issued_view(state, issued)
    return answer(view, 201, revision=view.revision, secret=True)


@router.get("", response_model=Page[CredentialView], summary="List the credentials of a key store", responses=documented(404))
async def list_credentials(
    store: str, request: Request, parts: PartsIn, actor: ActorIn, limit: Limit = 100, cursor: Cursor = ""
) -> Response:
    """By access key id."""
    found = parts.service.list_credentials(actor, store)
    used = await parts.used(store)
    with parts.reading() as state:
        return page(request, found, lambda each: credential_view(state, each, used), limit, cursor)


@router.delete(
    "/{access_key_id}",
    status_code=204,
    response_class=Response,
    summary="Remove a credential",
    responses={200: {"model": DryRunResult, "description": "Dry run"}, **documented(404, 409, 412)},
)
async def remove_credential(
    store: str, access_key_id: str, parts: PartsIn, actor: ActorIn, if_match: IfMatch = None, dry_run: DryRun = False
) -> Response:
    """Requests signed with it are refused from then on. The last one of a store stays."""
    await parts.service.remove_credential(actor, store, access_key_id, revision_of(if_match), dry_run=dry_run)
    return gone(dry_run, f"remove credential {access_key_id} of key store {store}")
