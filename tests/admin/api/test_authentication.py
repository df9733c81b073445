# SPDX-License-Identifier: Apache-2.0
"""Tokens, failed logins, and what each role may do: a table of every route."""

from __future__ import annotations

import re
import socket
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.admin.api.rig import ROLES, Rig
from tests.admin.api.test_keys import new_key
from tests.admin.api.test_stores import new_store
from tests.servers import wait_until
from xksfast.admin.actors import Actor, system_actor
from xksfast.admin.api.authentication import FAILURE_EVERY_S, FAILURES_AT_ONCE, MAX_ADDRESSES, Failures
from xksfast.state.objects import Key

# (method, path, body) -> the roles that may; all others get 403. What the path names is there or not: who may not must not learn it.
READ = ("admin", "operator", "auditor")
OPERATE = ("admin", "operator")
BLOCK = ("admin", "operator", "blocker")
MANAGE = ("admin",)
STORE = {"name": "m", "uri_path_prefix": "/m", "region": "us-east-1", "key_source": "local"}
DECLARED = {"key_stores": {}}
ROUTES: dict[tuple[str, str], tuple[object, tuple[str, ...]]] = {
    ("GET", "/v1/whoami"): (None, ROLES),
    ("POST", "/v1/stores"): (STORE, MANAGE),
    ("GET", "/v1/stores"): (None, READ),
    ("GET", "/v1/stores/{store}"): (None, READ),
    ("PATCH", "/v1/stores/{store}"): ({"description": ""}, OPERATE),
    ("DELETE", "/v1/stores/{store}"): (None, MANAGE),
    ("POST", "/v1/stores/{store}/block"): ({}, BLOCK),
    ("POST", "/v1/stores/{store}/unblock"): (None, OPERATE),
    ("GET", "/v1/stores/{store}/teardown"): (None, READ),
    ("POST", "/v1/stores/{store}/credentials-file"): (None, OPERATE),
    ("GET", "/v1/stores/{store}/aws/snippet"): (None, READ),
    ("POST", "/v1/stores/{store}/aws/snippet"): ({"format": "aws-cli"}, OPERATE),
    ("GET", "/v1/stores/{store}/aws/topology"): (None, READ),
    ("POST", "/v1/stores/{store}/credentials"): (None, OPERATE),
    ("GET", "/v1/stores/{store}/credentials"): (None, READ),
    ("DELETE", "/v1/stores/{store}/credentials/{access_key_id}"): (None, OPERATE),
    ("POST", "/v1/stores/{store}/keys"): ({"external_key_id": "k"}, OPERATE),
    ("GET", "/v1/stores/{store}/keys"): (None, READ),
    ("GET", "/v1/stores/{store}/keys/{key}"): (None, READ),
    ("GET", "/v1/stores/{store}/keys/{key}/versions"): (None, READ),
    ("PATCH", "/v1/stores/{store}/keys/{key}"): ({"description": ""}, OPERATE),
    ("DELETE", "/v1/stores/{store}/keys/{key}"): (None, OPERATE),
    ("POST", "/v1/stores/{store}/keys/{key}/rotate"): (None, OPERATE),
    ("POST", "/v1/stores/{store}/keys/{key}/enable"): (None, OPERATE),
    ("POST", "/v1/stores/{store}/keys/{key}/disable"): (None, OPERATE),
    ("POST", "/v1/stores/{store}/keys/{key}/block"): ({}, BLOCK),
    ("POST", "/v1/stores/{store}/keys/{key}/unblock"): (None, OPERATE),
    ("POST", "/v1/bulk"): ({"action": "enable"}, OPERATE),
    ("POST", "/v1/operators"): ({"name": "m", "role": "auditor"}, MANAGE),
    ("GET", "/v1/operators"): (None, READ),
    ("GET", "/v1/operators/{name}"): (None, READ),
    ("DELETE", "/v1/operators/{name}"): (None, MANAGE),
    ("POST", "/v1/aws-connections"): ({"name": "m", "account": "1" * 12, "region": "us-east-1"}, MANAGE),
    ("GET", "/v1/aws-connections"): (None, READ),
    ("GET", "/v1/aws-connections/{name}"): (None, READ),
    ("DELETE", "/v1/aws-connections/{name}"): (None, MANAGE),
    ("GET", "/v1/nodes"): (None, READ),
    ("GET", "/v1/events"): (None, READ),
    ("GET", "/v1/events/verification"): (None, READ),
    ("POST", "/v1/apply/plan"): (DECLARED, READ),
    ("POST", "/v1/apply"): (DECLARED, READ),  # an empty plan needs no right to change anything
}
LINKING = re.compile(
    r"/(link|connect|disconnect|sync|push|delete-in-aws|link-keys|schedule-deletion|cancel-deletion|unlinked)$"
)


