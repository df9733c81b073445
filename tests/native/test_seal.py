# SPDX-License-Identifier: Apache-2.0
"""Sealing and subkeys against the `cryptography` package, which has no part in them."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from xksfast.errors import NativeError
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import (
    Secret,
    SecretPages,
    derive_signing_key,
    mac,
    mac_is_right,
    seal_derive_signing_keys,
    seal_move,
    seal_new_key,
    seal_open,
    seal_open_secret,
    seal_secret,
)
from xksfast.native.loader import ffi, lib

KEY = bytes(range(32))


def bytes_of(secret: Secret) -> bytes:
    """What the product has no function for."""
    length = ffi.new("size_t *")
    return bytes(ffi.buffer(lib.xks_secret_view(secret.pointer, length), length[0]))


def slot(pages: SecretPages, number: int) -> bytes:
    return os.pread(pages.fd, 32, 32 * number)


def expanded(key: bytes, info: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, info).derive(key)


def seal_by_hand(key: bytes, context: bytes, secret: bytes, iv: bytes, form: int = 2) -> bytes:
    header = b"XKSL" + bytes([form])
    plain = len(secret).to_bytes(2, "big") + secret if form == 2 else secret
    plain += bytes(-len(plain) % 64 if form == 2 else 0)
    sealing = expanded(key, b"xksfast seal ") if form == 2 else key
    return header + iv + AESGCM(sealing).encrypt(iv, plain, header + context)


def open_by_hand(key: bytes, context: bytes, sealed: bytes) -> bytes:
    plain = AESGCM(expanded(key, b"xksfast seal ")).decrypt(sealed[5:17], sealed[17:], sealed[:5] + context)
    length = int.from_bytes(plain[:2], "big")
    assert not any(plain[2 + length :])
    return plain[2 : 2 + length]


CONTEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(st.binary(min_size=32, max_size=32), CONTEXTS, st.binary(min_size=1, max_size=1024))
def test_what_is_sealed_is_what_the_layout_says(key: bytes, context: str, secret: bytes) -> None:
    sealed = seal_secret(Secret.from_bytes(key), context, Secret.from_bytes(secret))
    assert open_by_hand(key, context.encode(), sealed) == secret
    assert len(sealed) == 33 + (len(secret) + 2 + 63) // 64 * 64
    assert bytes_of(seal_open_secret(Secret.from_bytes(key), context, sealed)) == secret


@given(CONTEXTS, st.binary(min_size=1, max_size=1024), st.binary(min_size=12, max_size=12))
def test_what_another_program_sealed_by_the_layout_opens(context: str, secret: bytes, iv: bytes) -> None:
    sealed = seal_by_hand(KEY, context.encode(), secret, iv)
    assert bytes_of(seal_open_secret(Secret.from_bytes(KEY), context, sealed)) == secret


def test_format_1_is_the_master_key_itself() -> None:
    sealed = seal_by_hand(KEY, b"xksfast local key|orders", b"k" * 32, bytes(12), form=1)
    assert len(sealed) == 65
    for master in (KEY, KEY.hex().encode()):
        pages = SecretPages.new(1)
        seal_open(Secret.from_bytes(master), "xksfast local key|orders", sealed, pages, 0)
        assert slot(pages, 0) == b"k" * 32
    assert bytes_of(seal_open_secret(Secret.from_bytes(KEY), "xksfast local key|orders", sealed)) == b"k" * 32
    made = seal_new_key(Secret.from_bytes(KEY), "name")
    assert len(AESGCM(KEY).decrypt(made[5:17], made[17:], b"XKSL\x01name")) == 32


@pytest.mark.parametrize("length", [0, 1025, 65535])
def test_an_authentic_text_with_an_impossible_length_is_refused(length: int) -> None:
    header, iv = b"XKSL\x02", bytes(12)
    plain = length.to_bytes(2, "big") + bytes(62)
    sealed = header + iv + AESGCM(expanded(KEY, b"xksfast seal ")).encrypt(iv, plain, header + b"name")
    with pytest.raises(NativeError, match="bad input"):
        seal_open_secret(Secret.from_bytes(KEY), "name", sealed)


def test_every_byte_counts_and_none_may_be_missing() -> None:
    key, sealed = Secret.from_bytes(KEY), seal_secret(Secret.from_bytes(KEY), "name", Secret.from_bytes(b"123456"))
    changed = [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    cut = [sealed[:i] for i in range(len(sealed))]
    for bad in [*changed, *cut, sealed + b"\0", sealed + bytes(64)]:
        with pytest.raises(NativeError):
            seal_open_secret(key, "name", bad)
    with pytest.raises(NativeError, match="not authentic"):
        seal_open_secret(Secret.random(), "name", sealed)
    with pytest.raises(NativeError, match="not authentic"):
        seal_open_secret(key, "other", sealed)


def test_a_context_is_there_and_has_a_bound() -> None:
    key = Secret.from_bytes(KEY)
    seal_open_secret(key, "x" * 1024, seal_secret(key, "x" * 1024, key))
    for context in ("", "x" * 1025):
        with pytest.raises(NativeError, match="bad input"):
            seal_secret(key, context, key)


@pytest.mark.parametrize("key", [b"k" * 31, b"k" * 33, KEY.hex().encode()])
def test_a_data_key_has_32_bytes(key: bytes) -> None:
    with pytest.raises(NativeError, match="config"):
        seal_secret(Secret.from_bytes(key), "name", Secret.from_bytes(b"x"))


@given(st.binary(min_size=1, max_size=1024))
def test_moving_keeps_the_secret_and_binds_it_to_the_new_name(secret: bytes) -> None:
    old, new = Secret.random(), os.urandom(32)
    moved = seal_move(old, "old", seal_secret(old, "old", Secret.from_bytes(secret)), Secret.from_bytes(new), "new")
    assert open_by_hand(new, b"new", moved) == secret
    with pytest.raises(InvalidTag):
        open_by_hand(new, b"old", moved)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=32), st.binary(max_size=200))
def test_a_mac_is_hmac_under_the_expanded_key(label: str, data: bytes) -> None:
    expected = hmac.digest(expanded(KEY, b"xksfast mac " + label.encode()), data, "sha256")
    assert mac(Secret.from_bytes(KEY), label, data) == expected
    assert mac_is_right(Secret.from_bytes(KEY), label, data, expected)
    assert not mac_is_right(Secret.from_bytes(KEY), label + "x", data, expected)
    assert not mac_is_right(Secret.from_bytes(KEY), label, data + b"x", expected)
    assert not mac_is_right(Secret.from_bytes(KEY), label, data, expected[:-1])


def signing_key_by_hand(secret: str, day: str, region: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (day, region, "kms-xks-proxy", "aws4_request"):
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    return key


def test_signing_keys_of_several_days_come_from_one_sealed_secret() -> None:
    key, secret = Secret.random(), Secret.random_text(64)
    sealed = seal_secret(key, "c", secret)
    text, pages = secret.reveal(), SecretPages.new(5)
    seal_derive_signing_keys(key, "c", sealed, "202611252026112620261127", "eu-west-1", pages, 1)
    days = ("20261125", "20261126", "20261127")
    assert [slot(pages, 1 + i) for i in range(3)] == [signing_key_by_hand(text, day, "eu-west-1") for day in days]
    assert slot(pages, 0) == slot(pages, 4) == bytes(32)
    derive_signing_key(secret, "20261126", "eu-west-1", pages, 4)
    assert slot(pages, 4) == slot(pages, 2)
    with pytest.raises(ValueError, match="YYYYMMDD"):
        seal_derive_signing_keys(key, "c", sealed, "2026112", "eu-west-1", pages, 0)


@pytest.mark.requirement(128)
def test_a_new_secret_access_key_is_as_kms_wants_it_and_shown_once() -> None:
    seen = set()
    for _ in range(50):
        secret = Secret.random_text()
        text = secret.reveal()
        assert len(text) == 43
        assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
        assert bytes_of(secret) == text.encode()
        seen.add(text)
        with pytest.raises(NativeError, match="revealed, and once"):
            secret.reveal()
    assert len(seen) == 50
    for other in (Secret.from_bytes(b"x" * 43), Secret.random(43)):
        with pytest.raises(NativeError, match="revealed, and once"):
            other.reveal()


@pytest.mark.parametrize("data", [b"k" * 31 + b"\n", KEY, KEY.hex().encode(), KEY.hex().encode() + b"\n"])
def test_a_key_file_is_32_bytes_or_64_digits(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    assert bytes_of(Secret.key_from_file(path)) == (data if len(data) == 32 else KEY)


def test_a_slot_is_filled_and_emptied_by_two_holders_of_the_pages() -> None:
    ours = SecretPages.new(2)
    theirs = SecretPages.share(ours.fd)
    theirs.put(1, Secret.from_bytes(KEY))
    del theirs  # frees its mapping and leaves the bytes
    assert AesGcmKey(ours, 1).encrypt(b"text", b"", bytes(12))[1] == AESGCM(KEY).encrypt(bytes(12), b"text", None)[:4]
    assert bytes_of(ours.take(1)) == KEY
    assert slot(ours, 1) == bytes(32)
    with pytest.raises(NativeError, match="not permitted"):
        SecretPages.open(ours.fd).take(0)
    with pytest.raises(NativeError, match="bad input"):
        ours.put(0, Secret.from_bytes(b"short"))
