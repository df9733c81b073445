# SPDX-License-Identifier: Apache-2.0
"""With grants for some key stores nobody can use, see or name what belongs to another: every route of the description, walked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from tests.admin.api.rig import ROLES, Rig, running
from tests.admin.api.test_authentication import ROUTES
from tests.admin.api.test_keys import new_key
from tests.admin.api.test_stores import LOCAL, new_store
from tests.fake_kms import FakeKms
from tests.fake_kms.account import ACCOUNT
from tests.fake_kms.account import Store as AwsStore
from xksfast.admin.actors import system_actor
from xksfast.admin.api.parts import LogVerdict
from xksfast.admin.hearing import Hearing
from xksfast.admin.linking import Linking
from xksfast.log import Log
from xksfast.state.events import Change
from xksfast.state.objects import StoreLink
from xksfast.state.store import Plan

SCOPED = tuple(role for role in ROLES if role != "admin")  # an admin has no grants
ENDPOINT = "https://xks.example.com"
HSM = {"region": "us-east-1", "partition_group": "main"}

# Members of bodies that hold words for people, or settings of an object that the path or another member names. A member that stands
# neither here nor in NAMING fails the walk, so that nobody forgets to say what a new one names.
FREE = {
    "account", "alias", "allowed_principals", "action", "connectivity", "create", "custom_key_store_name", "days", "description",
    "enabled", "endpoint", "format", "max_credentials", "on_stale", "policy", "prune", "reason", "rotate_credential_days",
    "rotate_days", "stale_after_s", "tags", "usage", "vpc_endpoint_service_name", "external_key_id",
    "access_key_id", "secret_access_key",
}  # fmt: skip
NAMING = {"label", "custom_key_store_id", "connection", "key_arn", "uri_path_prefix", "keys", "stores", "key_stores"}
BODIES: dict[str, dict[str, Any]] = {  # of routes that reach into AWS; test_authentication has those of all others
    "/v1/stores/{store}/link": {"connection": "own"},
    "/v1/stores/{store}/keys/{key}/link": {},
    "/v1/stores/{store}/keys/{key}/schedule-deletion": {"days": 7},
}


@dataclass
class World:
    """Key stores that are granted ("alpha…") and foreign ones. foreign: every name that belongs to one of those."""

    rig: Rig
    aws: FakeKms
    tokens: dict[str, str]
    foreign: dict[str, str]
    credentials: dict[str, str] = field(default_factory=dict)  # store -> its access key id

    def client(self, role: str) -> httpx.Client:
        return self.rig.client(token=self.tokens[role])

    def untouched(self) -> dict[str, Any]:
        """All objects that are not of the granted stores."""
        return self.rig.read(
            lambda state: {
                each.id: each for each in state.objects() if "zz" in each.id or each.kind in ("operator", "aws_connection")
            }
        )

    def leaks(self, request: str, answer: httpx.Response) -> list[str]:
        """Foreign names in the answer that the request did not name itself. What begins with one that it named tells no more."""
        text = answer.text + str(answer.headers)
        for name in sorted(self.foreign.values(), key=len, reverse=True):
            if name in request:
                text = text.replace(name, "")
        return [name for name in self.foreign.values() if name in text]


@pytest.fixture(scope="module")
def rigged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("grants")) as rig, rig.client() as admin:
        for name, where in (("alpha", LOCAL), ("alpha-hsm", HSM), ("zzbeta", LOCAL), ("zzgamma", HSM)):
            made = admin.post("/v1/stores", json={"name": name, "uri_path_prefix": f"/{name}", "endpoint": ENDPOINT, **where})
            assert made.status_code == 201, made.text
        labels = {}
        for store, key in (("alpha", "mine"), ("alpha-hsm", "mine"), ("zzbeta", "zzorders"), ("zzgamma", "zzledger")):
            labels[store] = str(new_key(admin, store, key)["label"])
        for name in ("own", "zzconnection"):
            body = {"name": name, "account": ACCOUNT, "region": "us-east-1", "endpoint_url": "http://127.0.0.1:1"}
            assert admin.post("/v1/aws-connections", json=body).status_code == 201
        used = {
            store: rig.read(lambda state, store=store: next(iter(state.credentials_of(store))))
            for store in ("alpha", "alpha-hsm", "zzbeta", "zzgamma")
        }
        foreign = {
            "store": "zzbeta", "hsm store": "zzgamma", "key": "zzorders", "hsm key": "zzledger", "label": labels["zzbeta"],
            "hsm label": labels["zzgamma"], "prefix": "/zzbeta", "connection": "zzconnection", "operator": "zzoperator",
            "access key id": used["zzbeta"], "custom key store": "cks-zz1", "unlinked custom key store": "cks-zz2",
        }  # fmt: skip
        rig.add_operator("zzoperator", "operator", stores=("zzbeta",))
        tokens = {role: rig.add_operator(f"granted-{role}", role, stores=("alpha", "alpha-hsm")) for role in SCOPED}
        yield World(rig, None, tokens, foreign, used)  # type: ignore[arg-type]


@pytest.fixture
def world(rigged: World, fake_kms: FakeKms) -> World:
    """With an account in AWS that has each store's custom key store, and one that was made by hand for a foreign store."""
    rig = rigged.rig
    rigged.aws = fake_kms
    fake_kms.account.stores = {
        id: AwsStore(
            id, f"name of {id}", ENDPOINT, f"/{store}/kms/xks/v1", "PUBLIC_ENDPOINT", rigged.credentials[store], "s" * 43
        )
        for id, store in (("cks-own", "alpha"), ("cks-zz1", "zzbeta"), ("cks-zz2", "zzgamma"))
    }
    links = {"alpha": ("own", "cks-own"), "zzbeta": ("zzconnection", "cks-zz1")}

    def plan(state: Any) -> Plan:
        changes = []
        for name, connection in state.aws_connections.items():
            after = replace(connection, endpoint_url=fake_kms.url)
            changes.append(Change("aws_connection.create", connection.kind, name, connection, after))
        for name, store in state.key_stores.items():
            link = None
            if name in links:
                connection, id = links[name]
                link = StoreLink(connection=connection, custom_key_store_id=id, custom_key_store_name="")
            changes.append(Change("store.link", store.kind, name, store, replace(store, link=link)))
        return Plan(changes=changes)

    rig.store.transact(system_actor("test").origin, plan)
    rig.parts.linking = Linking(rig.service)
    return rigged


