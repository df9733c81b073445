# SPDX-License-Identifier: Apache-2.0
"""State -> what workers are told: everything, or what an event changed, with secret pages that hold the derived keys.

Every credential gets a signing key for yesterday, today and tomorrow (UTC): a request signed just before midnight is still good
after it, and the key for the next day is with every worker long before the day begins. A `local` key or a credential whose secret
cannot be opened is reported and left without a slot: its requests are refused, all others are served.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from xksfast import model
from xksfast.errors import OperatorError
from xksfast.native.crypto import SecretPages, utc_day
from xksfast.state.events import Event
from xksfast.state.objects import Credential, Key, KeyStore, KeyVersion, SourceKey, Stored, source_key_id
from xksfast.state.projection import State

DAY_S = 86400
PART_OBJECTS = 1000  # of one message: some milliseconds of a worker's time

Item = TypeVar("Item")
Days = tuple[str, str, str]


class SecretSource(Protocol):
    """Where secrets are opened. An OperatorError says what to do."""

    def derive_signing_keys(self, credential: Credential, region: str, days: Days, pages: SecretPages, first_slot: int) -> None:
        """The SigV4 signing key of each day into the slots from first_slot on. Raises OperatorError."""

    def unseal_local_keys(self, sources: Mapping[int, SourceKey], pages: SecretPages) -> Mapping[int, OperatorError]:
        """The 32 bytes of `local` keys into slots. sources: by slot. Slot -> why the key is not there."""


def covered_days(now: int) -> Days:
    """Yesterday, today and tomorrow of `now` (unix seconds), as "YYYYMMDD"."""
    return utc_day(now - DAY_S), utc_day(now), utc_day(now + DAY_S)


@dataclass
class _Selection:
    """What a delta is about: objects as they are now, and names of those that are gone."""

    key_stores: list[KeyStore] = field(default_factory=list)
    credentials: list[Credential] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    removed_stores: list[str] = field(default_factory=list)
    removed_credentials: list[tuple[str, str]] = field(default_factory=list)
    removed_keys: list[tuple[str, str]] = field(default_factory=list)


class DeltaBuilder:
    """Makes deltas. on_problem: told about every secret that cannot be opened, a sentence each.

    withheld: (kind, id) of stores and keys that are to be served as blocked, whatever the state says.
    """

    def __init__(
        self,
        secrets: SecretSource,
        on_problem: Callable[[str], None],
        withheld: Collection[tuple[str, str]] = (),
    ) -> None:
        self._secrets = secrets
        self._on_problem = on_problem
        self.withheld = withheld

    def whole(self, state: State, days: Days) -> Iterator[tuple[model.Delta, SecretPages | None]]:
        """All of `state`, in parts."""
        everything = _Selection(
            key_stores=list(state.key_stores.values()),
            credentials=[credential for credential in state.credentials.values() if credential.store in state.key_stores],
            keys=[key for key in state.keys.values() if key.store in state.key_stores],
        )
        yield from self._parts(state, everything, days, base_seq=0, seq=state.seq, reset=True)

    def since(self, state: State, events: Iterable[Event], days: Days) -> Iterator[tuple[model.Delta, SecretPages | None]]:
        """What `events` change for workers: possibly nothing, but always one delta at least.

        state: as it is after them, or later; then objects are newer than the delta says, and the next delta repeats them.
        """
        events = list(events)
        touched = dict.fromkeys((event.kind, event.id) for event in events)
        selection = _Selection()
        former: dict[tuple[str, str], Stored] = {}
        for event in events:
            if event.before is not None and (event.kind, event.id) not in former:
                before = event.object_before()
                if before is not None:
                    former[event.kind, event.id] = before
        for kind, id_ in touched:
            self._select(state, kind, id_, former.get((kind, id_)), selection)
        yield from self._parts(state, selection, days, base_seq=events[0].seq - 1, seq=events[-1].seq, reset=False)

    def signing_keys(self, state: State, days: Days, seq: int) -> Iterator[tuple[model.Delta, SecretPages | None]]:
        """The credentials' keys for other days than before; nothing else is new. seq: what the workers were given last."""
        selection = _Selection(credentials=[c for c in state.credentials.values() if c.store in state.key_stores])
        yield from self._parts(state, selection, days, base_seq=seq, seq=seq, reset=False)

    def withholding(
        self, state: State, targets: Iterable[tuple[str, str]], days: Days, seq: int
    ) -> Iterator[tuple[model.Delta, SecretPages | None]]:
        """The objects `targets`, (kind, id), as they are to be served now that `withheld` has changed."""
        selection = _Selection()
        for kind, id_ in targets:
            if kind == "key_store" and id_ in state.key_stores:
                selection.key_stores.append(state.key_stores[id_])
            elif kind == "key" and id_ in state.keys:
                selection.keys.append(state.keys[id_])
        yield from self._parts(state, selection, days, base_seq=seq, seq=seq, reset=False)

    # --- choosing

    def _select(self, state: State, kind: str, id_: str, former: Stored | None, into: _Selection) -> None:
        match kind:
            case "key_store":
                if id_ in state.key_stores:
                    into.key_stores.append(state.key_stores[id_])
                else:
                    into.removed_stores.append(id_)
            case "credential":
                if id_ in state.credentials:
                    into.credentials.append(state.credentials[id_])
                elif isinstance(former, Credential):
                    into.removed_credentials.append((former.store, former.access_key_id))
            case "key":
                if id_ in state.keys:
                    into.keys.append(state.keys[id_])
                elif isinstance(former, Key):
                    into.removed_keys.append((former.store, former.external_key_id))

    # --- rendering

    def _parts(
        self, state: State, selection: _Selection, days: Days, *, base_seq: int, seq: int, reset: bool
    ) -> Iterator[tuple[model.Delta, SecretPages | None]]:
        """Stores first, since what belongs to them follows. All parts carry the same base_seq and seq."""
        stores, credentials, keys = iter(selection.key_stores), iter(selection.credentials), iter(selection.keys)
        removed = selection
        left = len(selection.key_stores) + len(selection.credentials) + len(selection.keys)
        first = True
        while True:
            some_stores = _take(stores, PART_OBJECTS)
            some_credentials = _take(credentials, PART_OBJECTS - len(some_stores))
            some_keys = _take(keys, PART_OBJECTS - len(some_stores) - len(some_credentials))
            left -= len(some_stores) + len(some_credentials) + len(some_keys)
            versions = [(key, version) for key in some_keys if state.place_of(key.store) == "local" for version in key.versions]
            first_local = len(days) * len(some_credentials)
            pages = SecretPages.new(first_local + len(versions)) if some_credentials or versions else None
            local_slots = iter(self._unsealed(state, versions, pages, first_local))
            delta = model.Delta(
                base_seq=base_seq,
                seq=seq,
                reset=reset,
                complete=left == 0,
                removed_stores=tuple(removed.removed_stores) if first else (),
                removed_credentials=tuple(removed.removed_credentials) if first else (),
                removed_keys=tuple(removed.removed_keys) if first else (),
                key_stores=tuple(self._store(store) for store in some_stores),
                credentials=tuple(
                    rendered
                    for number, credential in enumerate(some_credentials)
                    if (rendered := self._credential(state, credential, days, pages, number * len(days))) is not None
                ),
                keys=tuple([self._key(state, key, local_slots) for key in some_keys]),
            )
            yield delta, pages
            if left == 0:
                return
            first = False

    def _store(self, store: KeyStore) -> model.KeyStore:
        return model.KeyStore(
            name=store.name,
            uri_path_prefix=store.uri_path_prefix,
            region=store.region,
            key_source=store.key_source,
            partition_group=store.partition_group,
            blocked=store.blocked or self._is_withheld(store),
            allowed_principals=store.allowed_principals,
            aad_scheme=store.aad_scheme,
        )

    def _key(self, state: State, key: Key, local_slots: Iterator[int | None]) -> model.Key:
        """local_slots: those of the versions of `local` keys, in turn."""
        if state.place_of(key.store) == "local":
            versions = [model.KeyVersion(number=v.number, label=v.label, local_slot=next(local_slots)) for v in key.versions]
        else:
            versions = [model.KeyVersion(number=v.number, label=v.label) for v in key.versions]
        return model.Key(
            store=key.store,
            external_key_id=key.external_key_id,
            versions=tuple(versions),
            usage=key.usage,
            enabled=key.enabled,
            blocked=key.blocked or self._is_withheld(key),
        )

    def _unsealed(
        self, state: State, versions: list[tuple[Key, KeyVersion]], pages: SecretPages | None, first_slot: int
    ) -> list[int | None]:
        """The slot of each of these versions of `local` keys; None: it cannot be unsealed, which was reported."""
        if pages is None:
            return []
        problems: dict[int, object] = {}
        sources: dict[int, SourceKey] = {}
        for slot, (_, version) in enumerate(versions, first_slot):
            source = state.source_keys.get(source_key_id("local", version.label))
            if source is None:
                problems[slot] = f"there is no local key {version.label!r}"
            else:
                sources[slot] = source
        problems.update(self._secrets.unseal_local_keys(sources, pages))
        for slot in sorted(problems):
            key, _ = versions[slot - first_slot]
            self._on_problem(f"key store {key.store}: key {key.external_key_id}: {problems[slot]}")
        return [None if slot in problems else slot for slot in range(first_slot, first_slot + len(versions))]

    def _is_withheld(self, value: KeyStore | Key) -> bool:
        return bool(self.withheld) and (value.kind, value.id) in self.withheld

    def _credential(
        self, state: State, credential: Credential, days: Days, pages: SecretPages | None, first_slot: int
    ) -> model.Credential | None:
        assert pages is not None
        region = state.key_stores[credential.store].region
        try:
            self._secrets.derive_signing_keys(credential, region, days, pages, first_slot)
        except OperatorError as error:
            self._on_problem(f"key store {credential.store}: credential {credential.access_key_id}: {error}")
            return None
        return model.Credential(
            store=credential.store,
            access_key_id=credential.access_key_id,
            signing_keys={day: slot for slot, day in enumerate(days, first_slot)},
        )


def _take(items: Iterator[Item], count: int) -> list[Item]:
    return list(islice(items, count))
