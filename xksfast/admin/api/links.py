# SPDX-License-Identifier: Apache-2.0
"""What reaches into AWS: linking key stores and keys, connecting, disconnecting, following.

Connecting takes AWS minutes, so its answer is JSON lines that tell what AWS says meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, Field

from xksfast.admin.api import streams
from xksfast.admin.api.parts import ActorIn, Parts, PartsIn
from xksfast.admin.api.problems import documented
from xksfast.admin.api.route import BEARER, AdminRoute, answer
from xksfast.admin.api.views import KeyView, StoreView, View, key_view, store_view
from xksfast.admin.refusals import Refused
from xksfast.admin.requests import KeyLinkRequest, Request, StoreLinkRequest
from xksfast.state.objects import Key, KeyStore

if TYPE_CHECKING:
    from xksfast.admin.linking import Linking

router = APIRouter(prefix="/v1", tags=["aws"], route_class=AdminRoute, dependencies=[BEARER])


class LinkLine(BaseModel):
    """One line: progress (what AWS says, after how many seconds), end with the key store, or failed."""

    event: Literal["progress", "end", "failed"]
    state: str | None = None
    seconds: float | None = None
    store: StoreView | None = None
    status: int | None = None
    rule: str | None = None
    detail: str | None = None


class UnlinkedView(View):
    """A custom key store in AWS that was made by hand for one of our key stores. problem: why it cannot be linked as it is."""

    store: str
    custom_key_store_id: str
    custom_key_store_name: str
    connection_state: str
    problem: str


class UnlinkedList(View):
    """Of one connection."""

    items: list[UnlinkedView]


class LinkedKeys(View):
    """Those that were taken over."""

    items: list[KeyView]


class ScheduleDeletion(Request):
    """AWS waits for so long, in which it can be cancelled."""

    days: int = Field(30, ge=7, le=30)


# --- key stores


@router.post(
    "/stores/{store}/link",
    response_model=StoreView,
    summary="Link a key store to a custom key store in AWS, which is made unless the request names one",
    responses=documented(404, 409, 413),
)
async def link_store(store: str, request: StoreLinkRequest, parts: PartsIn, actor: ActorIn) -> Response:
    """From then on state, alias, description and tags follow AWS."""
    return _store(parts, await _linking(parts).link_store(actor, store, request))


@router.post(
    "/stores/{store}/connect",
    summary="Have AWS connect a linked key store",
    response_class=Response,
    responses={200: {"model": LinkLine, "description": "JSON lines"}, **documented(404, 409)},
)
async def connect_store(store: str, parts: PartsIn, actor: ActorIn, wait: bool = True) -> Response:
    """Minutes, as a rule. One that FAILED is disconnected first."""
    linking = _linking(parts)
    linking.check_linked(actor, store)
    return _followed(parts, lambda progress: linking.connect_store(actor, store, progress, wait=wait))


@router.post(
    "/stores/{store}/disconnect",
    summary="Have AWS disconnect a linked key store",
    response_class=Response,
    responses={200: {"model": LinkLine, "description": "JSON lines"}, **documented(404, 409)},
)
async def disconnect_store(store: str, parts: PartsIn, actor: ActorIn, wait: bool = True) -> Response:
    """From then on AWS refuses to use its keys."""
    linking = _linking(parts)
    linking.check_linked(actor, store)
    return _followed(parts, lambda progress: linking.disconnect_store(actor, store, progress, wait=wait))


@router.post(
    "/stores/{store}/sync",
    response_model=StoreView,
    summary="Look at AWS's side of a linked key store and of its keys",
    responses=documented(404, 409),
)
async def sync_store(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """What AWS leads in follows; what differs is told as drift."""
    return _store(parts, await _linking(parts).sync_store(actor, store))


@router.post(
    "/stores/{store}/push",
    response_model=StoreView,
    summary="Tell AWS what differs: path, endpoint, connectivity",
    responses=documented(404, 409),
)
async def push_store(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Some of it only while disconnected."""
    return _store(parts, await _linking(parts).update_store(actor, store))


