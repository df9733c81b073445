# SPDX-License-Identifier: Apache-2.0
"""Listening sockets behind which nobody works: while the door is shut, whoever connects is sent away at once.

Without it the kernel takes connections into its queue, where they wait for an answer that does not come, and a load balancer that only
connects finds all well. A newcomer's trap: a socket is either accepted from or shut, never both; open() before anybody accepts.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable

RESETS_PER_TURN = 32
OUT_OF_DESCRIPTORS_PAUSE_S = 0.1
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: the peer is told by a reset, and no socket of ours lingers


class ClosedDoor:
    """The door of some listening sockets; open at first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sockets: Iterable[socket.socket]) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._is_shut = False

    def open(self) -> None:
        """Leave the sockets to whom they belong."""
        if self._is_shut:
            self._is_shut = False
            for sock in self._sockets:
                self._loop.remove_reader(sock.fileno())

    def shut(self) -> None:
        """From now on, and for connections that wait already."""
        if not self._is_shut:
            self._is_shut = True
            for sock in self._sockets:
                self._loop.add_reader(sock.fileno(), self._send_away, sock)

    def _shut_again(self) -> None:
        if self._is_shut:
            self._is_shut = False
            self.shut()

    def _send_away(self, sock: socket.socket) -> None:
        for _ in range(RESETS_PER_TURN):
            try:
                connection, _ = sock.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is free for sending somebody away; "readable" would come again at once
                self.open()
                self._is_shut = True
                self._loop.call_later(OUT_OF_DESCRIPTORS_PAUSE_S, self._shut_again)
                return
            with connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
