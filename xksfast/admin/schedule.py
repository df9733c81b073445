# SPDX-License-Identifier: Apache-2.0
"""What is due by itself: rotations that stores and keys ask for, and keys that have encrypted so often that a new version is due.

AES-GCM with random 96-bit IVs must not be used more than 2^32 times with one key (NIST SP 800-38D, 8.3): the chance that two IVs
are equal then reaches 2^-32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xksfast.state.projection import State

DAY_S = 86400
MAX_INVOCATIONS = 2**32
WARN_INVOCATIONS = 2**30  # a quarter: at 1,000 a second nine months before the end
URGENT_INVOCATIONS = 2**31

Level = Literal["ok", "warn", "urgent", "over"]


@dataclass(frozen=True)
class Due:
    """action "rotate_credential" (of `store`) or "rotate_key"; why: in words."""

    action: Literal["rotate_credential", "rotate_key"]
    store: str
    external_key_id: str
    why: str


def due(state: State, now: int) -> list[Due]:
    """Rotations whose time has come. A store at its limit of credentials waits for an operator to remove one."""
    found = []
    for store in state.key_stores.values():
        if store.blocked or not store.rotate_credential_days:
            continue
        credentials = state.credentials_of(store.name)
        newest = max((credential.created_at for credential in credentials.values()), default=0)
        if now - newest >= store.rotate_credential_days * DAY_S and len(credentials) < store.max_credentials:
            found.append(Due("rotate_credential", store.name, "", f"every {store.rotate_credential_days} days"))
    for key in state.keys.values():
        if key.rotate_days and key.enabled and not key.blocked and now - key.versions[-1].created_at >= key.rotate_days * DAY_S:
            found.append(Due("rotate_key", key.store, key.external_key_id, f"every {key.rotate_days} days"))
    return found


def invocation_level(encryptions: int) -> Level:
    """How near a key version is to the end of its use."""
    if encryptions >= MAX_INVOCATIONS:
        return "over"
    if encryptions >= URGENT_INVOCATIONS:
        return "urgent"
    return "warn" if encryptions >= WARN_INVOCATIONS else "ok"


def rotation_hint(store: str, external_key_id: str, version: int, encryptions: int) -> str:
    """What to do about a version that still encrypts, in words; "": nothing."""
    level = invocation_level(encryptions)
    if level == "ok":
        return ""
    when = {"warn": "", "urgent": " soon", "over": " now"}[level]
    return (
        f"rotate the key{when}: version {version} has encrypted {encryptions:,} times, {100 * encryptions // MAX_INVOCATIONS}% of "
        f"the 2^32 that NIST SP 800-38D allows one AES-GCM key with random IVs: xksfast key rotate {store} {external_key_id}"
    )
