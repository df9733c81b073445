# SPDX-License-Identifier: Apache-2.0
"""Base64, AAD, CDIV, JSON members, secrets and sealing, through the C that serves requests."""

from __future__ import annotations

import base64
import calendar
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xksfast.errors import NativeError
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import (
    Secret,
    SecretPages,
    base64_decode,
    base64_encode,
    cdiv,
    compose_aad,
    json_members_are_unique,
    read_metadata,
    seal_new_key,
    seal_open,
    utc_day,
    write_metadata,
)

requirement = pytest.mark.requirement


@given(st.binary(max_size=200))
def test_base64_agrees_with_python(data: bytes) -> None:
    assert base64_encode(data) == base64.b64encode(data)
    assert base64_decode(base64.b64encode(data)) == data


@given(st.text("AQgw+/=-_ \n", max_size=12).map(str.encode))
def test_only_what_base64_itself_writes_is_read(text: bytes) -> None:
    try:
        decoded = base64_decode(text)
    except NativeError:
        return
    assert base64.b64encode(decoded) == text


@requirement(63, 64)
@given(st.binary(max_size=300), st.binary(max_size=20))
def test_aad_is_composed_with_both_lengths(aad: bytes, metadata: bytes) -> None:
    expected = len(aad).to_bytes(2, "big") + aad + len(metadata).to_bytes(1, "big") + metadata
    assert compose_aad(aad, metadata) == expected


@given(st.integers(1, 2**32 - 1))
def test_metadata_carries_every_version(version: int) -> None:
    assert write_metadata(version) == b"\xa5" + version.to_bytes(4, "big")
    assert read_metadata(write_metadata(version)) == version


@given(st.binary(max_size=20))
def test_what_is_read_as_our_metadata_was_written_by_us(metadata: bytes) -> None:
    version = read_metadata(metadata)
    assert version is None or write_metadata(version) == metadata


@requirement(59, 67)
@pytest.mark.parametrize(("aad", "metadata"), [(65536, 0), (0, 21)])
def test_aad_parts_over_their_limits_are_refused(aad: int, metadata: int) -> None:
    with pytest.raises(NativeError, match="too long"):
        compose_aad(bytes(aad), bytes(metadata))
    assert len(compose_aad(bytes(65535), bytes(20))) == 3 + 65535 + 20


@requirement(68, 73)
def test_the_cdiv_vector_of_the_api_is_reproduced() -> None:
    parts = [
        "cHJvamVjdD1uaWxlLGRlcGFydG1lbnQ9bWFya2V0aW5n", "a2V5X3ZlcnNpb249MQ==", "HMrlRw85cAJUd5Ax", "ghxkK1txeDNn3q8Y",
        "vBxN2ncH1oEkR8WVXpmyYQ==",
    ]  # fmt: skip
    assert (
        base64.b64encode(cdiv(*(base64.b64decode(part) for part in parts))) == b"qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc="
    )


