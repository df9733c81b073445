# SPDX-License-Identifier: Apache-2.0
"""The app: every noun's routes, and the description at /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from xksfast._version import __version__
from xksfast.admin.api import (
    apply,
    bulk,
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

_DESCRIPTION = """\
Administration of an xksfast proxy. Send the token of an operator as `Authorization: Bearer xkt_…`.

Every refusal is `application/problem+json`: `rule` is stable, `field` names the member at fault, `next` says what to do. Objects have an
`ETag`, and changes take `If-Match`. A POST that makes or changes something takes an `Idempotency-Key`. Lists come in pages: `limit`,
`cursor`, and a `Link` header. Answers that show a secret are never kept by anything on their way, and show it this once.
"""
_STREAMED = ("/v1/bulk", "/v1/apply")
_NOUNS = (stores, credentials, keys, links, bulk, operators, connections, nodes, events, apply, peers)


def build_app(parts: Parts) -> FastAPI:
    """For an ASGI server. The description is public; all else needs a token."""
    app = FastAPI(
        title="xksfast administration",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = parts
    for noun in _NOUNS:
        app.include_router(noun.router)
    problems.install(app)
    app.add_middleware(Guard, log=parts.log)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


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
