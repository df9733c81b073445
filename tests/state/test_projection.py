# SPDX-License-Identifier: Apache-2.0
"""The state in memory: what events add up to, and its indexes, however the objects came there."""

from __future__ import annotations

import pytest

from tests.state.making import ALICE, a_credential, a_key, a_source, a_store, all_of, an_operator, changed, created, removed
from xksfast.state.events import Change, Event, chain
from xksfast.state.projection import State


def events(state: State, *changes: Change) -> list[Event]:
    return chain(changes, after_seq=state.seq, head=state.head, at_ms=1, transaction="t", node="n", origin=ALICE)


def folded(*changes: Change) -> State:
    state = State()
    state.apply(events(state, *changes))
    return state


def loaded(state: State) -> State:
    """The same objects, as a database gives them: in the order of their making."""
    again = State()
    objects = sorted(state.objects(), key=state.revision_of)
    again.load([(value, state.revision_of(value)) for value in objects], state.seq, state.head)
    return again


def test_a_key_that_is_replaced_keeps_its_place_among_its_stores_keys() -> None:
    first, second = a_key(external_key_id="first"), a_key(external_key_id="second")
    state = folded(
        created(a_store()), created(first), created(second), changed(first, a_key(external_key_id="first", enabled=False))
    )
    assert list(state.keys_of("payments")) == ["first", "second"]
    assert not state.keys_of("payments")["first"].enabled


def test_a_key_that_was_removed_and_made_anew_comes_last() -> None:
    first, second = a_key(external_key_id="first"), a_key(external_key_id="second")
    state = folded(created(a_store()), created(first), created(second), removed(first), created(first))
    assert list(state.keys_of("payments")) == ["second", "first"]


def test_a_credential_that_is_replaced_keeps_its_place() -> None:
    first, second = a_credential(access_key_id="A" * 20), a_credential(access_key_id="B" * 20)
    superseded = a_credential(access_key_id="A" * 20, superseded_at=5)
    state = folded(created(a_store()), created(first), created(second), changed(first, superseded))
    assert list(state.credentials_of("payments").values()) == [superseded, second]


def test_users_of_a_source_key_follow_the_versions_of_keys() -> None:
    one = a_key("payments", "orders", "k1")
    state = folded(created(a_store()), created(a_source(label="k1")), created(one))
    assert state.users_of("main/k1") == ["payments/orders"]
    two = a_key("payments", "orders", "k2")
    state.apply(events(state, changed(one, two)))
    assert state.users_of("main/k1") == []
    assert state.users_of("main/k2") == ["payments/orders"]
    state.apply(events(state, removed(two)))
    assert state.users_of("main/k2") == []


@pytest.mark.parametrize("order", ["store first", "key first"])
def test_users_do_not_depend_on_whether_the_store_or_the_key_came_first(order: str) -> None:
    changes = [created(a_store()), created(a_key("payments", "orders", "k1"))]
    state = folded(*(changes if order == "store first" else reversed(changes)))
    assert state.users_of("main/k1") == ["payments/orders"]


def test_keys_of_a_store_that_is_gone_use_no_source_key_until_it_is_made_again_elsewhere() -> None:
    state = folded(created(a_store()), created(a_key("payments", "orders", "k1")), removed(a_store()))
    assert state.users_of("main/k1") == []
    state.apply(events(state, created(a_store(partition_group="other"))))
    assert state.users_of("main/k1") == []
    assert state.users_of("other/k1") == ["payments/orders"]
    assert all_of(state) == all_of(loaded(state)) | {"position": (state.seq, state.head)}


def test_objects_with_their_revisions_are_those_of_the_moment_of_asking() -> None:
    first, second = a_key(external_key_id="first"), a_key(external_key_id="second")
    state = folded(created(a_store()), created(first), created(second), removed(first), created(first))
    expected = [(value, state.revision_of(value)) for value in state.objects()]
    asked = state.with_revisions()
    state.apply(events(state, removed(second), changed(first, a_key(external_key_id="first", enabled=False))))
    assert list(asked) == expected
    assert len(expected) == 3


def test_two_stores_may_swap_their_prefixes_in_one_transaction() -> None:
    one, two = a_store("s1", uri_path_prefix="/a"), a_store("s2", uri_path_prefix="/b")
    swapped_one, swapped_two = a_store("s1", uri_path_prefix="/b"), a_store("s2", uri_path_prefix="/a")
    state = folded(created(one), created(two), changed(one, swapped_one), changed(two, swapped_two))
    assert state.store_with_prefix("/a") == swapped_two
    assert state.store_with_prefix("/b") == swapped_one


def test_an_operator_is_found_by_the_newest_token_only() -> None:
    state = folded(created(an_operator(token="aa")), changed(an_operator(token="aa"), an_operator(token="bb")))
    assert set(state.operators_by_token) == {"bb" * 32}
    state.apply(events(state, removed(an_operator(token="bb"))))
    assert state.operators_by_token == {}


def test_events_that_do_not_follow_change_nothing() -> None:
    state = folded(created(a_store()))
    first, second = events(state, created(a_key()), created(a_credential()))
    before = all_of(state)
    for wrong in ([second], [first, first], [second, first]):
        with pytest.raises(ValueError, match="does not follow"):
            state.apply(wrong)
        assert all_of(state) == before
    state.apply([first, second])
    assert state.seq == 3


def test_an_event_that_cannot_be_read_keeps_out_those_before_it_too() -> None:
    import msgspec

    state = folded(created(a_store()))
    before = all_of(state)
    good, bad = events(state, created(a_key()), created(a_credential()))
    with pytest.raises(ValueError, match="unknown field"):
        state.apply([good, msgspec.structs.replace(bad, after=b'{"from_the_future":1}')])
    assert all_of(state) == before


def test_what_events_would_make_of_a_state_leaves_the_state_as_it_is() -> None:
    first, second = a_key(external_key_id="first"), a_key(external_key_id="second")
    state = folded(created(a_store()), created(a_credential()), created(a_source()), created(first), created(an_operator()))
    before = all_of(state)
    for changes in (
        [created(second)],
        [changed(first, a_key(external_key_id="first", enabled=False))],
        [removed(first), created(second)],
        [created(a_store("other", uri_path_prefix="/b")), created(a_key("other", "k"))],
        [changed(a_store(), a_store(uri_path_prefix="/a"))],
        [changed(a_credential(), a_credential(superseded_at=5)), created(a_credential(access_key_id="B" * 20))],
        [removed(an_operator())],
        [],
    ):
        happened = events(state, *changes)
        after = all_of(state.after(happened))
        assert all_of(state) == before
        wanted = folded(
            created(a_store()), created(a_credential()), created(a_source()), created(first), created(an_operator())
        )
        wanted.apply(happened)
        assert {**after, "users": None} == {**all_of(wanted), "users": None}
