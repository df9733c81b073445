# SPDX-License-Identifier: Apache-2.0
"""The supervisor: listening sockets, children, signals. It holds no secret and reads no request.

Its life: bind -> control -> workers, one after the other -> ready when all serve -> drain. One after the other, so that a wrong
PIN is tried once and not once a worker, and because SoftHSM 2.6 shows processes that start together no token, or one without a
PIN; where there are no tokens, all others after the first at once. A child that dies is started again while the others go on; one
that *refuses* is not, since a token locks after a few wrong PINs.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from xksfast.proxy.acceptor import Acceptor
from xksfast.proxy.child import Child
from xksfast.proxy.descriptors import ADVICE, connections_that_fit, raise_limit
from xksfast.proxy.health_listener import HealthListener, WorkerHealth
from xksfast.proxy.listener import Listener, bind
from xksfast.proxy.reports import ReportCollector
from xksfast.proxy.worker_slot import WorkerSlot

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
    command: starts a child, with its hidden command and descriptor appended.
    """

    def __init__(
        self,
        config: Config,
        config_path: Path | None,
        on_ready: OnReady | None = None,
        *,
        hangup_ends: bool = False,
        command: Sequence[str] = CHILD_COMMAND,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._on_ready = on_ready
        self._command = command
        self._hangup_ends = hangup_ends
        self._log = Log("supervisor")
        self._started_unix_s = time()
        self._listeners: list[Listener] = []
        self._health_address: Listener | None = None
        self._admin_address: Listener | None = None
        self._stopping = False  # and unready
        self._announced = False
        self._early_ends = 0
        self._failure: OperatorError | None = None
        self._candidate: Config | None = None
        self._state_problems: tuple[str, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal: 0. Raises OperatorError when it cannot serve; no child is left then either."""
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._impatient = asyncio.Event()
        max_connections = self._respect_limits()
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
        self._acceptor = Acceptor(self._listeners, self._workers, max_connections, self._log)
        self._reports = ReportCollector(self._workers)
        self._spawn(self._control.run())
        await self._end.wait()
        await self._shut_down()
        if self._failure is not None:
            raise self._failure
        return 0

    # --- listening

    def _respect_limits(self) -> int:
        """Raise the limit of open files, which children inherit; how many connections fit under it."""
        wanted, fit, limit = self._config.proxy.max_connections, connections_that_fit(self._config), raise_limit()
        if fit < wanted:
            self._log.warning("max_connections_lowered", max_connections=wanted, served=fit, open_files=limit, next=ADVICE)
        return fit

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
        self._acceptor.accept_when_possible()

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
                worker.known = message.known
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
        self._control.send(messages.StartControl(config=self._config), listener)
        for worker in self._workers:
            self._link(worker)

    def _on_control(self, message: messages.FromControl, fd: int | None) -> None:
        match message:
            case messages.StateLoaded():
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
            self._impatient.set()
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
        """Unready first; then accept nothing more, have the requests at hand finished, leave no process."""
        self._stopping = True
        self._log.info("draining")
        if self._announced and not self._failure and self._config.proxy.drain_delay_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._impatient.wait(), self._config.proxy.drain_delay_s)
        self._acceptor.stop()
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
                authenticated=min(worker.connections, worker.known),
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
) -> int:
    """Supervise until told to stop; the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Supervisor(config, config_path, on_ready, hangup_ends=hangup_ends).run())
