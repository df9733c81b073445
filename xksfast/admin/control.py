# SPDX-License-Identifier: Apache-2.0
"""The control process: holds what workers must not (SigV4 secrets, the master key) and hands them snapshots.

It reads the state, has missing keys created, derives signing keys, and pushes one snapshot to every worker. Once a second it
compares the days that the last snapshot covers with the clock: shortly after midnight UTC, or when the clock jumps, a new
snapshot goes out, so that workers always hold tomorrow's keys.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from xksfast import messages
from xksfast.admin.key_creation import create_local_keys, create_token_keys
from xksfast.channel import Channel
from xksfast.config import Config
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.model import Snapshot
from xksfast.native.crypto import SecretPages, harden_process
from xksfast.state.local_keys import LocalKeyFiles
from xksfast.state.snapshot import build_snapshot, covered_days
from xksfast.state.store_file import StoreFile, load_store_file

CLOCK_INTERVAL_S = 1.0
LOCAL_KEYS_DIRECTORY = "local-keys"


class Control:
    """Everything of one control process. supervisor: its end of the socketpair."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._log = Log("control")
        self._done = asyncio.Event()
        self._config: Config | None = None
        self._document: StoreFile | None = None
        self._seq = int(time.time() * 1000)  # grows over restarts of this process as well
        self._days: tuple[str, ...] = ()
        self._current: tuple[Snapshot, SecretPages] | None = None
        self._former: dict[int, SecretPages] = {}  # seq -> pages that a worker may still be reading
        self._workers: dict[int, Channel] = {}
        self._acked: dict[int, int] = {}
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervisor = Channel(supervisor, messages.ToControl, on_message=self._on_supervisor, on_close=self._done.set)

    async def run(self) -> int:
        """Until drained or left alone; the exit code."""
        await self._done.wait()
        return 0

    def _on_supervisor(self, message: messages.ToControl, fd: int | None) -> None:
        match message:
            case messages.StartControl():
                harden_process()
                self._config = message.config
                self._spawn(self._load())
                self._spawn(self._watch_clock())
            case messages.WorkerLink():
                self._link(message.worker, fd)
            case messages.ReloadState():
                self._spawn(self._load())
            case messages.Drain():
                self._done.set()

    # --- workers

    def _link(self, worker: int, fd: int | None) -> None:
        if fd is None:
            return
        former = self._workers.pop(worker, None)
        if former is not None:
            former.close()
        self._acked.pop(worker, None)
        self._workers[worker] = Channel(
            socket.socket(fileno=fd),
            messages.WorkerToControl,
            on_message=self._on_worker,
            on_close=lambda: self._forget(worker),
        )
        self._push(worker)

    def _forget(self, worker: int) -> None:
        self._workers.pop(worker, None)
        self._acked.pop(worker, None)
        self._free_former()

    def _on_worker(self, message: messages.SnapshotApplied, fd: int | None) -> None:
        self._acked[message.worker] = message.seq
        for problem in message.problems:
            self._log.error("key_not_served", worker=message.worker, problem=problem)
        for note in message.notes:
            self._log.warning("key_served_in_part", worker=message.worker, note=note)
        self._log.info("snapshot_applied", worker=message.worker, seq=message.seq, problems=len(message.problems))
        self._free_former()

    def _free_former(self) -> None:
        """Pages older than what every worker has acknowledged are wiped."""
        oldest = min((self._acked.get(worker, 0) for worker in self._workers), default=self._seq)
        for seq in [seq for seq in self._former if seq < oldest]:
            del self._former[seq]

    def _push(self, worker: int) -> None:
        if self._current is not None:
            snapshot, pages = self._current
            self._workers[worker].send(messages.ApplySnapshot(snapshot=snapshot), pages.fd)

    # --- state

    async def _load(self) -> None:
        """Read the state and serve it. What cannot be used is refused as a whole, and the former state stays."""
        assert self._config is not None
        async with self._lock:
            try:
                document = load_store_file(Path(self._config.state.store_file), self._config)
                for label in create_local_keys(document, self._local_key_files()):
                    self._log.info("key_created", key=f"local key {label}")
                await self._create_token_keys(document)
                self._publish(document)
            except OperatorError as error:
                self._supervisor.send(messages.StateRefused(problems=tuple(str(error).splitlines())))
                return
            self._document = document
            keys = sum(len(store.keys) for store in document.key_stores.values())
            self._supervisor.send(messages.StateLoaded(seq=self._seq, key_stores=len(document.key_stores), keys=keys))

    async def _create_token_keys(self, document: StoreFile) -> None:
        """What cannot be created is logged and not served; one token that is down must not keep the others from serving.

        Not tried again by itself: a token locks after a few wrong PINs.
        """
        assert self._config is not None
        async for answer in create_token_keys(self._config, document):
            for label in answer.created:
                self._log.info("key_created", key=f"token key {label}")
            if answer.problem:
                self._log.error("keys_not_created", problem=answer.problem, next="mend it, then send SIGHUP to try again")

    def _publish(self, document: StoreFile) -> None:
        """A new snapshot of `document` to every worker."""
        now = int(time.time())
        snapshot, pages = build_snapshot(
            document,
            seq=self._seq + 1,
            now=now,
            local_keys=self._local_key_files(),
            on_problem=lambda problem: self._log.error("key_not_served", problem=problem),
        )
        self._seq += 1
        self._days = covered_days(now)
        if self._current is not None:
            self._former[self._current[0].seq] = self._current[1]
        self._current = (snapshot, pages)
        for worker in self._workers:
            self._push(worker)

    async def _watch_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_INTERVAL_S)
            if self._document is None or covered_days(int(time.time())) == self._days:
                continue
            async with self._lock:
                try:
                    self._publish(self._document)
                except OperatorError as error:
                    self._log.error("signing_keys_not_renewed", problem=str(error))
                else:
                    self._log.info("signing_keys_renewed", seq=self._seq, days=self._days)

    def _local_key_files(self) -> LocalKeyFiles:
        assert self._config is not None
        directory = Path(self._config.state.store_file).parent / LOCAL_KEYS_DIRECTORY
        return LocalKeyFiles(directory, self._config.state.master_key_file)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def main(fd: int) -> int:
    """The whole life of a control process. fd: its end of the socketpair to the supervisor."""

    async def live() -> int:
        return await Control(socket.socket(fileno=fd)).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(live())