def test_the_table_names_every_route(rig: Rig) -> None:
    described = rig.app.openapi()["paths"]
    routes = {
        (method.upper(), path) for path, operations in described.items() for method in operations if not LINKING.search(path)
    }
    assert routes == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda part: str(part))
def test_each_role_may_do_what_the_table_says(rig: Rig, method: str, path: str) -> None:
    body, may = ROUTES[method, path]
    where = path.format(store="absent", key="absent", access_key_id="A" * 20, name="absent")
    for role in ROLES:
        answer = rig.as_role(role).request(method, where, json=body)
        if role in may:
            assert answer.status_code not in (401, 403), (role, answer.text)
        else:
            assert answer.status_code == 403, (role, answer.text)
            assert answer.json()["rule"] == "role-lacks-right"
    for made in ("/v1/stores/m", "/v1/operators/m", "/v1/aws-connections/m"):
        rig.as_role("admin").delete(made)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda part: str(part))
def test_no_route_is_reached_without_a_token(rig: Rig, method: str, path: str) -> None:
    answer = rig.as_role("nobody").request(method, path.replace("{", "").replace("}", ""), json={"broken": True})
    assert answer.status_code in (401, 429)
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_operator_sees_the_stores_that_it_was_granted(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "ours")
    new_store(admin, "theirs")
    token = rig.add_operator("granted", "operator", stores=("ours",))
    with rig.client(token=token) as client:
        assert [store["name"] for store in client.get("/v1/stores").json()["items"]] == ["ours"]
        assert client.get("/v1/stores/ours").status_code == 200
        for where in ("theirs", "absent"):  # which of the two is there is not told
            refused = client.get(f"/v1/stores/{where}")
            assert (refused.status_code, refused.json()["rule"]) == (403, "store-not-granted")
        events = client.get("/v1/events", params={"limit": 1000}).json()["items"]
        assert {event["id"].split("/")[0] for event in events if event["kind"] in ("key_store", "credential")} == {"ours"}
        declared = {"key_stores": {"theirs": {"region": "us-east-1", "key_source": "local"}}}
        assert client.post("/v1/apply/plan", json=declared).status_code == 403
        pruned = client.post("/v1/apply/plan", json={"key_stores": {}, "prune": True})
        assert pruned.json()["rule"] == "prune-needs-all-stores"


def test_an_expired_token_is_refused(rig: Rig) -> None:
    rig.forgive()
    token = rig.add_operator("late", "admin", expires_at=int(time.time()) - 1)
    with rig.client(token=token) as client:
        answer = client.get("/v1/whoami")
    assert (answer.status_code, answer.json()["rule"]) == (401, "token-expired")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    valid = rig.add_operator("in-time", "admin", expires_at=int(time.time()) + 60)
    with rig.client(token=valid) as client:
        assert client.get("/v1/whoami").json() == {"name": "in-time", "role": "admin", "stores": []}


def test_a_deleted_operator_is_out_at_once(rig: Rig, admin: httpx.Client) -> None:
    made = admin.post("/v1/operators", json={"name": "short-lived", "role": "auditor"})
    assert made.headers["cache-control"] == "no-store"
    with rig.client(token=made.json()["token"]) as client:
        assert client.get("/v1/whoami").status_code == 200
        assert admin.delete("/v1/operators/short-lived").status_code == 204
        assert client.get("/v1/whoami").status_code == 401


