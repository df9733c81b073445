# SPDX-License-Identifier: Apache-2.0
"""Objects and changes for tests of the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xksfast.state.database import Database
from xksfast.state.events import Change, Event, Origin
from xksfast.state.objects import Credential, Key, KeyStore, KeyVersion, Operator, SourceKey, Stored
from xksfast.state.projection import State
from xksfast.state.records import SealedSecret, WrappedDataKey
from xksfast.state.store import Plan, StateStore

ALICE = Origin("operator:alice", "192.0.2.7")
NOW_MS = 1_790_000_000_123
DATA_KEY = WrappedDataKey("dk-1", "file", {"path": "master.key", "cost": 3}, b"\x00wrapped\xff", 1_790_000_000)


def a_store(name: str = "payments", **values: Any) -> KeyStore:
    given = {"uri_path_prefix": f"/{name}", "region": "us-east-1", "key_source": "pkcs11", "partition_group": "main", **values}
    return KeyStore(name=name, **given)


def a_key(store: str = "payments", external_key_id: str = "orders", *labels: str, **values: Any) -> Key:
    labels = labels or (f"{external_key_id}-v1",)
    versions = tuple(KeyVersion(number=number, label=label) for number, label in enumerate(labels, 1))
    return Key(store=store, external_key_id=external_key_id, versions=versions, **values)


def a_credential(store: str = "payments", access_key_id: str = "A" * 20, **values: Any) -> Credential:
    return Credential(store=store, access_key_id=access_key_id, **{"secret_id": f"{store}.{access_key_id}", **values})


def a_source(place: str = "main", label: str = "orders-v1", **values: Any) -> SourceKey:
    return SourceKey(place=place, label=label, **values)


def an_operator(name: str = "alice", token: str = "aa") -> Operator:
    return Operator(name=name, role="admin", token_sha256=token * 32)


def a_secret(secret_id: str = "s-1", sealed: bytes = b"\x01sealed\xfe", **values: Any) -> SealedSecret:
    given = {"purpose": "credential", "version": 1, "data_key_id": DATA_KEY.id, **values}
    return SealedSecret(id=secret_id, sealed=sealed, **given)


def created(value: Stored) -> Change:
    return Change("test.create", value.kind, value.id, None, value)


def changed(before: Stored, after: Stored) -> Change:
    return Change("test.update", before.kind, before.id, before, after)


def removed(value: Stored) -> Change:
    return Change("test.delete", value.kind, value.id, value, None)


def write(database: Database, *changes: Change, node: str = "n1", at_ms: int = NOW_MS, origin: Origin = ALICE) -> list[Event]:
    """One transaction."""
    with database.write(node) as writer:
        return writer.append(changes, origin, at_ms)


def put(value: Stored) -> Callable[[State], Plan]:
    """A plan: the object is so, whatever it was."""

    def plan(state: State) -> Plan:
        before = state.find(value.kind, value.id)
        return Plan(changes=[created(value) if before is None else changed(before, value)])

    return plan


def opened(database: Database, node: str = "n1", **values: Any) -> StateStore:
    store = StateStore(database, node, **values)
    store.open()
    return store


def all_of(state: State) -> dict[str, Any]:
    """Everything that there is to a state, with every order that it keeps."""
    stores = list(state.key_stores)
    sources = [source for key in state.keys.values() for source in (f"main/{v.label}" for v in key.versions)]
    return {
        "position": (state.seq, state.head),
        "key_stores": list(state.key_stores.items()),
        "keys": list(state.keys.items()),
        "credentials": list(state.credentials.items()),
        "source_keys": list(state.source_keys.items()),
        "operators": list(state.operators.items()),
        "by_token": dict(state.operators_by_token),
        "revisions": [(value.kind, value.id, state.revision_of(value)) for value in state.objects()],
        "keys_of": {store: list(state.keys_of(store).items()) for store in [*stores, "payments", "s0", "s1", "s2"]},
        "credentials_of": {
            store: list(state.credentials_of(store).items()) for store in [*stores, "payments", "s0", "s1", "s2"]
        },
        "users": {source: state.users_of(source) for source in sources},
        "prefixes": {prefix: state.store_with_prefix(prefix) for prefix in ("", "/a", "/b", "/s0", "/s1", "/s2", "/payments")},
    }
