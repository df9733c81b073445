# SPDX-License-Identifier: Apache-2.0
"""Rows of `secrets`: bound to their place, opened only under their data key, moved by rotation, never shown."""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.native.test_seal import bytes_of, open_by_hand, signing_key_by_hand, slot
from xksfast.errors import NativeError
from xksfast.native.crypto import Secret, SecretPages
from xksfast.state.master_key import KeyMaster, MasterKeyError
from xksfast.state.records import Purpose, SealedSecret, WrappedDataKey
from xksfast.state.sealing import Sealer, SealError


def master(key: bytes) -> KeyMaster:
    return KeyMaster("file", {"master_key_file": "/m"}, lambda: Secret.from_bytes(key))


MASTER = master(bytes(range(32)))
SEALER, DATA_KEY_ROW = Sealer.new(MASTER, now=100)
PURPOSES = st.sampled_from(["credential", "local_key", "pin"])
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.binary(min_size=1, max_size=1024), IDS, PURPOSES, st.integers(1, 2**31))
def test_a_secret_opens_again_from_its_row(secret: bytes, id: str, purpose: Purpose, version: int) -> None:
    row = SEALER.seal(Secret.from_bytes(secret), id, purpose, version=version)
    assert (row.id, row.purpose, row.version, row.data_key_id) == (id, purpose, version, DATA_KEY_ROW.id)
    assert bytes_of(SEALER.open(row)) == secret
    assert secret not in row.sealed or len(secret) < 4


@given(st.tuples(PURPOSES, st.integers(1, 30), IDS), st.tuples(PURPOSES, st.integers(1, 30), IDS))
def test_a_row_opens_in_its_own_place_only(own: tuple[Purpose, int, str], other: tuple[Purpose, int, str]) -> None:
    purpose, version, id = own
    row = SEALER.seal(Secret.from_bytes(b"1234"), id, purpose, version=version)
    moved = replace(row, purpose=other[0], version=other[1], id=other[2])
    if own == other:
        assert bytes_of(SEALER.open(moved)) == b"1234"
    else:
        with pytest.raises(SealError, match="moved, changed or damaged"):
            SEALER.open(moved)


def test_ids_with_bars_are_not_taken_for_other_places() -> None:
    row = SEALER.seal(Secret.from_bytes(b"1234"), "1|x", "pin", version=1)
    for id, version in (("x", 1), ("x", 11), ("|x", 1), ("1|1|x", 1)):
        with pytest.raises(SealError):
            SEALER.open(replace(row, id=id, version=version))


def test_the_context_is_what_the_docstring_says() -> None:
    row = SEALER.seal(Secret.from_bytes(b"1234"), "pin:p0", "pin", version=3)
    data_key = bytes_of(MASTER.open(DATA_KEY_ROW))
    assert open_by_hand(data_key, b"xksfast|secrets|pin|3|pin:p0", row.sealed) == b"1234"


def test_changed_and_cut_bytes_do_not_open() -> None:
    row = SEALER.new_local_key("k")
    pages = SecretPages.new(1)
    for i in range(len(row.sealed)):
        for sealed in (row.sealed[:i] + bytes([row.sealed[i] ^ 0x10]) + row.sealed[i + 1 :], row.sealed[:i]):
            problems = SEALER.open_all_into({0: replace(row, sealed=sealed)}, pages)
            assert str(problems[0]).startswith("secret 'k' (local_key, version 1) does not open")
    assert slot(pages, 0) == bytes(32)


def test_a_local_key_comes_into_a_slot() -> None:
    row = SEALER.new_local_key("k")
    pages = SecretPages.new(2)
    assert SEALER.open_all_into({1: row}, pages) == {}
    assert slot(pages, 1) == bytes_of(SEALER.open(row)) != bytes(32)
    assert row.purpose == "local_key"
    assert bytes_of(SEALER.open(SEALER.new_local_key("k"))) != slot(pages, 1)


