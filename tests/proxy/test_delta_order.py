# SPDX-License-Identifier: Apache-2.0
"""Any deltas, whole states and parts in any order, with tokens that answer when they like and control processes that die: never more is
allowed than the newest that was acknowledged says, and in the end exactly that. The applier as it is, in this process; the tokens are a
stand-in that waits. With no time for a slice, requests have their turn between any two objects, as while a large state comes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xksfast import messages
from xksfast.ekm.base import Fleet, KeyBinding
from xksfast.log import Log
from xksfast.model import Credential, Delta, Key, KeyStore, KeyUsage, KeyVersion
from xksfast.native.crypto import JobPool, RandomPool, SecretPages
from xksfast.proxy import delta_applier
from xksfast.proxy.delta_applier import DeltaApplier
from xksfast.proxy.pipeline import Pipeline
from xksfast.proxy.serving import ServingTable

IDS = ("AAAAAAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBBBBBB")
USAGES: tuple[tuple[KeyUsage, ...], ...] = ((), ("ENCRYPT",), ("DECRYPT",), ("ENCRYPT", "DECRYPT"))


class SlowEngine:
    """Settles one wait for each let(), or each of them at once."""

    def __init__(self, *, at_once: bool = False) -> None:
        self._allowed = threading.Semaphore(0)
        self._at_once = at_once

    def let(self, waits: int = 1) -> None:
        self._allowed.release(waits)

    def wait_settled(self, patience_s: float) -> bool:
        return True

    def wait_keys(self, keys: Sequence[int], patience_s: float) -> bool:
        return self._at_once or (self._allowed.acquire(timeout=patience_s) if patience_s else False)


class SlowTokens:
    """What the applier needs of a TokenEngine."""

    def __init__(self, *, at_once: bool = False) -> None:
        self.engine = SlowEngine(at_once=at_once)

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
    """Steps: a list of parts of a delta with the World after it, or a number of waits that the tokens end.

    Behind the World: for how many turns of the loop nothing follows. None in place of the World: the control process has died after
    the first part, and the one that is started next begins with a whole state.
    """
    steps: list[Any] = []
    world = World()
    kinds = ["state"]
    while len(kinds) < draw(st.integers(2, 7)):
        kinds += draw(
            st.sampled_from((["delta"], ["delta"], ["state"], ["large state", "dies", "state"], ["state dies", "state"]))
        )
    for seq, kind in enumerate(kinds, start=1):
        reset = "state" in kind
        removed_stores, removed_credentials = set(), set()
        removed_keys = {("one", f"gone{number}") for number in range(draw(st.sampled_from((0, 40))))}
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
        if kind == "large state" and "one" in world.stores:  # of keys that nobody may use
            versions = (KeyVersion(1, "a"),)
            keys += [Key("one", f"large{number}", versions, USAGES[3], blocked=True) for number in range(15)]
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
        turns = draw(st.integers(10, 50)) if kind.endswith("dies") else draw(st.sampled_from((0, 0, 5, 25)))
        if kind.endswith("dies"):
            steps.append(([first], None, turns))
        else:
            whole = msgspec.structs.replace(first, complete=True, keys=last.keys, credentials=last.credentials)
            steps.append(([first, last] if draw(st.booleans()) else [whole], after, turns))
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


class Applied:
    """An applier, what it serves, and what it has said."""

    def __init__(self, *, tokens_answer_at_once: bool) -> None:
        self.said: list[Any] = []
        self.tokens = SlowTokens(at_once=tokens_answer_at_once)
        self.pipeline = Pipeline(
            asyncio.get_running_loop(),
            engine=None,
            jobs=JobPool(),
            random=RandomPool(),
            deadline_ms=200,
            request_log=None,
        )
        self.applier = DeltaApplier(
            self.pipeline,
            {"group:main": Group()},
            self.tokens,  # type: ignore[arg-type]
            worker=0,
            log=QuietLog("test"),
            send=self.said.append,
            on_applied=lambda seq: None,
            on_refused=lambda problems: None,
        )
        self._pages = SecretPages.new(1)
        self._running = asyncio.ensure_future(self.applier.run())

    def receive(self, part: Delta) -> None:
        """As from a control process."""
        self.applier.receive(part, os.dup(self._pages.fd) if part.credentials else None)

    def seqs(self, kind: type[Any]) -> list[int]:
        """Of all messages of a kind so far."""
        return [message.seq for message in self.said if isinstance(message, kind)]

    async def until(self, kind: type[Any], seq: int) -> None:
        """The message was sent."""
        async with asyncio.timeout(20):
            while seq not in self.seqs(kind):
                await self.turn()

    async def turn(self) -> None:
        """One turn of the loop: the applier goes on by a slice."""
        assert not self._running.done(), self._running.exception()
        await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop."""
        self.tokens.engine.let(20)  # a thread may still wait
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


