# SPDX-License-Identifier: Apache-2.0
"""A delta with all its parts, and what it forbids.

What lives here: one delta by the names of its objects. What must not: the order of deltas and waiting for tokens (delta_applier.py).
A newcomer's trap: a delta forbids as soon as it is there, and allows only in its turn. So whenever an earlier one that waited for a
token sets an object, each later one forbids anew what it has to say of that object (`hold_...`), before a request can see it.
"""

from __future__ import annotations

from collections.abc import Iterator

from xksfast.model import Credential, Delta, Key, KeyStore
from xksfast.native.crypto import SecretPages
from xksfast.proxy.serving import ServingTable

Pages = SecretPages | None


class Change:
    """What is new between two events. first: its first part. complete: all parts are there."""

    def __init__(self, first: Delta) -> None:
        self.number = 0  # of the message that brought its newest part
        self.seq = first.seq
        self.base_seq = first.base_seq
        self.reset = first.reset
        self.complete = False
        self.stores: dict[str, KeyStore] = {}
        # By store: one dictionary for all keys of a large state would take milliseconds whenever it grows.
        self._credentials: dict[str, dict[str, tuple[Credential, Pages]]] = {}
        self._keys: dict[str, dict[str, tuple[Key, Pages]]] = {}
        self._parts: list[Delta] = []
        self._removed_stores: set[str] = set()
        self._removed_credentials: set[tuple[str, str]] = set()
        self._removed_keys: set[tuple[str, str]] = set()

    def continues(self, part: Delta) -> bool:
        """Whether `part` belongs to this change."""
        return (part.seq, part.base_seq, part.reset) == (self.seq, self.base_seq, self.reset) and not self.complete

    def add(self, part: Delta, pages: Pages) -> None:
        """Take in another part. pages: what its slots point into."""
        self._parts.append(part)
        self._removed_stores.update(part.removed_stores)
        self._removed_credentials.update(part.removed_credentials)
        self._removed_keys.update(part.removed_keys)
        self.stores.update((store.name, store) for store in part.key_stores)
        for credential in part.credentials:
            self._credentials.setdefault(credential.store, {})[credential.access_key_id] = credential, pages
        for key in part.keys:
            self._keys.setdefault(key.store, {})[key.external_key_id] = key, pages

    def all_credentials(self) -> Iterator[tuple[Credential, Pages]]:
        """Its credentials, each with what its slots point into."""
        for of_store in self._credentials.values():
            yield from of_store.values()

    def all_keys(self) -> Iterator[tuple[Key, Pages]]:
        """Its keys, each with what its slots point into; the same order each time, once all parts are there."""
        for of_store in self._keys.values():
            yield from of_store.values()

    # --- what it forbids, in steps; each is one object

    def restrict_by(self, table: ServingTable, part: Delta) -> Iterator[None]:
        """All that this part of it forbids."""
        for name in part.removed_stores:
            table.remove_store(name)
            yield
        for store_name, access_key_id in part.removed_credentials:
            table.remove_credential(store_name, access_key_id)
            yield
        for store_name, external_key_id in part.removed_keys:
            table.remove_key(store_name, external_key_id)
            yield
        for store in part.key_stores:
            table.restrict_store(store)
            yield
        for key in part.keys:
            table.restrict_key(key)
            yield

    def remove_others(self, table: ServingTable) -> Iterator[None]:
        """What a whole state, all of whose parts are there, does not have."""
        for name in list(table.names):
            self.hold_store(table, name)
            yield
        for name, store in list(table.names.items()):
            for access_key_id in store.access_key_ids():
                self.hold_credential(table, name, access_key_id)
                yield
            for key_id in list(store.keys):
                self.hold_key(table, name, key_id.decode("ascii"))
                yield

    def restrict(self, table: ServingTable) -> Iterator[None]:
        """All that it forbids, as far as its parts are there; parts that come meanwhile included."""
        for part in self._parts:
            yield from self.restrict_by(table, part)
        if self.reset and self.complete:
            yield from self.remove_others(table)

    # --- the same for one object, which an earlier change has just set

    def hold_store(self, table: ServingTable, name: str) -> None:
        """Forbid what it forbids of a store."""
        if name in self._removed_stores or self._lacks(name in self.stores):
            table.remove_store(name)
        elif name in self.stores:
            table.restrict_store(self.stores[name])

    def hold_credential(self, table: ServingTable, store: str, access_key_id: str) -> None:
        """Forbid what it forbids of a credential."""
        present = access_key_id in self._credentials.get(store, ())
        if (store, access_key_id) in self._removed_credentials or self._lacks(present):
            table.remove_credential(store, access_key_id)

    def hold_key(self, table: ServingTable, store: str, external_key_id: str) -> None:
        """Forbid what it forbids of a key."""
        found = self._keys.get(store, {}).get(external_key_id)
        if (store, external_key_id) in self._removed_keys or self._lacks(found is not None):
            table.remove_key(store, external_key_id)
        elif found is not None:
            table.restrict_key(found[0])

    def _lacks(self, present: bool) -> bool:
        """Whether it is a whole state that does not have an object."""
        return self.reset and self.complete and not present
