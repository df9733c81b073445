# SPDX-License-Identifier: Apache-2.0
"""Where the master key comes from, and the data key wrapped under it.

The master key wraps one small thing, the data key; the data key seals every secret (sealing.py). So the master key can change without
touching a secret, and may live where it never leaves: in a token. No master key is kept: it is read, used and wiped each time. What
must not be here: PKCS#11; a token is reached through what `Token` says. A newcomer's trap: a data key that does not open is told apart,
wrong master key or changed bytes, by the fingerprint that stands beside it.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from xksfast.config import State
from xksfast.errors import NativeError, OperatorError
from xksfast.native.crypto import Secret, mac, seal_open_secret, seal_secret
from xksfast.native.passphrase import derive_key
from xksfast.state.records import WrappedDataKey

DATA_KEY_BYTES = 32
FINGERPRINT_BYTES = 8
MIN_PASSPHRASE_BYTES = 12
SALT_BYTES = 16


class MasterKeyError(OperatorError):
    """The data key cannot be wrapped or opened. The text says which master key the state was sealed under and what to do."""


class MasterKey(Protocol):
    """A way to the master key. name: of the provider, as in data_keys. options: the [state] options that say where it is."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> dict[str, str]: ...

    def wrap(self, data_key: Secret, *, id: str, created_at: int) -> WrappedDataKey:
        """The data key under this master key. MasterKeyError when it cannot be had."""
        ...

    def open(self, row: WrappedDataKey) -> Secret:
        """The data key. MasterKeyError says whether the master key is another one or the row was changed."""
        ...


class Token(Protocol):
    """A token that wraps data keys of 32 bytes without letting its key out. OperatorError says what is wrong."""

    def wrap(self, data_key: Secret, context: str) -> bytes: ...

    def unwrap(self, wrapped: bytes, context: str) -> Secret: ...


def new_data_key(master: MasterKey, *, now: int) -> tuple[WrappedDataKey, Secret]:
    """A new random data key, wrapped; what is returned was opened from the row, so a row that does not open is not stored."""
    row = master.wrap(Secret.random(DATA_KEY_BYTES), id=secrets.token_hex(8), created_at=now)
    return row, master.open(row)


def configured_master_key(state: State, token: Callable[[str, str], Token]) -> MasterKey:
    """The provider that [state] names. token: partition, label -> the token. MasterKeyError when none is named."""
    options = state.master_key_options
    if len(options) > 1:
        raise MasterKeyError(f"[state] has {' and '.join(options)}: keep the one that holds the master key")
    match options:
        case {"master_key_file": path}:
            return KeyMaster("file", options, lambda: Secret.key_from_file(path))
        case {"master_key_credential": name}:
            return KeyMaster("credential", options, lambda: _credential(name))
        case {"master_key_passphrase_file": path}:
            return PassphraseMaster(options, lambda: Secret.from_file(path))
        case {"master_key_passphrase_env": name}:
            return PassphraseMaster(options, lambda: Secret.from_environment(name))
        case {"master_key_partition": partition}:
            label = state.master_key_label
            return TokenMaster(options | {"master_key_label": label}, token(partition, label))
        case _:
            raise MasterKeyError(
                "secrets need a master key: set [state] master_key_file to a 0600 file with 64 hexadecimal digits "
                "(openssl rand -hex 32), or one of master_key_credential, master_key_passphrase_file, master_key_passphrase_env "
                "and master_key_partition"
            )


def _credential(name: str) -> Secret:
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        raise MasterKeyError(
            f"master_key_credential = {name!r}: systemd has passed no credential (CREDENTIALS_DIRECTORY is not set): add "
            f"LoadCredentialEncrypted={name}:FILE or LoadCredential={name}:FILE to the unit, or name master_key_file"
        )
    return Secret.key_from_file(Path(directory) / name, group_may_read=True)


# --- a key of 32 bytes


class KeyMaster:
    """Providers "file" and "credential": the same bytes may come by either. read: the key, each time anew."""

    interchangeable = ("file", "credential")

    def __init__(self, name: str, options: Mapping[str, str], read: Callable[[], Secret]) -> None:
        self.name = name
        self.options = dict(options)
        self._read = read

    def wrap(self, data_key: Secret, *, id: str, created_at: int) -> WrappedDataKey:
        return _wrap_under(self._read(), data_key, self, {}, id, created_at)

    def open(self, row: WrappedDataKey) -> Secret:
        _check_provider(self, row, self.interchangeable)
        return _open_under(self._read(), row, self)


# --- a passphrase


