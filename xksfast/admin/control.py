# SPDX-License-Identifier: Apache-2.0
"""The control process: holds what workers must not (SigV4 secrets, the master key) and hands them what they serve.

Where the state stands decides what it is: a file (`file_node.py`: read it, serve it) or a database (`node.py`: administration, many
nodes). Once a second it compares the days that the workers' signing keys cover with the clock: shortly after midnight UTC, or when the
clock jumps, new ones go out, so that workers always hold tomorrow's keys.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
import uvloop

from xksfast import messages
from xksfast.admin.file_node import FileNode
from xksfast.channel import Channel
from xksfast.config import Config
from xksfast.errors import OperatorError, is_final
from xksfast.log import Log, frames_of
from xksfast.native.crypto import harden_process

CLOCK_INTERVAL_S = 1.0
TASKS_PATIENCE_S = 7.0  # of what is cancelled at the end: it may wait for a tool that is inside a token


class NodeKind(Protocol):
    """What the state is kept in."""

    async def load(self, config: Config) -> messages.StateLoaded:
        """Read the state and serve it; again when asked to. OperatorError: what cannot be used, and the former state stays.

        config: may name other certificates than it did at the start; nothing else in it is looked at.
        """

    def link(self, worker: int, fd: int) -> None:
        """A worker was started; fd: a socket to it."""

    async def tick(self) -> None:
        """Once a second."""

    def problems(self) -> tuple[str, ...]:
        """How it stands with the state, a sentence each; asked once a second."""

    async def close(self, *, drained: bool) -> None:
        """Leave nothing behind. drained: no worker serves any more."""


class Control:
    """Everything of one control process. supervisor: its end of the socketpair."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._log = Log("control")
        self._log.take_loop_faults(asyncio.get_running_loop())
        self._log.take_process_faults()
        self._done = asyncio.Event()
        self._drained = False
        self._loaded = False
        self._told: tuple[str, ...] = ()  # problems that the supervisor knows of
        self._node: NodeKind | None = None
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervisor = Channel(supervisor, messages.ToControl, on_message=self._on_supervisor, on_close=self._done.set)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # their default would leave tools alone with their tokens
            loop.add_signal_handler(number, self._ask_to_end)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # it is for the supervisor

    async def run(self) -> int:
        """Until drained or left alone; the exit code."""
        await self._done.wait()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=TASKS_PATIENCE_S)
        if self._node is not None:
            await self._node.close(drained=self._drained)
        return 0

    def _ask_to_end(self) -> None:
        """Where every process is sent SIGTERM, workers may still be serving: they are to hear of blocks, and be heard."""
        if not self._supervisor.send(messages.AskToEnd()):
            self._done.set()

    def _on_supervisor(self, message: messages.ToControl, fd: int | None) -> None:
        match message:
            case messages.StartControl():
                harden_process()
                self._node = _make_node(message, self._log, None if fd is None else socket.socket(fileno=fd))
                self._spawn(self._load(message.config))
                self._spawn(self._tick())
            case messages.WorkerLink() if fd is not None and self._node is not None:
                self._node.link(message.worker, fd)
            case messages.ReloadState():
                self._spawn(self._load(message.config, message.number))
            case messages.Drain():
                self._drained = True
                self._done.set()
            case messages.EndNow():
                self._done.set()

    async def _load(self, config: Config, number: int = 0) -> None:
        """What cannot be used is refused as a whole, and the former state stays; without one this process ends."""
        assert self._node is not None
        async with self._lock:
            try:
                with _objects_that_stay():
                    loaded = await self._node.load(config)
            except OperatorError as error:
                self._refuse(*str(error).splitlines(), final=is_final(error))
            except Exception as fault:  # whoever waits for the state must not wait for ever
                self._log_fault("load_failed", fault)
                problem = (
                    f"the state was not loaded by a fault of the proxy ({type(fault).__name__}): see load_failed in its log"
                )
                self._refuse(problem)
            else:
                self._loaded = True
                self._tell_problems()  # first: a node that serves its local copy must not be called well until the next tick
                self._supervisor.send(msgspec.structs.replace(loaded, number=number))

    def _refuse(self, *problems: str, final: bool = False) -> None:
        """A process without a state is of no use: it ends, and its supervisor starts another one after a pause."""
        self._supervisor.send(messages.StateRefused(problems=problems, final=final))
        if not self._loaded:
            self._done.set()

    async def _tick(self) -> None:
        assert self._node is not None
        while True:
            await asyncio.sleep(CLOCK_INTERVAL_S)
            try:
                await self._node.tick()
            except (OperatorError, OSError) as error:
                self._log.error("tick_failed", problem=str(error))
            except Exception as fault:  # the next one may renew the signing keys
                self._log_fault("tick_failed", fault)
            self._tell_problems()

    def _tell_problems(self) -> None:
        """Send the node's problems to the supervisor when they are not what it was last sent."""
        assert self._node is not None
        problems = self._node.problems()
        if problems != self._told:
            self._told = problems
            self._supervisor.send(messages.StateProblems(problems=problems))

    def _log_fault(self, event: str, fault: Exception) -> None:
        """Without its text, which could quote a secret."""
        self._log.error(event, problem=type(fault).__name__, where=frames_of(fault))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def _objects_that_stay() -> Iterator[None]:
    """A large state is a million objects that live as long as we do: collecting garbage walks through them neither now nor later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _make_node(start: messages.StartControl, log: Log, listener: socket.socket | None) -> NodeKind:
    if start.config.state.is_file:
        return FileNode(start.config, log)
    from xksfast.admin.node import Node  # brings the database and the REST server

    return Node(start.config, log, listener, accept_older_state=start.accept_older_state, again=start.again)


def main(fd: int) -> int:
    """The whole life of a control process. fd: its end of the socketpair to the supervisor."""

    async def live() -> int:
        return await Control(socket.socket(fileno=fd)).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(live())
