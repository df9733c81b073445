# SPDX-License-Identifier: Apache-2.0
"""What the database holds besides events and objects: rows as frozen values. No rules, no I/O, no plaintext secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from xksfast.messages import CredentialUse, KeyUse
from xksfast.state.objects import Stored

Purpose = Literal["credential", "local_key", "pin"]


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret as it is stored. version: from 1, one more each time it is sealed anew; bound to it as its id is."""

    id: str
    purpose: Purpose
    version: int
    data_key_id: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WrappedDataKey:
    """The key that secrets are sealed under, wrapped by a master key. provider, parameters: how the master key is come by.

    created_at: unix seconds.
    """

    id: str
    provider: str
    parameters: dict[str, Any]
    wrapped: bytes = field(repr=False)
    created_at: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log ended at event `seq` with this hash; mac: by whoever could open the secrets then."""

    seq: int
    hash: bytes
    mac: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as it last told of itself. acked_seq: all its workers serve it; restricted_seq: what it forbids is in force there."""

    name: str
    version: str
    url: str
    started_at_ms: int
    heartbeat_ms: int
    acked_seq: int
    restricted_seq: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A request that was carried out, by the key that its sender gave it, and the answer to it.

    response: what a repetition is answered with; sealed by whoever puts it here when it shows a secret.
    """

    key: str
    actor: str
    request_sha256: str
    status: int
    response: bytes = field(repr=False)
    at_ms: int


@dataclass(frozen=True, slots=True)
class Use:
    """All that was ever used: encryptions with each key version, the last use of each credential."""

    keys: list[KeyUse]
    credentials: list[CredentialUse]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The whole state as of event `seq`: (object, seq of its last change) in the order of their making; head: that event's hash."""

    objects: list[tuple[Stored, int]]
    seq: int
    head: bytes
