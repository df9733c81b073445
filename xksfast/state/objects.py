# SPDX-License-Identifier: Apache-2.0
"""The nouns of administration, as they are stored: frozen values, each with a kind and an id.

What lives here: shapes. What must not: rules (admin/service) and I/O. No object holds a secret: it names one by `secret_id`, and the
sealed bytes stand in a table of their own, so that the event log can be kept for ever and a removed secret cannot be found in it.
Times are unix seconds. Every object is visible to who may read all key stores; what others see, admin/plans/sight says.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from xksfast.model import AadScheme, KeySource, KeyUsage

Role = Literal["admin", "operator", "auditor", "blocker"]
Connectivity = Literal["PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"]
OnStale = Literal["serve", "refuse"]


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of the objects. Unknown fields are refused: an older program must not drop what a newer one has stored."""

    kind: ClassVar[str]

    @property
    def id(self) -> str:
        """Unique among the objects of its kind."""
        raise NotImplementedError


class StoreLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The custom key store in AWS that belongs to a key store, and what was last seen of it.

    connection: the name of an AwsConnection. connection_state, connection_error: AWS's own words. synced_at: 0, never.
    drift: a sentence for each difference between us and AWS at the last look.
    """

    connection: str
    custom_key_store_id: str
    custom_key_store_name: str
    connection_state: str = ""
    connection_error: str = ""
    synced_at: int = 0
    drift: tuple[str, ...] = ()


class KeyLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The KMS key in AWS whose key material is a HYOK key, and what was last seen of it."""

    key_arn: str
    key_state: str = ""
    aliases: tuple[str, ...] = ()
    synced_at: int = 0
    drift: tuple[str, ...] = ()


class KeyStore(Stored, frozen=True):
    """An external key store: a path prefix, a region, where its keys live. Region, key source and group never change.

    uri_path_prefix: what stands before /kms/xks/v1. allowed_principals: patterns with "*"; empty: every AWS principal may.
    endpoint: "https://host" by which KMS reaches us. max_credentials: 2 to 20. rotate_credential_days: 0, never by itself.
    health_check_label: CKA_LABEL of its health check key; "": that of the partition group.
    aad_scheme: how ciphertexts without our metadata were authenticated; "aws-sample" for stores that came from AWS's sample.
    on_stale: what to do when the state has not been heard of for stale_after_s seconds.
    """

    kind: ClassVar[str] = "key_store"

    name: str
    uri_path_prefix: str
    region: str
    key_source: KeySource
    partition_group: str | None = None
    account: str = ""
    description: str = ""
    endpoint: str = ""
    connectivity: Connectivity = "PUBLIC_ENDPOINT"
    vpc_endpoint_service_name: str = ""
    max_credentials: int = 4
    rotate_credential_days: int = 0
    allowed_principals: tuple[str, ...] = ()
    health_check_label: str = ""
    aad_scheme: AadScheme = "xksfast"
    on_stale: OnStale = "serve"
    stale_after_s: int = 900
    tags: dict[str, str] = {}
    blocked: bool = False
    blocked_reason: str = ""
    link: StoreLink | None = None
    created_at: int = 0

    @property
    def id(self) -> str:
        return self.name


class Credential(Stored, frozen=True):
    """A SigV4 credential of one store. secret_id: of the sealed secret access key.

    superseded_at: when a rotation issued its successor, 0: it is the newest. It is served until it is removed.
    """

    kind: ClassVar[str] = "credential"

    access_key_id: str
    store: str
    secret_id: str
    created_at: int = 0
    superseded_at: int = 0

    @property
    def id(self) -> str:
        return credential_id(self.store, self.access_key_id)


class SourceKey(Stored, frozen=True):
    """The AES-256 key behind HYOK keys: in every partition of a group under one CKA_LABEL, or `local`, sealed.

    place: the partition group, or "local". secret_id: for local keys. owned: made by us, so deleting it is ours to do.
    ready: False from the moment it was decided to make it until it was proven on its token: what a crash left unfinished.
    """

    kind: ClassVar[str] = "source_key"

    place: str
    label: str
    secret_id: str = ""
    owned: bool = False
    ready: bool = False
    created_at: int = 0

    @property
    def id(self) -> str:
        return source_key_id(self.place, self.label)


class KeyVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One version of a HYOK key. number: from 1; it travels in ciphertextMetadata. label: of its source key."""

    number: int
    label: str
    created_at: int = 0


class Key(Stored, frozen=True):
    """A HYOK key: the external key id that KMS knows, and the versions behind it. The last one encrypts, all decrypt."""

    kind: ClassVar[str] = "key"

    store: str
    external_key_id: str
    versions: tuple[KeyVersion, ...]
    usage: tuple[KeyUsage, ...] = ("ENCRYPT", "DECRYPT")
    alias: str = ""
    description: str = ""
    tags: dict[str, str] = {}
    enabled: bool = True
    blocked: bool = False
    blocked_reason: str = ""
    rotate_days: int = 0
    link: KeyLink | None = None
    created_at: int = 0

    @property
    def id(self) -> str:
        return key_id(self.store, self.external_key_id)


class AwsConnection(Stored, frozen=True):
    """How to reach AWS KMS for linked stores. No credential stands here: boto3 finds it by profile, role or environment."""

    kind: ClassVar[str] = "aws_connection"

    name: str
    account: str
    region: str
    profile: str = ""
    role_arn: str = ""
    endpoint_url: str = ""
    created_at: int = 0

    @property
    def id(self) -> str:
        return self.name


class Operator(Stored, frozen=True):
    """Who may administrate: a token. token_sha256: hexadecimal; the token itself is shown once, when it is made.

    stores: grants; empty: all stores. expires_at: 0, never.
    """

    kind: ClassVar[str] = "operator"

    name: str
    role: Role
    token_sha256: str
    stores: tuple[str, ...] = ()
    expires_at: int = 0
    created_at: int = 0

    @property
    def id(self) -> str:
        return self.name


KINDS: dict[str, type[Stored]] = {kind.kind: kind for kind in (KeyStore, Credential, SourceKey, Key, AwsConnection, Operator)}


def credential_id(store: str, access_key_id: str) -> str:
    """The id of a Credential: "payments/AAAA…". Two stores may have the same access key id: the path tells the store first."""
    return f"{store}/{access_key_id}"


def key_id(store: str, external_key_id: str) -> str:
    """The id of a Key: "payments/orders". Neither part may hold a slash."""
    return f"{store}/{external_key_id}"


def source_key_id(place: str, label: str) -> str:
    """The id of a SourceKey: "main/orders-v1". A label may hold slashes, a place may not."""
    return f"{place}/{label}"
