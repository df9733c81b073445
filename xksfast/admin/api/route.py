# SPDX-License-Identifier: Apache-2.0
"""What every route has in common: whoever asks is known before the body is read, If-Match, Idempotency-Key, and how answers look."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Header, Query, Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query as QueryParameter
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from xksfast.admin.api import replays
from xksfast.admin.api.door import admit
from xksfast.admin.refusals import Refused, Repeated
from xksfast.state.projection import State
from xksfast.state.store import Once
from xksfast.toml_reader import nearest

# Only for the description: the route itself authenticates, before the body is read.
BEARER = Depends(HTTPBearer(auto_error=False, scheme_name="token", description="The token of an operator: xkt_…"))

_ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def needs(right: str, *, made: str = "") -> Callable[[Endpoint], Endpoint]:
    """For a route that takes `asked`: the right that its use case asks for, on the store of the path if there is one.

    An answer of the day before is for those alone who may still ask for it. made: the member of the answer that follows in Location.
    """

    def marked(endpoint: Endpoint) -> Endpoint:
        endpoint.needs = _Needs(right, made)  # type: ignore[attr-defined]
        return endpoint

    return marked


@dataclass(frozen=True)
class _Needs:
    right: str
    made: str


class AdminRoute(APIRoute):
    """A route that only operators reach. One that takes `asked` is carried out once for each Idempotency-Key.

    What is so already when it is asked for again (a block, a disabled key) takes none: an answer from the day before must never stand
    for a block that was lifted since.
    """

    def get_route_handler(self) -> Handler:
        """Authenticate, then what FastAPI does; a POST that may be repeated is carried out once."""
        original = super().get_route_handler()
        repeatable = "asked" in inspect.signature(self.endpoint).parameters
        needed: _Needs | None = getattr(self.endpoint, "needs", None)
        if repeatable and needed is None:
            raise TypeError(f"{self.path} takes Idempotency-Key: say by @needs which right it asks for")
        known = get_flat_params(self.dependant)
        parameters = {one.alias for one in known if isinstance(one.field_info, QueryParameter)}

        async def handle(request: Request) -> Response:
            parts = request.app.state.parts
            address = request.client.host if request.client else "local"
            actor = parts.authenticator.actor(request.headers.get("authorization", ""), address)
            admit(request.scope)
            request.state.actor = actor
            request.state.asked = None
            _refuse_unknown(parameters, request.query_params)
            given = request.headers.get("idempotency-key") if repeatable else None
            if given is None or needed is None:
                return await original(request)
            actor.require(needed.right, request.path_params.get("store"))
            key = replays.checked_key(actor.token, given)

            def replayed(status: int, body: bytes) -> Response:
                return _replayed(status, body, request.url.path, needed.made)

            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            fingerprint = replays.fingerprint(request.method, target, await request.body())
            async with parts.replays.once(key):
                former = await parts.replays.find(key, fingerprint)
                if former is not None:
                    return replayed(*former)
                request.state.asked = replays.Asked(parts.replays, key, actor.name, fingerprint)
                try:
                    return await original(request)
                except Repeated as repeated:  # another node was faster
                    return replayed(*parts.replays.answer_of(repeated.row, fingerprint))
                except Refused:  # perhaps for that reason: what it made is there already
                    former = await parts.replays.find(key, fingerprint)
                    if former is None:
                        raise
                    return replayed(*former)

        return handle


def _refuse_unknown(parameters: Collection[str], given: Iterable[str]) -> None:
    """One that is overlooked changes what is asked for: "dryrun=true" would delete, and a filter with a slip would show all."""
    for name in given:
        if name not in parameters:
            raise Refused(
                "invalid",
                "parameter-unknown",
                f"There is no query parameter {name[:100]!r} here{nearest(name[:100], parameters)}",
                why="Nothing was done, since it may be a slip of one that matters",
                next=f"Those that there are: {', '.join(sorted(parameters))}"
                if parameters
                else "Leave it out: there are none here",
                field=name[:100],
            )


def _replayed(status: int, body: bytes, path: str, made: str) -> Response:
    """ETag and Location are those of the first answer: both stand in its body."""
    headers = {replays.REPLAYED_HEADER: "true", "Cache-Control": "no-store"}
    document = orjson.loads(body)
    if "revision" in document:
        headers["ETag"] = f'"{document["revision"]}"'
    if made:
        headers["Location"] = f"{path}/{document[made]}"
    return Response(body, status, headers, "application/json")


# --- what routes take

IfMatch = Annotated[
    str | None, Header(alias="If-Match", description='The ETag that was seen, such as "17": refused (412) when it has changed.')
]
_IdempotencyKey = Annotated[  # for asked_of alone: a route that took it by itself would not be carried out once
    str | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 128 characters. The same key with the same request gets the first answer again, for 24 hours, marked by "
        "Idempotent-Replayed: true; with another request it is refused (409).",
    ),
]


async def asked_of(request: Request, idempotency_key: _IdempotencyKey = None) -> replays.Asked | None:
    """How the answer is kept; None: it came without a key. The key itself was looked at before the body was read."""
    asked: replays.Asked | None = request.state.asked
    return asked


def once_for(asked: replays.Asked | None, status: int, view: Callable[[State, Any], BaseModel]) -> Once | None:
    """For the use case. view(state as the change leaves it, what the plan answers): the body of the answer, of this status."""
    return None if asked is None else asked.once(status, view)


AskedIn = Annotated[replays.Asked | None, Depends(asked_of)]
DryRun = Annotated[bool, Query(description="Only say whether it would be done, or why not.")]


def revision_of(if_match: str | None) -> int | None:
    """The revision that the client has seen; None: it does not care. Refused when it is no ETag of ours."""
    if if_match is None or if_match == "*":
        return None
    found = _ETAG.fullmatch(if_match)
    if found is None:
        raise Refused(
            "invalid",
            "if-match-invalid",
            'If-Match: it must be one ETag as it was sent, such as "17"',
            next="Send the ETag of the object's last answer",
            field="If-Match",
        )
    return int(found[1])


# --- how answers look


class DryRunResult(BaseModel):
    """Nothing was changed; it would not have been refused."""

    dry_run: bool = True
    would: str


def answer(
    body: BaseModel,
    status: int = 200,
    *,
    revision: int | None = None,
    secret: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """revision: for the ETag. secret: it must not be kept by anything on its way."""
    named = {"Cache-Control": "no-store" if secret else "no-cache", **(headers or {})}
    if revision is not None:
        named["ETag"] = f'"{revision}"'
    return Response(body.model_dump_json(), status, named, "application/json")


def gone(dry_run: bool, would: str) -> Response:
    """After a deletion, or instead of one."""
    return answer(DryRunResult(would=would)) if dry_run else Response(status_code=204)
