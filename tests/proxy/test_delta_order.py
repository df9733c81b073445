# SPDX-License-Identifier: Apache-2.0
"""Any deltas, whole states and parts in any order, with tokens that answer when they like: never more is allowed than the newest that
was acknowledged says, and in the end exactly that. The applier as it is, in this process; the tokens are a stand-in that waits."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from xksfast import messages
from xksfast.ekm.base import Fleet, KeyBinding
from xksfast.log import Log
from xksfast.model import Credential, Delta, Key, KeyStore, KeyUsage, KeyVersion
from xksfast.native.crypto import JobPool, RandomPool, SecretPages
from xksfast.proxy.delta_applier import DeltaApplier
from xksfast.proxy.pipeline import Pipeline
from xksfast.proxy.serving import ServingTable

IDS = ("AAAAAAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBBBBBB")
USAGES: tuple[tuple[KeyUsage, ...], ...] = ((), ("ENCRYPT",), ("DECRYPT",), ("ENCRYPT", "DECRYPT"))


class SlowEngine:
    """Settles one wait for each let_one()."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)

    def let(self, waits: int = 1) -> None:
        self._allowed.release(waits)

    def wait_settled(self, patience_s: float) -> bool:
        return True

    def wait_keys(self, keys: Sequence[int], patience_s: float) -> bool:
        return self._allowed.acquire(timeout=patience_s) if patience_s else False


class SlowTokens:
    """What the applier needs of a TokenEngine."""

    def __init__(self) -> None:
        self.engine = SlowEngine()

    def refusals(self) -> list[str]:
        return []


class Group:
    """A key source whose keys are those that are asked for; counts what it was asked for and given back."""

    name = "main"

    def __init__(self) -> None:
        self.fleet = Fleet()

    def request(self, version: KeyVersion, pages: SecretPages | None) -> int:
        return 1

    def binding(self, ticket: int, key: Key, version: KeyVersion) -> KeyBinding:
        return KeyBinding(engine_key=ticket)

    def release(self, ticket: int) -> None:
        """Comes 30 s later, when this test has ended."""

    def check(self) -> None:
        """Always well."""


@dataclass
class World:
    """A state as the control process knows it."""

    stores: dict[str, KeyStore] = field(default_factory=dict)
    keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    credentials: set[tuple[str, str]] = field(default_factory=set)

    def allows(self) -> set[Any]:
        """Everything that a request may do, a tuple each."""
        found: set[Any] = set()
        for name, store in self.stores.items():
            if not store.blocked:
                found |= {("credential", name, id_) for store_name, id_ in self.credentials if store_name == name}
                for key in (key for key in self.keys.values() if key.store == name and not key.blocked and key.enabled):
                    found |= {(name, key.external_key_id, usage) for usage in key.usage}
                    found |= {(name, key.external_key_id, version.number, version.label) for version in key.versions}
                    found.add((name, key.external_key_id, "last", key.versions[-1].number))
        return found


def allowed_by(table: ServingTable) -> set[Any]:
    """The same as the table has it."""
    found: set[Any] = set()
    assert {store.prefix for store in table.names.values()} == set(table.stores)
    for name, store in table.names.items():
        if not store.blocked:
            found |= {("credential", name, id_) for id_ in store.access_key_ids()}
            for key_id, key in store.keys.items():
                if not key.blocked and key.enabled:
                    external_key_id = key_id.decode()
                    found |= {(name, external_key_id, usage) for usage in key.usage}
                    found |= {(name, external_key_id, version.number, version.label) for version in key.versions()}
                    found.add((name, external_key_id, "last", key.current.number))
    return found


def without_last(allowed: set[Any]) -> set[Any]:
    """Which version encrypts is no permission of its own: until a delta is finished it may be any that is left."""
    return {entry for entry in allowed if "last" not in entry}


