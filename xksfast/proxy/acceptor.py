# SPDX-License-Identifier: Apache-2.0
"""Accepts connections and gives each to a worker, within the cap.

Why the supervisor accepts itself: KMS keeps a handful of long-lived connections, and SO_REUSEPORT hashes those unevenly for as long
as they live. Here every connection goes, as a descriptor, to the worker with the fewest, so 8 over 2 workers end 4 : 4, and it costs
nothing a request.

A newcomer's trap: at the cap accepting goes on. The oldest connection without an accepted signature makes room, in the worker that has
it; only when every connection is authenticated do new ones wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from time import monotonic

from xksfast import messages
from xksfast.log import Log
from xksfast.proxy.listener import BACKLOG, Listener
from xksfast.proxy.worker_slot import WorkerSlot

ACCEPTS_PER_TURN = 32
OUT_OF_DESCRIPTORS_PAUSE_S = 0.1


class Acceptor:
    """The listening sockets of the proxy. workers: who may be given connections; max_connections: over all of them.

    stopped: nothing more is handed over.
    """

    def __init__(self, listeners: Sequence[Listener], workers: Sequence[WorkerSlot], max_connections: int, log: Log) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._workers = workers
        self._max_connections = max_connections
        self._log = log
        self._accepting = False
        self.stopped = False
        self._turn = 0
        self._cap_logged_at = 0.0

    def accept_when_possible(self) -> None:
        """Accept exactly while some worker serves, listening is not over and the cap leaves room or a stranger can make it.

        A little over the cap, for strangers do not leave in the moment in which others come.
        """
        total = self._connections()
        over = total - self._max_connections
        full = over >= 0 and (over >= ACCEPTS_PER_TURN or self._worker_with_strangers() is None)
        wanted = any(worker.ready for worker in self._workers) and not self.stopped and not full
        if over >= 0 and monotonic() - self._cap_logged_at > 1:
            self._cap_logged_at = monotonic()
            strangers = sum(worker.strangers for worker in self._workers)
            self._log.warning(
                "connection_cap", connections=total, max_connections=self._max_connections, unauthenticated=strangers
            )
        if wanted == self._accepting:
            return
        self._accepting = wanted
        for listener in self._listeners:
            if wanted:
                self._loop.add_reader(listener.sock.fileno(), self._accept, listener)
            else:
                self._loop.remove_reader(listener.sock.fileno())

    def stop(self) -> None:
        """Hand over what the kernel has accepted already: its requests may have arrived, and closing would reset it."""
        for listener in self._listeners:
            for _ in range(BACKLOG // ACCEPTS_PER_TURN):
                self._accept(listener)
        self.stopped = True
        self.accept_when_possible()
        for listener in self._listeners:
            listener.sock.close()

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if not self._accepting:
                return
            try:
                connection, _ = listener.sock.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # the peer is gone already
            except OSError as error:
                self._log.warning("accept_failed", error=str(error))
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause_accepting()  # "readable" would come again at once
                return
            with connection:
                self._hand_over(connection, listener.tls)
            self.accept_when_possible()

    def _hand_over(self, connection: socket.socket, tls: bool) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            return  # the peer is gone already
        full = self._connections() >= self._max_connections
        while (worker := (self._worker_with_strangers() if full else None) or self._choose_worker()) is not None:
            try:
                sent = worker.child.send(messages.Accept(tls=tls, make_room=full), connection)
            except OSError as error:  # no descriptor for one that has to wait: it costs this connection
                self._log.warning("accept_failed", error=str(error))
                return
            if sent:
                worker.handed_over += 1
                return
            worker.ready = False  # it is dying, and its end is noticed in a moment

    def _connections(self) -> int:
        """All that count for the cap: what a worker has that hangs is lost, and must not keep out those who come again."""
        hangs_alone = not any(worker.ready and worker.alive for worker in self._workers)
        return sum(worker.connections for worker in self._workers if worker.alive or hangs_alone)

    def _worker_with_strangers(self) -> WorkerSlot | None:
        """Of those that can make room at once, the worker with the most connections without an accepted signature."""
        able = [
            worker
            for worker in self._workers
            if worker.ready and worker.alive and not worker.child.congested and worker.strangers > 0
        ]
        return max(able, key=lambda worker: worker.strangers, default=None)

    def _choose_worker(self) -> WorkerSlot | None:
        """The ready worker with the fewest connections; of equals, the next in turn. One that hangs is the last choice."""
        ready = [worker for worker in self._workers if worker.ready]
        self._turn += 1
        count = len(self._workers)
        return min(
            ready,
            key=lambda worker: (
                not worker.alive or worker.child.congested,
                worker.connections,
                (worker.index - self._turn) % count,
            ),
            default=None,
        )

    def _pause_accepting(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener.sock.fileno())
        self._accepting = True  # so that nothing but the timer begins again
        self._loop.call_later(OUT_OF_DESCRIPTORS_PAUSE_S, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if not self.stopped:
            self._accepting = False
            self.accept_when_possible()
