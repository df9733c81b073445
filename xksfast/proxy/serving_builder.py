# SPDX-License-Identifier: Apache-2.0
"""Snapshot -> ServingTable: keyrings from signing keys, bindings from key sources.

Two steps, because a token may take a while to find a new key and the loop must not wait: `begin` asks every source for every key,
`finish` reads what was found. In between the worker lets the sources settle in a thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from xksfast.ekm.base import KeySource
from xksfast.model import KeyStore, Snapshot
from xksfast.native.crypto import Keyring, SecretPages
from xksfast.proxy.serving import ServedKey, ServedStore, ServingTable


class PreparedTable:
    """A table in the making, and later the record of what it holds of the sources.

    sources: "local" and "group:<partition group>" -> KeySource.
    """

    def __init__(self, snapshot: Snapshot, pages: SecretPages, sources: Mapping[str, KeySource]) -> None:
        self.snapshot = snapshot
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._pages = pages
        self._sources = sources
        self._tickets: list[tuple[KeySource, int]] = []
        self._by_store: dict[str, list[int]] = {}

    def begin(self) -> None:
        """Ask the sources for every key."""
        for store in self.snapshot.key_stores:
            source = self._source(store)
            if source is None:
                self.problems.append(
                    f"key store {store.name}: there is no partition group {store.partition_group!r} in the configuration"
                )
                continue
            tickets = [source.request(key, self._pages) for key in store.keys]
            self._by_store[store.name] = tickets
            self._tickets.extend((source, ticket) for ticket in tickets)

    def finish(self) -> ServingTable:
        """The table, after the sources have settled.

        `problems` then names each key that cannot be served, `notes` those that only some partitions serve.
        """
        stores = []
        for store in self.snapshot.key_stores:
            source = self._source(store)
            if source is None:
                continue
            keys = []
            for key, ticket in zip(store.keys, self._by_store[store.name], strict=True):
                binding = source.binding(ticket, key)
                if binding.problem:
                    self.problems.append(f"key store {store.name}: key {key.external_key_id}: {binding.problem}")
                if binding.note:
                    self.notes.append(f"key store {store.name}: key {key.external_key_id}: {binding.note}")
                keys.append(ServedKey(key, binding))
            stores.append(ServedStore(store, self._keyring(store), keys, source.fleet))
        return ServingTable(self.snapshot.seq, stores)

    def release(self) -> None:
        """Give every key back. Only when no request can still use the table."""
        for source, ticket in self._tickets:
            source.release(ticket)
        self._tickets.clear()

    def _source(self, store: KeyStore) -> KeySource | None:
        return self._sources.get("local" if store.key_source == "local" else f"group:{store.partition_group}")

    def _keyring(self, store: KeyStore) -> Keyring:
        keyring = Keyring(store.region)
        for credential in store.credentials:
            for day, slot in credential.signing_keys.items():
                keyring.add(credential.access_key_id, day, self._pages, slot)
        return keyring
