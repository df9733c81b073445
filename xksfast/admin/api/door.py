# SPDX-License-Identifier: Apache-2.0
"""Accepts the connections of the administration, and decides which of them go when there are too many.

A connection is a stranger's until a right token, or a node's MAC, came over it. At the limit the oldest stranger goes, of the address
that has most of them: a client that opens connections for nothing pushes out its own. While strangers are few, the oldest goes that
has authenticated and is not at work: who holds a token and many connections must not keep all others out. A newcomer's trap: accepting
never stops, and a connection counts from then on, not from the end of its TLS handshake, or else it would cost nothing to begin one
and fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from xksfast.log import Log

MAX_CONNECTIONS = 256
STRANGERS_PART = 4  # of the connections, one in so many is left to strangers: each newcomer is one while it shakes hands
HANDSHAKE_PATIENCE_S = 10.0
ACCEPT_AGAIN_S = 0.1  # after the machine has refused one
ADMIT = "xksfast.admit"  # in the scope of a request: what is called when it has authenticated


class Server(Protocol):
    """The protocol of an accepted connection."""

    visitor: Visitor
    transport: Any

    @property
    def is_idle(self) -> bool:
        """Whether no request is at work on it: none has come, or not all of it, or its answer is not being read."""


class Visitor:
    """A connection from its accept to its end. is_stranger: nobody has authenticated over it."""

    def __init__(self, door: Door, sock: socket.socket, address: str) -> None:
        self.network = _network(address)
        self.is_stranger = True
        self.server: Server | None = None  # None while TLS shakes hands
        self.admission: asyncio.Task[None] | None = None
        self._door = door
        self._sock = sock

    @property
    def door_is_full(self) -> bool:
        """Whether there are more connections than there may be, and none could be closed for this one."""
        return self._door.is_overfull

    @property
    def is_idle(self) -> bool:
        """Whether it can be closed without ending what is at work for somebody."""
        return self.server is not None and self.server.is_idle

    def admit(self) -> None:
        """It has authenticated."""
        self.is_stranger = False

    def leave(self) -> None:
        """It is closed."""
        self._door.forget(self)

    def close(self) -> None:
        """At once, with nothing more said."""
        self.leave()
        if self.server is not None:
            self.server.transport.abort()
            return
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self.admission is not None:
            self.admission.cancel()


class Door:
    """Of one listener. sock: bound, not blocking. context: None, plain HTTP."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None, log: Log) -> None:
        self._sock = sock
        self._context = context
        self._log = log
        self._visitors: dict[Visitor, None] = {}  # in the order of their coming
        self._accepting: asyncio.Task[None] | None = None

    def open(self, serve: Callable[[], Any], backlog: int) -> None:
        """From now on connections are accepted. serve: makes the protocol of one, a Server."""
        self._sock.listen(backlog)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(serve))

    def close(self) -> None:
        """No new ones; those whose TLS still shakes hands are cut off."""
        if self._accepting is not None:
            self._accepting.cancel()
        for visitor in list(self._visitors):
            if visitor.server is None:
                visitor.close()

    @property
    def is_overfull(self) -> bool:
        """Whether there are more than there may be."""
        return len(self._visitors) > MAX_CONNECTIONS

    def forget(self, visitor: Visitor) -> None:
        """It is closed."""
        self._visitors.pop(visitor, None)

    async def _accept(self, serve: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        failing = False
        while True:
            try:
                sock, address = await loop.sock_accept(self._sock)
            except OSError as error:  # perhaps no descriptor is left
                if not failing:
                    self._log.warning("admin_accept_failed", problem=error.strerror or type(error).__name__)
                failing = True
                self._make_room()
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            failing = False
            if len(self._visitors) >= MAX_CONNECTIONS:
                self._make_room()
            visitor = Visitor(self, sock, str(address[0]))
            self._visitors[visitor] = None
            visitor.admission = loop.create_task(self._admit(visitor, sock, serve))

    async def _admit(self, visitor: Visitor, sock: socket.socket, serve: Callable[[], Any]) -> None:
        def served() -> Any:
            server = serve()
            server.visitor = visitor
            return server

        patience = HANDSHAKE_PATIENCE_S if self._context is not None else None
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(served, sock, ssl=self._context, ssl_handshake_timeout=patience)
        except (OSError, TimeoutError):  # which ssl.SSLError is; the socket is closed already
            visitor.leave()

    def _make_room(self) -> None:
        """Close one that may go: a stranger's, or one that is not at work. None when every one is."""
        strangers = [visitor for visitor in self._visitors if visitor.is_stranger]
        idle = next((visitor for visitor in self._visitors if not visitor.is_stranger and visitor.is_idle), None)
        if idle is not None and len(strangers) <= MAX_CONNECTIONS // STRANGERS_PART:
            idle.close()
        elif strangers:
            by_network = Counter(visitor.network for visitor in strangers)
            most = max(by_network.values())
            next(visitor for visitor in strangers if by_network[visitor.network] == most).close()


def _network(address: str) -> str:
    """To whom it counts. Who has one address of IPv6 has 2^64 of them, as a rule."""
    try:
        known = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(known.ipv4_mapped or ipaddress.IPv6Network((known, 64), strict=False))


def admit(scope: MutableMapping[str, Any]) -> None:
    """The request of this scope has authenticated: its connection is no stranger's from now on."""
    called = scope.get(ADMIT)
    if called is not None:
        called()
