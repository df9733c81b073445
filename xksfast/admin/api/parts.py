# SPDX-License-Identifier: Apache-2.0
"""What the routes are given: the use cases, and the few things that are not use cases. Put together by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from xksfast.admin.actors import Actor, check_token
from xksfast.admin.api.authentication import Authenticator, Failures
from xksfast.admin.api.peers import PeerDoor
from xksfast.admin.api.replays import Replays
from xksfast.admin.service import Service
from xksfast.admin.usage import StoreUse
from xksfast.log import Log
from xksfast.state.events import Event
from xksfast.state.projection import State

if TYPE_CHECKING:
    from xksfast.admin.linking import Linking  # brings boto3


@dataclass(frozen=True)
class EventQuery:
    """Which events, newest first. Empty and 0: any. until_ms, before_seq: not included."""

    kind: str = ""
    id: str = ""
    actor: str = ""
    action: str = ""
    from_ms: int = 0
    until_ms: int = 0
    before_seq: int = 0
    limit: int = 100


@dataclass(frozen=True)
class NodeInfo:
    """A node that shares the state. applied_seq: its workers serve all up to this event; seq: the newest one. heartbeat_ms: unix.

    problems: how it stands with the database, by its own account, a sentence each.
    """

    name: str
    version: str
    url: str
    started_at_ms: int
    heartbeat_ms: int
    applied_seq: int
    restricted_seq: int
    seq: int
    alive: bool
    stopped: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogVerdict:
    """What `audit verify` found. problems: a sentence each, the first bad event first. seq, head: where the log ends."""

    ok: bool
    events: int
    seq: int
    head: str
    problems: tuple[str, ...] = ()


@dataclass
class Parts:
    """reading: the state; nothing changes within the with block. groups: partition groups of the configuration.

    used: what of a key store was used. certificate: the file that AWS KMS is shown. peers, linking, certificate: None, there are none.
    Each function that is awaited may raise OperatorError, which is answered as 503.
    """

    service: Service
    reading: Callable[[], AbstractContextManager[State]]
    groups: Collection[str]
    events: Callable[[EventQuery], Awaitable[list[Event]]]
    nodes: Callable[[], Awaitable[list[NodeInfo]]]
    verify_log: Callable[[], Awaitable[LogVerdict]]
    used: Callable[[str], Awaitable[StoreUse]]
    replays: Replays
    log: Log
    certificate: Path | None = None
    peers: PeerDoor | None = None
    linking: Linking | None = None
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(self.reading, self.failures)
        self.tasks: set[Any] = set()  # streams that go on when their client has gone


# Functions that routes depend on are coroutines: FastAPI sends all others through a thread, each on its own.


async def parts_of(request: Request) -> Parts:
    """Those of the app."""
    parts: Parts = request.app.state.parts
    return parts


async def actor_of(request: Request) -> Actor:
    """Whom the route has authenticated before the body was read; looked up again, since a body may come slowly."""
    actor: Actor = request.state.actor
    parts: Parts = request.app.state.parts
    with parts.reading() as state:
        check_token(state, actor)
    return actor


PartsIn = Annotated[Parts, Depends(parts_of)]
ActorIn = Annotated[Actor, Depends(actor_of)]