class QuietLog(Log):
    """That a delta was abandoned is what these tests are about."""

    def warning(self, event: str, **fields: Any) -> None:
        assert event in ("delta_abandoned", "tokens_not_settled")


@asynccontextmanager
async def applied(*, slice_s: float, tokens_answer_at_once: bool) -> AsyncIterator[Applied]:
    """An applier at work, with so much of the loop's time at a stretch."""
    with mock.patch.object(delta_applier, "SLICE_S", slice_s):
        it = Applied(tokens_answer_at_once=tokens_answer_at_once)
        try:
            yield it
        finally:
            await it.close()


SLICES = pytest.mark.parametrize(
    "slice_s", [delta_applier.SLICE_S, 0.0], ids=["slices as they are", "a turn after each object"]
)


@SLICES
@given(history=histories(), tokens_answer_at_once=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_delta_is_overtaken_or_undone(slice_s: float, history: list[Any], tokens_answer_at_once: bool) -> None:
    async def live() -> None:
        async with applied(slice_s=slice_s, tokens_answer_at_once=tokens_answer_at_once) as it:
            world = World()
            acknowledged = []

            def assert_nothing_more() -> None:
                assert without_last(allowed_by(it.pipeline.table)) <= world.allows()

            for step in history:
                if isinstance(step, int):
                    if tokens_answer_at_once:
                        continue
                    it.tokens.engine.let(step)
                    for _ in range(20):
                        await asyncio.sleep(0.0005)
                        assert_nothing_more()
                    continue
                parts, after, turns = step
                for part in parts:
                    it.receive(part)
                if after is not None:
                    await it.until(messages.DeltaRestricted, parts[0].seq)
                    acknowledged.append(parts[0].seq)
                    world = after
                assert_nothing_more()
                for _ in range(turns):
                    await it.turn()
                    assert_nothing_more()
                if after is None:
                    it.applier.forget_unfinished()
            it.tokens.engine.let(len(history))
            async with asyncio.timeout(20):
                while acknowledged[-1] not in it.seqs(messages.DeltaApplied):
                    await it.turn()
                    assert_nothing_more()
            assert allowed_by(it.pipeline.table) == world.allows()
            assert it.seqs(messages.DeltaApplied) == it.seqs(messages.DeltaRestricted) == acknowledged
            assert it.seqs(messages.DeltaRefused) == []

    asyncio.run(live())


@pytest.mark.parametrize("turns", range(0, 60, 3))
def test_a_confirmed_block_outlasts_an_earlier_state_whose_control_process_died(turns: int) -> None:
    """Two control processes die in a row while a whole state is being put in place: the first after it, the second in its next delta.

    turns: how far the work on that state has come by then.
    """

    def state(seq: int, *, blocked: bool = False) -> Delta:
        keys = tuple(Key("one", f"k{number}", (KeyVersion(1, "a"),), USAGES[3]) for number in range(10))
        store = KeyStore("one", "/one", "us-east-1", "pkcs11", "main", blocked=blocked)
        return Delta(base_seq=0, seq=seq, reset=True, key_stores=(store,), keys=keys)

    async def live() -> None:
        async with applied(slice_s=0.0, tokens_answer_at_once=True) as it:
            it.receive(state(1))
            await it.until(messages.DeltaApplied, 1)
            it.receive(state(2))
            await it.until(messages.DeltaRestricted, 2)
            no_such = tuple(("one", f"gone{number}") for number in range(30))
            it.receive(Delta(base_seq=2, seq=3, reset=False, complete=False, removed_keys=no_such))
            for _ in range(turns):
                await it.turn()
            it.applier.forget_unfinished()
            it.receive(state(4, blocked=True))
            await it.until(messages.DeltaRestricted, 4)
            while 4 not in it.seqs(messages.DeltaApplied):
                assert it.pipeline.table.names["one"].blocked
                await it.turn()
            assert it.pipeline.table.names["one"].blocked

    asyncio.run(live())