def test_an_operator_that_is_deleted_while_its_body_comes_changes_nothing(
    rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(admin, "slowly")
    known: list[str] = []
    real = rig.parts.authenticator.actor

    def noted(authorization: str, address: str) -> Actor:
        known.append((actor := real(authorization, address)).name)
        return actor

    monkeypatch.setattr(rig.parts.authenticator, "actor", noted)
    for number, path in enumerate(("/v1/stores/slowly/keys", "/v1/stores/slowly/credentials", "/v1/stores/slowly/block")):
        name = f"slow-{number}"
        token = admin.post("/v1/operators", json={"name": name, "role": "operator"}).json()["token"]
        body = b'{"external_key_id": "k"}' if path.endswith("keys") else b"{}"
        plain = socket.create_connection(("127.0.0.1", int(rig.url.rpartition(":")[2])), timeout=30)
        with rig.trust.wrap_socket(plain, server_hostname="localhost") as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: l\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body[:1])
            wait_until(lambda name=name: f"operator:{name}" in known, "its token was looked at")
            assert admin.delete(f"/v1/operators/{name}").status_code == 204
            sock.sendall(body[1:])
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 401"), (path, answer)
    shown = admin.get("/v1/stores/slowly").json()
    assert shown["blocked"] is False
    assert admin.get("/v1/stores/slowly/keys").json()["items"] == []
    assert len(admin.get("/v1/stores/slowly/credentials").json()["items"]) == 1


def test_a_bulk_ends_with_its_operator(rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    new_store(admin, "mass")
    for number in range(3):
        new_key(admin, "mass", f"k{number}")
    token = admin.post("/v1/operators", json={"name": "mass", "role": "operator"}).json()["token"]
    real = rig.service.enable_key

    async def deleting(actor: Actor, store: str, key: str, enabled: bool) -> Key:
        done = await real(actor, store, key, enabled)
        await rig.service.delete_operator(system_actor("test"), "mass")
        return done

    monkeypatch.setattr(rig.service, "enable_key", deleting)
    with rig.client(token=token) as client:
        answer = client.post("/v1/bulk", json={"action": "disable", "keys": ["mass/k0", "mass/k1", "mass/k2"]})
    assert answer.status_code == 200
    keys = rig.read(lambda state: {key.external_key_id: key.enabled for key in state.keys_of("mass").values()})
    assert keys == {"k0": False, "k1": True, "k2": True}


def test_wrong_tokens_are_slowed_down_and_a_right_one_is_not(rig: Rig, admin: httpx.Client) -> None:
    with rig.client(token="xkt_guess") as client:
        answers = [client.get("/v1/whoami") for _ in range(FAILURES_AT_ONCE + 1)]
    assert answers[-1].status_code == 429
    assert answers[-1].json()["rule"] == "too-many-failures"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= FAILURE_EVERY_S + 1
    assert admin.get("/v1/whoami").status_code == 200


def test_failures_refill_by_the_clock_and_apart_for_each_address() -> None:
    now = 1000.0
    failures = Failures(lambda: now)
    assert [failures.count("a") for _ in range(FAILURES_AT_ONCE)] == [0.0] * FAILURES_AT_ONCE
    assert failures.count("a") == pytest.approx(FAILURE_EVERY_S)
    assert failures.count("b") == 0.0
    now += FAILURE_EVERY_S - 0.5
    assert failures.count("a") == pytest.approx(0.5)
    now += 0.6
    assert failures.count("a") == 0.0
    assert failures.count("a") > 0


def test_the_memory_of_failures_is_bounded() -> None:
    failures = Failures(lambda: 0.0)
    for number in range(MAX_ADDRESSES + 10):
        failures.count(str(number))
    assert len(failures._buckets) == MAX_ADDRESSES


@given(st.text(max_size=300))
def test_no_header_but_a_token_gets_in(rig: Rig, header: str) -> None:
    from xksfast.admin.refusals import Refused

    with pytest.raises(Refused):
        rig.parts.authenticator.actor(header, "10.0.0.1")
