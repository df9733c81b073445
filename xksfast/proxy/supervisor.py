# SPDX-License-Identifier: Apache-2.0
"""The supervisor: listening sockets, children, signals. It holds no secret and reads no request.

Its life: bind -> control -> workers, one after the other -> ready when all serve -> drain. One after the other, so that a wrong
PIN is tried once and not once a worker, and because SoftHSM 2.6 shows processes that start together no token, or one without a
PIN; where there are no tokens, all others after the first at once. A child that dies or refuses to work is started again while the
others go on; only one whose token refused the PIN waits for a person, since a token locks after a few wrong PINs.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import uvloop

from xksfast import messages
from xksfast.config import Config, load_config
from xksfast.errors import OperatorError
from xksfast.log import Log, finish
from xksfast.proxy.acceptor import Acceptor
from xksfast.proxy.bound import Bound, bind_all
from xksfast.proxy.child import Child
from xksfast.proxy.closed_door import ClosedDoor
from xksfast.proxy.descriptors import ADVICE, connections_that_fit, raise_limit
from xksfast.proxy.health_listener import HealthListener
from xksfast.proxy.listener import Listener
from xksfast.proxy.pages import Pages
from xksfast.proxy.reloads import Reloads
from xksfast.proxy.reports import ReportCollector
from xksfast.proxy.start_checks import check_start
from xksfast.proxy.troubles import Troubles
from xksfast.proxy.watchdog import HUNG_AFTER_S, Watchdog
from xksfast.proxy.worker_slot import WorkerSlot

REFUSED_PATIENCE_S = 1.0
MAX_EARLY_ENDS = 5  # of children, before all served: then the start has failed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CHILD_COMMAND = (sys.executable, "-m", "xksfast")


OnReady = Callable[[Bound], None]


class StartFailed(OperatorError):
    """The children do not stay alive: exit code 1."""

    exit_code = 1


class Supervisor:
    """One `xksfast serve`.

    on_ready: called once when every worker serves.
    hangup_ends: SIGHUP ends it in place of reloading.
    accept_older_state: a database that went back is followed as it is, by the first control process that loads it.
    command: starts a child, with its hidden command and descriptor appended. hung_after_s: see watchdog.py.
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
        hung_after_s: float = HUNG_AFTER_S,
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._on_ready = on_ready
        self._command = command
        self._hung_after_s = hung_after_s
        self._hangup_ends = hangup_ends
        self._accept_older_state = accept_older_state
        self._log = Log("supervisor")
        self._listeners: list[Listener] = []
        self._stopping = False  # and unready
        self._announced = False
        self._served = False  # some worker was ready once: from then on nothing that children do ends the program
        self._early_ends = 0
        self._failure: OperatorError | None = None
        self._reloads = Reloads()
        self._troubles = Troubles(self._log)
        self._control_loaded = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal: 0. Raises OperatorError when it cannot serve; no child is left then either."""
        self._loop = asyncio.get_running_loop()
        self._log.take_loop_faults(self._loop)
        self._end = asyncio.Event()
        self._impatient = asyncio.Event()
        max_connections = self._respect_limits()
        self._make_children()
        self._bound = bind_all(self._config)
        self._listeners = self._bound.proxy
        self._acceptor = Acceptor(self._listeners, self._workers, max_connections, self._log)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_stop_signal if self._hangup_ends else self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a caller may have kept them waiting until now
        self._proxy_door = ClosedDoor(self._loop, [listener.sock for listener in self._listeners])
        self._admin_door = ClosedDoor(self._loop, [self._bound.admin.sock] if self._bound.admin is not None else [])
        served = {"/status": self._pages.status, "/metrics": self._pages.metrics}
        self._health = HealthListener(lambda: self._pages.workers(stopping=self._stopping), served, self._pages.node_problems)
        if self._bound.health is not None:
            self._spawn(self._health.serve(self._bound.health.sock))
        self._spawn(self._control.run())
        self._spawn(Watchdog(self._workers, self._log, self._hung_after_s).run())
        await self._end.wait()
        await self._shut_down()
        if self._failure is not None:
            raise self._failure
        return 0

    def _make_children(self) -> None:
        self._control = Child(
            "control",
            (*self._command, "_control"),
            messages.FromControl,
            on_message=self._on_control,
            on_started=self._control_started,
            on_ended=self._control_ended,
            log=self._log,
            hurry=messages.EndNow(),
        )
        self._workers = [self._make_worker(i) for i in range(self._config.proxy.worker_count)]
        self._reports = ReportCollector(self._workers)
        self._pages = Pages(self._config, self._workers, self._reports, self._troubles, self._control)

    def _respect_limits(self) -> int:
        """Raise the limit of open files, which children inherit; how many connections fit under it."""
        wanted, fit, limit = self._config.proxy.max_connections, connections_that_fit(self._config), raise_limit()
        if fit < wanted:
            self._log.warning("max_connections_lowered", max_connections=wanted, served=fit, open_files=limit, next=ADVICE)
        return fit

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
            hurry=messages.EndNow(),
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
        worker.reload, config = 0, self._config
        if self._troubles.is_stuck(worker.child.name):  # on what is in use: tried with what SIGHUP asked for
            worker.reload, config = self._reloads.newest_for_worker(self._config)
        self._troubles.started(worker.child.name)
        worker.child.send(messages.Start(worker=worker.index, config=config))
        self._link(worker)

    def _worker_ended(self, worker: WorkerSlot, cause: str) -> None:
        worker.reset()
        worker.restarts += 1
        self._reports.worker_ended(worker)
        self._ended(worker.child, cause)
        refuser = next((other.child.name for other in self._workers if self._troubles.is_final(other.child.name)), None)
        if refuser is not None and not self._troubles.is_final(worker.child.name):
            worker.child.hold()  # it would try the same PIN
            self._troubles.refused(
                worker.child.name, (f"{refuser} was refused by tokens that this one would ask as well",), final=True
            )
        self._accept_or_send_away()

    def _ended(self, child: Child, cause: str) -> None:
        """Children that end again and again before anything was served will not do better at the tenth time."""
        if self._served:
            self._troubles.ended(child.name, cause)
            return
        self._early_ends += 1
        if self._early_ends >= MAX_EARLY_ENDS:
            self._fail(StartFailed(f"child processes ended {self._early_ends} times before they served, last by {cause}"))

    def _accept_or_send_away(self) -> None:
        """While the workers refuse to work, whoever connects must not wait for an answer that does not come."""
        shut = not self._stopping and not any(worker.ready for worker in self._workers) and self._served
        shut = shut and all(self._troubles.is_stuck(worker.child.name) for worker in self._workers)
        if not shut:
            self._proxy_door.open()
        self._acceptor.accept_when_possible()
        if shut:
            self._proxy_door.shut()

    def _on_worker(self, worker: WorkerSlot, message: messages.FromWorker) -> None:
        worker.heard_at = monotonic()
        match message:
            case messages.Heartbeat():
                worker.closed, worker.healthy, worker.seq = message.closed, message.healthy, message.seq
                worker.known = message.known
            case messages.WorkerReport():
                self._reports.received(worker, message)
                return
            case messages.AskToEnd():
                self._end_worker(worker)
            case messages.WorkerReady() if not worker.ending:
                worker.ready = worker.healthy = self._served = True
                self._troubles.works(worker.child.name)
                self._config = self._reloads.taken_by_worker(worker.reload, self._config)
                self._log.info("worker_ready", worker=worker.index, seq=message.seq)
                self._one_more_ready()
                self._retry_held()
            case messages.WorkerRefused():
                self._refused(worker.child, message.problems, message.final)
            case messages.CertificatesReloaded():
                self._certificates_reloaded(worker, message)
        self._accept_or_send_away()

    def _end_worker(self, worker: WorkerSlot) -> None:
        """Somebody wants this process to end, and it is started again; in a shutdown its turn comes when no more is accepted."""
        if not self._stopping or self._acceptor.stopped:
            worker.ending, worker.ready = True, False
            worker.child.send(messages.Drain())

    def _one_more_ready(self) -> None:
        """Each starts the next; the last one is the news that people and scripts wait for."""
        while self._start_next_worker() and not self._config.partitions:
            continue
        if not self._announced and all(worker.ready for worker in self._workers):
            self._announced = True
            self._acceptor.accept_when_possible()
            self._log.info("serving", workers=len(self._workers), addresses=[listener.url for listener in self._listeners])
            if self._on_ready is not None:
                self._on_ready(self._bound)

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
        config = self._config
        if self._troubles.is_stuck(self._control.name):
            config = self._reloads.newest_for_control(self._config)
        self._troubles.started(self._control.name)
        self._admin_door.open()
        listener = self._bound.admin.sock if self._bound.admin is not None else None
        self._control.send(messages.StartControl(config, self._accept_older_state, again=self._served), listener)
        for worker in self._workers:
            self._link(worker)

    def _control_ended(self, cause: str) -> None:
        if not self._control_loaded:  # else the next one takes over in a moment
            self._admin_door.shut()
        self._control_loaded = False
        self._pages.state_problems = ()  # those of a process that is gone; the next one tells its own
        self._ended(self._control, cause)

    def _on_control(self, message: messages.FromControl, fd: int | None) -> None:
        match message:
            case messages.StateLoaded():
                self._control_loaded = True
                self._accept_older_state = False  # the word was given for the state of this start
                self._troubles.works(self._control.name)
                self._log.info("state_loaded", seq=message.seq, key_stores=message.key_stores, keys=message.keys)
                self._admin_certificate_reloaded(message)
                if not self._workers[0].started:  # now that the key tool is done with the tokens
                    self._start_next_worker()
            case messages.StateProblems():
                self._pages.state_problems = message.problems
            case messages.StateRefused() if self._control_loaded:
                self._log.error("state_kept", problems=message.problems)
            case messages.AskToEnd():
                if not self._stopping:  # else its turn comes after the workers
                    self._control.send(messages.EndNow())
            case messages.StateRefused():
                self._refused(self._control, message.problems, message.final)

    def _refused(self, child: Child, problems: tuple[str, ...], final: bool) -> None:
        """Its process ends. Before anything was served that ends the program; later the others go on and this one is tried again."""
        child.refused(final=final)
        if self._served:
            self._troubles.refused(child.name, problems, final=final)
        else:
            self._fail(OperatorError("\n".join(problems)))

    def _retry_held(self) -> None:
        """One at a time of the workers that wait for a person's word, so that a PIN which is still wrong is tried once."""
        held = next((worker for worker in self._workers if self._troubles.is_final(worker.child.name)), None)
        if held is not None:
            held.child.retry()

    def _fail(self, error: OperatorError) -> None:
        self._failure = self._failure or error
        self._end.set()

    def _on_stop_signal(self) -> None:
        """The second one is impatience: what has not ended is ended."""
        if self._end.is_set():
            self._impatient.set()
            for child in (self._control, *(worker.child for worker in self._workers)):
                child.hurry()
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
        number, asked, later = self._reloads.ask(self._config, fresh)
        self._log.info("reloading")
        if later:
            self._log.warning("takes_effect_at_next_start", keys=later)
        if asked.proxy.tls is not None:
            for worker in self._workers:
                worker.child.send(messages.ReloadCertificates(config=asked, number=number))
        self._control.send(messages.ReloadState(config=asked, number=number))
        for child in (self._control, *(worker.child for worker in self._workers)):
            if child is self._control or not self._troubles.is_final(child.name):
                child.retry()
        self._retry_held()

    def _certificates_reloaded(self, worker: WorkerSlot, answer: messages.CertificatesReloaded) -> None:
        if answer.problem:
            self._reloads.refused_by_worker(answer.number)
            self._log.error("certificates_kept", worker=worker.index, problem=answer.problem)
        elif worker.ready:  # one that does not serve has shown nothing
            self._log.info("certificates_reloaded", worker=worker.index)
            self._config = self._reloads.taken_by_worker(answer.number, self._config)
        else:
            worker.reload = answer.number

    def _admin_certificate_reloaded(self, answer: messages.StateLoaded) -> None:
        if answer.admin_certificate == "reloaded":
            self._log.info("admin_certificate_reloaded")
            self._config = self._reloads.taken_by_control(answer.number, self._config)
        elif answer.admin_certificate:
            self._log.error("admin_certificate_kept", problem=answer.admin_certificate)

    async def _shut_down(self) -> None:
        """Unready first; then accept nothing more, have the requests at hand finished, leave no process."""
        self._stopping = True
        self._log.info("draining")
        self._accept_or_send_away()
        self._admin_door.open()
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def run(
    config: Config,
    config_path: Path | None,
    on_ready: OnReady | None = None,
    *,
    hangup_ends: bool = False,
    accept_older_state: bool = False,
) -> int:
    """Supervise until told to stop; the exit code. OperatorError, with no process started, for what would end every worker."""
    check_start(config, str(config_path or ""))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            supervisor = Supervisor(
                config, config_path, on_ready, hangup_ends=hangup_ends, accept_older_state=accept_older_state
            )
            return runner.run(supervisor.run())
    finally:
        finish()  # before somebody is told on stderr why it has failed
