# SPDX-License-Identifier: Apache-2.0
"""Which source keys an actor may put behind a HYOK key: who may name any label can read what others have encrypted.

Labels that this program needs for itself are no HYOK keys. An operator with grants for some stores names labels that its own stores
use, or has new ones made. A newcomer's trap: every such refusal has the same words, or else it would tell which labels there are.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from xksfast.admin.actors import Actor
from xksfast.admin.partitions.replica import PENDING
from xksfast.admin.refusals import Refused
from xksfast.config import Config
from xksfast.state.objects import source_key_id
from xksfast.state.projection import State


class LabelRights:
    """Over the partition groups of the configuration: those that share a partition share its labels."""

    def __init__(self, config: Config) -> None:
        self._reserved: dict[str, set[str]] = {}  # partition group -> labels that no HYOK key may have
        self._health: dict[str, set[str]] = {}  # partition group -> labels that an admin alone may use
        for place, group in config.partition_groups.items():
            beside = [other for other in config.partition_groups.values() if set(other.partitions) & set(group.partitions)]
            self._reserved[place] = {other.transport_key for other in beside}
            self._health[place] = {other.health_check_key for other in beside if other.health_check_key}
            if config.state.master_key_partition in group.partitions:
                self._reserved[place].add(config.state.master_key_label)

    def check(self, state: State, actor: Actor, store: str, place: str, label: str, *, create: bool) -> None:
        """Refused unless the actor may name this label for a key of the store. label: "", one is made up. create: as requested."""
        if not label:
            return
        self.check_reserved(actor, place, label)
        if not actor.stores:
            return
        source = state.source_keys.get(source_key_id(place, label))
        users = state.users_of(source.id) if source is not None else []
        is_new = source is None or not source.ready  # ready: it may have encrypted something, for the one who used it then
        # In a token a key may be there of which the state knows nothing: only its name tells that it is meant for this store.
        own = create and is_new and (place == "local" or label.startswith(f"{store}/"))
        if not (_all_granted(actor, users) if users else own):
            raise _refusal(actor, store, place, label)

    def check_users(self, state: State, actor: Actor, store: str, place: str, label: str) -> None:
        """The same inside the transaction, for a label that was checked before: another store may have taken it in between."""
        if actor.stores and not _all_granted(actor, state.users_of(source_key_id(place, label))):
            raise _refusal(actor, store, place, label)

    def check_reserved(self, actor: Actor, place: str, label: str) -> None:
        """Refused when it is a label that the program needs for itself."""
        if label.startswith(PENDING) or label in self._reserved.get(place, ()):
            raise _is_reserved(
                label, "It would let the holder of one HYOK key open what protects all others", "Take another one"
            )
        if label in self._health.get(place, ()) and not actor.has_right("manage"):
            raise _is_reserved(label, "It is the health check key of a partition group", "Take another one, or ask an admin")


def new_label(external_key_id: str, version: int) -> str:
    """A name that says what it is for, and is never used twice: what an attempt that failed left behind is not taken for it."""
    return f"xksfast-{external_key_id[:90]}-v{version}-{secrets.token_hex(4)}"


def _all_granted(actor: Actor, users: Iterable[str]) -> bool:
    return all(actor.may_see(user.partition("/")[0]) for user in users)


def _is_reserved(label: str, why: str, next: str) -> Refused:
    return Refused("forbidden", "label-reserved", f"label {label!r}: it is reserved", why=why, next=next, field="label")


def _refusal(actor: Actor, store: str, place: str, label: str) -> Refused:
    own = "a new one" if place == "local" else f"one that begins with {store + '/'!r}"
    return Refused(
        "forbidden",
        "label-not-granted",
        f"{actor.name} may not use source key {label!r} for key store {store!r}",
        why="Its grants cover only source keys that are used by its own key stores alone",
        next=f"Leave the label out, or name {own} and set create, or ask an admin",
        field="label",
    )
