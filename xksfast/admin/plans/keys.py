# SPDX-License-Identifier: Apache-2.0
"""HYOK keys and the source keys behind them.

A source key that is to be made is recorded first (`begin_source`), made and proven on its token, then taken into use: what a crash
leaves behind is a source key that is not ready, which the next attempt finishes. No key ever has a version whose source is not ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from xksfast.admin.aws.sync import GONE
from xksfast.admin.plans.common import changed, check_revision, created, find_key, find_store, removed
from xksfast.admin.refusals import Refused, invalid
from xksfast.state import rules
from xksfast.state.events import Change
from xksfast.state.objects import Key, KeyVersion, SourceKey, key_id, source_key_id
from xksfast.state.projection import State

if TYPE_CHECKING:  # they bring pydantic, which a start can do without until the workers serve
    from xksfast.admin.requests import KeyCreate, KeyUpdate

ENDING = ("PendingDeletion", GONE)  # of a KMS key that nobody can use any more
MAX_VERSIONS = 1000  # of a key: a rotation a day for almost three years


def check_new(state: State, store: str, request: KeyCreate) -> None:
    """Whether the key can be made, before its source key is."""
    prefix = find_store(state, store).uri_path_prefix
    invalid("external_key_id", rules.external_key_id_problem(request.external_key_id, prefix), request.external_key_id)
    if request.label:
        invalid("label", rules.label_problem(request.label, local=state.place_of(store) == "local"), request.label)
    invalid("usage", rules.usage_problem(request.usage))
    invalid("tags", rules.tags_problem(request.tags))
    if key_id(store, request.external_key_id) in state.keys:
        raise Refused(
            "conflict",
            "key-exists",
            f"Key store {store!r} has a key {request.external_key_id!r} already",
            next=f"To give it new key material rotate it: `xksfast key rotate {store} {request.external_key_id}`",
            field="external_key_id",
        )


def begin_source(state: State, place: str, label: str, secret_id: str, *, now: int) -> list[Change]:
    """We are going to make it. Nothing when an earlier attempt got as far as this, or it is there."""
    if source_key_id(place, label) in state.source_keys:
        return []
    source = SourceKey(place=place, label=label, secret_id=secret_id, owned=True, ready=place == "local", created_at=now)
    return [created("source_key.begin" if place != "local" else "source_key.create", source)]


def create(state: State, store: str, request: KeyCreate, label: str, *, owned: bool, now: int) -> list[Change]:
    """The key, with a source key that is on its token and proven."""
    check_new(state, store, request)
    changes = _ready_source(state, state.place_of(store), label, owned=owned, now=now)
    fields = request.model_dump(exclude={"label", "create"})
    key = Key(**fields, store=store, versions=(KeyVersion(number=1, label=label, created_at=now),), created_at=now)
    return [*changes, created("key.create", key)]


def check_rotation(state: State, store: str, external_key_id: str, label: str) -> Key:
    """Whether the key can get another version; the key."""
    key = find_key(state, store, external_key_id)
    if label:
        invalid("label", rules.label_problem(label, local=state.place_of(store) == "local"), label)
        if label in (version.label for version in key.versions):
            raise Refused("conflict", "label-in-use", f"Source key {label!r} is a version of this key already", field="label")
    if len(key.versions) >= MAX_VERSIONS:
        raise Refused("conflict", "too-many-versions", f"Key {key.id!r} has {MAX_VERSIONS} versions", next="Make a new key")
    return key


def rotate(state: State, store: str, external_key_id: str, label: str, *, owned: bool, now: int) -> list[Change]:
    """A new version that encrypts from now on. All former ones go on decrypting."""
    key = check_rotation(state, store, external_key_id, label)
    changes = _ready_source(state, state.place_of(store), label, owned=owned, now=now)
    version = KeyVersion(number=key.versions[-1].number + 1, label=label, created_at=now)
    return changes + changed("key.rotate", key, replace(key, versions=(*key.versions, version)))


def update(state: State, store: str, external_key_id: str, request: KeyUpdate, revision: int | None) -> list[Change]:
    """Whatever the request names."""
    key = find_key(state, store, external_key_id)
    check_revision(state, key, revision)
    fields: dict[str, Any] = {field: value for field, value in request.model_dump().items() if value is not None}
    after = replace(key, **fields)
    invalid("usage", rules.usage_problem(after.usage))
    invalid("tags", rules.tags_problem(after.tags))
    return changed("key.update", key, after)


def set_enabled(state: State, store: str, external_key_id: str, enabled: bool) -> list[Change]:
    """Enable or disable; nothing when it is so already."""
    key = find_key(state, store, external_key_id)
    return changed("key.enable" if enabled else "key.disable", key, replace(key, enabled=enabled))


def set_blocked(state: State, store: str, external_key_id: str, blocked: bool, reason: str) -> list[Change]:
    """Block or unblock; nothing when it is so already."""
    key = find_key(state, store, external_key_id)
    after = replace(key, blocked=blocked, blocked_reason=reason if blocked else "")
    if key.blocked and blocked:
        after = key  # the first reason stays
    return changed("key.block" if blocked else "key.unblock", key, after)


def delete(state: State, store: str, external_key_id: str, revision: int | None) -> list[Change]:
    """Our record of it. Source keys stay where they are: only `partition` commands and people delete key material in an HSM.

    Refused while it is enabled and not blocked, so that nobody deletes what is in use by a slip; and while a KMS key hangs on it.
    """
    key = find_key(state, store, external_key_id)
    check_revision(state, key, revision)
    if key.link is not None and key.link.key_state not in ENDING:
        raise Refused(
            "conflict",
            "key-linked",
            f"Key {key.id!r} is KMS key {key.link.key_arn} in AWS",
            next=f"Schedule its deletion first: `xksfast key schedule-deletion {store} {external_key_id}`",
        )
    if key.enabled and not key.blocked:
        raise Refused(
            "conflict",
            "key-in-use",
            f"Key {key.id!r} is enabled",
            why="Deleting a key makes all that was encrypted with it unreadable",
            next=f"Disable it first (`xksfast key disable {store} {external_key_id}`), see that nothing misses it, then delete it",
        )
    changes = removed("key.delete", [key])
    place = state.place_of(store)
    for version in key.versions:
        source = state.source_keys.get(source_key_id(place, version.label))
        # a local key's bytes stay sealed in the state until they are purged: a deletion can be a mistake
        if source is not None and not source.owned and state.users_of(source.id) == [key.id]:
            changes += removed("source_key.forget", [source])
    return changes


def _ready_source(state: State, place: str, label: str, *, owned: bool, now: int) -> list[Change]:
    source = state.source_keys.get(source_key_id(place, label))
    if source is None:
        return [created("source_key.adopt", SourceKey(place=place, label=label, owned=owned, ready=True, created_at=now))]
    return changed("source_key.ready", source, replace(source, ready=True))


def follow(state: State, store: str, external_key_id: str, followed: Key) -> list[Change]:
    """Link, alias, description and tags as AWS has them; everything else stays as it is now."""
    key = find_key(state, store, external_key_id)
    after = replace(key, link=followed.link, alias=followed.alias, description=followed.description, tags=followed.tags)
    return changed("key.sync" if key.link is not None else "key.link", key, after)
