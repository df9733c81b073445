# SPDX-License-Identifier: Apache-2.0
"""What workers are told of a state: each slot holds the key it is said to hold, and what cannot be opened costs nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.native.test_seal import bytes_of, slot
from tests.state.making import a_credential, a_key, a_source, a_store
from tests.state.test_sealing import MASTER
from xksfast import model
from xksfast.native.crypto import Secret, SecretPages, derive_signing_key
from xksfast.state import delta
from xksfast.state.away import AwayDatabase
from xksfast.state.delta import DeltaBuilder, covered_days
from xksfast.state.events import GENESIS
from xksfast.state.objects import Stored
from xksfast.state.projection import State
from xksfast.state.records import SealedSecret
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows

DAYS = covered_days(1_790_000_000)
SEALER, _ = Sealer.new(MASTER, now=0)
AWAY: Any = AwayDatabase("not asked")


def state_of(*objects: Stored) -> State:
    state = State()
    state.load([(value, number) for number, value in enumerate(objects, 1)], len(objects), GENESIS)
    return state


def local_state(stores: int, keys: int) -> tuple[State, list[SealedSecret]]:
    """Stores of `local` keys of two versions each and one credential; its secrets."""
    objects: list[Stored] = []
    secrets: list[SealedSecret] = []
    for name in (f"s{number}" for number in range(stores)):
        objects.append(a_store(name, key_source="local", partition_group=None))
        credential = a_credential(name)
        secrets.append(SEALER.new_credential_secret(credential.secret_id)[0])
        objects.append(credential)
        for key in (f"k{number}" for number in range(keys)):
            labels = [f"{name}-{key}-v{number}" for number in (1, 2)]
            objects += [a_source("local", label, secret_id=label) for label in labels]
            secrets += [SEALER.new_local_key(label) for label in labels]
            objects.append(a_key(name, key, *labels))
    return state_of(*objects), secrets


def rendered(
    state: State,
    secrets: list[SealedSecret],
    withheld: set[tuple[str, str]] = frozenset(),  # type: ignore[assignment]
) -> tuple[list[tuple[model.Delta, SecretPages | None]], list[str]]:
    rows, problems = SecretRows(AWAY, SEALER), list[str]()
    rows.adopt(secrets)
    return list(DeltaBuilder(rows, problems.append, withheld).whole(state, DAYS)), problems


@pytest.mark.parametrize("at_once", [1, 7, 2000])
def test_each_slot_holds_what_it_is_said_to_hold(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(delta, "PART_OBJECTS", at_once)
    state, secrets = local_state(stores=3, keys=4)
    opened = {row.id: bytes_of(SEALER.open(row)) for row in secrets}
    parts, problems = rendered(state, secrets)
    assert problems == []
    assert [part.complete for part, _ in parts] == [False] * (len(parts) - 1) + [True]
    keys = [(key, pages) for part, pages in parts for key in part.keys]
    assert [f"{key.store}/{key.external_key_id}" for key, _ in keys] == list(state.keys)
    for key, pages in keys:
        assert pages is not None
        for version in key.versions:
            assert version.local_slot is not None
            assert slot(pages, version.local_slot) == opened[version.label]
    credentials = [(credential, pages) for part, pages in parts for credential in part.credentials]
    assert len(credentials) == 3
    expected = SecretPages.new(1)
    for credential, pages in credentials:
        assert pages is not None
        assert tuple(credential.signing_keys) == DAYS
        secret = Secret.from_bytes(opened[f"{credential.store}.{credential.access_key_id}"])
        for day, at in credential.signing_keys.items():
            derive_signing_key(secret, day, "us-east-1", expected, 0)
            assert slot(pages, at) == slot(expected, 0)


def test_what_cannot_be_opened_is_reported_and_costs_nothing_else() -> None:
    state, secrets = local_state(stores=1, keys=4)
    by_id = {row.id: row for row in secrets}
    opened = {row.id: bytes_of(SEALER.open(row)) for row in secrets}
    by_id["s0-k0-v2"] = replace(by_id["s0-k0-v2"], sealed=by_id["s0-k1-v1"].sealed)
    del by_id["s0-k2-v1"]
    del state.source_keys["local/s0-k3-v2"]
    by_id["s0." + "A" * 20] = replace(by_id["s0." + "A" * 20], version=2)
    parts, problems = rendered(state, list(by_id.values()))
    ((part, pages),) = parts
    assert pages is not None
    assert part.credentials == ()
    slots = {version.label: version.local_slot for key in part.keys for version in key.versions}
    assert {label for label, at in slots.items() if at is None} == {"s0-k0-v2", "s0-k2-v1", "s0-k3-v2"}
    assert all(slot(pages, at) == opened[label] for label, at in slots.items() if at is not None)
    assert len(problems) == 4
    for start, problem in zip(
        (
            "key store s0: key k0: secret 's0-k0-v2' (local_key, version 1) does not open",
            "key store s0: key k2: its secret 's0-k2-v1' is not in the state",
            "key store s0: key k3: there is no local key 's0-k3-v2'",
            "key store s0: credential AAAAAAAAAAAAAAAAAAAA: secret",
        ),
        problems,
        strict=True,
    ):
        assert problem.startswith(start)


def test_keys_of_tokens_need_no_slots_and_withheld_ones_are_blocked() -> None:
    state = state_of(a_store(), a_key(), a_key(external_key_id="other"), a_store("second"), a_key("second"))
    ((part, pages),), problems = rendered(state, [], {("key", "payments/orders"), ("key_store", "second")})
    assert (pages, problems) == (None, [])
    assert {store.name: store.blocked for store in part.key_stores} == {"payments": False, "second": True}
    assert {f"{key.store}/{key.external_key_id}": key.blocked for key in part.keys} == {
        "payments/orders": True,
        "payments/other": False,
        "second/orders": False,
    }
    assert all(version.local_slot is None for key in part.keys for version in key.versions)
