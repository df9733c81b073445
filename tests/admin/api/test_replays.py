# SPDX-License-Identifier: Apache-2.0
"""Idempotency-Key: whose an answer is that was kept, and what of it is told again."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import httpx
import pytest
from fastapi import APIRouter
from msgspec.structs import replace

from tests.admin.api.rig import Rig
from tests.admin.api.test_stores import LOCAL, new_store
from xksfast.admin.actors import system_actor
from xksfast.admin.api.replays import REPLAYED_HEADER
from xksfast.admin.api.route import AdminRoute, AskedIn
from xksfast.state.events import Change
from xksfast.state.projection import State
from xksfast.state.store import Plan


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/stores", {"name": "placed", "uri_path_prefix": "/placed", **LOCAL}),
        ("/v1/stores/placed/keys", {"external_key_id": "k1"}),
        ("/v1/stores/placed/keys/k1/rotate", None),
        ("/v1/stores/placed/credentials", None),
        ("/v1/operators", {"name": "placed", "role": "auditor"}),
        ("/v1/aws-connections", {"name": "placed", "account": "1" * 12, "region": "us-east-1"}),
    ],
)
def test_a_repeated_answer_says_where_and_at_which_revision_as_the_first_one(
    admin: httpx.Client, path: str, body: dict[str, object] | None
) -> None:
    first, again = (admin.post(path, json=body, headers={"Idempotency-Key": f"placed {path}"}) for _ in range(2))
    assert again.headers[REPLAYED_HEADER] == "true"
    assert first.headers["etag"]
    for name in ("etag", "location", "cache-control"):
        if name != "cache-control" or "no-store" in first.headers[name]:
            assert again.headers.get(name) == first.headers.get(name), name


def test_an_answer_belongs_to_the_token_and_not_to_the_name_of_its_operator(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "kept", max_credentials=20)
    headers = {"Idempotency-Key": "same name"}
    token = admin.post("/v1/operators", json={"name": "ci", "role": "operator"}).json()["token"]
    with rig.client(token=token) as client:
        secret = client.post("/v1/stores/kept/credentials", headers=headers).json()["secret_access_key"]
    assert rows_of(rig, "operator:ci") == 1
    assert admin.delete("/v1/operators/ci", params={"dry_run": "true"}).status_code == 200
    assert rows_of(rig, "operator:ci") == 1
    assert admin.delete("/v1/operators/ci").status_code == 204
    assert rows_of(rig, "operator:ci") == 0
    for role, status in (("auditor", 403), ("operator", 201)):
        token = admin.post("/v1/operators", json={"name": "ci", "role": role}).json()["token"]
        with rig.client(token=token) as client:
            answer = client.post("/v1/stores/kept/credentials", headers=headers)
        assert (answer.status_code, REPLAYED_HEADER in answer.headers) == (status, False)
        assert secret not in answer.text
        admin.delete("/v1/operators/ci")


def test_a_replay_is_answered_only_to_who_may_still_ask_for_it(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "revoked", max_credentials=20)
    headers = {"Idempotency-Key": "revoked"}
    with rig.client(token=rig.add_operator("revoked", "operator")) as client:
        secret = client.post("/v1/stores/revoked/credentials", headers=headers).json()["secret_access_key"]

        def plan(state: State) -> Plan:
            operator = state.operators["revoked"]
            changed = replace(operator, stores=("another",))
            return Plan(changes=[Change("operator.update", operator.kind, operator.id, operator, changed)])

        rig.store.transact(system_actor("test").origin, plan)
        answer = client.post("/v1/stores/revoked/credentials", headers=headers)
    assert (answer.status_code, answer.json()["rule"]) == (403, "store-not-granted")
    assert secret not in answer.text


def test_a_route_that_is_carried_out_once_must_say_which_right_it_asks_for() -> None:
    router = APIRouter(route_class=AdminRoute)

    async def careless(asked: AskedIn) -> None:
        """It takes a key, and anybody's answer would be anybody's."""

    with pytest.raises(TypeError, match="@needs"):
        router.post("/careless")(careless)


def rows_of(rig: Rig, actor: str) -> int:
    """How many answers are kept for an actor."""
    with closing(sqlite3.connect(rig.directory / "xksfast.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM idempotency WHERE actor = ?", (actor,)).fetchone()[0])