def operations(rig: Rig) -> Iterator[tuple[str, str, dict[str, Any], list[str]]]:
    """(method, path, members of its body, names of its query parameters) of every route."""
    described = rig.app.openapi()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            query = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
            yield method.upper(), path, members(described, content), query


def members(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for each in [schema, *schema.get("anyOf", ())]:
        if "$ref" in each:
            found: dict[str, Any] = described["components"]["schemas"][each["$ref"].rpartition("/")[2]]["properties"]
            return found
    return {}


def body_of(method: str, path: str) -> Any:
    return ROUTES[method, path][0] if (method, path) in ROUTES else BODIES.get(path)


def in_member(member: str, name: str) -> Any:
    match member:
        case "keys":
            return ["alpha/" + name, name + "/mine", name]
        case "stores":
            return [name]
        case "key_stores":
            return {name: {"region": "us-east-1", "key_source": "local"}}
    return name


def send(client: httpx.Client, method: str, where: str, **more: Any) -> tuple[str, httpx.Response]:
    """(all that was asked for, as text; the answer)."""
    answer = client.request(method, where, **more)
    return f"{where} {json.dumps(more)}", answer


@pytest.mark.parametrize("role", SCOPED)
def test_no_path_leads_to_what_belongs_to_another_store(world: World, role: str) -> None:
    foreign = {"store": "zzbeta", "key": "zzorders", "access_key_id": world.foreign["access key id"]}
    before = world.untouched()
    with world.client(role) as client:
        for method, path, _, _ in operations(world.rig):
            if "{" not in path:
                continue
            for name in ("zzoperator", "zzconnection"):
                asked, answer = send(client, method, path.format(**foreign, name=name), json=body_of(method, path))
                assert answer.status_code in (403, 404), (method, path, answer.text)
                assert not world.leaks(asked, answer), (method, path, answer.text)
    assert world.untouched() == before


@pytest.mark.parametrize("role", SCOPED)
def test_no_member_of_a_body_reaches_what_belongs_to_another_store(world: World, role: str) -> None:
    own = {"store": "alpha", "key": "mine", "access_key_id": "A" * 20}
    before = world.untouched()
    named = set()
    with world.client(role) as client:
        for method, path, has, _ in operations(world.rig):
            if path in ("/v1/stores", "/v1/operators", "/v1/aws-connections"):
                continue  # to be made by an admin only: walked below
            assert has.keys() <= FREE | NAMING, (path, has.keys() - FREE - NAMING)
            for member in has.keys() & NAMING:
                named.add(member)
                for kind, name in world.foreign.items():
                    body = {**(body_of(method, path) or {}), member: in_member(member, name)}
                    store = "alpha-hsm" if path.endswith("{store}/link") else "alpha"  # one that can be linked
                    asked, answer = send(client, method, path.format(**{**own, "store": store}, name="own"), json=body)
                    assert not world.leaks(asked, answer), (method, path, member, kind, answer.text)
                    assert_refused(answer, (method, path, member, kind))
    assert named == NAMING
    assert world.untouched() == before


def assert_refused(answer: httpx.Response, what: object) -> None:
    """Or nothing of it was done. A label or prefix that belongs to nobody yet (a foreign key's name, say) is still not taken."""
    if answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson":
        results = [json.loads(line) for line in answer.text.splitlines()]
        assert all(line.get("problem") for line in results if line["event"] == "result"), what
        assert all(line["event"] != "done" for line in results), what
    else:
        assert answer.status_code in (403, 404, 409, 422), (what, answer.status_code, answer.text)


@pytest.mark.parametrize("role", SCOPED)
def test_no_list_and_no_filter_tells_of_another_store(world: World, role: str) -> None:
    own = {"store": "alpha", "key": "mine", "access_key_id": "A" * 20, "name": "own"}
    names = [world.foreign[kind] for kind in ("store", "label", "connection")] + ["operator:zzoperator"]
    with world.client(role) as client:
        for method, path, _, query in operations(world.rig):
            if method != "GET":
                continue
            where = path.format(**own)
            asks: list[dict[str, Any]] = [{}, *({"limit": 1000} for _ in query if _ == "limit")]
            asks += [{one: name} for one in query if one not in ("limit", "cursor") for name in names]
            for params in asks:
                asked, answer = send(client, method, where, params=params)
                assert not world.leaks(asked, answer), (path, params, answer.text)


@pytest.mark.parametrize("role", SCOPED)
def test_what_only_an_admin_makes_nobody_with_grants_makes(world: World, role: str) -> None:
    with world.client(role) as client:
        for path in ("/v1/stores", "/v1/operators", "/v1/aws-connections"):
            answer = client.post(path, json=ROUTES["POST", path][0])
            assert (answer.status_code, answer.json()["rule"]) == (403, "role-lacks-right")


# --- source keys


def label_answers(world: World, store: str, label: str, *, create: bool = False) -> list[httpx.Response]:
    """Of each way to put a source key behind a key."""
    key = f"new-{label.replace('/', '-').replace(':', '-')[-40:]}"
    declared: dict[str, Any] = {"region": "us-east-1", "keys": {key: {"label": label, "create": create}}}
    declared |= {"partition_group": "main"} if store == "alpha-hsm" else {"key_source": "local"}
    rotated = declared | {"keys": {"mine": {"label": label, "create": create}}}
    with world.client("operator") as client:
        return [
            client.post(f"/v1/stores/{store}/keys", json={"external_key_id": key, "label": label, "create": create}),
            client.post(f"/v1/stores/{store}/keys/mine/rotate", json={"label": label, "create": create}),
            client.post("/v1/apply/plan", json={"key_stores": {store: declared}}),
            client.post("/v1/apply", json={"key_stores": {store: declared}}),
            client.post("/v1/apply", json={"key_stores": {store: rotated}}),
        ]


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    ("store", "label"),
    [("alpha", "label"), ("alpha-hsm", "hsm label"), ("alpha-hsm", "nobodys")],
)
def test_a_label_outside_the_grants_is_refused_with_the_same_words(world: World, store: str, label: str, create: bool) -> None:
    name = world.foreign.get(label, label)
    made = list(world.rig.source_keys.made)
    for answer in label_answers(world, store, name, create=create):
        problem = answer.json()
        assert (answer.status_code, problem["rule"]) == (403, "label-not-granted"), answer.text
        assert problem["why"] == "Its grants cover only source keys that are used by its own key stores alone"
    assert world.rig.source_keys.made == made