def test_many_local_keys_open_under_the_data_key_of_each_and_those_that_do_not_are_told() -> None:
    rotation = SEALER.rotate_data_key(MASTER, [SEALER.new_local_key(f"k{number}") for number in range(3)], now=1)
    old = [SEALER.new_local_key(f"old{number}") for number in range(3)]
    unknown, _ = Sealer.new(MASTER, now=0)
    rows = [rotation.rows[0], old[0], replace(old[1], id="another"), rotation.rows[1], unknown.new_local_key("theirs"), old[2]]
    pages = SecretPages.new(2 * len(rows))
    slots = [2 * number + 1 for number in range(len(rows))]
    problems = rotation.sealer.open_all_into(dict(zip(slots, rows, strict=True)), pages)
    assert set(problems) == {slots[2], slots[4]}
    assert "'another' (local_key, version 1) does not open" in str(problems[slots[2]])
    assert "which the state does not have" in str(problems[slots[4]])
    for number, at in enumerate(slots):
        expected = bytes(32) if at in problems else bytes_of(rotation.sealer.open(rows[number]))
        assert slot(pages, at) == expected
        assert slot(pages, at - 1) == bytes(32)


@pytest.mark.requirement(128)
def test_a_credential_is_shown_once_and_gives_signing_keys() -> None:
    row, text = SEALER.new_credential_secret("c")
    assert len(text) == 64
    assert bytes_of(SEALER.open(row)) == text.encode()
    assert text.encode() not in row.sealed
    pages = SecretPages.new(3)
    SEALER.derive_signing_keys(row, ("20261125", "20261126", "20261127"), "us-east-1", pages, 0)
    assert slot(pages, 1) == signing_key_by_hand(text, "20261126", "us-east-1")
    with pytest.raises(SealError, match="'c' \\(credential, version 1\\) does not open"):
        SEALER.derive_signing_keys(replace(row, sealed=row.sealed[:-1]), ("20261125",), "us-east-1", pages, 0)


def test_a_stored_credential_is_handed_to_aws_and_no_other_secret_is() -> None:
    row, text = SEALER.new_credential_secret("c")
    assert SEALER.reveal_credential(row) == text
    with pytest.raises(SealError, match="does not open"):
        SEALER.reveal_credential(replace(row, id="d"))
    for other in (SEALER.new_local_key("k"), SEALER.seal(Secret.from_bytes(b"1234"), "p", "pin")):
        with pytest.raises(SealError, match="only secret access keys"):
            SEALER.reveal_credential(other)
    with pytest.raises(NativeError, match="only a secret access key is revealed"):
        SEALER.open(row).reveal()


def test_neither_rows_nor_errors_show_a_secret() -> None:
    row = SEALER.seal(Secret.from_bytes(b"314159265358"), "p", "pin")
    assert "sealed" not in repr(row)
    with pytest.raises(SealError) as caught:
        SEALER.open(replace(row, id="q"))
    assert "314159" not in str(caught.value)


def test_a_row_of_another_state_is_refused() -> None:
    other, _ = Sealer.new(MASTER, now=0)
    row = other.seal(Secret.from_bytes(b"1234"), "p", "pin")
    with pytest.raises(SealError, match="which the state does not have"):
        SEALER.open(row)
    with pytest.raises(SealError, match="does not open"):
        SEALER.open(replace(row, data_key_id=SEALER.data_key_id))


def test_a_state_is_opened_with_its_rows_and_master_key() -> None:
    row = SEALER.seal(Secret.from_bytes(b"1234"), "p", "pin")
    assert bytes_of(Sealer.open_with(MASTER, [DATA_KEY_ROW]).open(row)) == b"1234"
    with pytest.raises(MasterKeyError, match="sealed under another master key"):
        Sealer.open_with(master(os.urandom(32)), [DATA_KEY_ROW])
    with pytest.raises(SealError, match="no data key"):
        Sealer.open_with(MASTER, [])


# --- MACs


@given(st.binary(max_size=100), st.sampled_from(["checkpoint", "peer"]))
def test_a_mac_holds_for_its_label_and_data_only(data: bytes, label: str) -> None:
    made = SEALER.mac(label, data)
    assert SEALER.verify_mac(label, data, made)
    assert not SEALER.verify_mac(label + "s", data, made)
    assert not SEALER.verify_mac(label, data + b"\0", made)
    assert not SEALER.verify_mac(label, data, b"")
    assert not Sealer.new(MASTER, now=0)[0].verify_mac(label, data, made)


