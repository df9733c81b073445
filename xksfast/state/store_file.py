# SPDX-License-Identifier: Apache-2.0
"""stores.toml: key stores, credentials and keys in a file, for people who keep everything in git.

What lives here: the file's shape and every rule about names (XKS Proxy API spec; requirements 19, 20, 23, 24, 126, 131).
Secrets are named by file, never written in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import msgspec

from xksfast.config import Config
from xksfast.model import KeyUsage
from xksfast.toml_reader import Problems, join, nearest, read_toml, to_struct
from xksfast.wire import limits

MAX_CREDENTIALS = 20

_PREFIX = re.compile(r"(/[A-Za-z0-9_-]+)*")
_REGION = re.compile(r"(?=.{1,32}$)[a-z]{2,8}(-[a-z0-9]+){1,4}")
_KEY_ID = re.compile(r"[A-Za-z0-9._-]+")
_ACCESS_KEY_ID = re.compile(r"[A-Z2-7]{20,30}")
_STORE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOCAL_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the file's tables."""


class CredentialEntry(Entry, frozen=True):
    """[[key_stores.NAME.credentials]]"""

    access_key_id: str
    secret_access_key_file: str


class KeyEntry(Entry, frozen=True):
    """[key_stores.NAME.keys.EXTERNAL_KEY_ID]: label is the CKA_LABEL of the source key, or the name of a sealed `local` key."""

    label: str
    usage: tuple[KeyUsage, ...] = ("ENCRYPT", "DECRYPT")
    create: bool = False
    enabled: bool = True
    blocked: bool = False


class StoreEntry(Entry, frozen=True):
    """[key_stores.NAME]"""

    region: str
    uri_path_prefix: str = ""
    partition_group: str | None = None
    key_source: Literal["local", "pkcs11"] | None = None
    blocked: bool = False
    allowed_principals: tuple[str, ...] = ()
    credentials: tuple[CredentialEntry, ...] = ()
    keys: dict[str, KeyEntry] = {}

    @property
    def is_local(self) -> bool:
        """Whether its keys are `local` ones."""
        return self.partition_group is None


class StoreFile(Entry, frozen=True):
    """The whole file."""

    key_stores: dict[str, StoreEntry] = {}


def load_store_file(path: Path, config: Config) -> StoreFile:
    """Read and check; secret_access_key_file made absolute. RefusedFile lists every problem, a line each.

    config: whose partition groups and master key the stores use.
    """
    problems = Problems(str(path))
    document = to_struct(StoreFile, read_toml(path), "", problems)
    assert document is not None  # its only table has a default
    _check(document, config, problems)
    problems.raise_if_any()
    document = _with_absolute_paths(document, path.resolve().parent)
    _check_secret_files(document, problems)
    problems.raise_if_any()
    return document


def _check(document: StoreFile, config: Config, problems: Problems) -> None:
    prefixes: dict[str, str] = {}
    for name, store in document.key_stores.items():
        key = join("key_stores", name)
        if store is None:  # what is wrong with it is known already
            continue
        if not _STORE_NAME.fullmatch(name):
            problems.add(key, "a name has 1 to 64 characters of A-Z a-z 0-9 . _ -")
        if not _PREFIX.fullmatch(store.uri_path_prefix):
            problems.add(
                f"{key}.uri_path_prefix", "must be empty or like /payments: parts of A-Z a-z 0-9 _ -, no slash at the end"
            )
        if len(store.uri_path_prefix) + len("/kms/xks/v1") > limits.MAX_URI_PATH_CHARS:
            problems.add(
                f"{key}.uri_path_prefix", f"with /kms/xks/v1 it must not exceed {limits.MAX_URI_PATH_CHARS} characters"
            )
        if store.uri_path_prefix in prefixes:
            problems.add(f"{key}.uri_path_prefix", f"{join('key_stores', prefixes[store.uri_path_prefix])} has the same")
        prefixes.setdefault(store.uri_path_prefix, name)
        if not _REGION.fullmatch(store.region):
            problems.add(f"{key}.region", f"{store.region!r} is not an AWS region such as us-east-1")
        _check_source(key, store, config, problems)
        _check_credentials(key, store, problems)
        _check_keys(key, store, problems)