def test_the_source_key_of_a_deleted_key_is_not_granted_to_others(world: World) -> None:
    with world.rig.client() as admin:
        label = new_key(admin, "zzbeta", "zzgone")["label"]
        admin.post("/v1/stores/zzbeta/keys/zzgone/disable")
        assert admin.delete("/v1/stores/zzbeta/keys/zzgone").status_code == 204
    for create in (False, True):
        for answer in label_answers(world, "alpha", str(label), create=create):
            assert (answer.status_code, answer.json()["rule"]) == (403, "label-not-granted"), answer.text


@pytest.mark.parametrize("label", ["xksfast-transport", "xksfast-pending:zz"])
def test_labels_that_the_program_needs_are_no_keys_for_anybody(world: World, label: str) -> None:
    for answer in label_answers(world, "alpha-hsm", label, create=True):
        assert (answer.status_code, answer.json()["rule"]) == (403, "label-reserved"), answer.text
    with world.rig.client() as admin:
        answer = admin.post("/v1/stores/alpha-hsm/keys", json={"external_key_id": "theirs", "label": label})
    assert (answer.status_code, answer.json()["rule"]) == (403, "label-reserved"), answer.text


def test_own_labels_and_new_ones_are_granted(world: World) -> None:
    with world.client("operator") as client:
        own = client.get("/v1/stores/alpha-hsm/keys/mine").json()["label"]
        for store, key, body in (
            ("alpha", "fresh", {"label": "fresh-v1", "create": True}),
            ("alpha-hsm", "fresh", {"label": "alpha-hsm/fresh-v1", "create": True}),
            ("alpha-hsm", "again", {"label": own}),
            ("alpha-hsm", "made-up", {}),
        ):
            answer = client.post(f"/v1/stores/{store}/keys", json={"external_key_id": key, **body})
            assert answer.status_code == 201, answer.text


