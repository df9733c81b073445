# SPDX-License-Identifier: Apache-2.0
"""/v1/apply: the plan, carrying it out, idempotence, prune, rights, and what stops it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.admin.api.rig import Rig
from tests.admin.api.test_stores import new_store
from tests.admin.states import with_key, with_store
from xksfast.admin.declaration import ApplyRequest, plan_of
from xksfast.state.projection import State

SECRET = "s" * 43


def declared(prefix: str, *ids: str, **members: Any) -> dict[str, Any]:
    credentials = [{"access_key_id": each * 20, "secret_access_key": SECRET} for each in ids or ("A",)]
    return {"region": "us-east-1", "key_source": "local", "uri_path_prefix": prefix, "credentials": credentials, **members}


def plan(admin: httpx.Client, stores: dict[str, Any], *, prune: bool = False) -> dict[str, Any]:
    answer = admin.post("/v1/apply/plan", json={"key_stores": stores, "prune": prune})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def apply(admin: httpx.Client, stores: dict[str, Any], *, prune: bool = False) -> list[dict[str, Any]]:
    answer = admin.post("/v1/apply", json={"key_stores": stores, "prune": prune})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def told(made: dict[str, Any]) -> list[str]:
    return [f"{step['sign']} {step['target']}: {step['what']}" for step in made["steps"]]


def test_applied_once_there_is_nothing_left_to_do(rig: Rig, admin: httpx.Client) -> None:
    keys = {
        "orders": {"label": "orders-v1", "create": True},
        "mail": {"label": "mail-v1", "create": True, "enabled": False, "usage": ["ENCRYPT"]},
    }
    stores = {"git-a": declared("/git-a", "A", "B", keys=keys), "git-b": declared("/git-b", blocked=True)}
    before = rig.read(lambda state: state.seq)
    assert [step[0] + step.split(":")[0][1:] for step in told(plan(admin, stores))] == [
        "+ git-a",
        "+ git-a/orders",
        "+ git-a/mail",
        "+ git-b",
        "~ git-b",
    ]
    assert rig.read(lambda state: state.seq) == before
    lines = apply(admin, stores)
    assert lines[0] == {"event": "plan", "steps": 5}
    assert lines[-1] == {"event": "end", "done": 5}
    assert plan(admin, stores)["steps"] == []
    assert admin.get("/v1/stores/git-b").json()["blocked"] is True
    mail = admin.get("/v1/stores/git-a/keys/mail").json()
    assert (mail["state"], mail["usage"], mail["label"]) == ("DISABLED", ["ENCRYPT"], "mail-v1")
    seq = rig.read(lambda state: state.seq)
    assert apply(admin, stores)[-1] == {"event": "end", "done": 0}
    assert rig.read(lambda state: state.seq) == seq


def test_a_block_by_hand_stays_unless_the_file_says_otherwise(admin: httpx.Client) -> None:
    stores = {"pulled": declared("/pulled")}
    apply(admin, stores)
    admin.post("/v1/stores/pulled/block")
    assert plan(admin, stores)["steps"] == []
    apply(admin, {"pulled": declared("/pulled", blocked=False)})
    assert admin.get("/v1/stores/pulled").json()["blocked"] is False


def test_blocks_come_before_all_else_and_what_follows_is_done_to_what_is_blocked(admin: httpx.Client) -> None:
    def stores(version: str, **members: Any) -> dict[str, Any]:
        keys = {"k": {"label": f"first-{version}", "create": True, **members}}
        return {"first-a": declared("/first-a"), "first-b": declared("/first-b", keys=keys)}

    apply(admin, stores("v1"))
    stolen = stores("v2", blocked=True, usage=["DECRYPT"]) | {"first-new": declared("/first-new", blocked=True)}
    stolen["first-a"] |= {"blocked": True, "uri_path_prefix": "/first-moved"}
    assert [step.partition("'")[0].partition(" with")[0] for step in told(plan(admin, stolen))] == [
        "~ first-a: block",
        "~ first-b/k: block",
        "~ first-a: uri_path_prefix: /first-a -> /first-moved",
        "~ first-b/k: version 2",
        "~ first-b/k: usage: ENCRYPT, DECRYPT -> DECRYPT",
        "+ first-new: key store in us-east-1, prefix /first-new, local keys, 1 credential",
        "~ first-new: block",
    ]
    assert apply(admin, stolen)[-1] == {"event": "end", "done": 7}
    key = admin.get("/v1/stores/first-b/keys/k").json()
    assert (key["blocked"], key["version"], key["usage"]) == (True, 2, ["DECRYPT"])


def test_what_unblocks_a_store_comes_after_what_restricts_its_keys(admin: httpx.Client) -> None:
    keys = {"k": {"label": "back-v1", "create": True}}
    apply(admin, {"back": declared("/back", blocked=True, keys=keys)})
    keys["k"]["enabled"] = False
    made = plan(admin, {"back": declared("/back", blocked=False, keys=keys)})
    assert told(made) == ["~ back/k: disable", "~ back: unblock"]


def test_a_block_that_a_node_does_not_confirm_keeps_no_other_block(rig: Rig, admin: httpx.Client) -> None:
    names = ("fire-a", "fire-b")
    apply(admin, {name: declared(f"/{name}") for name in names})
    rig.other_nodes.says = {"n2": "it is on fire"}
    try:
        lines = apply(admin, {name: declared(f"/{name}", "A", "B", blocked=True) for name in names})
    finally:
        rig.other_nodes.says = {}
    assert [line.get("target", line.get("rule")) for line in lines[1:]] == ["fire-a", "fire-b", "not-confirmed"]
    assert all(admin.get(f"/v1/stores/{name}").json()["blocked"] for name in names)


def test_another_label_is_a_new_version_and_an_old_one_is_refused(admin: httpx.Client) -> None:
    first = {"versioned": declared("/versioned", keys={"k": {"label": "v-1", "create": True}})}
    second = {"versioned": declared("/versioned", keys={"k": {"label": "v-2", "create": True}})}
    apply(admin, first)
    assert told(plan(admin, second)) == ["~ versioned/k: version 2 with source key 'v-2'; 'v-1' goes on decrypting"]
    apply(admin, second)
    assert admin.get("/v1/stores/versioned/keys/k").json()["version"] == 2
    assert "versions only go forward" in plan(admin, first)["problems"][0]
    refused = admin.post("/v1/apply", json={"key_stores": first})
    assert (refused.status_code, refused.json()["rule"]) == (409, "declaration-impossible")


def test_what_can_never_change_is_a_problem_and_nothing_is_done(rig: Rig, admin: httpx.Client) -> None:
    apply(admin, {"fixed": declared("/fixed")})
    stores = {"fixed": declared("/fixed", region="eu-west-1"), "also-new": declared("/also-new")}
    seq = rig.read(lambda state: state.seq)
    refused = admin.post("/v1/apply", json={"key_stores": stores})
    assert refused.status_code == 409
    assert "key_stores.fixed.region: it is 'us-east-1' and can never become 'eu-west-1'" in refused.json()["detail"]
    assert rig.read(lambda state: state.seq) == seq


def test_too_many_patterns_are_a_problem_before_anything_is_done(rig: Rig, admin: httpx.Client) -> None:
    before = rig.read(lambda state: state.seq)
    stores = {"narrow": declared("/narrow", allowed_principals=[f"*{number}" for number in range(101)])}
    refused = admin.post("/v1/apply", json={"key_stores": stores})
    assert refused.status_code == 409
    assert "key_stores.narrow.allowed_principals: a key store has at most 100 patterns, not 101" in refused.text
    assert rig.read(lambda state: state.seq) == before


def test_it_stops_at_the_first_step_that_is_refused(rig: Rig, admin: httpx.Client) -> None:
    keys = {
        "there": {"label": "there-v1", "create": True},
        "absent": {"label": "absent-v1"},
        "never": {"label": "never-v1", "create": True},
    }
    lines = apply(admin, {"stops": declared("/stops", keys=keys)})
    assert lines[-1]["event"] == "failed"
    assert lines[-1]["rule"] == "no-such-source-key"
    assert [key["external_key_id"] for key in admin.get("/v1/stores/stops/keys").json()["items"]] == ["there"]


def test_only_prune_takes_away_what_the_file_does_not_name(rig: Rig, admin: httpx.Client) -> None:
    with rig.client() as client:
        for store in client.get("/v1/stores").json()["items"]:
            for key in client.get(f"/v1/stores/{store['name']}/keys").json()["items"]:
                client.post(f"/v1/stores/{store['name']}/keys/{key['external_key_id']}/disable")
                client.delete(f"/v1/stores/{store['name']}/keys/{key['external_key_id']}")
            client.delete(f"/v1/stores/{store['name']}")
    keys = {"a": {"label": "pa-v1", "create": True}, "b": {"label": "pb-v1", "create": True}}
    apply(
        admin,
        {
            "kept": declared("/kept", "A", "B", keys=keys),
            "dropped": declared("/dropped", keys={"c": {"label": "pc-v1", "create": True}}),
        },
    )
    less = {"kept": declared("/kept", "A", keys={"a": keys["a"]})}
    made = plan(admin, less)
    assert made["steps"] == []
    assert made["notes"] == ["1 key stores are not in the file and stay: dropped"]
    pruned = [step.split(":")[0] for step in told(plan(admin, less, prune=True))]
    assert pruned == ["~ kept/b", "- kept/b", "- kept", "~ dropped/c", "- dropped/c", "- dropped"]
    assert apply(admin, less, prune=True)[-1] == {"event": "end", "done": 6}
    assert [store["name"] for store in admin.get("/v1/stores").json()["items"]] == ["kept"]
    assert plan(admin, less, prune=True)["steps"] == []


def test_a_prefix_is_free_for_a_new_store_when_prune_takes_the_old_one(admin: httpx.Client) -> None:
    apply(admin, {"old-owner": declared("/shared")}, prune=True)
    lines = apply(admin, {"new-owner": declared("/shared")}, prune=True)
    assert lines[-1] == {"event": "end", "done": 2}


def test_who_may_not_do_all_of_it_does_none_of_it(rig: Rig, admin: httpx.Client) -> None:
    new_store(admin, "granted-one")
    with rig.client("operator") as operator:
        keys = {"k": {"label": "gk-v1", "create": True}}
        both = {"granted-one": {"region": "us-east-1", "key_source": "local", "keys": keys}, "new-one": declared("/new-one")}
        refused = operator.post("/v1/apply", json={"key_stores": both})
        assert (refused.status_code, refused.json()["rule"]) == (403, "role-lacks-right")
        assert operator.get("/v1/stores/granted-one/keys").json()["items"] == []
        del both["new-one"]
        assert apply(operator, both)[-1] == {"event": "end", "done": 1}
    with rig.client("auditor") as auditor:
        assert plan(auditor, both)["steps"] == []


def test_no_secret_is_in_a_plan_or_its_problems(admin: httpx.Client) -> None:
    stores = {"hush": declared("/hush"), "bad": declared("/bad", region="nowhere")}
    assert SECRET not in str(plan(admin, stores))
    wrong = {"hush": {**declared("/hush"), "credentials": [{"access_key_id": "A" * 20, "secret_access_key": SECRET[:-1]}]}}
    answer = admin.post("/v1/apply/plan", json={"key_stores": wrong})
    assert answer.status_code == 422
    assert SECRET[:-1] not in answer.text


names = st.sampled_from(["payments", "orders", "mail"])
labels = st.sampled_from(["l-v1", "m-v1", "n-v1"])
flags = st.sampled_from([None, True, False])


@st.composite
def declarations(draw: st.DrawFn) -> ApplyRequest:
    stores = {}
    for name in draw(st.sets(names)):
        keys = {
            key: {"label": draw(labels), "create": True, "enabled": draw(flags), "blocked": draw(flags)}
            for key in draw(st.sets(st.sampled_from(["orders", "k1", "k2"])))
        }
        stores[name] = declared(f"/{name}", blocked=draw(flags), keys=keys)
    return ApplyRequest.model_validate({"key_stores": stores, "prune": draw(st.booleans())})


@given(declarations())
@settings(max_examples=60, deadline=None)
def test_without_prune_no_plan_takes_anything_away(request_: ApplyRequest) -> None:
    state = with_key(with_store(State(), "payments"), "payments", "orders")
    plan_ = plan_of(state, request_, groups=())
    if not request_.prune:
        assert all(step.sign != "-" for step in plan_.steps)
    for step in plan_.steps:
        if step.sign == "-":
            assert step.target.split("/")[0] in state.key_stores
    assert plan_of(state, request_, groups=()) == plan_


@pytest.mark.parametrize("member", ["region", "credentials"])
def test_a_new_store_needs(admin: httpx.Client, member: str) -> None:
    store = declared("/needs")
    del store[member]
    answer = admin.post("/v1/apply/plan", json={"key_stores": {"needs": store}})
    if member == "region":
        assert (answer.status_code, answer.json()["field"]) == (422, "key_stores.needs.region")
    else:
        assert "key_stores.needs.credentials: give at least one" in answer.json()["problems"][0]
