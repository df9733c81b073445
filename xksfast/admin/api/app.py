# SPDX-License-Identifier: Apache-2.0
"""The app: every noun's routes, and the description at /openapi.json.

A newcomer's trap: FastAPI makes its routing table at the first request, and the description takes longer still. Neither may happen on
the loop that the kill switch runs on, so both are made in a thread.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.types import Message, Scope

from xksfast._version import __version__
from xksfast.admin.api import (
    apply,
    bulk,
    by_hand,
    connections,
    credentials,
    events,
    keys,
    links,
    nodes,
    operators,
    peers,
    problems,
    stores,
    streams,
)
from xksfast.admin.api.guard import Guard
from xksfast.admin.api.parts import Parts

DESCRIPTION_PATH = "/openapi.json"
_DESCRIPTION = """\
Administration of an xksfast proxy. Send the token of an operator as `Authorization: Bearer xkt_…`.

Every refusal is `application/problem+json`: `rule` is stable, `field` names the member at fault, `next` says what to do. Objects have
an `ETag`, and changes take `If-Match`. A POST that makes something takes an `Idempotency-Key`. Lists come in pages: `limit`,
`cursor`, and a `Link` header. Answers that show a secret must not be kept by anything on their way: it is shown this once.
"""
_NOUNS = (stores, credentials, keys, links, by_hand, bulk, operators, connections, nodes, events, apply, peers)
_STREAMED = ("/v1/bulk", "/v1/apply")


async def prepared_app(parts: Parts) -> FastAPI:
    """build_app in a thread, ready to answer its first request at once."""
    return await asyncio.to_thread(_prepare, parts)


def build_app(parts: Parts) -> FastAPI:
    """For an ASGI server. The description is public; all else needs a token."""
    app = FastAPI(
        title="xksfast administration",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = parts
    app.state.routes = [route for noun in _NOUNS for route in noun.router.routes if isinstance(route, APIRoute)]
    for noun in _NOUNS:
        app.include_router(noun.router)
    app.add_api_route(DESCRIPTION_PATH, _show_description, include_in_schema=False)
    problems.install(app)
    app.add_middleware(Guard, log=parts.log)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _prepare(parts: Parts) -> FastAPI:
    app = build_app(parts)
    scope: Scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "https", "path": "/", "raw_path": b"/",
        "root_path": "", "query_string": b"", "headers": [], "client": None, "server": None,
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    asyncio.run(app.router(scope, receive, send))  # apart from the log of requests
    return app


async def _show_description(request: Request) -> Response:
    body = await asyncio.to_thread(lambda: orjson.dumps(request.app.openapi()))
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})


def _described(app: FastAPI) -> dict[str, Any]:
    """FastAPI's own description, with problems and JSON lines under their media types."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    content = response.get("content", {})
                    if int(status) >= 400 and "application/json" in content:
                        response["content"] = {problems.MEDIA_TYPE: content["application/json"]}
                    elif "application/json" in content and (path in _STREAMED or path.endswith(("/connect", "/disconnect"))):
                        response["content"] = {streams.MEDIA_TYPE: content["application/json"]}
        app.openapi_schema = schema
    return app.openapi_schema