def test_without_grants_an_operator_shares_and_adopts_source_keys(world: World) -> None:
    client = world.rig.as_role("operator")
    for label in (world.foreign["hsm label"], "made-by-another-program"):
        answer = client.post("/v1/stores/alpha-hsm/keys", json={"external_key_id": f"shared-{label[-20:]}", "label": label})
        assert answer.status_code == 201, answer.text


# --- AWS


def link(world: World, role: str, **members: Any) -> httpx.Response:
    with world.rig.client(token=world.tokens.get(role) or world.rig.tokens[role]) as client:
        return client.post("/v1/stores/alpha-hsm/link", json={"connection": "own", **members})


@pytest.mark.parametrize("role", ["operator", "admin"])
@pytest.mark.parametrize("id", ["cks-zz1", "cks-zz2", "cks-own"])
def test_no_store_is_linked_to_the_custom_key_store_of_another(world: World, role: str, id: str) -> None:
    answer = link(world, role, custom_key_store_id=id)
    assert (answer.status_code, answer.json()["rule"]) == (409, "custom-key-store-foreign"), answer.text


def test_an_operator_with_grants_links_by_a_connection_of_its_own_stores_only(world: World) -> None:
    world.aws.account.stores["cks-hand"] = AwsStore(
        "cks-hand", "by hand", ENDPOINT, "/alpha-hsm/kms/xks/v1", "PUBLIC_ENDPOINT", world.credentials["alpha-hsm"], "s" * 43
    )
    refused = link(world, "operator", connection="zzconnection", custom_key_store_id="cks-hand")
    absent = link(world, "operator", connection="yyconnection", custom_key_store_id="cks-hand")
    assert refused.status_code == absent.status_code == 404
    assert refused.text == absent.text.replace("yyconnection", "zzconnection")
    with world.client("operator") as client:
        (found,) = client.get("/v1/aws-connections/own/unlinked").json()["items"]
    assert (found["store"], found["custom_key_store_id"]) == ("alpha-hsm", "cks-hand")
    linked = link(world, "operator", custom_key_store_id="cks-hand")
    assert linked.status_code == 200, linked.text
    assert linked.json()["link"]["drift"] == []