@given(st.lists(st.binary(max_size=60), min_size=5, max_size=5))
def test_cdiv_is_the_plain_hash_of_its_parts(parts: list[bytes]) -> None:
    assert cdiv(*parts) == hashlib.sha256(b"".join(parts)).digest()


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_documents_without_repeated_members_pass(document: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert json_members_are_unique(text) == (depth(document) <= 16)


@pytest.mark.parametrize(
    ("text", "unique"),
    [
        (b'{"a":1,"a":2}', False), (b'{"a":1,"b":{"a":1},"c":[{"a":1},{"a":1}]}', True), (b'{"a":1,"\\u0061":2}', False),
        (b'{"a\\"":1,"a\\"":2}', False), (b'{"a":"a","b":"a"}', True), (b'{"x":[{"y":1,"y":2}]}', False),
        (b'{"a" : 1 , "a" : 2}', False), (b'{"a":{"b":1},"b":2}', True), (b'{"":1,"":2}', False), (b'{"a":1,"A":2}', True),
        (b'{"\\/":1,"/":2}', False), (b'{"\\n":1,"\\u000a":2}', False), (b"[1,2]", True), (b'["a","a"]', True), (b'{"a', False),
        (b"{", False), (b"}", False), (b"[}", False), (b"[" * 17 + b"]" * 17, False), (b"[" * 16 + b"]" * 16, True),
    ],
)  # fmt: skip
def test_repeated_members_are_found(text: bytes, unique: bool) -> None:
    assert json_members_are_unique(text) is unique


@pytest.mark.parametrize(("count", "allowed"), [(128, True), (129, False)])
def test_the_number_of_members_is_bounded(count: int, allowed: bool) -> None:
    assert json_members_are_unique(json.dumps({str(i): i for i in range(count)}).encode()) is allowed


@given(st.integers(0, 253402300799))
def test_utc_days_agree_with_python(moment: int) -> None:
    assert utc_day(moment) == time.strftime("%Y%m%d", time.gmtime(moment)).rjust(8, "0")


@pytest.mark.parametrize("day", ["19700101", "20000229", "20240229", "21000301", "99991231"])
def test_days_around_leap_years_are_right(day: str) -> None:
    moment = calendar.timegm(time.strptime(day, "%Y%m%d"))
    assert utc_day(moment) == utc_day(moment + 86399) == day


class TestSecrets:
    """Files of secrets, and keys at rest."""

    def file(self, directory: Path, text: bytes, mode: int = 0o600) -> Path:
        path = directory / "secret"
        path.write_bytes(text)
        path.chmod(mode)
        return path

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
    def test_a_file_that_others_can_touch_is_refused_with_the_command(self, tmp_path: Path, mode: int) -> None:
        path = self.file(tmp_path, b"x\n", mode)
        with pytest.raises(NativeError, match=f"run chmod 600 {path}"):
            Secret.from_file(path)

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_a_private_file_is_read(self, tmp_path: Path, mode: int) -> None:
        Secret.from_file(self.file(tmp_path, b"x\n", mode))

    @pytest.mark.parametrize("text", [b"", b"\n", b"\r\n"])
    def test_an_empty_file_is_refused(self, tmp_path: Path, text: bytes) -> None:
        with pytest.raises(NativeError, match="is empty"):
            Secret.from_file(self.file(tmp_path, text))

    def test_a_directory_an_absent_and_a_huge_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(NativeError, match="not a regular file"):
            Secret.from_file(tmp_path)
        with pytest.raises(NativeError, match="No such file"):
            Secret.from_file(tmp_path / "absent")
        with pytest.raises(NativeError, match="too long"):
            Secret.from_file(self.file(tmp_path, b"x" * 5000))

    def test_a_variable_must_be_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XKS_TEST_PIN", raising=False)
        with pytest.raises(NativeError, match="XKS_TEST_PIN is not set"):
            Secret.from_environment("XKS_TEST_PIN")
        monkeypatch.setenv("XKS_TEST_PIN", "1234")
        Secret.from_environment("XKS_TEST_PIN")

    def test_a_sealed_key_opens_only_under_its_master_key_and_name(self) -> None:
        master, pages = Secret.from_bytes(os.urandom(32)), SecretPages.new(2)
        sealed = seal_new_key(master, "name")
        assert len(sealed) == 65
        seal_open(master, "name", sealed, pages, 0)
        seal_open(master, "name", sealed, pages, 1)
        iv, ciphertext, tag = AesGcmKey(pages, 0).encrypt(b"text", b"aad")
        assert AesGcmKey(pages, 1).decrypt(iv, ciphertext, tag, b"aad") == b"text"
        for bad in (
            (Secret.from_bytes(os.urandom(32)), "name", sealed),
            (master, "other", sealed),
            (master, "name", sealed[:-1]),
            (master, "name", sealed + b"x"),
            *((master, "name", sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]) for i in range(65)),
        ):
            with pytest.raises(NativeError):
                seal_open(*bad, pages, 0)

    @pytest.mark.parametrize("master", [b"x" * 31, b"x" * 33, b"g" * 64, b"0" * 63])
    def test_a_master_key_of_another_form_is_refused(self, master: bytes) -> None:
        with pytest.raises(NativeError, match="32 bytes or 64 hexadecimal digits"):
            seal_new_key(Secret.from_bytes(master), "name")

    def test_pages_pass_to_another_reader_and_cannot_be_written_there(self) -> None:
        pages = SecretPages.new(3)
        pages.write(2, b"k" * 32)
        reader = SecretPages.open(pages.fd)
        assert len(reader) == 3
        with pytest.raises(NativeError):
            reader.write(2, b"x" * 32)
        iv, ciphertext, tag = AesGcmKey(reader, 2).encrypt(b"text", b"")
        assert AesGcmKey(pages, 2).decrypt(iv, ciphertext, tag, b"") == b"text"
        with pytest.raises(IndexError):
            AesGcmKey(reader, 3)

    def test_a_file_that_could_shrink_is_no_secret_page(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, bytes(64))
        fd = os.open(path, os.O_RDWR)
        with pytest.raises(NativeError, match="does not hold secret pages"):
            SecretPages.open(fd)
        os.close(fd)
