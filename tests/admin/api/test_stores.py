# SPDX-License-Identifier: Apache-2.0
"""/v1/stores and credentials: create to delete, ETags, pages, the credentials file."""

from __future__ import annotations

import asyncio
import re

import httpx
import pytest

from tests.admin.api.rig import Rig
from xksfast.admin.blocks import ServesNothing
from xksfast.errors import OperatorError

LOCAL = {"region": "us-east-1", "key_source": "local"}


def new_store(admin: httpx.Client, name: str, **members: object) -> dict[str, object]:
    answer = admin.post("/v1/stores", json={"name": name, "uri_path_prefix": f"/{name}", **LOCAL, **members})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_a_new_store_is_answered_with_its_credential_once(rig: Rig, admin: httpx.Client) -> None:
    answer = admin.post("/v1/stores", json={"name": "payments", "uri_path_prefix": "/payments", **LOCAL})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"] == "/v1/stores/payments"
    store = answer.json()
    assert re.fullmatch("[A-Z2-7]{20}", store["credential"]["access_key_id"])
    assert re.fullmatch("[A-Za-z0-9/+=]{43,64}", store["credential"]["secret_access_key"])
    assert store["uri_path"] == "/payments/kms/xks/v1"
    shown = admin.get("/v1/stores/payments")
    assert answer.headers["etag"] == shown.headers["etag"] == f'"{shown.json()["revision"]}"'
    assert store["credential"]["secret_access_key"] not in shown.text
    assert shown.json() == {key: value for key, value in store.items() if key != "credential"}
    listed = admin.get("/v1/stores/payments/credentials").json()["items"]
    assert [each["access_key_id"] for each in listed] == [store["credential"]["access_key_id"]]
    assert "secret" not in str(listed)
    assert not rig.source_keys.made


def test_a_grant_for_a_deleted_store_is_none_for_a_new_one_of_its_name(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "again")
    made = admin.post("/v1/operators", json={"name": "of-the-former", "role": "operator", "stores": ["again"]}).json()
    assert admin.delete("/v1/stores/again").status_code == 204
    body = {"name": "again", "uri_path_prefix": "/again", **LOCAL}
    refused = admin.post("/v1/stores", json=body)
    assert (refused.status_code, refused.json()["rule"]) == (409, "store-granted-before")
    assert "of-the-former" in refused.json()["detail"]
    with rig.client(token=made["token"]) as former:
        assert former.post("/v1/stores/again/credentials").status_code == 404
    assert admin.delete("/v1/operators/of-the-former").status_code == 204
    assert admin.post("/v1/stores", json=body).status_code == 201


def test_an_expired_grant_keeps_no_name_from_a_new_store(rig: Rig, admin: httpx.Client) -> None:
    rig.add_operator("long-gone", "operator", stores=("free-again",), expires_at=1)
    new_store(admin, "free-again")


def test_a_store_in_a_partition_group_is_tried_first(rig: Rig, admin: httpx.Client) -> None:
    body = {"name": "in-hsm", "uri_path_prefix": "/in-hsm", "region": "us-east-1", "partition_group": "main"}
    rig.source_keys.problem = "partition p0 cannot be reached"
    refused = admin.post("/v1/stores", json=body)
    rig.source_keys.problem = ""
    assert (refused.status_code, refused.json()["rule"]) == (503, "trial-failed")
    assert refused.headers["retry-after"] == "1"
    assert admin.get("/v1/stores/in-hsm").status_code == 404
    assert admin.post("/v1/stores", json=body).status_code == 201