def test_an_id_is_linked_once(world: World) -> None:
    with world.rig.client() as admin:
        new_store(admin, "alpha-two", endpoint=ENDPOINT)
        (credential,) = admin.get("/v1/stores/alpha-two/credentials").json()["items"]
        shown = world.aws.account.stores["cks-zz1"]
        shown.uri_path, shown.access_key_id = "/alpha-two/kms/xks/v1", credential["access_key_id"]
        answer = admin.post("/v1/stores/alpha-two/link", json={"connection": "own", "custom_key_store_id": "cks-zz1"})
        assert (answer.status_code, answer.json()["rule"]) == (409, "custom-key-store-taken"), answer.text
        assert "zzbeta" not in answer.text
        shown.id = "cks-hand"
        world.aws.account.stores["cks-hand"] = world.aws.account.stores.pop("cks-zz1")
        answer = admin.post("/v1/stores/alpha-two/link", json={"connection": "own", "custom_key_store_id": "cks-hand"})
        assert answer.status_code == 200, answer.text


def test_a_store_is_linked_by_a_connection_of_its_region_and_account(world: World) -> None:
    with world.rig.client() as admin:
        for name, members, rule in (
            ("elsewhere", {"region": "eu-west-1"}, "connection-of-other-region"),
            ("stranger", {"account": "9" * 12}, "aws-WrongAccount"),
        ):
            body = {"name": name, "account": ACCOUNT, "region": "us-east-1", "endpoint_url": world.aws.url, **members}
            admin.post("/v1/aws-connections", json=body)
            answer = admin.post("/v1/stores/alpha-hsm/link", json={"connection": name, "custom_key_store_id": "cks-zz2"})
            assert (answer.status_code, answer.json()["rule"]) == (409, rule), answer.text
            assert admin.delete(f"/v1/aws-connections/{name}").status_code == 204
        admin.patch("/v1/stores/alpha-hsm", json={"account": "9" * 12})
        answer = admin.post("/v1/stores/alpha-hsm/link", json={"connection": "own"})
        assert (answer.status_code, answer.json()["rule"]) == (409, "connection-of-other-account"), answer.text
        admin.patch("/v1/stores/alpha-hsm", json={"account": ""})


@pytest.mark.parametrize("action", ["push", "connect", "disconnect"])
def test_a_link_of_old_to_a_foreign_custom_key_store_moves_nothing(world: World, action: str) -> None:
    def plan(state: Any) -> Plan:
        store = state.key_stores["alpha"]
        link = StoreLink(connection="own", custom_key_store_id="cks-zz1", custom_key_store_name="")
        return Plan(changes=[Change("store.link", store.kind, "alpha", store, replace(store, link=link))])

    world.rig.store.transact(system_actor("test").origin, plan)
    shown = world.aws.account.stores["cks-zz1"]
    shown.state = "CONNECTED"
    with world.client("operator") as client:
        answer = client.post(f"/v1/stores/alpha/{action}", params=None if action == "push" else {"wait": "false"})
    assert "custom-key-store-foreign" in answer.text
    assert (shown.state, shown.uri_path) == ("CONNECTED", "/zzbeta/kms/xks/v1")


