# SPDX-License-Identifier: Apache-2.0
"""stores.toml: key stores, credentials and keys in a file, for people who keep everything in git.

What lives here: the file's shape and what its tables owe each other; the rules about names are those of rules.py.
Secrets are named by file, never written in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from xksfast.config import Config
from xksfast.model import AadScheme, KeyUsage
from xksfast.state import rules
from xksfast.toml_reader import Problems, join, nearest, read_toml, to_struct


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
    aad_scheme: AadScheme = "xksfast"
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
        _check_rule(key, rules.name_problem(name), problems)
        _check_rule(f"{key}.uri_path_prefix", rules.prefix_problem(store.uri_path_prefix), problems)
        _check_rule(f"{key}.region", rules.region_problem(store.region), problems)
        _check_rule(f"{key}.allowed_principals", rules.principals_problem(store.allowed_principals), problems)
        if store.uri_path_prefix in prefixes:
            problems.add(f"{key}.uri_path_prefix", f"{join('key_stores', prefixes[store.uri_path_prefix])} has the same")
        prefixes.setdefault(store.uri_path_prefix, name)
        _check_source(key, store, config, problems)
        _check_credentials(key, store, problems)
        _check_keys(key, store, problems)


def _check_rule(key: str, problem: str | None, problems: Problems) -> None:
    if problem is not None:
        problems.add(key, problem)


def _check_source(key: str, store: StoreEntry, config: Config, problems: Problems) -> None:
    group = store.partition_group
    if group is None and store.key_source != "local":
        problems.add(key, 'says where its keys live by partition_group = "…" or key_source = "local"')
    elif group is not None and store.key_source == "local":
        problems.add(key, "partition_group and key_source = local exclude each other")
    elif group is None and config.state.is_file and not config.state.master_key_file:
        problems.add(
            f"{key}.key_source",
            "local keys need a master key: set [state] master_key_file to a 0600 file (openssl rand -hex 32)",
        )
    elif group is not None and group not in config.partition_groups:
        problems.add(
            f"{key}.partition_group", f"there is no partition group {group!r}{nearest(group, config.partition_groups)}"
        )


def _check_credentials(key: str, store: StoreEntry, problems: Problems) -> None:
    if not 1 <= len(store.credentials) <= rules.MAX_CREDENTIALS:
        problems.add(
            f"{key}.credentials", f"a key store has 1 to {rules.MAX_CREDENTIALS} credentials, not {len(store.credentials)}"
        )
    seen = set()
    for i, credential in enumerate(store.credentials):
        where = f"{key}.credentials[{i}].access_key_id"
        if credential is None:
            continue
        _check_rule(where, rules.access_key_id_problem(credential.access_key_id), problems)
        if credential.access_key_id in seen:
            problems.add(where, "stands twice in this key store")
        seen.add(credential.access_key_id)


def _check_keys(key: str, store: StoreEntry, problems: Problems) -> None:
    for external_key_id, entry in store.keys.items():
        where = join(join(key, "keys"), external_key_id)
        if entry is None:
            continue
        _check_rule(where, rules.external_key_id_problem(external_key_id, store.uri_path_prefix), problems)
        _check_rule(f"{where}.label", rules.label_problem(entry.label, local=store.is_local), problems)
        _check_rule(f"{where}.usage", rules.usage_problem(entry.usage), problems)


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
