# SPDX-License-Identifier: Apache-2.0
"""Sealed `local` keys as files: <directory>/<label>.key, 65 bytes each, AES-256-GCM under the master key.

A sealed file may be kept in git: without the master key it is noise, and under another name it does not open.
"""

from __future__ import annotations

from pathlib import Path

from xksfast.errors import NativeError, OperatorError
from xksfast.native.crypto import Secret, SecretPages, seal_new_key, seal_open
from xksfast.secret_file import FileThere, sync_directory, write_secret_file


class LocalKeyFiles:
    """The keys of one directory. master_key_file: "" when none is configured."""

    def __init__(self, directory: Path, master_key_file: str) -> None:
        self._directory = directory
        self._master_key_file = master_key_file
        self._master: Secret | None = None

    def ensure(self, label: str) -> bool:
        """Create the key when there is none; True when it was made now. Never overwrites."""
        path = self._path(label)
        if path.exists():
            return False
        sealed = seal_new_key(self._master_key(), _context(label))
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OperatorError(f"local key {label!r}: {self._directory} cannot be written: {error.strerror}") from error
        try:
            write_secret_file(path, sealed)  # on disk before anything can be encrypted with it
        except FileThere:  # somebody else made it meanwhile
            return False
        except OperatorError as error:
            raise OperatorError(f"local key {label!r}: {error}") from error
        return True

    def sync(self) -> None:
        """For keys that ensure() found: whoever gave them their names may have failed to bring those to the disk."""
        try:
            sync_directory(self._directory)
        except OSError as error:
            raise OperatorError(f"{self._directory} cannot be written: {error.strerror}") from error

    def unseal(self, label: str, pages: SecretPages, slot: int) -> None:
        """The key's bytes into a slot. OperatorError says what to do."""
        path = self._path(label)
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            raise OperatorError(f"local key {label!r}: there is no {path}: set create = true, or restore the file") from None
        except OSError as error:
            raise OperatorError(f"local key {label!r}: {path} cannot be read: {error.strerror}") from error
        try:
            seal_open(self._master_key(), _context(label), sealed, pages, slot)
        except NativeError:
            raise OperatorError(
                f"local key {label!r}: {path} does not open: it was sealed under another master key or name, or was changed"
            ) from None

    def _path(self, label: str) -> Path:
        return self._directory / f"{label}.key"

    def _master_key(self) -> Secret:
        if not self._master_key_file:
            raise OperatorError(
                "local keys need a master key: set [state] master_key_file to a 0600 file with 64 hexadecimal digits "
                "(openssl rand -hex 32)"
            )
        if self._master is None:
            self._master = Secret.key_from_file(self._master_key_file)
        return self._master


def _context(label: str) -> str:
    return f"xksfast local key|{label}"
