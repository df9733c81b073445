# SPDX-License-Identifier: Apache-2.0
"""The REST interface against its own document: whatever is sent, right or wrong, no 5xx, and every answer is one that it describes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.admin.api.rig import Rig
from tests.admin.api.test_authentication import LINKING
from tests.admin.api.test_stores import new_store

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 4  # of each kind for each operation


@pytest.fixture(scope="module")
def document(rig: Rig) -> Any:
    """Without what reaches into AWS, which answers 503 here."""
    with rig.client() as admin:
        new_store(admin, "payments", endpoint="https://xks.example.com")
        admin.post("/v1/stores/payments/keys", json={"external_key_id": "orders"})
        described = admin.get("/openapi.json").json()
    described["paths"] = {path: operations for path, operations in described["paths"].items() if not LINKING.search(path)}
    for operations in described["paths"].values():  # JSON lines are no JSON document
        for operation in operations.values():
            operation["responses"]["200"] = _without_lines(operation["responses"].get("200"))
            operation["responses"] = {status: answer for status, answer in operation["responses"].items() if answer}
    return schemathesis.openapi.from_dict(described)


def _without_lines(answer: Any) -> Any:
    if answer and "application/x-ndjson" in answer.get("content", {}):
        return {"description": answer["description"], "content": {"application/x-ndjson": {}}}
    return answer


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_answer_is_as_described(rig: Rig, document: Any, mode: GenerationMode) -> None:
    tried = set()
    for result in document.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def tries(case: Any) -> None:
            for name, value in (("store", "payments"), ("key", "orders")):  # half of the time what is there
                if name in (case.path_parameters or {}) and len(str(case.path_parameters[name])) % 2:
                    case.path_parameters[name] = value
            response = case.call(
                base_url=rig.url, verify=str(rig.ca_file), headers={"Authorization": f"Bearer {rig.tokens['admin']}"}
            )
            case.validate_response(response, checks=CHECKS)
            if response.status_code >= 400:
                problem = json.loads(response.content)
                assert problem["detail"]
                assert problem["rule"]

        try:
            tries()
            tried.add((operation.method, operation.path))
        except schemathesis.errors.InvalidSchema:  # nothing about it can be wrong
            assert mode is GenerationMode.NEGATIVE
    assert len(tried) >= 20
