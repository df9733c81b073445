# SPDX-License-Identifier: Apache-2.0
"""What AWS KMS answers, as plain values: custom key stores, KMS keys, who is calling. No boto3, no I/O."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXTERNAL_KEY_STORE = "EXTERNAL_KEY_STORE"

CONNECTED = "CONNECTED"
CONNECTING = "CONNECTING"
DISCONNECTED = "DISCONNECTED"
DISCONNECTING = "DISCONNECTING"
FAILED = "FAILED"


@dataclass(frozen=True)
class ProxyCredential:
    """What AWS KMS signs its requests to the proxy with. The secret is never part of a text."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """Who AWS takes the connection for."""

    account: str
    arn: str


@dataclass(frozen=True)
class CustomKeyStore:
    """A custom key store as DescribeCustomKeyStores shows it. created_at: unix seconds. Fields that AWS left out are ""."""

    id: str
    name: str
    type: str = EXTERNAL_KEY_STORE
    connection_state: str = DISCONNECTED
    connection_error: str = ""
    endpoint: str = ""
    uri_path: str = ""
    connectivity: str = ""
    access_key_id: str = ""
    vpc_endpoint_service_name: str = ""
    vpc_endpoint_service_owner: str = ""
    created_at: int = 0


@dataclass(frozen=True)
class KmsKey:
    """A KMS key. state: AWS's KeyState. aliases: with "alias/" in front. deletion_at: unix seconds, 0: none is scheduled.

    aliases and tags are filled by `look_at_key` only; details says whether they were asked for.
    """

    id: str
    arn: str
    state: str
    description: str = ""
    origin: str = ""
    custom_key_store_id: str = ""
    external_key_id: str = ""
    created_at: int = 0
    deletion_at: int = 0
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    details: bool = False


def custom_key_store(entry: Mapping[str, Any]) -> CustomKeyStore:
    """From a CustomKeyStoresListEntry."""
    proxy: Mapping[str, Any] = entry.get("XksProxyConfiguration") or {}
    return CustomKeyStore(
        id=entry["CustomKeyStoreId"],
        name=entry.get("CustomKeyStoreName", ""),
        type=entry.get("CustomKeyStoreType", ""),
        connection_state=entry.get("ConnectionState", ""),
        connection_error=entry.get("ConnectionErrorCode", ""),
        endpoint=proxy.get("UriEndpoint", ""),
        uri_path=proxy.get("UriPath", ""),
        connectivity=proxy.get("Connectivity", ""),
        access_key_id=proxy.get("AccessKeyId", ""),
        vpc_endpoint_service_name=proxy.get("VpcEndpointServiceName", ""),
        vpc_endpoint_service_owner=proxy.get("VpcEndpointServiceOwner", ""),
        created_at=unix_seconds(entry.get("CreationDate")),
    )


def kms_key(metadata: Mapping[str, Any]) -> KmsKey:
    """From KeyMetadata."""
    return KmsKey(
        id=metadata["KeyId"],
        arn=metadata.get("Arn", ""),
        state=metadata.get("KeyState", ""),
        description=metadata.get("Description", ""),
        origin=metadata.get("Origin", ""),
        custom_key_store_id=metadata.get("CustomKeyStoreId", ""),
        external_key_id=(metadata.get("XksKeyConfiguration") or {}).get("Id", ""),
        created_at=unix_seconds(metadata.get("CreationDate")),
        deletion_at=unix_seconds(metadata.get("DeletionDate")),
    )


def unix_seconds(moment: datetime.datetime | None) -> int:
    """0 for None."""
    return 0 if moment is None else int(moment.timestamp())


def full_alias(alias: str) -> str:
    """With "alias/" in front, as AWS wants it."""
    return alias if alias.startswith("alias/") else f"alias/{alias}"
