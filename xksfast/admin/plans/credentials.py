# SPDX-License-Identifier: Apache-2.0
"""SigV4 credentials: a rotation issues a new one and keeps the old, which is served until it is removed."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from xksfast.admin.plans.common import changed, created, find_store, removed
from xksfast.admin.refusals import Refused, invalid, no_such
from xksfast.state import rules
from xksfast.state.events import Change
from xksfast.state.objects import Credential
from xksfast.state.projection import State
from xksfast.toml_reader import nearest


def new_credential(state: State, store: str, access_key_id: str, *, now: int) -> Credential:
    """Of a store that may not be there yet."""
    invalid("access_key_id", rules.access_key_id_problem(access_key_id))  # not quoted: it may be a secret in the wrong place
    if access_key_id in state.credentials_of(store):
        raise Refused(
            "conflict",
            "access-key-id-taken",
            f"Key store {store!r} has a credential {access_key_id} already",
            next="Use another one, or let it be made",
            field="access_key_id",
        )
    return Credential(access_key_id=access_key_id, store=store, secret_id=secret_id(store, access_key_id), created_at=now)


def secret_id(store: str, access_key_id: str) -> str:
    """Under which its secret access key is sealed."""
    return f"credential/{store}/{access_key_id}"


def newest(found: Collection[Credential]) -> Credential:
    """What a store gives to AWS. A store has one at least."""
    return max(found, key=lambda credential: (not credential.superseded_at, credential.created_at))


def rotate(state: State, store: str, access_key_id: str, *, now: int) -> list[Change]:
    """A new credential beside those that there are."""
    limit = find_store(state, store).max_credentials
    have = state.credentials_of(store)
    if len(have) >= limit:
        oldest = min(have.values(), key=lambda credential: credential.created_at)
        raise Refused(
            "conflict",
            "too-many-credentials",
            f"Key store {store!r} has {len(have)} credentials, and {limit} is its limit",
            next=f"Remove one that KMS does not use any more, such as `xksfast credential remove {store} {oldest.access_key_id}`",
        )
    new = new_credential(state, store, access_key_id, now=now)
    changes = [created("credential.rotate", new)]
    for credential in have.values():
        if not credential.superseded_at:
            changes += changed("credential.supersede", credential, replace(credential, superseded_at=now))
    return changes


def remove(state: State, store: str, access_key_id: str) -> list[Change]:
    """Requests signed with it are refused from then on. The last one of a store stays."""
    find_store(state, store)
    have = state.credentials_of(store)
    credential = have.get(access_key_id)
    if credential is None:
        raise no_such(f"credential of key store {store!r}", access_key_id, nearest(access_key_id, have))
    if len(have) == 1:
        raise Refused(
            "conflict",
            "last-credential",
            f"{access_key_id} is the only credential of key store {store!r}",
            why="Without one KMS could not reach the store any more",
            next=f"Rotate first (`xksfast credential rotate {store}`), give KMS the new one, then remove this one; "
            f"to stop the store at once, block it",
        )
    return removed("credential.remove", [credential])
