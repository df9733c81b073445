# SPDX-License-Identifier: Apache-2.0
"""The rules of administration: what is refused, in which words, and what changes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.admin.states import NOW, commit, with_key, with_store
from xksfast.admin.plans import credentials, keys, operators, stores, teardown
from xksfast.admin.plans.common import changed
from xksfast.admin.refusals import Refused
from xksfast.admin.requests import KeyCreate, KeyUpdate, OperatorCreate, StoreCreate, StoreUpdate
from xksfast.state.objects import KeyLink, StoreLink
from xksfast.state.projection import State


@pytest.fixture
def state() -> State:
    return with_key(with_store(State()))


def new_store(state: State, **fields: object) -> object:
    values = {"name": "other", "uri_path_prefix": "/other", "region": "us-east-1", "key_source": "local", **fields}
    return stores.new_store(state, StoreCreate(**values), groups=("main",), now=NOW)


@pytest.mark.parametrize(
    ("fields", "rule", "field", "says"),
    [
        ({"name": "payments"}, "store-exists", "name", "already"),
        ({"uri_path_prefix": "/payments"}, "prefix-taken", "uri_path_prefix", "Another key store has the uri_path_prefix"),
        ({"uri_path_prefix": "other"}, "field-invalid", "uri_path_prefix", "no slash at the end"),
        ({"uri_path_prefix": "/" + "x" * 117}, "field-invalid", "uri_path_prefix", "must not exceed 128"),
        ({"region": "Mars"}, "field-invalid", "region", "not an AWS region"),
        ({"key_source": None}, "store-needs-one-key-source", "partition_group", "either"),
        ({"partition_group": "main"}, "store-needs-one-key-source", "partition_group", "either"),
        ({"key_source": None, "partition_group": "mian"}, "field-invalid", "partition_group", "did you mean"),
        ({"endpoint": "https://host:8443"}, "field-invalid", "endpoint", "443"),
        ({"connectivity": "VPC_ENDPOINT_SERVICE"}, "field-invalid", "vpc_endpoint_service_name", "com.amazonaws.vpce"),
        ({"vpc_endpoint_service_name": "x"}, "field-invalid", "vpc_endpoint_service_name", "only"),
        ({"tags": {"aws:x": "y"}}, "field-invalid", "tags", "aws:"),
        ({"allowed_principals": ("",)}, "field-invalid", "allowed_principals", "1 to 256"),
        ({"allowed_principals": ("x" * 257,)}, "field-invalid", "allowed_principals", "1 to 256"),
        ({"allowed_principals": ("*x",) * 101}, "field-invalid", "allowed_principals", "at most 100 patterns, not 101"),
    ],
)
def test_a_store_that_breaks_a_rule_is_refused(
    state: State, fields: dict[str, object], rule: str, field: str, says: str
) -> None:
    with pytest.raises(Refused, match=says) as refused:
        new_store(state, **fields)
    assert (refused.value.rule, refused.value.field) == (rule, field)


def test_a_change_names_only_what_changes_and_needs_the_revision_that_was_seen(state: State) -> None:
    revision = state.revision_of(state.key_stores["payments"])
    assert stores.update(state, "payments", StoreUpdate(), revision) == []
    changes = stores.update(state, "payments", StoreUpdate(description="cards"), revision)
    assert [(change.action, change.id) for change in changes] == [("store.update", "payments")]
    commit(state, changes)
    assert state.key_stores["payments"].description == "cards"
    with pytest.raises(Refused, match="has changed since") as refused:
        stores.update(state, "payments", StoreUpdate(description="x"), revision)
    assert refused.value.category == "stale"


def test_what_aws_holds_fast_cannot_be_moved_while_it_is_connected(state: State) -> None:
    link = StoreLink(connection="c", custom_key_store_id="cks-1", custom_key_store_name="p", connection_state="CONNECTED")
    commit(state, stores.set_link(state, "payments", link))
    with pytest.raises(Refused, match="only while the custom key store is disconnected"):
        stores.update(state, "payments", StoreUpdate(uri_path_prefix="/new"), None)
    commit(state, stores.set_link(state, "payments", replace(link, connection_state="DISCONNECTED")))
    commit(state, stores.update(state, "payments", StoreUpdate(uri_path_prefix="/new"), None))
    assert state.store_with_prefix("/new") is not None
    assert state.store_with_prefix("/payments") is None


def test_a_store_that_was_linked_meanwhile_is_not_linked_elsewhere(state: State) -> None:
    first = StoreLink(connection="main", custom_key_store_id="cks-1", custom_key_store_name="payments")
    commit(state, stores.set_link(state, "payments", first))
    with pytest.raises(Refused, match="cks-1") as refused:
        stores.set_link(state, "payments", replace(first, custom_key_store_id="cks-2"))
    assert refused.value.rule == "store-linked"


def test_a_late_look_at_aws_links_no_store(state: State) -> None:
    former = StoreLink(connection="main", custom_key_store_id="cks-1", custom_key_store_name="payments")
    assert stores.follow_link(state, "payments", former) == []  # it was unlinked since
    commit(state, stores.set_link(state, "payments", replace(former, custom_key_store_id="cks-2")))
    assert stores.follow_link(state, "payments", former) == []  # and linked elsewhere
    seen = replace(former, custom_key_store_id="cks-2", connection_state="CONNECTED")
    commit(state, stores.follow_link(state, "payments", seen))
    assert state.key_stores["payments"].link == seen


def test_more_patterns_than_may_be_set_stay_until_they_are_changed(state: State) -> None:
    """They are from before there was a bound: the state loads with them, and another change does not ask about them."""
    store = state.key_stores["payments"]
    many = tuple(f"*{number}" for number in range(3000))
    commit(state, changed("store.update", store, replace(store, allowed_principals=many)))
    commit(state, stores.update(state, "payments", StoreUpdate(description="cards"), None))
    assert state.key_stores["payments"].allowed_principals == many
    with pytest.raises(Refused, match="at most 100 patterns, not 2999"):
        stores.update(state, "payments", StoreUpdate(allowed_principals=many[1:]), None)
    commit(state, stores.update(state, "payments", StoreUpdate(allowed_principals=many[:100]), None))
    assert len(state.key_stores["payments"].allowed_principals) == 100


def test_blocking_twice_changes_once_and_keeps_the_first_reason(state: State) -> None:
    commit(state, stores.set_blocked(state, "payments", True, "stolen"))
    assert stores.set_blocked(state, "payments", True, "again") == []
    assert state.key_stores["payments"].blocked_reason == "stolen"
    commit(state, stores.set_blocked(state, "payments", False, ""))
    assert not state.key_stores["payments"].blocked


def test_a_store_goes_only_when_nothing_hangs_on_it(state: State) -> None:
    with pytest.raises(Refused, match="has 1 keys: orders"):
        stores.delete(state, "payments", None)
    with pytest.raises(Refused, match="is enabled"):
        keys.delete(state, "payments", "orders", None)
    commit(state, keys.set_enabled(state, "payments", "orders", False))
    commit(state, keys.delete(state, "payments", "orders", None))
    commit(state, stores.delete(state, "payments", None))
    assert not state.key_stores
    assert not state.credentials
    assert set(state.source_keys) == {"local/orders-v1"}  # key material goes only when somebody purges it


def test_teardown_tells_the_steps_in_their_order(state: State) -> None:
    link = StoreLink(connection="c", custom_key_store_id="cks-1", custom_key_store_name="p", connection_state="CONNECTED")
    commit(state, stores.set_link(state, "payments", link))
    key = state.keys["payments/orders"]
    commit(state, keys.follow(state, "payments", "orders", replace(key, link=KeyLink(key_arn="arn", key_state="Enabled"))))
    commands = [obstacle.command for obstacle in teardown.obstacles(state, "payments")]
    assert [command.split()[1:3] for command in commands] == [
        ["key", "schedule-deletion"], ["key", "disable"], ["key", "delete"], ["store", "disconnect"], ["store", "delete"],
        ["store", "delete"],
    ]  # fmt: skip
    assert [command.endswith(" --aws") for command in commands[-2:]] == [True, False]


def test_teardown_names_what_is_left_only(state: State) -> None:
    with_key(state, external_key_id="mail")
    link = StoreLink(connection="c", custom_key_store_id="cks-1", custom_key_store_name="p", connection_state="GONE")
    commit(state, stores.set_link(state, "payments", link))
    for name, found in (("orders", "PendingDeletion"), ("mail", "GONE")):
        followed = replace(state.keys[f"payments/{name}"], link=KeyLink(key_arn="arn", key_state=found))
        commit(state, keys.follow(state, "payments", name, followed))
    commit(state, keys.set_enabled(state, "payments", "orders", False))
    steps = teardown.obstacles(state, "payments")
    assert [(step.command, step.count, step.waits) for step in steps] == [
        ("xksfast store sync payments", 1, True),  # AWS lets nobody shorten its 7 days
        ("xksfast key disable payments mail", 1, False),
        ("xksfast key delete payments --all", 2, False),
        ("xksfast store delete payments --aws", 1, False),  # nothing to disconnect any more
        ("xksfast store delete payments", 1, False),
    ]


@pytest.mark.parametrize(("state_in_aws", "goes"), [("Enabled", False), ("PendingDeletion", True), ("GONE", True)])
def test_a_linked_key_goes_when_nobody_in_aws_can_use_it(state: State, state_in_aws: str, goes: bool) -> None:
    key = state.keys["payments/orders"]
    linked = replace(key, link=KeyLink(key_arn="arn", key_state=state_in_aws))
    commit(state, keys.follow(state, "payments", "orders", linked))
    commit(state, keys.set_enabled(state, "payments", "orders", False))
    if goes:
        assert keys.delete(state, "payments", "orders", None)
    else:
        with pytest.raises(Refused, match="schedule-deletion"):
            keys.delete(state, "payments", "orders", None)


def test_a_rotation_adds_a_version_and_the_former_stay(state: State) -> None:
    commit(state, keys.begin_source(state, "local", "orders-v2", "local_key/orders-v2", now=NOW))
    commit(state, keys.rotate(state, "payments", "orders", "orders-v2", owned=True, now=NOW))
    assert [(v.number, v.label) for v in state.keys["payments/orders"].versions] == [(1, "orders-v1"), (2, "orders-v2")]
    with pytest.raises(Refused, match="is a version of this key already"):
        keys.rotate(state, "payments", "orders", "orders-v1", owned=True, now=NOW)


def test_a_key_is_made_once(state: State) -> None:
    with pytest.raises(Refused, match="xksfast key rotate payments orders"):
        keys.check_new(state, "payments", KeyCreate(external_key_id="orders"))
    with pytest.raises(Refused, match=r"did you mean|no key store"):
        keys.check_new(state, "payment", KeyCreate(external_key_id="x"))
    assert keys.update(state, "payments", "orders", KeyUpdate(), None) == []


def test_credentials_are_rotated_up_to_the_limit_and_the_last_one_stays(state: State) -> None:
    for letter in "BCD":
        commit(state, credentials.rotate(state, "payments", letter * 20, now=NOW + 1))
    have = state.credentials_of("payments")
    assert list(have) == [letter * 20 for letter in "ABCD"]
    assert [bool(credential.superseded_at) for credential in have.values()] == [True, True, True, False]
    with pytest.raises(Refused, match=r"xksfast credential remove payments A{20}"):
        credentials.rotate(state, "payments", "E" * 20, now=NOW)
    for letter in "ABC":
        commit(state, credentials.remove(state, "payments", letter * 20))
    with pytest.raises(Refused, match="only credential"):
        credentials.remove(state, "payments", "D" * 20)


def test_two_stores_may_have_the_same_access_key_id(state: State) -> None:
    with_store(state, "other")
    assert set(state.credentials) == {f"payments/{'A' * 20}", f"other/{'A' * 20}"}


def test_the_last_admin_stays() -> None:
    state = State()
    for name, role in (("root", "admin"), ("eve", "auditor")):
        commit(state, operators.create(state, OperatorCreate(name=name, role=role), name, now=NOW))
    with pytest.raises(Refused, match="only admin"):
        operators.delete(state, "root", now=NOW)
    commit(state, operators.create(state, OperatorCreate(name="second", role="admin"), "2", now=NOW))
    commit(state, operators.delete(state, "root", now=NOW))
    assert "root" not in state.operators_by_token
