# SPDX-License-Identifier: Apache-2.0
"""Drift: each difference between us and AWS has its sentence, and nothing else has."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xksfast.admin.aws.results import CustomKeyStore, KmsKey
from xksfast.admin.aws.sync import (
    GONE,
    find_unlinked,
    followed_key,
    link_key,
    link_store,
    sync_key,
    sync_store,
    unlinked_keys,
)
from xksfast.state.objects import Credential, Key, KeyLink, KeyStore, KeyVersion, StoreLink

ID, OTHER_ID = "A" * 20, "B" * 20
ENDPOINT = "https://xks.example.com"
STORE = KeyStore(name="one", uri_path_prefix="/one", region="us-east-1", key_source="local", endpoint=ENDPOINT)
LINKED = msgspec.structs.replace(
    STORE, link=StoreLink(connection="main", custom_key_store_id="cks-1", custom_key_store_name="one")
)
CREDENTIAL = Credential(access_key_id=ID, store="one", secret_id="s")
SEEN = CustomKeyStore(
    id="cks-1",
    name="one",
    connection_state="CONNECTED",
    endpoint=ENDPOINT,
    uri_path="/one/kms/xks/v1",
    connectivity="PUBLIC_ENDPOINT",
    access_key_id=ID,
)
KEY = Key(
    store="one", external_key_id="k1", versions=(KeyVersion(number=1, label="k1"),), alias="a", description="d", tags={"t": "v"}
)
ARN = "arn:aws:kms:us-east-1:111122223333:key/1234"
LINKED_KEY = msgspec.structs.replace(KEY, link=KeyLink(key_arn=ARN))
SEEN_KEY = KmsKey(
    id="1234",
    arn=ARN,
    state="Enabled",
    description="d",
    custom_key_store_id="cks-1",
    external_key_id="k1",
    aliases=("alias/a",),
    tags={"t": "v"},
    details=True,
)


def test_a_store_that_is_the_same_there_and_here_has_no_drift() -> None:
    link = link_store(STORE, "main", SEEN, [CREDENTIAL], now=7)
    assert link == StoreLink(
        connection="main", custom_key_store_id="cks-1", custom_key_store_name="one", connection_state="CONNECTED", synced_at=7
    )
    assert sync_store(LINKED, SEEN, [CREDENTIAL], now=7) == link


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"endpoint": "https://other.example.com"}, "AWS calls https://other.example.com"),
        ({"uri_path": "/two/kms/xks/v1"}, "which is not this store's /one/kms/xks/v1"),
        ({"connectivity": "VPC_ENDPOINT_SERVICE"}, "AWS connects by VPC_ENDPOINT_SERVICE"),
        ({"vpc_endpoint_service_name": "com.amazonaws.vpce.x"}, "here it is none"),
        ({"access_key_id": OTHER_ID}, "which this store does not have"),
        ({"connection_state": "FAILED", "connection_error": "XKS_PROXY_TIMED_OUT"}, "within 250 ms"),
        ({"connection_state": "FAILED"}, "no reason given"),
        ({"type": "AWS_CLOUDHSM"}, "it is not this one's"),
    ],
)
def test_each_difference_of_a_store_is_one_sentence(changes: dict[str, str], words: str) -> None:
    (sentence,) = sync_store(LINKED, replace(SEEN, **changes), [CREDENTIAL], now=1).drift
    assert words in sentence


def test_host_names_are_the_same_in_capitals() -> None:
    assert sync_store(LINKED, replace(SEEN, endpoint="https://XKS.example.com"), [CREDENTIAL], now=1).drift == ()


def test_a_new_name_is_followed() -> None:
    link = sync_store(LINKED, replace(SEEN, name="renamed"), [CREDENTIAL], now=1)
    assert (link.custom_key_store_name, link.drift) == ("renamed", ())


def test_a_credential_that_was_rotated_is_shown_before_it_is_removed() -> None:
    rotated = msgspec.structs.replace(CREDENTIAL, superseded_at=5)
    (sentence,) = sync_store(
        LINKED, SEEN, [rotated, Credential(access_key_id=OTHER_ID, store="one", secret_id="t")], now=9
    ).drift
    assert "which was rotated" in sentence


def test_a_store_that_aws_no_longer_has() -> None:
    link = sync_store(LINKED, None, [CREDENTIAL], now=3)
    assert (link.connection_state, link.synced_at, len(link.drift)) == (GONE, 3, 1)


def test_old_drift_does_not_stay() -> None:
    assert LINKED.link is not None
    drifted = msgspec.structs.replace(LINKED, link=msgspec.structs.replace(LINKED.link, drift=("old",), connection_error="OLD"))
    link = sync_store(drifted, SEEN, [CREDENTIAL], now=1)
    assert (link.drift, link.connection_error) == ((), "")


def test_what_is_not_linked_cannot_be_synced() -> None:
    with pytest.raises(ValueError, match="not linked"):
        sync_store(STORE, SEEN, [CREDENTIAL], now=1)
    with pytest.raises(ValueError, match="not linked"):
        sync_key(LINKED, KEY, SEEN_KEY, now=1)


def test_a_key_that_is_the_same_there_and_here_has_no_drift() -> None:
    link = link_key(LINKED, KEY, SEEN_KEY, now=7)
    assert link == KeyLink(key_arn=ARN, key_state="Enabled", aliases=("alias/a",), synced_at=7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"external_key_id": "k2"}, "stands for external key k2, not for k1"),
        ({"custom_key_store_id": "cks-2"}, "is in custom key store cks-2"),
        ({"state": "PendingDeletion", "deletion_at": 1_800_000_000}, "on 2027-01-15"),
        ({"state": "Disabled"}, "is disabled in AWS"),
        ({"state": "Updating"}, "in the state Updating"),
        ({"description": "other"}, "its description in AWS is 'other'"),
        ({"aliases": ("alias/b",)}, "does not know it by alias/a, but by alias/b"),
        ({"aliases": ()}, "but by no alias"),
        ({"tags": {"t": "w", "u": "x"}}, "differ from those here: t, u"),
    ],
)
def test_each_difference_of_a_key_is_one_sentence(changes: dict[str, object], words: str) -> None:
    (sentence,) = sync_key(LINKED, LINKED_KEY, replace(SEEN_KEY, **changes), now=1).drift  # type: ignore[arg-type]
    assert words in sentence


def test_a_key_disabled_here_but_not_in_aws() -> None:
    disabled = msgspec.structs.replace(LINKED_KEY, enabled=False)
    (sentence,) = sync_key(LINKED, disabled, SEEN_KEY, now=1).drift
    assert "AWS is refused when it uses it" in sentence
    assert sync_key(LINKED, disabled, replace(SEEN_KEY, state="Disabled"), now=1).drift == ()


def test_a_key_is_unavailable_because_its_store_is_disconnected_which_is_no_drift() -> None:
    unavailable = replace(SEEN_KEY, state="Unavailable")
    assert sync_key(LINKED, LINKED_KEY, unavailable, now=1).drift == ()
    assert LINKED.link is not None
    connected = msgspec.structs.replace(LINKED, link=msgspec.structs.replace(LINKED.link, connection_state="CONNECTED"))
    (sentence,) = sync_key(connected, LINKED_KEY, unavailable, now=1).drift
    assert "unavailable although" in sentence


def test_a_key_that_aws_no_longer_has() -> None:
    link = sync_key(LINKED, LINKED_KEY, None, now=3)
    assert (link.key_state, link.key_arn, len(link.drift)) == (GONE, ARN, 1)


def test_without_details_aliases_and_tags_are_not_compared() -> None:
    bare = replace(SEEN_KEY, aliases=(), tags={}, details=False)
    known = msgspec.structs.replace(LINKED_KEY, link=KeyLink(key_arn=ARN, aliases=("alias/a",)))
    link = sync_key(LINKED, known, bare, now=1)
    assert (link.aliases, link.drift) == (("alias/a",), ())


labels = st.text(alphabet="abc", max_size=3)
tags = st.dictionaries(labels, labels, max_size=3)
aliases = st.lists(labels.map(lambda text: f"alias/x{text}"), max_size=3, unique=True).map(lambda names: tuple(sorted(names)))


@given(
    key=st.builds(
        lambda alias, description, key_tags: msgspec.structs.replace(LINKED_KEY, alias=alias, description=description, tags=key_tags),
        labels.map(lambda text: text and f"x{text}"), labels, tags,
    ),
    seen=st.builds(
        lambda names, description, key_tags: replace(SEEN_KEY, aliases=names, description=description, tags=key_tags),
        aliases, labels, tags,
    ),
    state=st.sampled_from(["Enabled", "Disabled", "PendingDeletion", "Unavailable"]),
)  # fmt: skip
def test_a_key_that_followed_aws_differs_from_it_in_nothing_that_it_follows(key: Key, seen: KmsKey, state: str) -> None:
    seen = replace(seen, state=state)
    followed = followed_key(key, seen, sync_key(LINKED, key, seen, now=1))
    again = sync_key(LINKED, followed, seen, now=1)
    assert followed.link == again
    assert (followed.description, followed.tags) == (seen.description, seen.tags)
    assert (f"alias/{followed.alias}" in seen.aliases) if seen.aliases else followed.alias == ""
    if f"alias/{key.alias}" in seen.aliases:
        assert followed.alias == key.alias
    assert all("description" not in sentence and "tags" not in sentence for sentence in again.drift)


def test_without_details_a_key_only_gets_its_link() -> None:
    link = KeyLink(key_arn=ARN, synced_at=9)
    assert followed_key(LINKED_KEY, replace(SEEN_KEY, description="x", details=False), link) == msgspec.structs.replace(
        LINKED_KEY, link=link
    )


def found(*seen: CustomKeyStore, stores: list[KeyStore] | None = None, region: str = "us-east-1") -> list[tuple[str, str, str]]:
    result = find_unlinked(stores if stores is not None else [STORE], seen, [CREDENTIAL], region=region)
    return [(entry.store, entry.custom_key_store.id, entry.problem) for entry in result]


def test_a_store_made_by_hand_is_found_by_its_path() -> None:
    assert found(SEEN) == [("one", "cks-1", "")]


def test_a_store_made_by_hand_is_found_by_its_credential() -> None:
    ((store, _, problem),) = found(replace(SEEN, uri_path="/typo/kms/xks/v1"))
    assert store == "one"
    assert "calls the path /typo/kms/xks/v1" in problem


def test_a_store_made_by_hand_with_another_credential_is_told_so() -> None:
    ((_, _, problem),) = found(replace(SEEN, access_key_id=OTHER_ID))
    assert "give AWS one of its own" in problem


@pytest.mark.parametrize(
    "seen",
    [
        replace(SEEN, uri_path="/two/kms/xks/v1", access_key_id=OTHER_ID),
        replace(SEEN, endpoint="https://other.example.com", access_key_id=OTHER_ID),
        replace(SEEN, type="AWS_CLOUDHSM"),
    ],
)
def test_stores_of_others_are_left_alone(seen: CustomKeyStore) -> None:
    assert found(seen) == []


def test_linked_stores_and_other_regions_are_left_out() -> None:
    assert found(SEEN, stores=[LINKED]) == []
    assert found(SEEN, replace(SEEN, id="cks-2"), stores=[LINKED]) == []
    assert found(SEEN, stores=[LINKED, msgspec.structs.replace(STORE, name="two")]) == []
    assert found(SEEN, region="eu-central-1") == []


def test_a_store_without_an_endpoint_is_found_by_its_path_alone() -> None:
    assert found(replace(SEEN, access_key_id=""), stores=[msgspec.structs.replace(STORE, endpoint="")])[0][:2] == (
        "one",
        "cks-1",
    )


def test_unlinked_keys_are_those_for_which_a_kms_key_exists() -> None:
    other = msgspec.structs.replace(KEY, external_key_id="k2")
    assert unlinked_keys([KEY, other], [SEEN_KEY]) == [(KEY, SEEN_KEY)]
    assert unlinked_keys([LINKED_KEY], [SEEN_KEY]) == []