@router.post(
    "/stores/{store}/delete-in-aws",
    response_model=StoreView,
    summary="Delete the custom key store in AWS; ours stays, unlinked",
    responses=documented(404, 409),
)
async def delete_in_aws(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """AWS does so only when it is disconnected and has no KMS keys."""
    return _store(parts, await _linking(parts).delete_store(actor, store))


@router.get(
    "/aws-connections/{name}/unlinked",
    response_model=UnlinkedList,
    summary="Custom key stores in AWS that were made by hand for our key stores",
    responses=documented(404, 409),
)
async def find_unlinked(name: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Link them by their id."""
    actor.require("operate")
    found = await _linking(parts).find_unlinked(actor, name)
    return answer(
        UnlinkedList(
            items=[
                UnlinkedView(
                    store=each.store,
                    custom_key_store_id=each.custom_key_store.id,
                    custom_key_store_name=each.custom_key_store.name,
                    connection_state=each.custom_key_store.connection_state,
                    problem=each.problem,
                )
                for each in found
            ]
        )
    )


# --- keys


@router.post(
    "/stores/{store}/link-keys",
    response_model=LinkedKeys,
    summary="Take over every KMS key that was made by hand for a key of this store",
    responses=documented(404, 409),
)
async def link_found_keys(store: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Found by their external key ids."""
    found = await _linking(parts).link_found_keys(actor, store)
    used = await parts.used(store)
    with parts.reading() as state:
        return answer(LinkedKeys(items=[key_view(state, key, used) for key in found]))


@router.post(
    "/stores/{store}/keys/{key}/link",
    response_model=KeyView,
    summary="Link a key to a KMS key in AWS, which is made unless the request names one",
    responses=documented(404, 409, 413),
)
async def link_key(store: str, key: str, parts: PartsIn, actor: ActorIn, request: KeyLinkRequest | None = None) -> Response:
    """Its store must be linked."""
    return await _key(parts, await _linking(parts).link_key(actor, store, key, request or KeyLinkRequest()))


@router.post(
    "/stores/{store}/keys/{key}/sync",
    response_model=KeyView,
    summary="Look at AWS's side of a key",
    responses=documented(404, 409),
)
async def sync_key(store: str, key: str, parts: PartsIn, actor: ActorIn) -> Response:
    """Alias, description, tags and state follow AWS."""
    return await _key(parts, await _linking(parts).sync_key(actor, store, key))


@router.post(
    "/stores/{store}/keys/{key}/schedule-deletion",
    response_model=KeyView,
    summary="Schedule the deletion of the KMS key; ours stays",
    responses=documented(404, 409, 413),
)
async def schedule_deletion(
    store: str, key: str, parts: PartsIn, actor: ActorIn, request: Annotated[ScheduleDeletion | None, Body()] = None
) -> Response:
    """In 7 to 30 days, until when it can be cancelled."""
    days = (request or ScheduleDeletion()).days
    return await _key(parts, await _linking(parts).schedule_deletion(actor, store, key, days))


@router.post(
    "/stores/{store}/keys/{key}/cancel-deletion",
    response_model=KeyView,
    summary="Cancel the scheduled deletion of the KMS key",
    responses=documented(404, 409),
)
async def cancel_deletion(store: str, key: str, parts: PartsIn, actor: ActorIn) -> Response:
    """The KMS key is disabled afterwards."""
    return await _key(parts, await _linking(parts).cancel_deletion(actor, store, key))


# --- shared


def _linking(parts: Parts) -> Linking:
    if parts.linking is None:
        raise Refused("unavailable", "no-aws", "This node cannot reach into AWS", next="Ask another one")
    return parts.linking


def _store(parts: Parts, store: KeyStore) -> Response:
    with parts.reading() as state:
        view = store_view(state, store)
    return answer(view, revision=view.revision)


async def _key(parts: Parts, key: Key) -> Response:
    used = await parts.used(key.store)
    with parts.reading() as state:
        view = key_view(state, key, used)
    return answer(view, revision=view.revision)


def _followed(parts: Parts, work: Callable[[Callable[[Any, float], None]], Awaitable[KeyStore]]) -> Response:
    """work: is given a progress function, which a thread may call."""
    loop = asyncio.get_running_loop()

    async def run(tell: streams.Tell) -> dict[str, Any]:
        def progress(seen: Any, waited_s: float) -> None:
            line = {"event": "progress", "state": seen.connection_state, "seconds": round(waited_s, 1)}
            loop.call_soon_threadsafe(tell, line)

        store = await work(progress)
        with parts.reading() as state:
            return {"event": "end", "store": store_view(state, store).model_dump()}

    return streams.streamed(parts, run)
