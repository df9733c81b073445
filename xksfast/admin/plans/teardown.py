# SPDX-License-Identifier: Apache-2.0
"""What stands in the way of deleting a key store, and in which order to clear it."""

from __future__ import annotations

from dataclasses import dataclass

from xksfast.admin.aws.sync import GONE
from xksfast.admin.plans.common import find_store
from xksfast.state.objects import Key
from xksfast.state.projection import State


@dataclass(frozen=True)
class Obstacle:
    """One step. what: the fact; command: what clears it; count: of how many objects. waits: AWS takes days, whatever one does."""

    what: str
    command: str
    count: int = 1
    waits: bool = False


def obstacles(state: State, name: str) -> list[Obstacle]:
    """In the order in which they are to be cleared; the last one is the deletion itself. Their commands can be typed as they are."""
    store, keys = find_store(state, name), list(state.keys_of(name).values())
    found = []
    linked = [key for key in keys if key.link is not None and key.link.key_state != GONE]
    scheduled = [key for key in linked if key.link is not None and key.link.key_state == "PendingDeletion"]
    if live := [key for key in linked if key not in scheduled]:
        found.append(
            Obstacle(
                f"{len(live)} KMS keys in AWS use keys of this store",
                f"xksfast key schedule-deletion {name} {live[0].external_key_id}",  # AWS takes one at a time
                len(live),
            )
        )
    if scheduled:
        found.append(
            Obstacle(
                f"{len(scheduled)} KMS keys are pending deletion in AWS: 7 to 30 days, until when it can be cancelled",
                f"xksfast store sync {name}",
                len(scheduled),
                waits=True,
            )
        )
    if enabled := [key for key in keys if key.enabled and not key.blocked]:
        found.append(
            Obstacle(f"{len(enabled)} keys are enabled", f"xksfast key disable {name} {_each(enabled)}",
                     len(enabled))
        )  # fmt: skip
    if keys:
        found.append(Obstacle(f"{len(keys)} keys are there", f"xksfast key delete {name} {_each(keys)}", len(keys)))
    if store.link is not None:
        if store.link.connection_state not in ("DISCONNECTED", GONE, ""):
            found.append(
                Obstacle(f"custom key store {store.link.custom_key_store_id} is {store.link.connection_state}",
                         f"xksfast store disconnect {name}")
            )  # fmt: skip
        there = "linked to what is gone in AWS" if store.link.connection_state == GONE else "there in AWS"
        found.append(
            Obstacle(f"custom key store {store.link.custom_key_store_id} is {there}", f"xksfast store delete {name} --aws")
        )
    found.append(Obstacle("nothing else stands in the way", f"xksfast store delete {name}"))
    return found


def _each(keys: list[Key]) -> str:
    return keys[0].external_key_id if len(keys) == 1 else "--all"