def test_a_change_is_refused_when_somebody_was_faster(admin: httpx.Client) -> None:
    new_store(admin, "raced")
    seen = admin.get("/v1/stores/raced").headers["etag"]
    first = admin.patch("/v1/stores/raced", json={"description": "one"}, headers={"If-Match": seen})
    assert first.status_code == 200
    assert first.headers["etag"] != seen
    late = admin.patch("/v1/stores/raced", json={"description": "two"}, headers={"If-Match": seen})
    assert (late.status_code, late.json()["rule"]) == (412, "revision-changed")
    assert admin.delete("/v1/stores/raced", headers={"If-Match": seen}).status_code == 412
    assert admin.get("/v1/stores/raced").json()["description"] == "one"
    assert admin.patch("/v1/stores/raced", json={"description": "three"}, headers={"If-Match": "*"}).status_code == 200
    wrong = admin.patch("/v1/stores/raced", json={"description": "four"}, headers={"If-Match": "seventeen"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "If-Match")


def test_a_deletion_can_be_tried_first(admin: httpx.Client) -> None:
    new_store(admin, "brief")
    tried = admin.delete("/v1/stores/brief", params={"dry_run": "true"})
    assert tried.json() == {"dry_run": True, "would": "delete key store brief with its credentials"}
    assert admin.get("/v1/stores/brief").status_code == 200
    assert admin.delete("/v1/stores/brief").status_code == 204
    assert admin.get("/v1/stores/brief").status_code == 404
    assert admin.delete("/v1/stores/brief", params={"dry_run": "true"}).status_code == 404


def test_a_store_with_keys_stays_and_the_teardown_says_why(admin: httpx.Client) -> None:
    new_store(admin, "used")
    assert admin.post("/v1/stores/used/keys", json={"external_key_id": "orders"}).status_code == 201
    refused = admin.delete("/v1/stores/used", params={"dry_run": "true"})
    assert (refused.status_code, refused.json()["rule"]) == (409, "store-has-keys")
    assert "xksfast store teardown used" in refused.json()["next"]
    commands = [step["command"] for step in admin.get("/v1/stores/used/teardown").json()["items"]]
    assert commands == ["xksfast key disable used orders", "xksfast key delete used orders", "xksfast store delete used"]


def test_block_says_who_confirmed_and_who_did_not(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "halted")
    rig.other_nodes.says = {"n2": "", "n3": "it is on fire"}
    try:
        answer = admin.post("/v1/stores/halted/block", json={"reason": "drill"}).json()
    finally:
        rig.other_nodes.says = {}
    assert {each["node"] for each in answer["confirmed"]} == {"n1", "n2"}
    assert answer["pending"] == ["n3: it is on fire"]
    assert answer["recorded"] is True
    shown = admin.get("/v1/stores/halted").json()
    assert (shown["blocked"], shown["blocked_reason"]) == (True, "drill")
    assert [store["name"] for store in admin.get("/v1/stores", params={"blocked": "true"}).json()["items"]] == ["halted"]
    assert admin.post("/v1/stores/halted/block").status_code == 200  # without a body, and again
    assert admin.post("/v1/stores/halted/unblock").json()["pending"] == []
    assert admin.get("/v1/stores/halted").json()["blocked"] is False


@pytest.mark.parametrize("silent", [True, False])
def test_a_node_that_hears_no_message_confirms_by_the_log(
    rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    name = f"unheard-{silent}"
    new_store(admin, name)
    asked: list[int] = []

    async def not_heard(node: str, _: object) -> None:
        if silent:
            await asyncio.sleep(60)
        raise OperatorError("it is starting")

    async def restricted(node: str, seq: int, *, since_ms: int = 0) -> None:
        asked.append(seq)
        if node == "n3":
            raise OperatorError("it follows no log")

    monkeypatch.setattr(rig.other_nodes, "tell_block", not_heard)
    monkeypatch.setattr(rig.other_nodes, "restricted", restricted)
    monkeypatch.setattr(rig.other_nodes, "says", {"n2": "", "n3": ""})
    answer = admin.post(f"/v1/stores/{name}/block").json()
    assert {each["node"] for each in answer["confirmed"]} == {"n1", "n2"}
    assert answer["pending"] == [f"n3: {'no answer in time' if silent else 'it is starting'}"]
    assert asked == [rig.read(lambda state: state.seq)] * 2


def test_a_node_that_came_meanwhile_is_asked_and_one_that_serves_nothing_is_not_missed(
    rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(admin, "newcomer")
    monkeypatch.setattr(rig.other_nodes, "says", {"n2": "", "n3": "it is starting"})
    monkeypatch.setattr(rig.other_nodes, "names", list)
    answer = admin.post("/v1/stores/newcomer/block").json()
    assert {each["node"] for each in answer["confirmed"]} == {"n1", "n2"}
    assert answer["pending"] == ["n3: it is starting"]

    async def serves_nothing(node: str, *_: object, **__: object) -> None:
        raise ServesNothing("it has stopped")

    monkeypatch.setattr(rig.other_nodes, "tell_block", serves_nothing)
    monkeypatch.setattr(rig.other_nodes, "restricted", serves_nothing)
    answer = admin.post("/v1/stores/newcomer/block").json()
    assert ({each["node"] for each in answer["confirmed"]}, answer["pending"]) == ({"n1"}, [])


def test_every_node_is_asked_at_the_same_time_when_a_block_ends(
    rig: Rig, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_store(admin, "freed")
    admin.post("/v1/stores/freed/block")
    asked: set[str] = set()
    all_asked = asyncio.Event()

    async def wait_for_the_others(node: str, _: int) -> None:
        asked.add(node)
        if len(asked) == 3:
            all_asked.set()
        await all_asked.wait()

    monkeypatch.setattr(rig.other_nodes, "restricted", wait_for_the_others)
    monkeypatch.setattr(rig.other_nodes, "says", dict.fromkeys(("n2", "n3", "n4"), ""))
    answer = admin.post("/v1/stores/freed/unblock").json()
    assert answer["pending"] == []
    assert {each["node"] for each in answer["confirmed"]} == {"n1", "n2", "n3", "n4"}


def test_pages_show_everything_once_while_stores_come_and_go(admin: httpx.Client) -> None:
    for letter in "abcde":
        new_store(admin, f"page-{letter}")
    first = admin.get("/v1/stores", params={"limit": 2, "name_prefix": "page-"})
    assert [store["name"] for store in first.json()["items"]] == ["page-a", "page-b"]
    admin.delete("/v1/stores/page-b")
    new_store(admin, "page-aa")
    following = re.fullmatch('<(.*)>; rel="next"', first.headers["link"])
    assert following is not None
    second = admin.get(following[1])
    assert [store["name"] for store in second.json()["items"]] == ["page-c", "page-d"]
    last = admin.get("/v1/stores", params={"limit": 2, "name_prefix": "page-", "cursor": second.json()["next"]})
    assert [store["name"] for store in last.json()["items"]] == ["page-e"]
    assert last.json()["next"] is None
    assert "link" not in last.headers
    wrong = admin.get("/v1/stores", params={"cursor": "§"})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "cursor")


def test_a_credential_rotates_until_the_limit_and_the_last_one_stays(admin: httpx.Client) -> None:
    first = new_store(admin, "turning", max_credentials=2)["credential"]["access_key_id"]  # type: ignore[index]
    second = admin.post("/v1/stores/turning/credentials").json()
    assert len(second["secret_access_key"]) >= 43
    refused = admin.post("/v1/stores/turning/credentials")
    assert (refused.status_code, refused.json()["rule"]) == (409, "too-many-credentials")
    listed = {each["access_key_id"]: each for each in admin.get("/v1/stores/turning/credentials").json()["items"]}
    assert listed[first]["superseded_at"] > 0
    assert listed[second["access_key_id"]]["superseded_at"] == 0
    assert admin.delete(f"/v1/stores/turning/credentials/{first}").status_code == 204
    last = admin.delete(f"/v1/stores/turning/credentials/{second['access_key_id']}")
    assert (last.status_code, last.json()["rule"]) == (409, "last-credential")


def test_the_credentials_file_is_as_the_console_takes_it(admin: httpx.Client) -> None:
    new_store(admin, "console")
    answer = admin.post("/v1/stores/console/credentials-file")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document.keys() == {"XksProxyUriPath", "XksProxyAuthenticationCredential"}
    assert document["XksProxyUriPath"] == "/console/kms/xks/v1"
    assert document["XksProxyAuthenticationCredential"].keys() == {"AccessKeyId", "RawSecretAccessKey"}
    ids = [each["access_key_id"] for each in admin.get("/v1/stores/console/credentials").json()["items"]]
    assert document["XksProxyAuthenticationCredential"]["AccessKeyId"] in ids


def test_a_given_credential_is_taken_and_its_secret_not_shown(admin: httpx.Client) -> None:
    secret = "s" * 43
    given = {"access_key_id": "B" * 20, "secret_access_key": secret}
    answer = admin.post("/v1/stores", json={"name": "given", "uri_path_prefix": "/given", "credentials": [given], **LOCAL})
    assert answer.status_code == 201
    assert answer.json()["credential"] is None
    assert secret not in answer.text
    other = admin.post("/v1/stores/given/credentials", json={"access_key_id": "C" * 20, "secret_access_key": secret})
    assert (other.status_code, other.json()["secret_access_key"]) == (201, "")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"region": "nowhere"}, "region"),
        ({"uri_path_prefix": "/payments/"}, "uri_path_prefix"),
        ({"max_credentials": 1}, "max_credentials"),
        ({"max_credentials": 21}, "max_credentials"),
        ({"partition_group": "mian", "key_source": None}, "partition_group"),
        ({"tags": {"aws:owner": "us"}}, "tags"),
        ({"colour": "blue"}, "colour"),
        ({"name": "no spaces"}, "name"),
        ({"credentials": [{"access_key_id": "A" * 20, "secret_access_key": "short"}]}, "credentials.0.secret_access_key"),
    ],
)
def test_a_wrong_member_is_named_with_its_fault(admin: httpx.Client, members: dict[str, object], field: str) -> None:
    answer = admin.post("/v1/stores", json={"name": "wrong", "uri_path_prefix": "/wrong", **LOCAL, **members})
    problem = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["field"] == field
    assert problem["rule"] in problem["type"]
    assert problem["detail"]
    assert admin.get("/v1/stores/wrong").status_code == 404
