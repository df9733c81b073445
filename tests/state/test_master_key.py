# SPDX-License-Identifier: Apache-2.0
"""Where the master key comes from: file, systemd credential, passphrase. The token is in tests/admin/test_token_master.py."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from argon2.low_level import Type, hash_secret_raw
from msgspec.structs import replace

from tests.native.test_seal import bytes_of
from xksfast.config import State
from xksfast.errors import NativeError, OperatorError
from xksfast.native.crypto import Secret
from xksfast.native.passphrase import derive_key
from xksfast.state.master_key import (
    KeyMaster,
    MasterKey,
    MasterKeyError,
    PassphraseMaster,
    Stretching,
    TokenMaster,
    configured_master_key,
    new_data_key,
)
from xksfast.state.records import WrappedDataKey

QUICK = Stretching(memory_kib=64, iterations=1)
PASSPHRASE = "correct horse battery staple"


def no_token(partition: str, label: str) -> Any:
    raise AssertionError("no token is configured")


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def file_master(path: Path) -> MasterKey:
    return configured_master_key(State(master_key_file=str(path)), no_token)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return private(tmp_path / "master.key", secrets.token_hex(32) + "\n")


def quick(path: Path) -> PassphraseMaster:
    return PassphraseMaster({"master_key_passphrase_file": str(path)}, lambda: Secret.from_file(path), QUICK)


# --- a file


def test_a_data_key_opens_again_under_its_master_key(key_file: Path) -> None:
    row, data_key = new_data_key(file_master(key_file), now=7)
    assert (row.provider, row.created_at, len(row.wrapped)) == ("file", 7, 97)
    assert row.parameters.keys() == {"master_key_file", "fingerprint"}
    assert bytes_of(file_master(key_file).open(row)) == bytes_of(data_key)
    assert len(bytes_of(data_key)) == 32
    assert bytes_of(new_data_key(file_master(key_file), now=7)[1]) != bytes_of(data_key)


def test_a_moved_file_is_the_same_master_key(key_file: Path, tmp_path: Path) -> None:
    row, data_key = new_data_key(file_master(key_file), now=0)
    key_file.rename(tmp_path / "elsewhere.key")
    assert bytes_of(file_master(tmp_path / "elsewhere.key").open(row)) == bytes_of(data_key)


def test_another_master_key_is_refused_with_both_fingerprints(key_file: Path, tmp_path: Path) -> None:
    row, _ = new_data_key(file_master(key_file), now=0)
    other = private(tmp_path / "other.key", secrets.token_hex(32))
    foreign, _ = new_data_key(file_master(other), now=0)
    with pytest.raises(MasterKeyError) as caught:
        file_master(other).open(row)
    text = str(caught.value)
    assert f"master_key_file = '{key_file}' with the fingerprint {row.parameters['fingerprint']}" in text
    assert f"master_key_file = '{other}' holds one with the fingerprint {foreign.parameters['fingerprint']}" in text
    assert "rotate the master key" in text
    assert key_file.read_text().strip() not in text


def test_a_changed_row_is_told_from_a_wrong_master_key(key_file: Path) -> None:
    master = file_master(key_file)
    row, _ = new_data_key(master, now=0)
    for i in range(len(row.wrapped)):
        wrapped = row.wrapped[:i] + bytes([row.wrapped[i] ^ 1]) + row.wrapped[i + 1 :]
        with pytest.raises(MasterKeyError, match="changed or damaged: restore the state from a backup"):
            master.open(replace(row, wrapped=wrapped))
    with pytest.raises(MasterKeyError, match="changed or damaged"):
        master.open(replace(row, id="another"))


def test_the_file_keeps_the_rules_of_secret_files(key_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file"):
        new_data_key(file_master(tmp_path / "gone"), now=0)
    key_file.chmod(0o640)
    with pytest.raises(OperatorError, match="run chmod 600"):
        new_data_key(file_master(key_file), now=0)
    with pytest.raises(OperatorError, match="32 bytes or 64 lower-case hexadecimal digits"):
        new_data_key(file_master(private(tmp_path / "short", "abc")), now=0)


# --- a systemd credential


def credential_master(name: str) -> MasterKey:
    return configured_master_key(State(master_key_credential=name), no_token)


@pytest.mark.parametrize("mode", [0o400, 0o440])  # 0440: how systemd's ACL for the service's user shows
def test_a_credential_is_read_from_the_directory_that_systemd_names(
    key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    directory = tmp_path / "credentials" / "xksfast.service"
    directory.mkdir(parents=True)
    private(directory / "xksfast-master", key_file.read_text(), mode)
    directory.chmod(0o500)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    row, data_key = new_data_key(credential_master("xksfast-master"), now=0)
    assert (row.provider, row.parameters["master_key_credential"]) == ("credential", "xksfast-master")
    assert bytes_of(credential_master("xksfast-master").open(row)) == bytes_of(data_key)
    assert bytes_of(file_master(key_file).open(row)) == bytes_of(data_key), "the same key in a file is the same master key"
    with pytest.raises(NativeError, match="No such file"):
        credential_master("other").open(row)


def test_a_credential_that_anybody_may_read_is_refused(key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private(tmp_path / "cred", key_file.read_text(), 0o444)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(NativeError, match="open to others"):
        new_data_key(credential_master("cred"), now=0)


def test_no_credentials_directory_is_said_with_the_line_for_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(MasterKeyError, match="LoadCredentialEncrypted=xksfast-master:FILE"):
        new_data_key(credential_master("xksfast-master"), now=0)


# --- a passphrase


@pytest.mark.parametrize(("memory_kib", "iterations", "parallelism"), [(8, 1, 1), (64, 3, 1), (256, 2, 4)])
def test_the_key_is_argon2id_as_argon2_cffi_computes_it(memory_kib: int, iterations: int, parallelism: int) -> None:
    salt = os.urandom(16)
    key = derive_key(
        Secret.from_bytes(PASSPHRASE.encode()), salt, memory_kib=memory_kib, iterations=iterations, parallelism=parallelism
    )
    assert bytes_of(key) == hash_secret_raw(PASSPHRASE.encode(), salt, iterations, memory_kib, parallelism, 32, Type.ID)


def test_numbers_that_argon2_refuses_are_an_error_in_words() -> None:
    with pytest.raises(NativeError, match=r"argon2id: .*[Ss]alt"):
        derive_key(Secret.from_bytes(b"passphrase"), b"short", memory_kib=64, iterations=1, parallelism=1)


def test_a_passphrase_opens_what_it_wrapped_with_the_costs_in_the_row(tmp_path: Path) -> None:
    path = private(tmp_path / "passphrase", PASSPHRASE + "\n")
    row, data_key = new_data_key(quick(path), now=0)
    assert row.provider == "passphrase"
    assert (row.parameters["kdf"], row.parameters["memory_kib"], row.parameters["iterations"]) == ("argon2id", 64, 1)
    usual = PassphraseMaster({}, lambda: Secret.from_file(path))
    assert bytes_of(usual.open(row)) == bytes_of(data_key)
    salts = {new_data_key(quick(path), now=0)[0].parameters["salt"] for _ in range(3)}
    assert len(salts | {row.parameters["salt"]}) == 4


def test_the_configured_costs_are_64_mib_and_three_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XKS_TEST_PASSPHRASE", PASSPHRASE)
    by_variable = configured_master_key(State(master_key_passphrase_env="XKS_TEST_PASSPHRASE"), no_token)
    row = by_variable.wrap(Secret.from_bytes(bytes(32)), id="k", created_at=0)
    given = row.parameters
    assert (given["memory_kib"], given["iterations"], given["parallelism"]) == (65536, 3, 1)
    assert given["master_key_passphrase_env"] == "XKS_TEST_PASSPHRASE"
    path = private(tmp_path / "passphrase", PASSPHRASE)
    by_file = configured_master_key(State(master_key_passphrase_file=str(path)), no_token)
    assert bytes_of(by_file.open(row)) == bytes(32)


def test_a_wrong_and_a_short_passphrase_are_refused(tmp_path: Path) -> None:
    row, _ = new_data_key(quick(private(tmp_path / "a", PASSPHRASE)), now=0)
    with pytest.raises(MasterKeyError, match="sealed under another master key") as caught:
        quick(private(tmp_path / "b", PASSPHRASE + "!")).open(row)
    assert PASSPHRASE not in str(caught.value)
    with pytest.raises(MasterKeyError, match="fewer than 12 characters"):
        new_data_key(quick(private(tmp_path / "c", "hunter2")), now=0)


@pytest.mark.parametrize(
    "change",
    [
        {"salt": "!"}, {"salt": ""}, {"salt": 7}, {"memory_kib": 2**40}, {"memory_kib": "x"}, {"iterations": 10**6},
        {"parallelism": 0}, {"kdf": "scrypt"}, {"salt": base64.b64encode(bytes(65)).decode()},
    ],
)  # fmt: skip
def test_a_row_with_absurd_costs_is_refused_before_they_are_paid(tmp_path: Path, change: dict[str, Any]) -> None:
    master = quick(private(tmp_path / "a", PASSPHRASE))
    row, _ = new_data_key(master, now=0)
    with pytest.raises(MasterKeyError, match="parameters were changed"):
        master.open(replace(row, parameters=row.parameters | change))


def test_a_changed_salt_or_cost_does_not_open(tmp_path: Path) -> None:
    master = quick(private(tmp_path / "a", PASSPHRASE))
    row, _ = new_data_key(master, now=0)
    for change in ({"iterations": 2}, {"salt": base64.b64encode(bytes(16)).decode()}):
        with pytest.raises(MasterKeyError):
            master.open(replace(row, parameters=row.parameters | change))


# --- which one


def test_another_kind_of_master_key_is_refused_with_the_one_that_sealed(key_file: Path, tmp_path: Path) -> None:
    row, _ = new_data_key(file_master(key_file), now=0)
    path = private(tmp_path / "passphrase", PASSPHRASE)
    with pytest.raises(MasterKeyError) as caught:
        quick(path).open(row)
    assert f"sealed under the master key of master_key_file = '{key_file}'" in str(caught.value)
    assert f"[state] has master_key_passphrase_file = '{path}'" in str(caught.value)


def test_no_master_key_and_two_are_refused() -> None:
    with pytest.raises(MasterKeyError, match=r"openssl rand -hex 32.*master_key_partition"):
        configured_master_key(State(), no_token)
    with pytest.raises(MasterKeyError, match="master_key_file and master_key_credential"):
        configured_master_key(State(master_key_file="a", master_key_credential="b"), no_token)


class PlainToken:
    """Wraps by adding nothing: what TokenMaster does with a token, without one."""

    def __init__(self) -> None:
        self.contexts: list[str] = []

    def wrap(self, data_key: Secret, context: str) -> bytes:
        self.contexts.append(context)
        return bytes_of(data_key)

    def unwrap(self, wrapped: bytes, context: str) -> Secret:
        self.contexts.append(context)
        if len(wrapped) != 32:
            raise OperatorError("partition p0: another key")
        return Secret.from_bytes(wrapped)


def test_a_token_is_asked_for_by_partition_and_label() -> None:
    token, asked = PlainToken(), []

    def find(partition: str, label: str) -> PlainToken:
        asked.append((partition, label))
        return token

    master = configured_master_key(State(master_key_partition="p0"), find)
    assert isinstance(master, TokenMaster)
    row, _ = new_data_key(master, now=0)
    assert asked == [("p0", "xksfast-master")]
    assert row.parameters == {"master_key_partition": "p0", "master_key_label": "xksfast-master"}
    assert token.contexts == [f"xksfast|data_keys|{row.id}"] * 2
    with pytest.raises(MasterKeyError, match=r"wrapped under master_key_partition = 'p0'.*partition p0: another key"):
        master.open(replace(row, wrapped=b"x"))


def test_a_row_does_not_show_its_bytes(key_file: Path) -> None:
    row, _ = new_data_key(file_master(key_file), now=0)
    assert "wrapped" not in repr(row)
    assert isinstance(row, WrappedDataKey)


def test_a_key_is_read_anew_each_time() -> None:
    reads = []

    def read() -> Secret:
        reads.append(1)
        return Secret.from_bytes(bytes(32))

    master = KeyMaster("file", {"master_key_file": "x"}, read)
    row, _ = new_data_key(master, now=0)
    master.open(row)
    assert len(reads) == 3
