# SPDX-License-Identifier: Apache-2.0
"""States for tests of rules, made the only way there is: by folding events."""

from __future__ import annotations

from collections.abc import Iterable

from xksfast.admin.plans import keys, stores
from xksfast.admin.requests import KeyCreate, StoreCreate
from xksfast.state.events import Change, Origin, chain
from xksfast.state.objects import Credential
from xksfast.state.projection import State

NOW = 1_790_000_000


def commit(state: State, changes: Iterable[Change]) -> State:
    """Apply the changes as one transaction."""
    events = chain(
        list(changes),
        after_seq=state.seq,
        head=state.head,
        at_ms=NOW * 1000,
        transaction=f"t{state.seq}",
        node="n1",
        origin=Origin("operator:test"),
    )
    state.apply(events)
    return state


def with_store(state: State, name: str = "payments", **fields: object) -> State:
    """A local store with one credential."""
    request = StoreCreate(
        **{"name": name, "uri_path_prefix": f"/{name}", "region": "us-east-1", "key_source": "local", **fields}
    )
    store = stores.new_store(state, request, groups=(), now=NOW)
    credential = Credential(access_key_id="A" * 20, store=name, secret_id=f"credential/{name}/{'A' * 20}", created_at=NOW)
    return commit(state, stores.create(store, [credential]))


def with_key(state: State, store: str = "payments", external_key_id: str = "orders", **fields: object) -> State:
    """A key with a local source key of its own."""
    label = f"{external_key_id}-v1"
    commit(state, keys.begin_source(state, "local", label, f"local_key/{label}", now=NOW))
    request = KeyCreate(**{"external_key_id": external_key_id, **fields})
    return commit(state, keys.create(state, store, request, label, owned=True, now=NOW))
