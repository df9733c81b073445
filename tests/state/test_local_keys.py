# SPDX-License-Identifier: Apache-2.0
"""Sealed `local` keys: made once, never overwritten, opened only under their own name and master key."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from xksfast.errors import OperatorError
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import SecretPages
from xksfast.state.local_keys import LocalKeyFiles


def master_key(path: Path) -> str:
    path.write_text(secrets.token_hex(32) + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def keys(tmp_path: Path) -> LocalKeyFiles:
    return LocalKeyFiles(tmp_path / "local-keys", master_key(tmp_path / "master.key"))


def opened(keys: LocalKeyFiles, label: str) -> AesGcmKey:
    pages = SecretPages.new(2)
    keys.unseal(label, pages, 1)
    return AesGcmKey(pages, 1)


def test_a_key_is_made_once_and_opens_to_the_same_key(keys: LocalKeyFiles, tmp_path: Path) -> None:
    assert keys.ensure("orders")
    sealed = (tmp_path / "local-keys" / "orders.key").read_bytes()
    iv, ciphertext, tag = opened(keys, "orders").encrypt(b"hello", b"aad")
    assert keys.ensure("orders") is False
    assert (tmp_path / "local-keys" / "orders.key").read_bytes() == sealed
    assert opened(keys, "orders").decrypt(iv, ciphertext, tag, b"aad") == b"hello"


def test_key_files_are_sealed_private_and_leave_nothing_beside_them(keys: LocalKeyFiles, tmp_path: Path) -> None:
    keys.ensure("a.b")
    directory = tmp_path / "local-keys"
    assert [path.name for path in directory.iterdir()] == ["a.b.key"]
    assert len((directory / "a.b.key").read_bytes()) == 65
    assert (directory / "a.b.key").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


def test_two_keys_differ(keys: LocalKeyFiles) -> None:
    keys.ensure("a")
    keys.ensure("b")
    iv, ciphertext, tag = opened(keys, "a").encrypt(b"hello", b"")
    with pytest.raises(OperatorError):
        opened(keys, "b").decrypt(iv, ciphertext, tag, b"")


def test_a_key_moved_to_another_name_does_not_open(keys: LocalKeyFiles, tmp_path: Path) -> None:
    keys.ensure("a")
    (tmp_path / "local-keys" / "a.key").rename(tmp_path / "local-keys" / "b.key")
    with pytest.raises(OperatorError, match="sealed under another master key or name, or was changed"):
        opened(keys, "b")


def test_a_key_does_not_open_under_another_master_key(keys: LocalKeyFiles, tmp_path: Path) -> None:
    keys.ensure("a")
    other = LocalKeyFiles(tmp_path / "local-keys", master_key(tmp_path / "other.key"))
    with pytest.raises(OperatorError, match="another master key"):
        opened(other, "a")


@pytest.mark.parametrize("position", [0, 4, 5, 30, 64])
def test_an_edited_file_does_not_open(keys: LocalKeyFiles, tmp_path: Path, position: int) -> None:
    keys.ensure("a")
    path = tmp_path / "local-keys" / "a.key"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(OperatorError, match="does not open"):
        opened(keys, "a")


def test_a_key_that_is_not_there_is_said_with_the_remedy(keys: LocalKeyFiles) -> None:
    with pytest.raises(OperatorError, match="set create = true, or restore the file"):
        opened(keys, "gone")


def test_no_master_key_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="master_key_file"):
        LocalKeyFiles(tmp_path, "").ensure("a")


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keys = LocalKeyFiles(tmp_path / "file", master_key(tmp_path / "master.key"))
    with pytest.raises(OperatorError, match="cannot be written"):
        keys.ensure("a")