def _check_source(key: str, store: StoreEntry, config: Config, problems: Problems) -> None:
    group = store.partition_group
    if group is None and store.key_source != "local":
        problems.add(key, 'says where its keys live by partition_group = "…" or key_source = "local"')
    elif group is not None and store.key_source == "local":
        problems.add(key, "partition_group and key_source = local exclude each other")
    elif group is None and not config.state.master_key_file:
        problems.add(
            f"{key}.key_source",
            "local keys need a master key: set [state] master_key_file to a 0600 file (openssl rand -hex 32)",
        )
    elif group is not None and group not in config.partition_groups:
        problems.add(
            f"{key}.partition_group", f"there is no partition group {group!r}{nearest(group, config.partition_groups)}"
        )


def _check_credentials(key: str, store: StoreEntry, problems: Problems) -> None:
    if not 1 <= len(store.credentials) <= MAX_CREDENTIALS:
        problems.add(f"{key}.credentials", f"a key store has 1 to {MAX_CREDENTIALS} credentials, not {len(store.credentials)}")
    seen = set()
    for i, credential in enumerate(store.credentials):
        where = f"{key}.credentials[{i}].access_key_id"
        if credential is None:
            continue
        if not _ACCESS_KEY_ID.fullmatch(credential.access_key_id):
            problems.add(where, "must have 20 to 30 characters of A-Z and 2-7")
        if credential.access_key_id in seen:
            problems.add(where, "stands twice in this key store")
        seen.add(credential.access_key_id)


def _check_keys(key: str, store: StoreEntry, problems: Problems) -> None:
    for external_key_id, entry in store.keys.items():
        where = join(join(key, "keys"), external_key_id)
        if entry is None:
            continue
        if not _KEY_ID.fullmatch(external_key_id) or len(external_key_id) > limits.MAX_EXTERNAL_KEY_ID_CHARS:
            problems.add(where, "an external key id has 1 to 128 characters of A-Z a-z 0-9 - . _")
        path = len(store.uri_path_prefix) + len("/kms/xks/v1/keys//metadata") + len(external_key_id)
        if path > limits.MAX_URI_CHARS:
            problems.add(where, f"the URI path would exceed {limits.MAX_URI_CHARS} characters")
        if store.is_local and not _LOCAL_LABEL.fullmatch(entry.label):
            problems.add(f"{where}.label", "names a file for a local key: 1 to 128 characters of A-Z a-z 0-9 . _ -")
        if not 1 <= len(entry.label.encode()) <= 255:
            problems.add(f"{where}.label", "must have 1 to 255 bytes")
        if len(set(entry.usage)) != len(entry.usage):
            problems.add(f"{where}.usage", "names a usage twice")


def _check_secret_files(document: StoreFile, problems: Problems) -> None:
    """Whether they are there and nobody else's to read is seen when they are read; here, whether they are there."""
    for name, store in document.key_stores.items():
        for i, credential in enumerate(store.credentials):
            if not Path(credential.secret_access_key_file).is_file():
                where = f"{join('key_stores', name)}.credentials[{i}].secret_access_key_file"
                problems.add(where, f"there is no file {credential.secret_access_key_file}")


def _with_absolute_paths(document: StoreFile, base: Path) -> StoreFile:
    replace = msgspec.structs.replace
    return StoreFile(
        {
            name: replace(
                store,
                credentials=tuple(
                    replace(credential, secret_access_key_file=str(base / credential.secret_access_key_file))
                    for credential in store.credentials
                ),
            )
            for name, store in document.key_stores.items()
        }
    )