@dataclass(frozen=True, slots=True)
class Stretching:
    """Costs of argon2id. The bounds are for rows that come back: nobody's row shall make us take 100 GB or an hour for it."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    parallelism: int = 1

    def are_sane(self) -> bool:
        """Whether we would do that."""
        return 8 <= self.memory_kib <= 1024 * 1024 and 1 <= self.iterations <= 20 and 1 <= self.parallelism <= 16


class PassphraseMaster:
    """Provider "passphrase": argon2id, with a new salt for each wrapping; salt and costs stand in the row."""

    name = "passphrase"

    def __init__(self, options: Mapping[str, str], read: Callable[[], Secret], costs: Stretching = Stretching()) -> None:
        self.options = dict(options)
        self._read = read
        self._costs = costs

    def wrap(self, data_key: Secret, *, id: str, created_at: int) -> WrappedDataKey:
        salt = os.urandom(SALT_BYTES)
        parameters = {
            "kdf": "argon2id",
            "salt": base64.b64encode(salt).decode("ascii"),
            "memory_kib": self._costs.memory_kib,
            "iterations": self._costs.iterations,
            "parallelism": self._costs.parallelism,
        }
        return _wrap_under(self._key(salt, self._costs), data_key, self, parameters, id, created_at)

    def open(self, row: WrappedDataKey) -> Secret:
        _check_provider(self, row, (self.name,))
        salt, costs = _stretching_of(row)
        return _open_under(self._key(salt, costs), row, self)

    def _key(self, salt: bytes, costs: Stretching) -> Secret:
        passphrase = self._read()
        if passphrase.view()[1] < MIN_PASSPHRASE_BYTES:
            raise MasterKeyError(
                f"{_words(self.options)}: the passphrase has fewer than {MIN_PASSPHRASE_BYTES} characters: take a longer one, "
                "such as six words drawn at random"
            )
        return derive_key(
            passphrase, salt, memory_kib=costs.memory_kib, iterations=costs.iterations, parallelism=costs.parallelism
        )


def _stretching_of(row: WrappedDataKey) -> tuple[bytes, Stretching]:
    given = row.parameters
    try:
        salt = base64.b64decode(given["salt"], validate=True)
        costs = Stretching(*(int(given[name]) for name in ("memory_kib", "iterations", "parallelism")))
    except (KeyError, TypeError, ValueError, binascii.Error):
        salt, costs = b"", Stretching()
    if given.get("kdf") != "argon2id" or not 8 <= len(salt) <= 64 or not costs.are_sane():
        raise MasterKeyError(
            f"data key {row.id}: its argon2id parameters were changed, or a newer xksfast wrote them: restore the state from a backup"
        )
    return salt, costs


# --- a token


class TokenMaster:
    """Provider "partition": the token wraps and unwraps."""

    name = "partition"

    def __init__(self, options: Mapping[str, str], token: Token) -> None:
        self.options = dict(options)
        self._token = token

    def wrap(self, data_key: Secret, *, id: str, created_at: int) -> WrappedDataKey:
        wrapped = self._token.wrap(data_key, _context(id))
        return WrappedDataKey(id, self.name, dict(self.options), wrapped, created_at)

    def open(self, row: WrappedDataKey) -> Secret:
        _check_provider(self, row, (self.name,))
        try:
            return self._token.unwrap(row.wrapped, _context(row.id))
        except OperatorError as error:
            raise MasterKeyError(
                f"data key {row.id}, wrapped under {_words(row.parameters)}, does not open under {_words(self.options)}: {error}"
            ) from None


# --- what they share


def _context(id: str) -> str:
    """What a wrapped data key is bound to. The id is the only free part, and the last."""
    return f"xksfast|data_keys|{id}"


def fingerprint(key: Secret) -> str:
    """16 hexadecimal digits that tell one key from another and give nothing else away."""
    return mac(key, "fingerprint", b"")[:FINGERPRINT_BYTES].hex()


def _words(options: Mapping[str, Any]) -> str:
    """The options as they stand in the configuration."""
    shown = [f"{name} = {value!r}" for name, value in options.items() if name.startswith("master_key_")]
    return ", ".join(shown) or "a master key that is not named"


def _wrap_under(
    key: Secret, data_key: Secret, master: MasterKey, parameters: Mapping[str, Any], id: str, created_at: int
) -> WrappedDataKey:
    described = {**master.options, **parameters, "fingerprint": fingerprint(key)}
    return WrappedDataKey(id, master.name, described, seal_secret(key, _context(id), data_key), created_at)


def _open_under(key: Secret, row: WrappedDataKey, master: MasterKey) -> Secret:
    try:
        return seal_open_secret(key, _context(row.id), row.wrapped)
    except NativeError:
        ours, theirs = fingerprint(key), row.parameters.get("fingerprint")
        if ours == theirs:
            raise MasterKeyError(
                f"data key {row.id} does not open, and {_words(master.options)} holds the master key that wrapped it: the row was "
                "changed or damaged: restore the state from a backup"
            ) from None
        raise MasterKeyError(
            f"the state was sealed under another master key: {_words(row.parameters)} with the fingerprint {theirs}, while "
            f"{_words(master.options)} holds one with the fingerprint {ours}: put the right key back; to change it, start with the old "
            "one and rotate the master key"
        ) from None


def _check_provider(master: MasterKey, row: WrappedDataKey, accepted: tuple[str, ...]) -> None:
    if row.provider not in accepted:
        raise MasterKeyError(
            f"the state was sealed under the master key of {_words(row.parameters)}, and [state] has {_words(master.options)}: set "
            "that again; to change the master key, start with the old one and rotate it"
        )
