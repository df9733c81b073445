# SPDX-License-Identifier: Apache-2.0
"""The proxy worker: one process, one event loop, one engine.

It is handed everything: its configuration and its connections by the supervisor, what it serves by the control process. It opens no
listening socket, reads no state file and holds no SigV4 secret. Its life: Start -> first whole state by ApplyDelta -> tokens settled ->
WorkerReady -> connections -> Drain -> last UsageReport. It ends when the supervisor's line closes, so that no worker outlives its
supervisor.

A newcomer's trap: however it ends (drained, refused, SIGTERM, alone), it first waits for calls that are inside a PKCS#11 module, since
SoftHSM writes its token during a login and a process that ends there leaves half a token. So no signal may keep its default action.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine
from functools import partial
from time import monotonic, monotonic_ns
from typing import Any

import uvloop

from xksfast import messages
from xksfast.channel import NO_DESCRIPTOR, Channel
from xksfast.config import Config, ProxyTls
from xksfast.ekm.base import KeySource
from xksfast.ekm.local import LocalKeys
from xksfast.ekm.pkcs11 import TokenEngine
from xksfast.errors import NativeError, OperatorError
from xksfast.line_limit import LineLimit
from xksfast.log import Log, RequestLog, finish, frames_of
from xksfast.native.crypto import JobPool, RandomPool, harden_process
from xksfast.native.schedule import SHORTEST_US, set_slice
from xksfast.native.tls import TlsContext
from xksfast.proxy.connection import Connection
from xksfast.proxy.connection_settings import ConnectionSettings
from xksfast.proxy.delta_applier import DeltaApplier
from xksfast.proxy.handshakes import HandshakeGate
from xksfast.proxy.health import HealthMonitor
from xksfast.proxy.pipeline import Pipeline
from xksfast.proxy.worker_report import LoopLag, make_report

SWEEP_INTERVAL_S = 0.25
HEARTBEAT_INTERVAL_S = 1.0
USES_PER_REPORT = 1000  # less than a millisecond of the loop's time
LOST_DESCRIPTOR_LOG_INTERVAL_S = 1.0
LAST_REPORT_PATIENCE_S = 1.0  # for jobs that nobody waits for any more; above any request's deadline
SLOW_TOKEN_S = 2.0  # a login takes milliseconds
SUPERVISORS_TURN_S = 1.0  # beyond drain_timeout_s: it ends what does not end by itself, and says so in the log
CALLS_PATIENCE_S = 5.0  # for calls inside a PKCS#11 module, before the process ends
REFUSED = 3  # exit code: it has said why


class Worker:
    """Everything of one worker process. supervisor: its end of the socketpair."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self._log = Log("worker")
        self._log.take_loop_faults(self._loop)
        self._log.take_process_faults()
        self._strangers = LineLimit(lambda event, **fields: self._log.warning(event, **fields))
        self._index = 0
        self._ready = False
        self._draining = False
        self._accepted = 0
        self._closed = 0
        self._lost_descriptor_logged_at = 0.0
        self._control: Channel | None = None
        self._applier: DeltaApplier | None = None
        self._exit_code = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls: TlsContext | None = None
        self._tokens: TokenEngine | None = None
        self._lag = LoopLag(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._supervisor = Channel(
            supervisor, messages.ToWorker, on_message=self._on_supervisor, on_close=self._on_supervisor_gone
        )

    async def run(self) -> int:
        """Until drained or left alone; the exit code."""
        await self._done.wait()
        await self._report_last_usage()
        return self._exit_code

    # --- lines

    def _on_supervisor(self, message: messages.ToWorker, fd: int | None) -> None:
        match message:
            case messages.Accept():
                self._accept(fd, message)
            case messages.Start():
                self._start(message)
            case messages.ControlLink():
                self._link_control(fd)
            case messages.ReloadCertificates():
                self._reload_certificates(message)
            case messages.AskReport():
                self._supervisor.send(self._report(message.number))
            case messages.Drain():
                self._spawn(self._drain())
            case messages.EndNow():
                self._done.set()

    def _on_signal(self, number: signal.Signals) -> None:
        """SIGHUP is for the supervisor; so is SIGTERM, which knows of connections that are on their way to this process."""
        if number != signal.SIGHUP and not self._supervisor.send(messages.AskToEnd()):
            self._spawn(self._drain())

    def _on_supervisor_gone(self) -> None:
        self._spawn(self._drain())

    def _link_control(self, fd: int | None) -> None:
        if fd is None:  # lost: without control's word we would go on serving what may be blocked
            self._log.error("control_link_lost", error=NO_DESCRIPTOR, next="this worker ends")
            self._exit_code = 1
            self._done.set()
            return
        if self._control is not None:
            self._control.close()
            if self._applier is not None:
                self._applier.forget_unfinished()
        self._control = Channel(socket.socket(fileno=fd), messages.ControlToWorker, on_message=self._on_control)

    def _on_control(self, message: messages.ControlToWorker, fd: int | None) -> None:
        match message:
            case messages.ApplyDelta() if self._applier is not None:
                self._applier.receive(message.delta, fd, message.number)
            case messages.AskUsage() if self._applier is not None:
                self._spawn(self._report_usage())
            case _ if fd is not None:
                os.close(fd)

    def _to_control(self, message: messages.WorkerToControl) -> None:
        if self._control is not None:
            self._control.send(message)

    # --- start

    def _start(self, start: messages.Start) -> None:
        config = start.config
        self._config = config
        self._index = start.worker
        self._log = Log("worker", worker=start.worker)
        self._request_log = RequestLog(worker=start.worker)
        harden_process()
        with contextlib.suppress(NativeError):  # a sandbox may forbid it
            # Of the loop, and of the engine's threads, which it starts. A request takes less, and whatever else computes on this
            # machine makes it wait by less.
            set_slice(SHORTEST_US)
        try:
            self._build(config)
        except OperatorError as error:
            self._refuse(str(error))
            return
        except Exception as fault:  # a worker that says nothing would be waited for for ever; its text could quote a secret
            self._log.error("start_failed", problem=type(fault).__name__, where=frames_of(fault))
            self._refuse(
                f"a worker was not started by a fault of the proxy ({type(fault).__name__}): see start_failed in its log"
            )
            return
        self._spawn(self._apply_deltas())
        self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        self._lag.start()
        self._loop.call_later(SLOW_TOKEN_S, self._say_which_tokens_are_slow, SLOW_TOKEN_S)
        self._heartbeat()

    def _refuse(self, *problems: str, final: bool = False) -> None:
        """Say why this worker cannot serve, and end; see messages.WorkerRefused."""
        self._supervisor.send(messages.WorkerRefused(problems=problems, final=final))
        self._exit_code = REFUSED
        self._done.set()

    def _build(self, config: Config) -> None:
        """Engine, pipeline and connection settings from the configuration; what may be refused comes before any call of a token."""
        if config.proxy.tls:
            self._tls = _tls_context(config.proxy.tls)
        self._sources: dict[str, KeySource] = {"local": LocalKeys()}
        if config.partition_groups:
            self._tokens = TokenEngine(config)
            self._tokens.start()
            self._sources.update({f"group:{name}": group for name, group in self._tokens.groups.items()})
        self._pipeline = Pipeline(
            self._loop,
            engine=self._tokens.engine if self._tokens else None,
            jobs=JobPool(),
            random=RandomPool(),
            deadline_ms=config.proxy.deadline_ms,
            request_log=self._request_log,
            logs_success=config.proxy.log_requests,
            partition_names=self._tokens.partition_names if self._tokens else (),
            strangers=self._strangers,
        )
        if self._tokens:
            self._loop.add_reader(self._tokens.engine.fileno(), self._pipeline.on_completions)
        self._settings = ConnectionSettings(
            self._pipeline,
            HandshakeGate(self._loop),
            config.proxy,
            on_closed=self._on_connection_closed,
            log=self._warn_of_stranger,
        )
        self._health = HealthMonitor(
            self._loop,
            list(self._sources.values()),
            self._log.warning,
            self._tokens.key_news if self._tokens else tuple,
        )
        self._applier = DeltaApplier(
            self._pipeline,
            self._sources,
            self._tokens,
            worker=self._index,
            log=self._log,
            send=self._to_control,
            on_applied=self._on_applied,
            on_refused=self._on_refused,
        )

    def _say_which_tokens_are_slow(self, after_s: float) -> None:
        """A call that hangs at the start says nothing of itself, and the log would not say what everybody waits for."""
        if self._ready or self._done.is_set() or self._tokens is None:
            return
        for index, name in enumerate(self._tokens.partition_names):
            status = self._tokens.engine.partition_status(index)
            if status.state == "starting" and not status.reason:
                self._log.warning(
                    "token_slow",
                    partition=name,
                    after_s=after_s,
                    problem="a call into its PKCS#11 module (C_Initialize, C_GetTokenInfo, C_Login) has not returned",
                )
        self._loop.call_later(after_s, self._say_which_tokens_are_slow, 2 * after_s)

    # --- what is served

    async def _apply_deltas(self) -> None:
        """A worker that can take nothing new would go on serving what may be blocked: it ends, and another is started."""
        assert self._applier is not None
        try:
            await self._applier.run()
        except Exception as error:
            self._log.error("deltas_failed", error=f"{type(error).__name__}: {error}", next="this worker ends")
            self._exit_code = 1
            self._done.set()

    def _on_applied(self, seq: int) -> None:
        if not self._ready:
            self._ready = True
            self._health.start()
            self._supervisor.send(messages.WorkerReady(seq=seq))

    def _on_refused(self, problems: list[str]) -> None:
        self._refuse(*problems, final=True)

    # --- usage

    async def _report_usage(self) -> None:
        """What was used since the last report, in as many messages as it takes, but at least one."""
        more = True
        while more:
            keys, credentials = self._pipeline.usage.take(USES_PER_REPORT)
            more = USES_PER_REPORT in (len(keys), len(credentials))
            self._to_control(
                messages.UsageReport(
                    worker=self._index,
                    keys=tuple(messages.KeyUse(*use) for use in keys),
                    credentials=tuple(messages.CredentialUse(*use) for use in credentials),
                )
            )
            await asyncio.sleep(0)

    async def _report_last_usage(self) -> None:
        """After the last answer: what an engine may still be doing for clients that are gone counts as well."""
        if self._applier is None or self._control is None:
            return
        deadline = monotonic() + LAST_REPORT_PATIENCE_S
        while self._pipeline.unanswered and monotonic() < deadline:
            await asyncio.sleep(0.01)
        await self._report_usage()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._control.drained(), LAST_REPORT_PATIENCE_S)

    # --- connections

    def _accept(self, fd: int | None, message: messages.Accept) -> None:
        self._accepted += 1
        if fd is None:
            self._log_lost_descriptor()
            self._on_connection_closed()
            return
        connected = socket.socket(fileno=fd)
        connected.setblocking(False)
        if message.make_room and not self._settings.evict_stranger():
            self._send_heartbeat()  # all are known by now: the supervisor must hear of it before it sends more
        if self._draining:
            connected.close()
            self._on_connection_closed()
            return
        factory = partial(Connection, self._settings, self._tls if message.tls else None)
        self._spawn(self._serve(factory, connected))

    async def _serve(self, factory: partial[Connection], connected: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(factory, connected)
        except Exception as error:  # of the socket, or no memory for a TLS connection: it costs this connection
            self._warn_of_stranger("connection_lost_at_once", error=str(error))
            connected.close()
            self._on_connection_closed()

    def _warn_of_stranger(self, event: str, **fields: Any) -> None:
        """A line that anybody who can open a connection can bring about."""
        if self._strangers.admits(event):
            self._log.warning(event, **fields)

    def _log_lost_descriptor(self) -> None:
        if monotonic() - self._lost_descriptor_logged_at > LOST_DESCRIPTOR_LOG_INTERVAL_S:
            self._lost_descriptor_logged_at = monotonic()
            self._log.error("connection_not_received", error=NO_DESCRIPTOR)

    def _on_connection_closed(self) -> None:
        """Tell the supervisor at once: it hands the next connection to the worker with the fewest."""
        self._closed += 1
        self._send_heartbeat()
        if self._draining and self._accepted == self._closed:
            self._done.set()

    def _reload_certificates(self, reload: messages.ReloadCertificates) -> None:
        """New connections get the new certificate; those in progress keep the context they began with."""
        problem = ""
        if reload.config.proxy.tls:
            try:
                self._tls = _tls_context(reload.config.proxy.tls)
            except OperatorError as error:
                problem = str(error)
        self._supervisor.send(messages.CertificatesReloaded(problem=problem, number=reload.number))

    # --- time

    def _sweep(self) -> None:
        now = monotonic_ns()
        for connection in tuple(self._settings.connections):
            connection.check_time(now)
        self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def _heartbeat(self) -> None:
        self._send_heartbeat()
        self._loop.call_later(HEARTBEAT_INTERVAL_S, self._heartbeat)

    def _send_heartbeat(self) -> None:
        self._supervisor.send(
            messages.Heartbeat(
                closed=self._closed,
                healthy=self._ready and self._health.healthy,
                seq=self._pipeline.table.seq,
                known=len(self._settings.connections) - len(self._settings.strangers),
            )
        )

    def _report(self, number: int) -> messages.WorkerReport:
        settings = getattr(self, "_settings", None)
        if settings is None:  # it is being built, or was refused
            return messages.WorkerReport(number=number, pid=os.getpid())
        return make_report(
            number,
            pipeline=self._pipeline,
            tokens=self._tokens,
            connections=len(settings.connections),
            loop_lag_s=self._lag.longest_s,
        )

    # --- end

    async def _drain(self) -> None:
        """Answer what has arrived, close every connection, stop; in bounded time, since perhaps no supervisor looks after it."""
        if self._draining:
            return
        self._draining = True
        settings = getattr(self, "_settings", None)
        if settings is not None:
            self._loop.call_later(self._config.proxy.drain_timeout_s + SUPERVISORS_TURN_S, self._done.set)
            settings.draining = True  # for those that are on their way in
            for connection in tuple(settings.connections):
                connection.drain()
            if self._accepted > self._closed:
                return  # the last one that closes ends the process
        self._done.set()

    def close(self) -> int:
        """Stop the engine and the log. The number of calls that are still inside a token when nobody waits for them any more."""
        inside = 0
        if self._tokens:
            self._loop.remove_reader(self._tokens.engine.fileno())
            inside = self._tokens.engine.close(CALLS_PATIENCE_S)
            if inside:
                self._log.error("ended_inside_token", calls=inside, after_s=CALLS_PATIENCE_S, next="check the tokens' state")
        self._strangers.close()
        if hasattr(self, "_request_log"):
            self._request_log.close()
        return inside

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tls_context(tls: ProxyTls) -> TlsContext:
    return TlsContext(
        certificate=tls.certificate,
        private_key=tls.private_key,
        client_ca=tls.client_ca or None,
        client_common_name=tls.client_common_name or None,
    )


def main(fd: int) -> int:
    """The whole life of a worker process. fd: its end of the socketpair to the supervisor."""

    async def live() -> int:
        worker = Worker(socket.socket(fileno=fd))
        try:
            code = await worker.run()
        finally:
            inside = worker.close()
        if inside:
            finish()
            os._exit(code)  # an exit in good order would take a module apart under its own calls
        return code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(live())
