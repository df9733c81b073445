# SPDX-License-Identifier: Apache-2.0
"""What all connections of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xksfast.config import Proxy
from xksfast.proxy.handshakes import HandshakeGate

if TYPE_CHECKING:
    from xksfast.proxy.connection import Connection
    from xksfast.proxy.pipeline import Pipeline


class ConnectionSettings:
    """Pipeline, gate, time-outs in nanoseconds, and the connections that are open.

    connections: all, for the sweeper. strangers: those of them without an accepted signature yet, the oldest first. draining: what
    is opened now begins so. on_closed: called after a connection left the set. log: callable(event, **fields) for TLS refusals.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        gate: HandshakeGate,
        proxy: Proxy,
        *,
        on_closed: Callable[[], None],
        log: Callable[..., Any],
    ) -> None:
        self.pipeline = pipeline
        self.gate = gate
        self.connections: set[Connection] = set()
        self.strangers: dict[Connection, None] = {}
        self.draining = False
        self.on_closed = on_closed
        self.log = log
        self.header_timeout_ns = proxy.header_timeout_ms * 1_000_000
        self.request_timeout_ns = proxy.request_timeout_ms * 1_000_000
        self.handshake_timeout_ns = proxy.handshake_timeout_ms * 1_000_000
        self.idle_timeout_ns = proxy.idle_timeout_s * 1_000_000_000

    def opened(self, connection: Connection) -> None:
        """A connection is there, a stranger's."""
        self.connections.add(connection)
        self.strangers[connection] = None

    def recognised(self, connection: Connection) -> None:
        """A signature on it was accepted."""
        self.strangers.pop(connection, None)

    def lost(self, connection: Connection) -> None:
        """It is gone."""
        self.connections.discard(connection)
        self.strangers.pop(connection, None)

    def evict_stranger(self) -> bool:
        """End the oldest connection without an accepted signature. False: there is no such connection."""
        oldest = next(iter(self.strangers), None)
        if oldest is None:
            return False
        del self.strangers[oldest]
        oldest.evict()
        return True
