# SPDX-License-Identifier: Apache-2.0
"""What a node knows and an older state does not: keys that nothing else has, restrictions that the older state lifts, other objects.

What lives here: comparing two States, and the changes that give the older one the keys that it lacks. What must not: I/O. A newcomer's
trap: the older state may have gone its own way since, so the same name may stand for another key. Sealed keys are opened and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from xksfast.state.events import Change
from xksfast.state.objects import (
    AwsConnection,
    Credential,
    Key,
    KeyStore,
    KeyVersion,
    Operator,
    SourceKey,
    Stored,
    source_key_id,
)
from xksfast.state.projection import State
from xksfast.state.records import SealedSecret
from xksfast.state.sealing import Sealer, SealError

SameKey = Callable[[SourceKey, SourceKey], bool]  # what this node knows, what the older state has; both of the same id
Takes = Callable[
    [SourceKey | Credential], bool
]  # of what this node knows: the older state can take its sealed secret, or it has none
MAX_NAMED = 10  # in a sentence


class SealedRows:
    """The sealed secrets of one side, by id. sealer: opens them; None: nothing does."""

    def __init__(self, rows: Iterable[SealedSecret], sealer: Sealer | None) -> None:
        self.by_id = {row.id: row for row in rows}
        self.sealer = sealer

    def is_same(self, older: SealedRows) -> SameKey:
        """Of source keys of the same id. What lives in an HSM is named by its place and label."""

        def is_same(ours: SourceKey, theirs: SourceKey) -> bool:
            return ours.secret_id == theirs.secret_id and (not ours.secret_id or self._holds_same(ours.secret_id, older))

        return is_same

    def takes(self, older: SealedRows) -> Takes:
        """Whether the older side can have what this side knows."""

        def takes(value: SourceKey | Credential) -> bool:
            row = self.by_id.get(value.secret_id)
            if value.secret_id in older.by_id:
                return self._holds_same(value.secret_id, older)
            return not value.secret_id or (row is not None and self.moved(row, older) is not None)

        return takes

    def moved(self, row: SealedSecret, older: SealedRows) -> SealedSecret | None:
        """A row of this side as the older side opens it: sealed again when the data key was rotated in between; None: nothing does."""
        if older.sealer is None or older.sealer.knows([row]):
            return None if older.sealer is None else row
        if self.sealer is None:
            return None
        try:
            return older.sealer.seal(self.sealer.open(row), row.id, row.purpose, version=row.version + 1)
        except SealError:
            return None

    def _holds_same(self, id: str, older: SealedRows) -> bool:
        ours, theirs = self.by_id.get(id), older.by_id.get(id)
        if ours is None or theirs is None or older.sealer is None:
            return False
        return ours == theirs or (self.sealer is not None and self.sealer.holds_same(ours, older.sealer, theirs))


@dataclass(frozen=True)
class Difference:
    """What the older state has otherwise, a few words each. blocked: objects that are blocked here, and there are not.

    keys: what no longer decrypts when the older state is followed as it is. lifted: what it allows and was forbidden since.
    lost: other objects that it lacks.
    """

    keys: tuple[str, ...] = ()
    blocked: tuple[KeyStore | Key, ...] = ()
    lifted: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def compare(known: State, older: State, is_same: SameKey) -> Difference:
    """known: what this node served last."""
    return Difference(
        keys=tuple(_lost_keys(known, older, is_same)),
        blocked=tuple(
            value
            for value in known.objects()
            if isinstance(value, KeyStore | Key)
            and value.blocked
            and (now := older.find(value.kind, value.id)) is not None
            and not getattr(now, "blocked", False)
        ),
        lifted=(*_lifted(known, older), *_back_again(known, older)),
        lost=tuple(
            _named(value)
            for value in known.objects()
            if not isinstance(value, Key | SourceKey) and older.find(value.kind, value.id) is None
        ),
    )


def some(words: tuple[str, ...]) -> str:
    """The first of them, for a sentence."""
    more = len(words) - MAX_NAMED
    return ", ".join(words[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


# --- keys


def _lost_keys(known: State, older: State, is_same: SameKey) -> Iterator[str]:
    said: set[str] = set()
    for key in known.keys.values():
        for version in _lost_versions(key, known, older, is_same):
            said.add(source_key_id(known.place_of(key.store), version.label))
            yield f"key {key.id} version {version.number}"
    for source in known.source_keys.values():
        if source.ready and source.id not in said and not _has(older, source, is_same):
            yield f"source key {source.id}"


def _lost_versions(key: Key, known: State, older: State, is_same: SameKey) -> list[KeyVersion]:
    """Those of a key that the older state could not decrypt with."""
    if key.store not in known.key_stores:
        return []
    now = older.keys.get(key.id)
    place = known.place_of(key.store)
    if now is None or key.store not in older.key_stores or older.place_of(key.store) != place:
        return list(key.versions)
    labels = {version.number: version.label for version in now.versions}

    def lacks_source(version: KeyVersion) -> bool:
        source = known.source_keys.get(source_key_id(place, version.label))
        return source is not None and not _has(older, source, is_same)

    return [version for version in key.versions if labels.get(version.number) != version.label or lacks_source(version)]


def _has(older: State, source: SourceKey, is_same: SameKey) -> bool:
    now = older.source_keys.get(source.id)
    return now is not None and now.ready >= source.ready and is_same(source, now)


def put_back(known: State, older: State, is_same: SameKey, takes: Takes) -> list[Change]:
    """The keys, versions and source keys that the older state lacks, where nothing else has taken their names there.

    With a store that it lacks come those of its credentials whose secrets are known.
    """
    before: dict[tuple[str, str], Change] = {}  # stores, credentials and source keys, each once
    changes: list[Change] = []
    for key in known.keys.values():
        if not _lost_versions(key, known, older, is_same):
            continue
        needed = _needed(key, known, older, is_same, takes)
        after = _with_versions(key, older.keys.get(key.id))
        if needed is None or after is None:
            continue
        before |= {(change.kind, change.id): change for change in needed}
        changes.append(Change("key.restore", key.kind, key.id, older.keys.get(key.id), after))
    for source in known.source_keys.values():
        if not source.ready or (source.kind, source.id) in before or _has(older, source, is_same):
            continue
        now = older.source_keys.get(source.id)
        if now is None and takes(source):
            before[source.kind, source.id] = _restored(source)
        elif now is not None and is_same(source, now):
            before[source.kind, source.id] = _made_ready(now)
    return [*before.values(), *changes]


def _needed(key: Key, known: State, older: State, is_same: SameKey, takes: Takes) -> list[Change] | None:
    """What has to be there before the key can be; None: something else has its place."""
    changes: list[Change] = []
    store, place = known.key_stores[key.store], known.place_of(key.store)
    if key.store not in older.key_stores:
        if older.store_with_prefix(store.uri_path_prefix) is not None:
            return None
        credentials = known.credentials_of(key.store).values()
        changes += [_restored(store), *(_restored(credential) for credential in credentials if takes(credential))]
    elif older.place_of(key.store) != place:
        return None
    for version in key.versions:
        source = known.source_keys.get(source_key_id(place, version.label))
        if source is None:
            return None
        now = older.source_keys.get(source.id)
        if now is None:
            if not takes(source):
                return None
            changes.append(_restored(source))
        elif not is_same(source, now):
            return None
        elif source.ready and not now.ready:
            changes.append(_made_ready(now))
    return changes


def _with_versions(key: Key, now: Key | None) -> Key | None:
    """The key as it is there, with the versions that it has here; None: one number stands for two."""
    if now is None:
        return key
    versions = {version.number: version for version in key.versions}
    if any(version.number in versions and versions[version.number].label != version.label for version in now.versions):
        return None
    versions |= {version.number: version for version in now.versions}
    return replace(now, versions=tuple(versions[number] for number in sorted(versions)))


def _made_ready(now: SourceKey) -> Change:
    return Change("source_key.restore", now.kind, now.id, now, replace(now, ready=True))


def _restored(value: Stored) -> Change:
    return Change(f"{'store' if isinstance(value, KeyStore) else value.kind}.restore", value.kind, value.id, None, value)


# --- restrictions


def _lifted(known: State, older: State) -> Iterator[str]:
    for value in known.objects():
        now = older.find(value.kind, value.id)
        match value, now:
            case Key(), Key():
                if now.enabled and not value.enabled:
                    yield f"{_named(value)} was disabled"
                if set(now.usage) - set(value.usage):
                    yield f"{_named(value)} had usage {', '.join(value.usage) or 'none'} only"
            case KeyStore(), KeyStore():
                if value.allowed_principals and (
                    not now.allowed_principals or set(now.allowed_principals) - set(value.allowed_principals)
                ):
                    yield f"{_named(value)} had other allowed principals"
                if value.on_stale == "refuse" and (now.on_stale != "refuse" or now.stale_after_s > value.stale_after_s):
                    yield f"{_named(value)} was to be refused without news for {value.stale_after_s} s"
            case Operator(), Operator():
                rights = (value.role, value.token_sha256, value.stores, value.expires_at)
                if rights != (now.role, now.token_sha256, now.stores, now.expires_at):
                    yield f"{_named(value)} had another role, token, grants or end"


def _back_again(known: State, older: State) -> Iterator[str]:
    """What stands there and not here: removed since, or made there under a number that was lost."""
    for value in older.objects():
        if isinstance(value, SourceKey | AwsConnection) or older.revision_of(value) > known.seq:
            continue
        if known.find(value.kind, value.id) is None:
            yield f"{_named(value)} was removed"


def _named(value: Stored) -> str:
    return f"{'credential' if isinstance(value, Credential) else value.kind.replace('_', ' ')} {value.id}"
