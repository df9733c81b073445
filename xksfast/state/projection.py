# SPDX-License-Identifier: Apache-2.0
"""The state as it is now: what the event log adds up to, in memory, with the indexes that rules and snapshots need.

What lives here: folding events, looking up. What must not: rules and I/O. A newcomer's trap: nothing but `apply` changes a State, and
apply is given only what is committed; a use case that is refused half way leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from xksfast.state.events import GENESIS, Event
from xksfast.state.objects import (
    AwsConnection,
    Credential,
    Key,
    KeyStore,
    Operator,
    SourceKey,
    Stored,
    source_key_id,
)

Kind = TypeVar("Kind", bound=Stored)


class State:
    """All objects as of event `seq`; `head` is that event's hash.

    key_stores, credentials, keys, source_keys, aws_connections, operators: by id. keys_of, credentials_of: of a store, in the order of
    their making. revisions: (kind, id) -> seq of the last change, which is the object's ETag.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.head = GENESIS
        self.key_stores: dict[str, KeyStore] = {}
        self.credentials: dict[str, Credential] = {}
        self.keys: dict[str, Key] = {}
        self.source_keys: dict[str, SourceKey] = {}
        self.aws_connections: dict[str, AwsConnection] = {}
        self.operators: dict[str, Operator] = {}
        self.operators_by_token: dict[str, Operator] = {}
        self.revisions: dict[tuple[str, str], int] = {}
        self._store_by_prefix: dict[str, str] = {}
        self._keys_of: dict[str, dict[str, Key]] = {}
        self._credentials_of: dict[str, dict[str, Credential]] = {}
        self._users: dict[str, dict[str, None]] = {}  # source key id -> ids of the keys with a version of it
        self._tables: dict[str, dict[str, Stored]] = {
            "key_store": self.key_stores,  # type: ignore[dict-item]
            "credential": self.credentials,  # type: ignore[dict-item]
            "key": self.keys,  # type: ignore[dict-item]
            "source_key": self.source_keys,  # type: ignore[dict-item]
            "aws_connection": self.aws_connections,  # type: ignore[dict-item]
            "operator": self.operators,  # type: ignore[dict-item]
        }

    # --- folding

    def load(self, objects: Iterable[tuple[Stored, int]], seq: int, head: bytes) -> None:
        """Into an empty state: (object, seq of its last change), as of event `seq`."""
        for value, revision in objects:
            self._put(value)
            self.revisions[value.kind, value.id] = revision
        self.seq, self.head = seq, head

    def apply(self, events: Iterable[Event]) -> None:
        """Take over committed events, whole transactions, in order. ValueError when one does not follow on `seq`."""
        for event in events:
            if event.seq != self.seq + 1:
                raise ValueError(f"event {event.seq} does not follow on event {self.seq}")
            former = self._tables[event.kind].pop(event.id, None) if event.after is None else None
            if former is not None:
                self._unlink(former)
            value = event.object_after()
            if value is not None:
                self._put(value)
            self.revisions[event.kind, event.id] = event.seq
            if value is None:
                del self.revisions[event.kind, event.id]
            self.seq, self.head = event.seq, event.hash

    def _put(self, value: Stored) -> None:
        table = self._tables[value.kind]
        former = table.get(value.id)
        if former is not None:
            self._unlink(former)
        table[value.id] = value
        match value:
            case KeyStore():
                self._store_by_prefix[value.uri_path_prefix] = value.name
            case Credential():
                self._credentials_of.setdefault(value.store, {})[value.access_key_id] = value
            case Key():
                self._keys_of.setdefault(value.store, {})[value.external_key_id] = value
                for source in self._sources_of(value):
                    self._users.setdefault(source, {})[value.id] = None
            case Operator():
                self.operators_by_token[value.token_sha256] = value

    def _unlink(self, value: Stored) -> None:
        match value:
            case KeyStore():
                self._store_by_prefix.pop(value.uri_path_prefix, None)
            case Credential():
                self._credentials_of.get(value.store, {}).pop(value.access_key_id, None)
            case Key():
                self._keys_of.get(value.store, {}).pop(value.external_key_id, None)
                for source in self._sources_of(value):
                    self._users.get(source, {}).pop(value.id, None)
            case Operator():
                self.operators_by_token.pop(value.token_sha256, None)

    # --- looking up

    def store_with_prefix(self, uri_path_prefix: str) -> KeyStore | None:
        """The key store that answers under this prefix."""
        name = self._store_by_prefix.get(uri_path_prefix)
        return None if name is None else self.key_stores.get(name)

    def keys_of(self, store: str) -> dict[str, Key]:
        """Keys of a store by external key id; not to be changed."""
        return self._keys_of.get(store, {})

    def credentials_of(self, store: str) -> dict[str, Credential]:
        """Credentials of a store by access key id; not to be changed."""
        return self._credentials_of.get(store, {})

    def place_of(self, store: str) -> str:
        """Where the source keys of a store live: its partition group, or "local"."""
        return self.key_stores[store].partition_group or "local"

    def users_of(self, source_key: str) -> list[str]:
        """Ids of the keys that have a version of this source key."""
        return list(self._users.get(source_key, {}))

    def objects(self) -> Iterator[Stored]:
        """Every object, stores before what belongs to them."""
        for table in self._tables.values():
            yield from table.values()

    def _sources_of(self, key: Key) -> list[str]:
        """A key whose store is gone has none: stores go last, and a log that says otherwise must still fold."""
        if key.store not in self.key_stores:
            return []
        place = self.place_of(key.store)
        return [source_key_id(place, version.label) for version in key.versions]