# --- rotation


def some_rows(sealer: Sealer, count: int) -> list[SealedSecret]:
    return [
        sealer.seal(Secret.from_bytes(secrets.token_bytes(1 + i % 64)), f"id-{i}", "pin", version=1 + i) for i in range(count)
    ]


def test_rotating_the_data_key_moves_every_row_and_keeps_the_old_key_until_then() -> None:
    sealer, _ = Sealer.new(MASTER, now=100)
    rows = some_rows(sealer, 40)
    mac = sealer.mac("checkpoint", b"x")
    rotation = sealer.rotate_data_key(MASTER, rows, now=50)  # a clock that went back
    assert rotation.data_key.created_at == 101
    assert {row.data_key_id for row in rotation.rows} == {rotation.data_key.id} == {rotation.sealer.data_key_id}
    for old, new in zip(rows, rotation.rows, strict=True):
        assert (new.id, new.purpose, new.version) == (old.id, old.purpose, old.version + 1)
        assert bytes_of(rotation.sealer.open(new)) == bytes_of(sealer.open(old)) == bytes_of(rotation.sealer.open(old))
        with pytest.raises(SealError):
            sealer.open(new)
        with pytest.raises(SealError):
            rotation.sealer.open(replace(old, version=new.version, data_key_id=new.data_key_id))
    assert rotation.sealer.verify_mac("checkpoint", b"x", mac)
    assert not sealer.verify_mac("checkpoint", b"x", rotation.sealer.mac("checkpoint", b"x"))
    alone = Sealer.open_with(MASTER, [rotation.data_key])
    assert bytes_of(alone.open(rotation.rows[7])) == bytes_of(sealer.open(rows[7]))
    with pytest.raises(SealError, match="does not have"):
        alone.open(rows[7])


def test_a_rotation_does_not_pass_over_a_row_that_does_not_open() -> None:
    sealer, _ = Sealer.new(MASTER, now=0)
    rows = some_rows(sealer, 3)
    rows[1] = replace(rows[1], sealed=bytes(97))
    with pytest.raises(SealError, match="'id-1'"):
        sealer.rotate_data_key(MASTER, rows, now=1)


def test_the_newest_data_key_seals_whatever_the_order_of_the_rows() -> None:
    sealer, first = Sealer.new(MASTER, now=100)
    rotation = sealer.rotate_data_key(MASTER, [], now=200)
    for rows in ([first, rotation.data_key], [rotation.data_key, first]):
        assert Sealer.open_with(MASTER, rows).data_key_id == rotation.data_key.id


def test_rewrapping_changes_the_master_key_and_no_secret() -> None:
    sealer, first = Sealer.new(MASTER, now=100)
    rotation = sealer.rotate_data_key(MASTER, some_rows(sealer, 2), now=200)
    new_master = master(os.urandom(32))
    rewrapped = rotation.sealer.rewrap(new_master)
    assert {row.id: row.created_at for row in rewrapped} == {first.id: 100, rotation.data_key.id: 200}
    reopened = Sealer.open_with(new_master, rewrapped)
    for row in rotation.rows:
        assert bytes_of(reopened.open(row)) == bytes_of(rotation.sealer.open(row))
    with pytest.raises(MasterKeyError):
        Sealer.open_with(MASTER, rewrapped)


class Forgetful:
    """A master key that gives back another data key than it was given."""

    name, options = "file", {"master_key_file": "/m"}

    def wrap(self, data_key: Secret, *, id: str, created_at: int) -> WrappedDataKey:
        return MASTER.wrap(Secret.random(), id=id, created_at=created_at)

    def open(self, row: WrappedDataKey) -> Secret:
        return MASTER.open(row)


def test_a_master_key_that_does_not_give_back_the_data_key_is_not_changed_to() -> None:
    with pytest.raises(SealError, match="keep the old master key"):
        SEALER.rewrap(Forgetful())
