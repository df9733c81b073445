# SPDX-License-Identifier: Apache-2.0
"""Administration by REST, with every answer held against the OpenAPI document that the node itself shows."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema_rs
import schemathesis

from tests.scenario.nodes import Deployment

PROBLEM, LINES = "application/problem+json", "application/x-ndjson"


@dataclass(frozen=True)
class Answered:
    """document: None without a body; the last line of JSON lines. etag: as it came. replayed: a former answer, shown again."""

    status: int
    document: Any
    etag: str
    replayed: bool


class Rest:
    """Of one node of a deployment, for its operator "root"."""

    def __init__(self, proxies: Deployment, node: int = 0) -> None:
        self._http = httpx.Client(
            base_url=proxies.nodes[node].admin_url,
            verify=ssl.create_default_context(cafile=proxies.ca_file),
            headers={"Authorization": f"Bearer {proxies.token()}"},
            timeout=90,
            trust_env=False,
        )
        self._document = self._http.get("/openapi.json").json()
        self._schema = schemathesis.openapi.from_dict(self._document)
        self._paths = {re.compile(re.sub(r"\{\w+\}", "[^/]+", path)): path for path in self._document["paths"]}

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> Answered:
        """It is there."""
        return self._send("GET", path, None, {}, 200)

    def post(self, path: str, body: Any = None, *, once: str = "", seen: str = "", status: int = 0) -> Answered:
        """once: Idempotency-Key. seen: the ETag for If-Match. status: the one expected; 0: success."""
        return self._send("POST", path, body, _conditions(once, seen), status)

    def patch(self, path: str, body: Any, *, seen: str = "", status: int = 0) -> Answered:
        """See post."""
        return self._send("PATCH", path, body, _conditions("", seen), status)

    def delete(self, path: str, *, seen: str = "", status: int = 0) -> Answered:
        """See post."""
        return self._send("DELETE", path, None, _conditions("", seen), status)

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str], status: int) -> Answered:
        response = self._http.request(method, f"/v1{path}", json=body, headers=headers)
        assert response.status_code == status if status else response.is_success, (method, path, response.text)
        template = next(found for shape, found in self._paths.items() if shape.fullmatch(response.url.path))
        documented = self._document["paths"][template][method.lower()]["responses"]
        assert str(response.status_code) in documented, (method, template, response.status_code)
        kind = response.headers.get("content-type", "")
        assert kind in documented[str(response.status_code)].get("content", {"": None}), (method, template, kind)
        if kind == LINES:
            lines = [json.loads(line) for line in response.text.splitlines()]
            reference = documented[str(response.status_code)]["content"][LINES]["schema"]
            validator = jsonschema_rs.validator_for({**reference, "components": self._document["components"]})
            for line in lines:
                validator.validate(line)
            assert lines[-1]["event"] == "end", lines[-1]
            document = lines[-1]
        else:
            self._schema[template][method].validate_response(response)
            document = response.json() if response.content else None
        replayed = response.headers.get("idempotent-replayed") == "true"
        return Answered(response.status_code, document, response.headers.get("etag", ""), replayed)


def _conditions(once: str, seen: str) -> dict[str, str]:
    return {name: value for name, value in (("Idempotency-Key", once), ("If-Match", seen)) if value}
