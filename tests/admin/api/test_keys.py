# SPDX-License-Identifier: Apache-2.0
"""/v1/stores/{store}/keys and /v1/bulk."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.admin.api.rig import Rig
from tests.admin.api.test_stores import new_store


@pytest.fixture(scope="module")
def store(rig: Rig) -> str:
    with rig.client() as admin:
        new_store(admin, "payments")
    return "payments"


def new_key(admin: httpx.Client, store: str, name: str, **members: object) -> dict[str, object]:
    answer = admin.post(f"/v1/stores/{store}/keys", json={"external_key_id": name, **members})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def lines(answer: httpx.Response) -> list[dict[str, object]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_key_lives_from_create_to_delete(admin: httpx.Client, store: str) -> None:
    made = new_key(admin, store, "orders", usage=["ENCRYPT"], tags={"team": "blue"})
    assert (made["version"], made["state"], made["usage"]) == (1, "ENABLED", ["ENCRYPT"])
    where = f"/v1/stores/{store}/keys/orders"
    rotated = admin.post(f"{where}/rotate").json()
    assert rotated["version"] == 2
    versions = admin.get(f"{where}/versions").json()["items"]
    assert [(each["number"], each["current"]) for each in versions] == [(1, False), (2, True)]
    assert versions[0]["label"] == made["label"]
    changed = admin.patch(where, json={"usage": ["ENCRYPT", "DECRYPT"]}, headers={"If-Match": f'"{rotated["revision"]}"'})
    assert changed.json()["usage"] == ["ENCRYPT", "DECRYPT"]
    refused = admin.delete(where)
    assert (refused.status_code, refused.json()["rule"]) == (409, "key-in-use")
    assert admin.post(f"{where}/disable").json()["state"] == "DISABLED"
    assert admin.post(f"{where}/enable").json()["state"] == "ENABLED"
    assert admin.post(f"{where}/disable").status_code == 200
    assert "key material" in admin.delete(where, params={"dry_run": "true"}).json()["would"]
    assert admin.delete(where).status_code == 204
    assert admin.get(where).status_code == 404


def test_every_change_of_a_key_is_refused_when_somebody_was_faster(admin: httpx.Client, store: str) -> None:
    seen = f'"{new_key(admin, store, "hot")["revision"]}"'
    where = f"/v1/stores/{store}/keys/hot"
    admin.patch(where, json={"alias": "changed"})
    for method, path in (("POST", "/rotate"), ("POST", "/disable"), ("PATCH", ""), ("DELETE", "")):
        answer = admin.request(method, where + path, headers={"If-Match": seen}, json={} if method == "PATCH" else None)
        assert (answer.status_code, answer.json()["rule"]) == (412, "revision-changed"), path
    now = admin.get(where).headers["etag"]
    assert admin.post(where + "/rotate", headers={"If-Match": now}).json()["version"] == 2


def test_a_key_of_a_group_is_made_in_its_tokens(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "hsm", key_source=None, partition_group="main")
    label = new_key(admin, "hsm", "orders")["label"]
    assert rig.source_keys.made == [label]
    rig.source_keys.problem = "partition p0 cannot be reached"
    refused = admin.post("/v1/stores/hsm/keys", json={"external_key_id": "late"})
    rig.source_keys.problem = ""
    assert (refused.status_code, refused.json()["rule"]) == (503, "trial-failed")
    assert admin.get("/v1/stores/hsm/keys/late").status_code == 404


def test_a_nearly_right_name_is_suggested(admin: httpx.Client, store: str) -> None:
    new_key(admin, store, "invoices")
    problem = admin.get(f"/v1/stores/{store}/keys/invoice").json()
    assert problem["rule"] == "no-such-object"
    assert "did you mean 'invoices'?" in problem["detail"]


def test_bulk_tells_progress_goes_on_after_a_refusal_and_says_what_failed(admin: httpx.Client, store: str) -> None:
    for name in ("one", "two", "three"):
        new_key(admin, store, name)
    keys = [f"{store}/{name}" for name in ("one", "absent", "two")]
    answer = lines(admin.post("/v1/bulk", json={"action": "disable", "keys": keys}))
    assert [line["done"] for line in answer if line["event"] == "progress"] == [1, 2, 3]
    results = {line["name"]: line["problem"] for line in answer if line["event"] == "result"}
    assert results[f"{store}/one"] == results[f"{store}/two"] == ""
    assert "There is no key" in str(results[f"{store}/absent"])
    assert answer[-1] == {"event": "end", "done": 3, "failed": 1}
    states = {key["external_key_id"]: key["state"] for key in admin.get(f"/v1/stores/{store}/keys").json()["items"]}
    assert (states["one"], states["two"], states["three"]) == ("DISABLED", "DISABLED", "ENABLED")
    shown = admin.get(f"/v1/stores/{store}/keys", params={"enabled": "false"}).json()["items"]
    assert {"one", "two"} <= {key["external_key_id"] for key in shown}


def test_bulk_block_tells_of_a_node_that_did_not_confirm(rig: Rig, admin: httpx.Client, store: str) -> None:
    new_key(admin, store, "secret-plans")
    rig.other_nodes.says = {"n2": "it is on fire"}
    try:
        answer = lines(admin.post("/v1/bulk", json={"action": "block", "keys": [f"{store}/secret-plans"]}))
    finally:
        rig.other_nodes.says = {}
    (result,) = (line for line in answer if line["event"] == "result")
    assert "n2: it is on fire" in str(result["problem"])
    assert admin.get(f"/v1/stores/{store}/keys/secret-plans").json()["blocked"] is True


def test_a_store_cannot_be_disabled_in_bulk(admin: httpx.Client, store: str) -> None:
    answer = lines(admin.post("/v1/bulk", json={"action": "disable", "stores": [store]}))
    assert "cannot be disabled" in str(answer[-2]["problem"])
    assert answer[-1]["failed"] == 1


@pytest.mark.parametrize("action", ["block", "unblock", "enable", "disable"])
@pytest.mark.parametrize("member", [{"keys": ["{}"]}, {"keys": ["{}/"]}, {"keys": ["/{}"]}, {"keys": [""]}, {"keys": ["{}/a/b"]},
                                    {"keys": ["{}/one", "{}/"]}, {"stores": [""]}, {"stores": ["{}/"]}])  # fmt: skip
def test_a_bulk_name_that_is_not_whole_is_never_taken_for_a_store(
    rig: Rig, admin: httpx.Client, store: str, action: str, member: dict[str, list[str]]
) -> None:
    before = rig.read(lambda state: state.seq)
    named = {field: [name.format(store) for name in names] for field, names in member.items()}
    answer = admin.post("/v1/bulk", json={"action": action, **named})
    assert (answer.status_code, answer.json()["rule"]) == (422, "field-invalid"), answer.text
    assert rig.read(lambda state: state.seq) == before
    assert admin.get(f"/v1/stores/{store}").json()["blocked"] is False


@pytest.mark.parametrize("external_key_id", ["", "a/b", ".", ".."])
def test_a_declared_key_without_a_name_is_never_taken_for_its_store(
    rig: Rig, admin: httpx.Client, store: str, external_key_id: str
) -> None:
    before = rig.read(lambda state: state.seq)
    declared = {"region": "us-east-1", "key_source": "local", "keys": {external_key_id: {"label": "x", "blocked": True}}}
    answer = admin.post("/v1/apply", json={"key_stores": {store: declared}})
    assert (answer.status_code, answer.json()["rule"]) == (409, "declaration-impossible"), answer.text
    assert rig.read(lambda state: state.seq) == before


def test_a_path_without_a_key_reaches_no_store(rig: Rig, admin: httpx.Client, store: str) -> None:
    before = rig.read(lambda state: state.seq)
    for where in ("keys//block", "keys/block", "keys/", "keys/%2F/block", "keys/%20/block"):
        answer = admin.post(f"/v1/stores/{store}/{where}", json={})
        assert answer.status_code in (404, 405) or "There is no key" in answer.text, (where, answer.text)
    assert rig.read(lambda state: state.seq) == before
