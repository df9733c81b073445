# SPDX-License-Identifier: Apache-2.0
"""What a proxy worker serves, as the control process tells it: Deltas of key stores, credentials and keys.

What lives here: plain frozen values without behaviour. What must not: secrets. A signing key or a `local` key is named here by
its slot number in the secret pages (`xks_secret.h`) that travel beside the delta as a file descriptor; Python never holds its
bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

KeyUsage = Literal["ENCRYPT", "DECRYPT"]
KeySource = Literal["pkcs11", "local"]
AadScheme = Literal["xksfast", "aws-sample"]


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Base of all values. They hold no cycles, so garbage collection need not look at the many there may be."""


class Credential(Value):
    """A SigV4 credential of one key store. signing_keys: UTC day "YYYYMMDD" -> slot of the derived signing key."""

    store: str
    access_key_id: str
    signing_keys: dict[str, int]


class KeyVersion(Value):
    """One version of a HYOK key.

    number: from 1, as carried in ciphertextMetadata. label: CKA_LABEL of the source key in the token, or the name of the `local` key.
    local_slot: slot of the unsealed 32-byte key, for `local` stores only; None there: it could not be unsealed.
    """

    number: int
    label: str
    local_slot: int | None = None


class Key(Value):
    """A HYOK key: what KMS calls an external key. versions: ascending, at least one; the last one encrypts, all decrypt."""

    store: str
    external_key_id: str
    versions: tuple[KeyVersion, ...]
    usage: tuple[KeyUsage, ...]
    enabled: bool = True
    blocked: bool = False


class KeyStore(Value):
    """An external key store: one path prefix, one region.

    uri_path_prefix: what stands before /kms/xks/v1: "" or "/payments".
    partition_group: name of the partition group, for `pkcs11` stores only.
    allowed_principals: patterns ("*" for any run of characters) of the AWS principals that may use the keys; empty: all may.
    aad_scheme: what was authenticated with ciphertexts that do not carry our metadata.
    """

    name: str
    uri_path_prefix: str
    region: str
    key_source: KeySource
    partition_group: str | None = None
    blocked: bool = False
    allowed_principals: tuple[str, ...] = ()
    aad_scheme: AadScheme = "xksfast"


class Delta(Value):
    """What is new between event `base_seq` and event `seq`; a whole state is the delta from nothing.

    reset: forget what came before and build a table beside the one that serves. complete: the last part; a state or a change that is
    too large for one message comes in parts with the same `seq`, and takes effect as a whole with the last one.
    Objects replace those of the same name. What is removed is removed first.
    """

    base_seq: int
    seq: int
    reset: bool = False
    complete: bool = True
    removed_stores: tuple[str, ...] = ()
    removed_credentials: tuple[tuple[str, str], ...] = ()  # (store, access key id)
    removed_keys: tuple[tuple[str, str], ...] = ()  # (store, external key id)
    key_stores: tuple[KeyStore, ...] = ()
    credentials: tuple[Credential, ...] = ()
    keys: tuple[Key, ...] = ()
