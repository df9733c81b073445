# SPDX-License-Identifier: Apache-2.0
"""What the state must be, in plain Python: the objects that were acknowledged, and what one operation may turn them into.

A newcomer's trap: an operation whose answer got lost is no failure. It leaves two possible values for each object that it is about,
and what is found afterwards must be one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

REGION = "us-east-1"


class Id(NamedTuple):
    """Of an object. name: external key id or access key id; "" for the store itself."""

    kind: Literal["store", "key", "credential"]
    store: str
    name: str = ""


@dataclass(frozen=True)
class Fact:
    """What is compared of an object. What a kind does not have stays as it is here."""

    blocked: bool = False
    enabled: bool = True
    version: int = 1


class Use(NamedTuple):
    """An Encrypt that must be answered in a certain way.

    served: it must not be refused by a rule. blocked: why it must be refused is a block, which holds whatever else is lost.
    """

    store: str
    access_key_id: str
    key: str
    served: bool
    blocked: bool


@dataclass(frozen=True)
class World:
    """objects: all that there are. removed: (store, access key id) of credentials that were taken away; deleted: keys likewise."""

    objects: Mapping[Id, Fact] = field(default_factory=dict)
    removed: frozenset[tuple[str, str]] = frozenset()
    deleted: frozenset[tuple[str, str]] = frozenset()

    def stores(self) -> list[str]:
        """By name."""
        return sorted(id_.store for id_ in self.objects if id_.kind == "store")

    def keys(self, store: str) -> list[str]:
        """External key ids of a store."""
        return sorted(id_.name for id_ in self.objects if id_.kind == "key" and id_.store == store)

    def credentials(self, store: str) -> list[str]:
        """Access key ids of a store."""
        return sorted(id_.name for id_ in self.objects if id_.kind == "credential" and id_.store == store)

    def changed(self, changes: Mapping[Id, Fact | None]) -> World:
        """After these changes; None: the object is gone."""
        objects = {**self.objects, **{id_: fact for id_, fact in changes.items() if fact is not None}}
        gone = [id_ for id_, fact in changes.items() if fact is None and id_ in objects]
        for id_ in gone:
            del objects[id_]
        removed = self.removed | {(id_.store, id_.name) for id_ in gone if id_.kind == "credential"}
        deleted = self.deleted | {(id_.store, id_.name) for id_ in gone if id_.kind == "key"}
        there = {(id_.store, id_.name) for id_ in objects if id_.kind == "key"}
        return replace(self, objects=objects, removed=removed, deleted=deleted - there)

    def uses(self, secrets: Mapping[str, str]) -> Iterator[Use]:
        """What can be asked, and how it must be answered. secrets: by access key id, as far as somebody was shown them."""
        for store in self.stores():
            blocked = self.objects[Id("store", store)].blocked
            known = [name for name in self.credentials(store) if name in secrets]
            for access_key_id in known:
                for key in self.keys(store):
                    fact = self.objects[Id("key", store, key)]
                    withheld = blocked or fact.blocked
                    yield Use(store, access_key_id, key, fact.enabled and not withheld, withheld)
            for access_key_id in known[:1]:
                for _, key in sorted(each for each in self.deleted if each[0] == store):
                    yield Use(store, access_key_id, key, False, False)
        for store, access_key_id in sorted(self.removed):
            if access_key_id in secrets:
                for key in self.keys(store)[:1]:
                    yield Use(store, access_key_id, key, False, False)


@dataclass(frozen=True)
class Intent:
    """What an operation is to do. new_credential: of this store, one whose id only the answer tells.

    in_steps: each of its steps is done wholly or not at all, and one object may take several.
    """

    changes: Mapping[Id, Fact | None]
    new_credential: str = ""
    in_steps: bool = False

    def may_become(self, id_: Id, before: Fact | None, after: Fact | None) -> set[Fact | None]:
        """What an object can be, of which nobody knows whether it was changed."""
        if not self.in_steps or after is None:
            return {before, after}
        first = before or Fact()  # as it is made
        fields = [{first.blocked, after.blocked}, {first.enabled, after.enabled}, {first.version, after.version}]
        return {before, after, *(Fact(*each) for each in itertools.product(*fields))}  # type: ignore[arg-type]


Outcome = Literal["done", "not done", "unknown"]


def settled(before: World, intent: Intent, outcome: Outcome, seen: Mapping[Id, Fact], shown: str) -> World:
    """The world as it is now. AssertionError when what is seen is none that this outcome allows.

    shown: the access key id in the answer to a new_credential, "" when there was none.
    """
    after = before.changed(intent.changes)
    new = [id_ for id_ in seen if id_.kind == "credential" and id_ not in before.objects and id_ not in after.objects]
    for id_ in sorted({*before.objects, *after.objects, *seen} - {*new}):
        old, new_one = before.objects.get(id_), after.objects.get(id_)
        values = {"done": {new_one}, "not done": {old}, "unknown": intent.may_become(id_, old, new_one)}[outcome]
        assert seen.get(id_) in values, f"{outcome}: {id_} is {seen.get(id_)}, not {' or '.join(map(str, values))}"
    expected = {"done": {1}, "not done": {0}, "unknown": {0, 1}}[outcome] if intent.new_credential else {0}
    assert len(new) in expected, f"{outcome}: new credentials {new}"
    assert all(id_.store == intent.new_credential for id_ in new), new
    assert not shown or shown in {id_.name for id_ in new}, f"{shown} was shown, but it is not there: {new}"
    world = before.changed({id_: seen.get(id_) for id_ in {*before.objects, *seen} if before.objects.get(id_) != seen.get(id_)})
    for store in world.stores():
        assert world.credentials(store), f"{store} was made by halves: it has no credential"
    return world