def test_connections_and_events_of_own_stores_are_shown(world: World) -> None:
    with world.client("auditor") as client:
        assert [one["name"] for one in client.get("/v1/aws-connections").json()["items"]] == ["own"]
        assert client.get("/v1/aws-connections/own").status_code == 200
        shown = client.get("/v1/events", params={"limit": 1000}).json()["items"]
        assert {"source_key", "aws_connection", "key", "key_store"} <= {event["kind"] for event in shown}
        assert client.get("/v1/operators").json()["rule"] == "all-stores-needed"


def test_no_page_tells_how_many_events_another_store_has(world: World) -> None:
    admin = world.rig.as_role("admin")
    for number in range(110):
        assert admin.patch("/v1/stores/zzbeta", json={"description": str(number)}).status_code == 200
    with world.client("auditor") as client:
        for name in ("zzbeta", "zzabsent"):
            shown = client.get("/v1/events", params={"id": name, "limit": 1})
            assert (shown.json(), "link" in shown.headers) == ({"items": [], "next": None}, False), name
        newest = client.get("/v1/events", params={"limit": 1}).json()
        assert len(newest["items"]) == 1  # behind all those that are not shown
        seen = [newest["items"][0]["seq"]]
        for _ in range(3):
            newest = client.get("/v1/events", params={"limit": 1, "cursor": newest["next"]}).json()
            seen += [event["seq"] for event in newest["items"]]
        assert len(seen) == 4
        assert seen == sorted(set(seen), reverse=True)


def test_the_notes_of_a_plan_name_own_stores_only(world: World) -> None:
    declared = {"key_stores": {"alpha": {"region": "us-east-1", "key_source": "local"}}}
    with world.client("operator") as client:
        notes = client.post("/v1/apply/plan", json=declared).json()["notes"]
    assert notes == ["1 key stores are not in the file and stay: alpha-hsm"]


def test_what_is_near_to_a_name_is_told_to_those_who_may_see_every_store(world: World) -> None:
    token = world.rig.add_operator("granted-typo", "operator", stores=("zzbetta",))
    with world.rig.client(token=token) as client, world.rig.client() as admin:
        assert "zzbeta" not in client.get("/v1/stores/zzbetta").text
        assert "zzbeta" not in client.post("/v1/bulk", json={"action": "block", "stores": ["zzbetta"]}).text
        assert "did you mean 'zzbeta'" in admin.get("/v1/stores/zzbetta").json()["detail"]


def test_what_is_wrong_with_the_log_is_told_to_those_who_may_see_every_store(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> LogVerdict:
        return LogVerdict(
            ok=False, events=1, seq=1, head="", problems=("object key_store 'zzbeta' is not what its events say",)
        )

    monkeypatch.setattr(world.rig.parts, "verify_log", broken)
    with world.client("auditor") as client:
        answer = client.get("/v1/events/verification")
    assert answer.json()["ok"] is False
    assert answer.json()["problems"]
    assert "zzbeta" not in answer.text
    assert "zzbeta" in world.rig.as_role("auditor").get("/v1/events/verification").text


def test_what_a_node_tells_the_others_of_itself_names_no_key_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hearing = Hearing(Log("test"))
    monkeypatch.setattr(Hearing, "silent_s", 10_000.0)
    refusing = {"on_stale": "refuse", "stale_after_s": 10}
    assert world.rig.as_role("admin").patch("/v1/stores/zzbeta", json=refusing).status_code == 200
    assert world.rig.read(hearing.look_for_staleness) == {("key_store", "zzbeta")}
    assert any("key stores zzbeta are refused" in problem for problem in hearing.problems())  # for the machine's own status
    told = hearing.problems(named=False)
    assert any("1 key stores" in problem for problem in told)
    assert not any("zzbeta" in problem for problem in told)
