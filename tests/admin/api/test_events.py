# SPDX-License-Identifier: Apache-2.0
"""/v1/events, /v1/nodes, AWS connections, operators."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import httpx

from tests.admin.api.rig import Rig, running
from tests.admin.api.test_stores import new_store
from xksfast.state.records import NodeRow


def test_events_are_paged_newest_first_and_filtered(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "traced")
    for number in range(5):
        admin.patch("/v1/stores/traced", json={"description": str(number)})
    first = admin.get("/v1/events", params={"id": "traced", "limit": 4}).json()
    assert [event["after"].get("description") for event in first["items"]] == ["4", "3", "2", "1"]
    rest = admin.get("/v1/events", params={"id": "traced", "limit": 4, "cursor": first["next"]}).json()
    assert [event["action"] for event in rest["items"]] == ["store.update", "store.create"]
    assert rest["next"] is None
    newest = first["items"][0]
    assert (newest["actor"], newest["origin"], newest["node"]) == ("operator:admin", "127.0.0.1", "n1")
    assert newest["before"]["description"] == "3"
    assert admin.get("/v1/events", params={"actor": "operator:nobody"}).json()["items"] == []
    assert admin.get("/v1/events", params={"action": "store.create", "id": "traced"}).json()["items"][0]["before"] is None
    later = int(time.time() * 1000) + 60_000
    assert admin.get("/v1/events", params={"from_ms": later}).json()["items"] == []


def test_no_event_tells_a_hash_of_a_token_or_where_a_secret_is(admin: httpx.Client) -> None:
    text = admin.get("/v1/events", params={"limit": 1000}).text
    assert "operator.create" in text
    assert "token_sha256" not in text
    assert "secret_id" not in text


def test_the_log_is_whole_until_somebody_touches_it(tmp_path: Path) -> None:
    with running(tmp_path) as rig, rig.client() as admin:
        new_store(admin, "proven")
        verdict = admin.get("/v1/events/verification").json()
        assert (verdict["ok"], verdict["problems"]) == (True, [])
        assert verdict["head"] == rig.read(lambda state: state.head.hex())
        with sqlite3.connect(tmp_path / "xksfast.db") as connection:
            triggers = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
            for trigger in triggers:
                connection.execute(f'DROP TRIGGER "{trigger}"')
            connection.execute("UPDATE events SET actor = 'operator:somebody' WHERE seq = 5")
        verdict = admin.get("/v1/events/verification").json()
        assert verdict["ok"] is False
        assert "event 5" in verdict["problems"][0]


def test_nodes_say_how_far_they_are(rig: Rig, admin: httpx.Client) -> None:
    seq = rig.read(lambda state: state.seq)
    now = int(time.time() * 1000)
    for row in (
        NodeRow("n1", "0.1.0", "https://n1:8444", now - 9_000, now, seq, seq),
        NodeRow("n2", "0.1.0", "", now - 90_000, now - 60_000, max(0, seq - 3), seq),
        NodeRow("n3", "0.1.0", "", now - 9_000, now, seq, seq, {"stopped": True}),
    ):
        rig.database.heartbeat(row)
    found = {node["name"]: node for node in admin.get("/v1/nodes").json()["items"]}
    assert (found["n1"]["alive"], found["n1"]["behind"]) == (True, 0)
    assert (found["n2"]["alive"], found["n2"]["behind"]) == (False, 3)
    assert [(found[name]["alive"], found[name]["stopped"]) for name in ("n1", "n2", "n3")] == [
        (True, False), (False, False), (False, True)
    ]  # fmt: skip


def test_connections_and_operators_come_and_go(admin: httpx.Client) -> None:
    made = admin.post(
        "/v1/aws-connections", json={"name": "prod", "account": "1" * 12, "region": "us-east-1", "profile": "kms"}
    )
    assert made.status_code == 201
    assert admin.get("/v1/aws-connections/prod").json() == made.json()
    assert (
        admin.post("/v1/aws-connections", json={"name": "prod", "account": "1" * 12, "region": "us-east-1"}).status_code == 409
    )
    assert "did you mean 'prod'" in admin.get("/v1/aws-connections/prd").json()["detail"]
    assert admin.delete("/v1/aws-connections/prod", params={"dry_run": "true"}).status_code == 200
    assert admin.delete("/v1/aws-connections/prod", headers={"If-Match": '"1"'}).status_code == 412
    assert admin.delete("/v1/aws-connections/prod").status_code == 204
    shown = admin.get("/v1/operators/auditor").json()
    assert (shown["role"], shown["stores"]) == ("auditor", [])
    assert "token" not in str(shown)
    last = admin.delete("/v1/operators/admin")
    assert (last.status_code, last.json()["rule"]) == (409, "last-admin")