@st.composite
def histories(draw: st.DrawFn) -> list[Any]:
    """Steps: a list of parts of a delta with the World after it, or a number of waits that the tokens end."""
    world, steps = World(), []
    for seq in range(1, draw(st.integers(3, 8))):
        reset = seq == 1 or draw(st.integers(0, 4)) == 0
        removed_stores, removed_keys, removed_credentials = set(), set(), set()
        touched: dict[Any, None] = {}
        for _ in range(draw(st.integers(1, 5))):
            name = draw(st.sampled_from(("one", "two")))
            match draw(st.sampled_from(("store", "key", "key", "key", "credential", "no store", "no key", "no credential"))):
                case "store":
                    world.stores[name] = KeyStore(name, f"/{name}", "us-east-1", "pkcs11", "main", blocked=draw(st.booleans()))
                    touched["store", name] = None
                case "key" if name in world.stores:
                    key = _key(draw, name)
                    world.keys[name, key.external_key_id] = key
                    touched["key", name, key.external_key_id] = None
                case "credential" if name in world.stores:
                    id_ = draw(st.sampled_from(IDS))
                    world.credentials.add((name, id_))
                    touched["credential", name, id_] = None
                case "no store" if name in world.stores:
                    del world.stores[name]
                    world.keys = {key: value for key, value in world.keys.items() if key[0] != name}
                    world.credentials = {value for value in world.credentials if value[0] != name}
                    removed_stores.add(name)
                case "no key":
                    which = (name, draw(st.sampled_from(("k1", "k2"))))
                    world.keys.pop(which, None)
                    removed_keys.add(which)
                case "no credential":
                    who = (name, draw(st.sampled_from(IDS)))
                    world.credentials.discard(who)
                    removed_credentials.add(who)
        named = [*world.stores, *world.keys, *world.credentials] if reset else []
        stores = [world.stores[n] for n in world.stores if n in named or ("store", n) in touched]
        keys = [world.keys[n] for n in world.keys if n in named or ("key", *n) in touched]
        credentials = [
            Credential(*who, signing_keys={"20260304": 0})
            for who in sorted(world.credentials)
            if who in named or ("credential", *who) in touched
        ]
        first = Delta(
            base_seq=0 if reset else seq - 1, seq=seq, reset=reset, complete=False, key_stores=tuple(stores),
            removed_stores=() if reset else tuple(removed_stores), removed_keys=() if reset else tuple(removed_keys),
            removed_credentials=() if reset else tuple(removed_credentials),
        )  # fmt: skip
        last = Delta(base_seq=first.base_seq, seq=seq, reset=reset, keys=tuple(keys), credentials=tuple(credentials))
        after = World(dict(world.stores), dict(world.keys), set(world.credentials))
        steps.append(([first, last], after))
        if draw(st.booleans()):
            steps.append(draw(st.integers(1, 2)))
    return steps


def _key(draw: st.DrawFn, store: str) -> Key:
    numbers = sorted(draw(st.sets(st.integers(1, 3), min_size=1)))
    external_key_id = draw(st.sampled_from(("k1", "k2")))
    return Key(
        store=store,
        external_key_id=external_key_id,
        versions=tuple(KeyVersion(number, draw(st.sampled_from(("a", "b")))) for number in numbers),
        usage=draw(st.sampled_from(USAGES)),
        enabled=draw(st.booleans()),
        blocked=draw(st.booleans()),
    )


@given(histories())
@settings(max_examples=60, deadline=None)
def test_no_delta_is_overtaken_or_undone(history: list[Any]) -> None:
    async def live() -> None:
        said: list[Any] = []
        tokens = SlowTokens()
        pipeline = Pipeline(
            asyncio.get_running_loop(),
            engine=None,
            jobs=JobPool(),
            random=RandomPool(),
            deadline_ms=200,
            request_log=None,
        )
        applier = DeltaApplier(
            pipeline,
            {"group:main": Group()},
            tokens,  # type: ignore[arg-type]
            worker=0,
            log=Log("test"),
            send=said.append,
            on_applied=lambda seq: None,
            on_refused=lambda problems: None,
        )
        pages = SecretPages.new(1)
        running = asyncio.ensure_future(applier.run())

        async def until(message: Any) -> None:
            async with asyncio.timeout(10):
                while not any(type(m) is type(message) and m.seq == message.seq for m in said):
                    assert not running.done(), running.exception()
                    await asyncio.sleep(0)

        world = World()
        try:
            for step in history:
                if isinstance(step, int):
                    tokens.engine.let(step)
                    for _ in range(20):
                        await asyncio.sleep(0.0005)
                        assert without_last(allowed_by(pipeline.table)) <= world.allows()
                    continue
                parts, world = step
                for part in parts:
                    applier.receive(part, os.dup(pages.fd) if part.credentials else None)
                await until(messages.DeltaRestricted(seq=parts[0].seq, worker=0))
                assert without_last(allowed_by(pipeline.table)) <= world.allows()
            tokens.engine.let(len(history))
            await until(messages.DeltaApplied(seq=parts[0].seq, worker=0))
            assert allowed_by(pipeline.table) == world.allows()
            assert [m.seq for m in said if isinstance(m, messages.DeltaApplied)] == list(range(1, parts[0].seq + 1))
            assert not [m for m in said if isinstance(m, messages.DeltaRefused)]
        finally:
            tokens.engine.let(len(history))  # a thread may still wait
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(live())
