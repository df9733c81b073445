# SPDX-License-Identifier: Apache-2.0
"""The state as it is now: what the event log adds up to, in memory, with the indexes that rules and snapshots need.

What lives here: folding events, looking up. What must not: rules and I/O. A newcomer's trap: nothing but `apply` changes a State, and
apply is given only what is committed; a use case that is refused half way leaves no trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
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

Kind = TypeVar("Kind")

TABLES = {  # attribute of a State -> kind of the objects in it
    "key_stores": KeyStore.kind,
    "credentials": Credential.kind,
    "keys": Key.kind,
    "source_keys": SourceKey.kind,
    "aws_connections": AwsConnection.kind,
    "operators": Operator.kind,
}


class State:
    """All objects as of event `seq`; `head` is that event's hash.

    key_stores, credentials, keys, source_keys, aws_connections, operators: by id. keys_of, credentials_of: of a store, in the order of
    their making.
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
        self._store_by_prefix: dict[str, str] = {}
        self._keys_of: dict[str, dict[str, Key]] = {}
        self._credentials_of: dict[str, dict[str, Credential]] = {}
        # Source key id -> ids of the keys with a version of it; None: nobody has asked yet. It costs a start more than any other index.
        self._users: dict[str, dict[str, None]] | None = None
        self._tables: dict[str, dict[str, Stored]] = {kind: getattr(self, name) for name, kind in TABLES.items()}
        self._revisions: dict[str, dict[str, int]] = {kind: {} for kind in self._tables}  # kind -> id -> seq of the last change

    # --- folding

    def load(self, objects: Iterable[tuple[Stored, int]], seq: int, head: bytes) -> None:
        """Into an empty state: (object, seq of its last change), as of event `seq`."""
        for value, revision in objects:
            kind, id_ = value.kind, value.id
            self._tables[kind][id_] = value
            self._revisions[kind][id_] = revision
            self._index(value, None)
        self.seq, self.head = seq, head

    def apply(self, events: Iterable[Event]) -> None:
        """Take over committed events, whole transactions, in order; all of them or none.

        ValueError (which msgspec's DecodeError is) when one does not follow on `seq`, or cannot be read.
        """
        read = [(event, event.object_after()) for event in events]
        for expected, (event, _) in enumerate(read, self.seq + 1):
            if event.seq != expected or event.kind not in self._tables:
                raise ValueError(f"event {event.seq} does not follow on event {expected - 1}")
        for event, value in read:
            former = self._tables[event.kind].get(event.id)
            self._unindex(former, value)
            if value is None:
                self._tables[event.kind].pop(event.id, None)
                self._revisions[event.kind].pop(event.id, None)
            else:
                self._tables[event.kind][event.id] = value  # a dict keeps the order of what is replaced in it
                self._revisions[event.kind][event.id] = event.seq
                self._index(value, former)
            self.seq, self.head = event.seq, event.hash

    def after(self, events: Sequence[Event]) -> State:
        """Another State, to look at: this one as `apply` of these events would make it. This one stays as it is.

        It shares with this one what the events do not touch, so that it is quickly made of very many objects.
        """
        touched = {event.kind for event in events}
        values = [value for event in events for value in (event.object_before(), event.object_after())]
        stores = {value.store for value in values if isinstance(value, Key | Credential)}
        made = State()
        made.__dict__.update(self.__dict__)
        for name in ("operators_by_token", "_store_by_prefix"):
            setattr(made, name, dict(getattr(self, name)))
        for name, kind in TABLES.items():
            table = getattr(self, name)
            setattr(made, name, dict(table) if kind in touched else table)
        made._tables = {kind: getattr(made, name) for name, kind in TABLES.items()}
        made._revisions = {kind: dict(known) if kind in touched else known for kind, known in self._revisions.items()}
        made._keys_of = {**self._keys_of, **{store: dict(self.keys_of(store)) for store in stores}}
        made._credentials_of = {**self._credentials_of, **{store: dict(self.credentials_of(store)) for store in stores}}
        made._users = None
        made.apply(events)
        return made

    def _index(self, value: Stored, former: Stored | None) -> None:
        """Of what has come in the place of `former`, whose own indexes are gone."""
        match value:
            case KeyStore():
                self._store_by_prefix[value.uri_path_prefix] = value.name
                if not isinstance(former, KeyStore) or former.partition_group != value.partition_group:
                    for key in self.keys_of(value.name).values():
                        self._note_user(key)
            case Credential():
                self._credentials_of.setdefault(value.store, {})[value.access_key_id] = value
            case Key():
                self._keys_of.setdefault(value.store, {})[value.external_key_id] = value
                self._note_user(value)
            case Operator():
                self.operators_by_token[value.token_sha256] = value

    def _unindex(self, former: Stored | None, value: Stored | None) -> None:
        """Forget what `value`, or nothing, takes the place of; what `_index` replaces in place stays."""
        match former:
            case KeyStore():
                if self._store_by_prefix.get(former.uri_path_prefix) == former.name:
                    del self._store_by_prefix[former.uri_path_prefix]
                if not isinstance(value, KeyStore) or former.partition_group != value.partition_group:
                    for key in self.keys_of(former.name).values():
                        self._forget_user(key)
            case Credential():
                if not isinstance(value, Credential) or former.store != value.store:
                    _drop(self._credentials_of, former.store, former.access_key_id)
            case Key():
                if value is None:
                    _drop(self._keys_of, former.store, former.external_key_id)
                self._forget_user(former)
            case Operator():
                if self.operators_by_token.get(former.token_sha256) is former:
                    del self.operators_by_token[former.token_sha256]

    def _note_user(self, key: Key) -> None:
        if self._users is not None:
            for source in self._sources_of(key):
                self._users.setdefault(source, {})[key.id] = None

    def _forget_user(self, key: Key) -> None:
        if self._users is not None:
            for source in self._sources_of(key):
                _drop(self._users, source, key.id)

    # --- looking up

    def find(self, kind: str, id: str) -> Stored | None:
        """An object by its kind and id."""
        return self._tables[kind].get(id)

    def revision_of(self, value: Stored) -> int:
        """seq of the last change of an object, which is its ETag; 0: it is not here."""
        return self._revisions[value.kind].get(value.id, 0)

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
        """Ids of the keys that have a version of this source key, sorted. The first call takes as long as there are keys."""
        if self._users is None:
            self._users = {}
            for key in self.keys.values():
                self._note_user(key)
        return sorted(self._users.get(source_key, {}))

    def objects(self) -> Iterator[Stored]:
        """Every object, stores before what belongs to them."""
        for table in self._tables.values():
            yield from table.values()

    def with_revisions(self) -> Iterator[tuple[Stored, int]]:
        """Every object with its revision_of, as they are now, however late they are read. What `load` takes."""
        taken = [
            (list(table.values()), list(map(self._revisions[kind].__getitem__, table))) for kind, table in self._tables.items()
        ]
        return itertools.chain.from_iterable(zip(values, revisions, strict=True) for values, revisions in taken)

    def _sources_of(self, key: Key) -> list[str]:
        """A key whose store is gone has none: stores go last, and a log that says otherwise must still fold."""
        if key.store not in self.key_stores:
            return []
        place = self.place_of(key.store)
        return [source_key_id(place, version.label) for version in key.versions]


def _drop(index: dict[str, dict[str, Kind]], outer: str, inner: str) -> None:
    """Out of a dict of dicts, without leaving an empty one."""
    found = index.get(outer, {})
    found.pop(inner, None)
    if not found:
        index.pop(outer, None)
