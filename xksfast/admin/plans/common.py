# SPDX-License-Identifier: Apache-2.0
"""What the plans share: finding objects, and revisions."""

from __future__ import annotations

from collections.abc import Iterable

from xksfast.admin.refusals import Refused, no_such
from xksfast.state.events import Change
from xksfast.state.objects import Key, KeyStore, Stored, key_id
from xksfast.state.projection import State
from xksfast.toml_reader import nearest


def find_store(state: State, name: str) -> KeyStore:
    """Or Refused."""
    store = state.key_stores.get(name)
    if store is None:
        refusal = no_such("key store", name)
        refusal.near = nearest(name, state.key_stores)
        raise refusal
    return store


def find_key(state: State, store: str, external_key_id: str) -> Key:
    """Or Refused."""
    find_store(state, store)
    key = state.keys.get(key_id(store, external_key_id))
    if key is None:
        raise no_such("key", key_id(store, external_key_id), nearest(external_key_id, state.keys_of(store)))
    return key


def check_revision(state: State, value: Stored, wanted: int | None) -> None:
    """wanted: the revision that the client has seen; None: it does not care."""
    have = state.revision_of(value)
    if wanted is not None and wanted != have:
        raise Refused(
            "stale",
            "revision-changed",
            f"{value.kind.replace('_', ' ')} {value.id!r} has changed since: it is at revision {have}, not {wanted}",
            next="Look at it again, then repeat the change with its new revision",
        )


def at_revision(state: State, changes: list[Change], wanted: int | None) -> list[Change]:
    """The changes, if the last object that they change is at the revision that the client has seen."""
    if changes and changes[-1].before is not None:
        check_revision(state, changes[-1].before, wanted)
    return changes


def created(action: str, value: Stored) -> Change:
    """A new object."""
    return Change(action, value.kind, value.id, None, value)


def changed(action: str, before: Stored, after: Stored) -> list[Change]:
    """Nothing when nothing changes, so that asking twice leaves one event."""
    return [] if before == after else [Change(action, before.kind, before.id, before, after)]


def removed(action: str, values: Iterable[Stored]) -> list[Change]:
    """Objects that go."""
    return [Change(action, value.kind, value.id, value, None) for value in values]
