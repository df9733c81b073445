# SPDX-License-Identifier: Apache-2.0
"""The supervisor: listening sockets, children, signals. It holds no secret and reads no request.

Its life: bind -> control -> workers, one after the other -> ready when all serve -> drain. One after the other, so that a wrong
PIN is tried once and not once a worker, and because SoftHSM 2.6 shows processes that start together no token, or one without a
PIN; where there are no tokens, all others after the first at once. A child that dies is started again while the others go on; one
that *refuses* is not, since a token locks after a few wrong PINs.

Why it accepts itself: KMS keeps a handful of long-lived connections, and SO_REUSEPORT hashes those unevenly for as long as they
live. Here every connection goes, as a descriptor, to the worker with the fewest, so 8 over 2 workers end 4 : 4, and it costs
nothing a request.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec
import orjson
import uvloop

from xksfast import messages
from xksfast import status as service_status
from xksfast._version import __version__
from xksfast.config import Config, load_config
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.proxy import exposition
from xksfast.proxy.child import Child
from xksfast.proxy.health_listener import HealthListener, WorkerHealth
from xksfast.proxy.listener import Listener, bind
from xksfast.proxy.reports import ReportCollector
from xksfast.proxy.worker_slot import WorkerSlot

ACCEPTS_PER_TURN = 32
OUT_OF_DESCRIPTORS_PAUSE_S = 0.1
REFUSED_PATIENCE_S = 1.0
MAX_EARLY_ENDS = 5  # of children, before all served: then the start has failed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CHILD_COMMAND = (sys.executable, "-m", "xksfast")


@dataclass(frozen=True)
class Bound:
    """What listens where: for KMS, for health checks and for administration; None: nothing does."""

    proxy: list[Listener]
    health: Listener | None
    admin: Listener | None


OnReady = Callable[[Bound], None]


class StartFailed(OperatorError):
    """The children do not stay alive: exit code 1."""

    exit_code = 1


class Supervisor:
    """One `xksfast serve`.

    on_ready: called once when every worker serves.
    hangup_ends: SIGHUP ends it in place of reloading.
    accept_older_state: a database that went back is followed as it is, by the first control process that loads it.
    command: starts a child, with its hidden command and descriptor appended.
    """

    def __init__(
        self,
        config: Config,
        config_path: Path | None,
        on_ready: OnReady | None = None,
        *,
        hangup_ends: bool = False,
        accept_older_state: bool = False,
        command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._on_ready = on_ready
        self._command = command
        self._hangup_ends = hangup_ends
        self._accept_older_state = accept_older_state
        self._log = Log("supervisor")
        self._started_unix_s = time()
        self._listeners: list[Listener] = []
        self._health_address: Listener | None = None
        self._admin_address: Listener | None = None
        self._accepting = False
        self._stopping = False
        self._announced = False
        self._turn = 0
        self._cap_logged_at = 0.0
        self._early_ends = 0
        self._failure: OperatorError | None = None
        self._candidate: Config | None = None
        self._state_problems: tuple[str, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal: 0. Raises OperatorError when it cannot serve; no child is left then either."""
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._bind()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_stop_signal if self._hangup_ends else self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a caller may have kept them waiting until now
        self._control = Child(
            "control",
            (*self._command, "_control"),
            messages.FromControl,
            on_message=self._on_control,
            on_started=self._control_started,
            on_ended=self._ended_early,
            log=self._log,
        )
        self._workers = [self._make_worker(i) for i in range(self._config.proxy.worker_count)]
        self._reports = ReportCollector(self._workers)
        self._spawn(self._control.run())
        await self._end.wait()
        await self._shut_down()
        if self._failure is not None:
            raise self._failure
        return 0

    # --- listening

    def _bind(self) -> None:
        proxy = self._config.proxy
        wanted = [(text, proxy.tls is not None) for text in proxy.listen] + [(text, False) for text in proxy.plaintext_listen]
        for text, tls in wanted:
            self._listeners.append(Listener(bind(text), tls))
        self._health = HealthListener(self._health_of_workers, {"/status": self._status_page, "/metrics": self._metrics_page})
        if proxy.health.listen:
            self._health_address = Listener(bind(proxy.health.listen), tls=False)
            self._spawn(self._health.serve(self._health_address.sock))
        admin = self._config.admin
        if admin is not None and not self._config.state.is_file:  # ours, so that it stays when a control process ends
            self._admin_address = Listener(bind(admin.listen), tls=bool(admin.certificate) or proxy.tls is not None)

    def _accept_when_possible(self) -> None:
        """Accept exactly while some worker serves, we are not stopping and the cap leaves room."""
        total = sum(worker.connections for worker in self._workers)
        full = total >= self._config.proxy.max_connections
        wanted = any(worker.ready for worker in self._workers) and not self._stopping and not full
        if full and monotonic() - self._cap_logged_at > 1:
            self._cap_logged_at = monotonic()
            self._log.warning("connection_cap", connections=total, max_connections=self._config.proxy.max_connections)
        if wanted == self._accepting:
            return
        self._accepting = wanted
        for listener in self._listeners:
            if wanted:
                self._loop.add_reader(listener.sock.fileno(), self._accept, listener)
            else:
                self._loop.remove_reader(listener.sock.fileno())

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
            self._accept_when_possible()

    def _hand_over(self, connection: socket.socket, tls: bool) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            return  # the peer is gone already
        while (worker := self._choose_worker()) is not None:
            if worker.child.send(messages.Accept(tls=tls), connection):
                worker.handed_over += 1
                return
            worker.ready = False  # it is dying, and its end is noticed in a moment

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
        if not self._stopping:
            self._accepting = False
            self._accept_when_possible()

    # --- workers

    def _make_worker(self, index: int) -> WorkerSlot:
        worker = WorkerSlot(index)
        worker.child = Child(
            f"worker {index}",
            (*self._command, "_worker"),
            messages.FromWorker,
            on_message=lambda message, _fd: self._on_worker(worker, message),
            on_started=lambda: self._worker_started(worker),
            on_ended=lambda cause: self._worker_ended(worker, cause),
            log=self._log,
        )
        return worker

    def _start_next_worker(self) -> bool:
        """False: all are started."""
        worker = next((worker for worker in self._workers if not worker.started), None)
        if worker is None:
            return False
        worker.started = True
        self._spawn(worker.child.run())
        return True

    def _worker_started(self, worker: WorkerSlot) -> None:
        worker.reset()
        worker.child.send(messages.Start(worker=worker.index, config=self._config))
        self._link(worker)

    def _worker_ended(self, worker: WorkerSlot, cause: str) -> None:
        worker.reset()
        worker.restarts += 1
        self._reports.worker_ended(worker)
        self._accept_when_possible()
        self._ended_early(cause)

    def _ended_early(self, cause: str) -> None:
        """Children that end again and again before anything was served will not do better at the tenth time."""
        if not self._announced:
            self._early_ends += 1
            if self._early_ends >= MAX_EARLY_ENDS:
                self._fail(StartFailed(f"child processes ended {self._early_ends} times before they served, last by {cause}"))

    def _on_worker(self, worker: WorkerSlot, message: messages.FromWorker) -> None:
        worker.heard_at = monotonic()
        match message:
            case messages.Heartbeat():
                worker.closed, worker.healthy, worker.seq = message.closed, message.healthy, message.seq
            case messages.WorkerReport():
                self._reports.received(worker, message)
                return
            case messages.WorkerReady():
                worker.ready = True
                worker.healthy = True
                self._log.info("worker_ready", worker=worker.index, seq=message.seq)
                self._one_more_ready()
            case messages.WorkerRefused():
                worker.refused = True
                self._refused(f"worker {worker.index}", message.problems)
            case messages.CertificatesReloaded():
                self._certificates_reloaded(worker, message.problem)
        self._accept_when_possible()

    def _one_more_ready(self) -> None:
        """Each starts the next; the last one is the news that people and scripts wait for."""
        while self._start_next_worker() and not self._config.partitions:
            continue
        if not self._announced and all(worker.ready for worker in self._workers):
            self._announced = True
            self._accept_when_possible()
            self._log.info("serving", workers=len(self._workers), addresses=[listener.url for listener in self._listeners])
            if self._on_ready is not None:
                self._on_ready(Bound(self._listeners, self._health_address, self._admin_address))

    def _link(self, worker: WorkerSlot) -> None:
        """A line between control and this worker; both ends leave us at once."""
        if self._control.channel is None or worker.child.channel is None:
            return
        for_worker, for_control = socket.socketpair()
        with for_worker, for_control:
            worker.child.send(messages.ControlLink(), for_worker)
            self._control.send(messages.WorkerLink(worker=worker.index), for_control)

    # --- control

    def _control_started(self) -> None:
        self._state_problems = ()  # it tells anew
        listener = self._admin_address.sock if self._admin_address is not None else None
        start = messages.StartControl(self._config, self._accept_older_state, again=self._announced)
        self._control.send(start, listener)
        for worker in self._workers:
            self._link(worker)

    def _on_control(self, message: messages.FromControl, fd: int | None) -> None:
        match message:
            case messages.StateLoaded():
                self._accept_older_state = False  # the word was given for the state of this start
                self._log.info("state_loaded", seq=message.seq, key_stores=message.key_stores, keys=message.keys)
                self._admin_certificate_reloaded(message.admin_certificate)
                if not self._workers[0].started:  # now that the key tool is done with the tokens
                    self._start_next_worker()
            case messages.StateProblems():
                self._state_problems = message.problems
            case messages.StateRefused():
                if self._announced:
                    self._log.error("state_kept", problems=message.problems)
                else:
                    self._refused("control", message.problems)

    def _refused(self, who: str, problems: tuple[str, ...]) -> None:
        """Trying again would not help. At the start that ends the program; later the others go on."""
        if not self._announced:
            self._fail(OperatorError("\n".join(problems)))
            return
        for problem in problems:
            self._log.error("refused", by=who, problem=problem)

    def _fail(self, error: OperatorError) -> None:
        self._failure = self._failure or error
        self._end.set()

    def _on_stop_signal(self) -> None:
        """The second one is impatience: what has not ended is ended."""
        if self._end.is_set():
            for child in (self._control, *(worker.child for worker in self._workers)):
                child.terminate()
        self._end.set()

    # --- reload and end

    def _reload(self) -> None:
        """SIGHUP: certificates and state anew; everything else takes effect at the next start."""
        fresh = self._config
        if self._config_path is not None:
            try:
                fresh = load_config(self._config_path)
            except OperatorError as error:
                self._log.error("reload_refused", problems=str(error).splitlines())
                return
        tls = fresh.proxy.tls if fresh.proxy.tls and self._config.proxy.tls else self._config.proxy.tls
        admin = self._config.admin
        if admin is not None and fresh.admin is not None:
            admin = msgspec.structs.replace(admin, certificate=fresh.admin.certificate, private_key=fresh.admin.private_key)
        proxy = msgspec.structs.replace(self._config.proxy, tls=tls)
        self._candidate = msgspec.structs.replace(self._config, proxy=proxy, admin=admin)
        later = different_keys(msgspec.to_builtins(self._candidate), msgspec.to_builtins(fresh))
        self._log.info("reloading")
        if later:
            self._log.warning("takes_effect_at_next_start", keys=later)
        if tls is not None:
            for worker in self._workers:
                worker.child.send(messages.ReloadCertificates(config=self._candidate))
        self._control.send(messages.ReloadState(config=self._candidate))

    def _certificates_reloaded(self, worker: WorkerSlot, problem: str) -> None:
        if problem:
            self._log.error("certificates_kept", worker=worker.index, problem=problem)
            return
        self._log.info("certificates_reloaded", worker=worker.index)
        if self._candidate is not None:  # a worker that is started again begins with them
            self._config = msgspec.structs.replace(self._candidate, admin=self._config.admin)

    def _admin_certificate_reloaded(self, outcome: str) -> None:
        if outcome == "reloaded" and self._candidate is not None:
            self._log.info("admin_certificate_reloaded")
            self._config = msgspec.structs.replace(self._config, admin=self._candidate.admin)
        elif outcome:
            self._log.error("admin_certificate_kept", problem=outcome)

    async def _shut_down(self) -> None:
        """Accept nothing more, have the requests at hand finished, leave no process."""
        self._stopping = True
        self._log.info("draining")
        self._accept_when_possible()
        for listener in self._listeners:
            listener.sock.close()
        for child in (self._control, *(worker.child for worker in self._workers)):
            child.stop()
        for worker in self._workers:
            worker.child.send(messages.Drain())
            if not worker.ready:  # nothing to finish, and it may be waiting for a token
                worker.child.terminate()
        patience_s = REFUSED_PATIENCE_S if self._failure else float(self._config.proxy.drain_timeout_s)
        await asyncio.gather(*(worker.child.end(patience_s) for worker in self._workers))
        self._control.send(messages.Drain())  # after the workers' last reports
        await self._control.end(patience_s)
        self._health.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._log.info("ended")

    # --- health

    def _health_of_workers(self) -> list[WorkerHealth]:
        return [
            WorkerHealth(
                worker=worker.index,
                ready=worker.ready and not self._stopping,
                healthy=worker.healthy,
                alive=worker.alive,
                connections=worker.connections,
                seq=worker.seq,
            )
            for worker in self._workers
        ]

    async def _status(self) -> service_status.ServiceStatus:
        return service_status.merge(
            await self._reports.collect(),
            self._reports.ended,
            partition_names=tuple(self._config.partitions),
            version=__version__,
            pid=os.getpid(),
            started_unix_s=self._started_unix_s,
            now_unix_s=time(),
            state_problems=self._state_problems,
        )

    async def _status_page(self) -> tuple[str, bytes]:
        return "application/json", orjson.dumps(msgspec.to_builtins(await self._status()))

    async def _metrics_page(self) -> tuple[str, bytes]:
        return exposition.CONTENT_TYPE, exposition.render(await self._status())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def different_keys(former: Any, new: Any, key: str = "") -> list[str]:
    """The dotted keys in which two configurations differ."""
    if isinstance(former, dict) and isinstance(new, dict):
        found = []
        for name in sorted({*former, *new}):
            found += different_keys(former.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        return found
    return [] if former == new else [key]


def run(
    config: Config,
    config_path: Path | None,
    on_ready: OnReady | None = None,
    *,
    hangup_ends: bool = False,
    accept_older_state: bool = False,
) -> int:
    """Supervise until told to stop; the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        supervisor = Supervisor(config, config_path, on_ready, hangup_ends=hangup_ends, accept_older_state=accept_older_state)
        return runner.run(supervisor.run())
