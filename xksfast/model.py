# SPDX-License-Identifier: Apache-2.0
"""What a proxy worker serves: the immutable Snapshot of key stores, credentials and keys.

What lives here: plain frozen values without behaviour. What must not: secrets. A signing key or a `local` key is named here by
its slot number in the secret pages (`xks_secret.h`) that travel beside the snapshot as a file descriptor; Python never holds its
bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

KeyUsage = Literal["ENCRYPT", "DECRYPT"]
KeySource = Literal["pkcs11", "local"]


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all snapshot values."""


class Credential(Value):
    """A SigV4 credential of one key store. signing_keys: UTC day "YYYYMMDD" -> slot of the derived signing key."""

    access_key_id: str
    signing_keys: dict[str, int]


class Key(Value):
    """A HYOK key: what KMS calls an external key.

    label: CKA_LABEL of the source key in the token, or the name of the sealed `local` key.
    local_slot: slot of the unsealed 32-byte key, for `local` stores only.
    """

    external_key_id: str
    label: str
    usage: tuple[KeyUsage, ...]
    enabled: bool = True
    blocked: bool = False
    local_slot: int | None = None


class KeyStore(Value):
    """An external key store: one path prefix, one region, its credentials and keys.

    uri_path_prefix: what stands before /kms/xks/v1: "" or "/payments".
    partition_group: name of the partition group, for `pkcs11` stores only.
    allowed_principals: patterns ("*" for any run of characters) of the AWS principals that may use the keys; empty: all may.
    """

    name: str
    uri_path_prefix: str
    region: str
    key_source: KeySource
    partition_group: str | None = None
    blocked: bool = False
    credentials: tuple[Credential, ...] = ()
    keys: tuple[Key, ...] = ()
    allowed_principals: tuple[str, ...] = ()


class Snapshot(Value):
    """All that one worker serves, as of event `seq`. Whoever holds a snapshot may share it freely: it never changes."""

    seq: int
    key_stores: tuple[KeyStore, ...] = ()
