# SPDX-License-Identifier: Apache-2.0
"""The interface of a key source: what turns a key version of the state into something the request path can use.

A key source is asked in two steps, so that many keys are looked for at once: `request` for each version, then, after the worker let
what it asked for settle, `binding` for each. Neither blocks: looking into a token is done by threads of the source's own.
A newcomer's trap: a binding's address or index is used by the request path without any check; release a binding only when no
request can still hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec
import orjson

from xksfast._version import __version__
from xksfast.model import Key, KeyVersion
from xksfast.native.crypto import SecretPages
from xksfast.wire import limits
from xksfast.wire.responses import render_json

MemberStatus = Literal["ACTIVE", "DEGRADED", "UNAVAILABLE"]


class KeyBinding(msgspec.Struct, frozen=True, gc=False):
    """A key version as the request path uses it: either an engine key index or the address of a key in memory.

    problem: why it cannot be served, with what to do; "" when it can.
    note: it is served, but not by every partition: which and why; "" when all is well.
    passing: the key source looks again by itself and answers each request as it is then: `problem` is for the log alone.
    owner: keeps the memory behind local_address alive.
    """

    engine_key: int = 0
    local_address: int = 0
    problem: str = ""
    note: str = ""
    passing: bool = False
    owner: object = None


@dataclass(frozen=True)
class FleetMember:
    """One key manager of a fleet, for GetHealthStatus. note: for our log and /readyz; KMS does not see it."""

    id: str
    model: str
    status: MemberStatus
    vendor: str
    note: str = ""


class KeySource(Protocol):
    """Where the keys of a store live.

    A ticket is an int when it is an engine key index, which takes time to settle; else it is something of the source's own.
    """

    name: str
    fleet: Fleet

    def request(self, version: KeyVersion, pages: SecretPages | None) -> Any:
        """Begin to look for a key version; the ticket is for `binding` and `release`. pages: what its local_slot points into."""

    def binding(self, ticket: Any, key: Key, version: KeyVersion) -> KeyBinding:
        """What was found. Call after the ticket has settled."""

    def release(self, ticket: Any) -> None:
        """The version is not served any more: by this ticket, or by a binding's engine_key or owner."""

    def check(self) -> None:
        """Refresh `fleet`. Called about once a second on the loop: it must not block."""


class Fleet:
    """The health of one key source, and the ready-made answer to GetHealthStatus."""

    def __init__(self) -> None:
        self.members: tuple[FleetMember, ...] = ()
        self.response = b""
        self.update((FleetMember("unknown", "unknown", "UNAVAILABLE", "unknown"),))

    @property
    def serves(self) -> bool:
        """Whether any member can serve."""
        return any(member.status != "UNAVAILABLE" for member in self.members)

    def update(self, members: Sequence[FleetMember]) -> None:
        """Take over what a check found. members: at least one; KMS is shown the first ten."""
        if tuple(members) == self.members:
            return
        self.members = tuple(members)
        self.response = render_json(
            orjson.dumps(
                {
                    "xksProxyFleetSize": 1,
                    "xksProxyVendor": "xksfast",
                    "xksProxyModel": f"xksfast {__version__}",
                    "ekmVendor": members[0].vendor,
                    "ekmFleetDetails": [
                        {"id": member.id, "model": member.model, "healthStatus": member.status}
                        for member in members[: limits.MAX_FLEET_ENTRIES]
                    ],
                }
            )
        )
