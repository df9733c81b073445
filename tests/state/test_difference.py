# SPDX-License-Identifier: Apache-2.0
"""What an older state lacks and allows again, and what of it can be put back: nothing takes the place of something else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from xksfast.native.crypto import Secret
from xksfast.state.difference import MAX_NAMED, Difference, SealedRows, compare, put_back, some
from xksfast.state.master_key import KeyMaster
from xksfast.state.objects import Credential, Key, KeyStore, KeyVersion, Operator, SourceKey, Stored
from xksfast.state.projection import State
from xksfast.state.records import SealedSecret
from xksfast.state.sealing import Sealer

MASTER = KeyMaster("file", {}, lambda: Secret.from_bytes(bytes(32)))
SEALER, _ = Sealer.new(MASTER, now=100)
STORE = KeyStore(name="pay", uri_path_prefix="/pay", region="us-east-1", key_source="local")
CREDENTIAL = Credential(access_key_id="A" * 20, store="pay", secret_id="credential/pay/A")
ONE, TWO = (SourceKey(place="local", label=f"k1-v{n}", secret_id=f"local_key/k1-v{n}", owned=True, ready=True) for n in (1, 2))
FIRST, SECOND = KeyVersion(number=1, label="k1-v1"), KeyVersion(number=2, label="k1-v2")
KEY = Key(store="pay", external_key_id="k1", versions=(FIRST, SECOND))
OPERATOR = Operator(name="ann", role="admin", token_sha256="0" * 64)
ROWS = {source.secret_id: SEALER.new_local_key(source.secret_id) for source in (ONE, TWO)} | {
    CREDENTIAL.secret_id: SEALER.new_credential_secret(CREDENTIAL.secret_id)[0]
}


@dataclass
class Side:
    """A state and its secrets. sealer: None, nothing opens them."""

    objects: tuple[Stored, ...]
    rows: dict[str, SealedSecret]
    sealer: Sealer | None = SEALER

    def state(self) -> State:
        state = State()
        state.load(((value, number) for number, value in enumerate(self.objects, 1)), 50, b"")
        return state

    def sealed(self) -> SealedRows:
        return SealedRows(self.rows.values(), self.sealer)


def side(*objects: Stored, rows: dict[str, SealedSecret] | None = None, sealer: Sealer | None = SEALER) -> Side:
    return Side(objects, ROWS if rows is None else rows, sealer)


KNOWN = side(STORE, CREDENTIAL, ONE, TWO, KEY)


def difference(older: Side, known: Side = KNOWN) -> Difference:
    return compare(known.state(), older.state(), known.sealed().is_same(older.sealed()))


def restored(older: Side, known: Side = KNOWN) -> list[tuple[str, str]]:
    ours, theirs = known.sealed(), older.sealed()
    changes = put_back(known.state(), older.state(), ours.is_same(theirs), ours.takes(theirs))
    for change in changes:
        assert change.before == older.state().find(change.kind, change.id)  # as the store checks
    return [(change.action, change.id) for change in changes]


def test_the_same_state_lacks_nothing() -> None:
    assert difference(KNOWN) == Difference()
    assert restored(KNOWN) == []


def test_a_version_that_is_not_there_is_lacking_and_comes_back_with_its_source_key() -> None:
    older = side(STORE, CREDENTIAL, ONE, replace(KEY, versions=(FIRST,)), rows={ONE.secret_id: ROWS[ONE.secret_id]})
    assert difference(older).keys == ("key pay/k1 version 2",)
    assert restored(older) == [("source_key.restore", "local/k1-v2"), ("key.restore", "pay/k1")]


def test_a_key_and_its_store_come_back_with_the_credentials() -> None:
    older = side(rows={})
    assert difference(older).keys == ("key pay/k1 version 1", "key pay/k1 version 2")
    assert difference(older).lost == ("key store pay", f"credential pay/{'A' * 20}")
    assert restored(older) == [
        ("store.restore", "pay"),
        ("credential.restore", f"pay/{'A' * 20}"),
        ("source_key.restore", "local/k1-v1"),
        ("source_key.restore", "local/k1-v2"),
        ("key.restore", "pay/k1"),
    ]


def test_a_source_key_that_no_key_uses_is_kept_as_well() -> None:
    known = side(STORE, ONE)
    older = side(STORE, rows={})
    assert difference(older, known).keys == ("source key local/k1-v1",)
    assert restored(older, known) == [("source_key.restore", "local/k1-v1")]
    half_made = replace(ONE, ready=False)  # nothing was ever sealed by it
    assert difference(older, side(STORE, half_made)).keys == ()


def test_versions_of_an_hsm_come_back_by_their_labels_also_those_that_were_half_made_there() -> None:
    store = replace(STORE, key_source="pkcs11", partition_group="main")
    one, two = (SourceKey(place="main", label=f"k1-v{n}", owned=True, ready=True) for n in (1, 2))
    known = side(store, one, two, KEY, rows={})
    older = side(store, one, replace(two, ready=False), replace(KEY, versions=(FIRST,)), rows={})
    assert difference(older, known).keys == ("key pay/k1 version 2",)
    assert restored(older, known) == [("source_key.restore", "main/k1-v2"), ("key.restore", "pay/k1")]


@pytest.mark.parametrize(
    ("older", "lacking"),
    [
        # another version has the number
        (side(STORE, ONE, replace(KEY, versions=(FIRST, replace(SECOND, label="other")))), ["key pay/k1 version 2"]),
        # another key has the name
        (side(STORE, ONE, TWO, KEY, rows=ROWS | {TWO.secret_id: SEALER.new_local_key(TWO.secret_id)}), ["key pay/k1 version 2"]),
        # another store has the path
        (side(replace(STORE, name="other")), ["key pay/k1 version 1", "key pay/k1 version 2"]),
        # the store's keys live elsewhere
        (
            side(replace(STORE, key_source="pkcs11", partition_group="main"), ONE, TWO, KEY),
            ["key pay/k1 version 1", "key pay/k1 version 2"],
        ),
        # nothing opens what would be sealed there
        (side(STORE, rows={}, sealer=None), ["key pay/k1 version 1", "key pay/k1 version 2"]),
    ],
)  # fmt: skip
def test_what_something_else_has_the_place_of_is_lacking_and_does_not_come_back(older: Side, lacking: list[str]) -> None:
    assert list(difference(older).keys) == lacking
    assert [change for change in restored(older) if change[0] == "key.restore"] == []


def test_keys_come_back_sealed_again_under_the_data_key_of_the_older_state_by_who_can_open_them() -> None:
    older = side(rows={}, sealer=Sealer.new(MASTER, now=1)[0])
    assert ("key.restore", "pay/k1") in restored(older)
    assert ("credential.restore", f"pay/{'A' * 20}") in restored(older)
    ours, theirs = KNOWN.sealed(), older.sealed()
    assert older.sealer is not None
    for row in ROWS.values():
        moved = ours.moved(row, theirs)
        assert moved is not None
        assert older.sealer.knows([moved])
        assert row.purpose == "credential" or SEALER.holds_same(row, older.sealer, moved)
    nobody = side(*KNOWN.objects, sealer=None)
    assert difference(older, nobody).keys == ("key pay/k1 version 1", "key pay/k1 version 2")
    assert [change for change in restored(older, nobody) if change[0] != "store.restore"] == []
    damaged = side(*KNOWN.objects, rows={id_: replace(row, version=7) for id_, row in ROWS.items()})
    assert [change for change in restored(older, damaged) if change[0] == "key.restore"] == []


def test_a_secret_access_key_that_the_older_state_has_otherwise_is_left_as_it_is_there() -> None:
    other, _ = SEALER.new_credential_secret(CREDENTIAL.secret_id)
    older = side(rows={CREDENTIAL.secret_id: other})
    assert ("credential.restore", CREDENTIAL.id) not in restored(older)
    assert ("key.restore", "pay/k1") in restored(older)


def test_a_source_key_that_was_half_made_there_and_serves_no_key_any_more_is_ready_again() -> None:
    store = replace(STORE, key_source="pkcs11", partition_group="main")
    one = SourceKey(place="main", label="k1-v1", owned=True, ready=True)
    known, older = side(store, one, rows={}), side(store, replace(one, ready=False), rows={})
    assert difference(older, known).keys == ("source key main/k1-v1",)
    assert restored(older, known) == [("source_key.restore", "main/k1-v1")]


def test_a_key_that_was_sealed_again_since_is_the_same_key() -> None:
    rotation = SEALER.rotate_data_key(MASTER, ROWS.values(), now=200)
    moved = {row.id: row for row in rotation.rows}
    assert difference(side(*KNOWN.objects, rows=moved, sealer=rotation.sealer)) == Difference()
    unopened = side(*KNOWN.objects, rows=moved, sealer=SEALER)
    assert difference(unopened).keys == ("key pay/k1 version 1", "key pay/k1 version 2")


@pytest.mark.parametrize(
    ("known", "older", "says"),
    [
        (replace(KEY, enabled=False), KEY, "key pay/k1 was disabled"),
        (replace(KEY, usage=("DECRYPT",)), KEY, "key pay/k1 had usage DECRYPT only"),
        (replace(STORE, allowed_principals=("arn:a",)), STORE, "key store pay had other allowed principals"),
        (
            replace(STORE, allowed_principals=("arn:a",)), replace(STORE, allowed_principals=("arn:a", "arn:b")),
            "key store pay had other allowed principals",
        ),
        (replace(STORE, on_stale="refuse"), STORE, "key store pay was to be refused without news for 900 s"),
        (replace(OPERATOR, role="auditor"), OPERATOR, "operator ann had another role, token, grants or end"),
        (None, CREDENTIAL, f"credential pay/{'A' * 20} was removed"),
        (None, OPERATOR, "operator ann was removed"),
        (None, KEY, "key pay/k1 was removed"),
    ],
)  # fmt: skip
def test_what_is_allowed_again_is_named(known: Stored | None, older: Stored, says: str) -> None:
    def with_(value: Stored | None) -> Side:
        named = () if value is None else ((value.kind, value.id),)
        rest = [each for each in (STORE, ONE, TWO) if (each.kind, each.id) not in named]
        return side(*rest, *filter(None, [value]))

    assert difference(with_(older), with_(known)).lifted == (says,)
    if known is None or not isinstance(older, Operator):  # of which a former token counts, whatever else it may do
        assert difference(with_(known), with_(older)).lifted == ()  # the other way round nothing is allowed


def test_what_is_blocked_here_only_is_told() -> None:
    blocked = replace(KEY, blocked=True)
    assert difference(KNOWN, side(STORE, ONE, TWO, blocked)).blocked == (blocked,)
    assert difference(side(STORE, ONE, TWO, blocked), KNOWN).blocked == ()


def test_a_sentence_names_some_and_counts_the_rest() -> None:
    words = tuple(f"k{number}" for number in range(MAX_NAMED + 2))
    assert some(words[:2]) == "k0, k1"
    assert some(words).endswith(", k9 and 2 more")
