# SPDX-License-Identifier: Apache-2.0
"""A node whose state is a database: the composition of what administers it, and its heartbeat.

Start: database -> master key -> data key -> state -> blocks that the database has not heard of -> workers -> REST. A database that is
away at the start is no reason not to serve: then the node serves its local copy, and looks for the database once a second. One that
went back (restored from an older backup) is followed only after a restart, and not while it lacks keys (`older_state.py`).
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from xksfast import messages
from xksfast._version import __version__
from xksfast.admin.block_journal import BlockJournal
from xksfast.admin.blocks import BLOCKED, Blocks
from xksfast.admin.copying import Copying
from xksfast.admin.going_on import go_on
from xksfast.admin.hearing import Hearing
from xksfast.admin.kept_blocks import recording
from xksfast.admin.older_state import OlderState
from xksfast.admin.opening import Opening
from xksfast.admin.peers import HttpPeers
from xksfast.admin.publisher import Publisher
from xksfast.admin.root_operator import make_root
from xksfast.admin.roster import Roster
from xksfast.admin.service import Service
from xksfast.admin.source_keys import TokenSourceKeys
from xksfast.admin.state_thread import StateThread
from xksfast.admin.token_master import TokenMasterKey
from xksfast.admin.twin import Twin, instance_of
from xksfast.admin.upkeep import Upkeep
from xksfast.admin.usage import Usage
from xksfast.admin.went_back import WentBack
from xksfast.config import Admin, Config
from xksfast.errors import OperatorError
from xksfast.log import Log, frames_of
from xksfast.state.away import AwayDatabase
from xksfast.state.chain import CHECKPOINT_LABEL, write_checkpoint
from xksfast.state.database import Database
from xksfast.state.delta import DeltaBuilder
from xksfast.state.errors import (
    OutcomeUnknown,
    StateError,
    StateFull,
    StateReadOnly,
    StateUnavailable,
    StateWentBack,
)
from xksfast.state.events import Event
from xksfast.state.local_copy import read_position
from xksfast.state.master_key import configured_master_key
from xksfast.state.records import NodeRow
from xksfast.state.sealing import Sealer

if TYPE_CHECKING:
    from xksfast.admin.api.server import ApiServer
    from xksfast.admin.linking import Linking

POLL_INTERVAL_S = 0.25
HEARTBEAT_INTERVAL_S = 1.0
USE_INTERVAL_S = 5.0
REST_PATIENCE_S, REST_INTERVAL_S = 5.0, 5.0  # for the workers' start; between tries of a certificate that was refused
FIRST_COPY_AFTER_S = 10.0  # of a large state: when the workers have long begun to serve
SMALL_KEYS = 10_000  # to copy so many takes a fraction of a second
DUE_INTERVAL_S = 60.0
SYNC_INTERVAL_S = 300.0


class Node:
    """Everything of one node. listener: of REST; None: it is not served. again: a control process of this node has served before."""

    def __init__(
        self,
        config: Config,
        log: Log,
        listener: socket.socket | None,
        *,
        accept_older_state: bool = False,
        again: bool = False,
    ) -> None:
        self._listener = listener
        self._config = config
        self._admin = config.admin or Admin()
        self._log = log
        self._loop = asyncio.get_running_loop()
        self.name = self._admin.node or socket.gethostname()
        self._directory = Path(config.state.directory)
        self._started_ms = _now_ms()
        self._run = StateThread(self._on_events)
        self._stop = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._next: dict[str, float] = {}
        self._composed = False  # what is told of events is there
        self._opened = False
        self._hearing = Hearing(log)
        self._roster = Roster(self.name, self._directory / "peers.json", log)
        self._copying = Copying(self._directory / "copy.jsonl", self._run, log)
        self._older = OlderState(self._copying.file, log, accept=accept_older_state)
        self._again = again
        self._hint = asyncio.Event()
        self.usage = Usage(self._run, log)
        self._api: ApiServer | None = None
        self._rest_problem = ""
        self._linked: Linking | None = None
        self._away = False
        self._stopped = False
        self._to_apply = False  # what [state] apply names, when the database is there

    # --- start

    async def load(self, config: Config) -> messages.StateLoaded:
        """At the start, everything; later the certificate only, since the log is followed all the time."""
        certificate = self._reload_certificate(config)
        if not self._opened:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise OperatorError(f"state.directory: {self._directory} cannot be made: {error.strerror}") from None
            await self._open()
            self._opened = True
            with self._store.reading() as state:
                if len(state.keys) > SMALL_KEYS:
                    self._next["copy"] = time.monotonic() + FIRST_COPY_AFTER_S
            for work in (go_on(self._follow, self._log), go_on(self._beat, self._log), self._serve_rest_after_workers()):
                self._spawn(work)
        with self._store.reading() as state:
            return messages.StateLoaded(
                seq=state.seq, key_stores=len(state.key_stores), keys=len(state.keys), admin_certificate=certificate
            )

    def _reload_certificate(self, config: Config) -> str:
        """See messages.StateLoaded.admin_certificate."""
        self._config = msgspec.structs.replace(self._config, admin=config.admin, proxy=config.proxy)
        if self._rest_problem:  # it may be served with this one
            self._spawn(self._serve_rest())
            return ""
        if self._api is None or not self._api.is_tls:
            return ""
        rest = importlib.import_module("xksfast.admin.rest")  # loaded already, since REST is served
        try:
            self._api.reload_certificate(*rest.tls_files(config))
        except OperatorError as error:
            return str(error)
        return "reloaded"

    async def _open(self) -> None:
        journal = BlockJournal(self._directory)
        known = await self._run(lambda: read_position(self._copying.file))
        await self._run(self._roster.recall)
        self._twin = Twin(self.name, await self._run(partial(instance_of, self._directory, self._log)), self._admin.url)
        master = configured_master_key(self._config.state, partial(TokenMasterKey.of, self._config))
        self._opening = Opening(
            self._config.state.url,
            self.name,
            master=master,
            copying=self._copying,
            roster=self._roster,
            older=self._older,
            twin=None if self._again else self._twin,
            on_events=self._run.applied,
            log=self._log,
        )
        try:
            opened = await self._run(partial(self._opening.from_database, journal, known))
        except (StateUnavailable, StateFull, StateReadOnly, OutcomeUnknown) as error:
            if known is None:
                raise
            opened = await self._run(partial(self._opening.from_copy, error))
            self._hearing.not_heard(error)
        self._database, self._sealer, self._secrets, self._store = opened.database, opened.sealer, opened.secrets, opened.store
        self._away, self._to_apply = opened.away, not opened.follows
        if not self._away:
            self._begin_to_listen()
        builder = DeltaBuilder(self._secrets, lambda problem: self._log.error("secret_not_opened", problem=problem))
        self._publisher = Publisher(builder, self._log, self.usage.add)
        self._peers = HttpPeers(
            self._roster,
            lambda: self._sealer,
            self._admin.ca_file,
            lambda: self._run(lambda: self._roster.read(self._database)),
            self._twin,
        )
        self._lacking = WentBack(
            node=self.name,
            store=self._store,
            secrets=self._secrets,
            sealer=lambda: self._sealer,
            opens=partial(Sealer.open_with, master),
            journal=journal,
            peers=self._peers,
            roster=self._roster,
            run=self._run,
            log=self._log,
        )
        self.blocks = Blocks(
            node=self.name,
            journal=journal,
            builder=builder,
            publisher=self._publisher,
            store=self._store,
            peers=self._peers,
            run=self._run,
            log=self._log,
        )
        self._composed = True
        self.service = Service(
            config=self._config,
            store=self._store,
            sealer=self._sealer,
            secrets=self._secrets,
            publisher=self._publisher,
            source_keys=TokenSourceKeys(self._config),
            blocks=self.blocks,
            run=self._run,
        )
        self._upkeep = Upkeep(self.service, self._store, self._linking, self._log)
        if not self._away:
            await self._say_alive()  # other nodes know of us before we serve, and we of them before we block
            await self.usage.read(self._database)
            if not self._to_apply:
                await make_root(self._store, self._run, Path(self._admin.token_file), self._log)
                await self._apply_declared()
        self._publisher.serve(self._store.reading)

    async def _apply_declared(self) -> None:
        """What [state] apply names. OperatorError: the file cannot be read."""
        if self._config.state.apply:
            from xksfast.admin.applying import apply_declared

            await apply_declared(
                self.service, self._store, Path(self._config.state.apply), self._config.partition_groups, self._log
            )

    async def _apply_later(self) -> None:
        """When the database, which was away at the start, is followed."""
        try:
            await self._apply_declared()
        except OperatorError as error:
            self._log.error("not_applied", problem=str(error))

    async def _come_back(self) -> None:
        """The database may be there now: follow it, if it goes on where the copy ended."""
        with self._store.reading() as state:
            seq, head = state.seq, state.head

        def connect() -> tuple[Database, Sealer, bool]:
            database = self._opening.connect(seq, serves=True)
            try:
                goes_on = database.news(seq, limit=1)[0] == head
                return database, self._opening.sealer(database) if goes_on else self._sealer, goes_on
            except BaseException:
                database.close()
                raise

        try:
            database, self._sealer, goes_on = await self._run(connect)
        except StateError as error:
            self._database = cast(Database, AwayDatabase(str(error)))  # what is asked of it meanwhile is told the newest reason
            raise
        self._database = database
        self._store.connect(database)
        self._secrets.connect(database, self._sealer)
        self._away = False
        self._begin_to_listen()
        if not goes_on:  # the poll that follows says so
            return
        await make_root(self._store, self._run, Path(self._admin.token_file), self._log)
        await self.usage.read(self._database)
        self._log.info("database_is_back")

    def _begin_to_listen(self) -> None:
        threading.Thread(target=self._listen, args=(self._database,), daemon=True, name="listen").start()

    async def _linking(self) -> Linking:
        """It brings boto3, half a second's import: when it is needed, and not on the loop."""
        if self._linked is None:
            module = await asyncio.to_thread(importlib.import_module, "xksfast.admin.linking")
            self._linked = self._linked or module.Linking(self.service)
        return self._linked

    async def _serve_rest_after_workers(self) -> None:
        """What it imports takes a second of a slow core, which belongs to them until they serve; but a token may keep them waiting."""
        await self._publisher.served(REST_PATIENCE_S)
        await self._peers.prepare()
        await self._serve_rest()

    async def _serve_rest(self) -> None:
        if self._listener is None:
            return
        former, self._rest_problem = self._rest_problem, ""
        rest = await asyncio.to_thread(importlib.import_module, "xksfast.admin.rest")  # FastAPI takes its time as well
        try:
            self._api = await rest.serve_rest(
                self._config,
                self._listener,
                node=self.name,
                service=self.service,
                linking=await self._linking(),
                roster=self._roster,
                blocks=self.blocks,
                usage=self.usage,
                store=self._store,
                run=self._run,
                database=lambda: self._database,
                sealer=lambda: self._sealer,
                log=self._log,
            )
        except OperatorError as error:
            self._rest_problem = f"administration is not served: {error}"
            if self._rest_problem != former:
                self._log.error("admin_not_served", problem=str(error), next="tried again by itself, and at once at SIGHUP")

    def link(self, worker: int, fd: int) -> None:
        """A worker was started."""
        if self._opened:
            self._publisher.link(worker, fd)
        else:
            self._spawn(self._link_later(worker, fd))

    async def _link_later(self, worker: int, fd: int) -> None:
        while not self._opened:
            await asyncio.sleep(0.01)
        self._publisher.link(worker, fd)

    # --- following the log

    def _on_events(self, events: list[Event]) -> None:
        """On the loop, in order."""
        if not self._composed:  # put back while the state was opened, so in what is served from the first moment on
            return
        self._publisher.publish(events)
        self.blocks.on_events(events)
        if not self._copying.seq and any(event.action in BLOCKED for event in events):  # no copy knows it, nor does the journal
            self._next.pop("copy", None)

    def _listen(self, database: Database) -> None:
        def hint(_: int) -> None:
            self._loop.call_soon_threadsafe(self._hint.set)

        database.listen(hint, self._stop)

    async def _follow(self) -> None:
        """A hint is fast, the poll is sure."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), POLL_INTERVAL_S)
            self._hint.clear()
            try:
                if self._away:
                    await self._come_back()
                events = await self._run(self._store.poll)
            except StateError as error:
                self._hearing.not_heard(error)
                if isinstance(error, StateWentBack):
                    await self._lacking.found(self._database)
                await asyncio.sleep(POLL_INTERVAL_S)
            except OperatorError as error:  # it is there, but something else that belongs to it is not: tried again
                self._log.error("database_not_followed", problem=str(error))
                await asyncio.sleep(POLL_INTERVAL_S)
            else:
                self._hearing.heard()
                self._lacking.over()
                if self._to_apply:
                    self._to_apply = False
                    self._spawn(self._apply_later())
                if events:
                    await self._say_alive()  # other nodes wait for our acknowledgement

    def problems(self) -> tuple[str, ...]:
        """How this node stands with its database and its local copy; a sentence each."""
        found = (*self._hearing.problems(), *self._older.problems())
        found = (*found, *filter(None, (self._copying.problem, self._rest_problem)))
        return (*found, *self._lacking.problems(), *filter(None, (self._twin.problem,))) if self._opened else found

    async def _beat(self) -> None:
        while True:
            await self._say_alive()
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _say_alive(self) -> None:
        row = NodeRow(
            name=self.name,
            version=__version__,
            url=self._admin.url,
            started_at_ms=self._started_ms,
            heartbeat_ms=_now_ms(),
            acked_seq=self._publisher.applied_seq,
            restricted_seq=self._publisher.restricted_seq,
            details={"problems": list(self._hearing.problems(named=False)), **self._twin.details}
            | ({"stopped": True} if self._stopped else {}),
        )
        try:
            await self._run(partial(self._write_row, row))
        except StateError as error:
            self._hearing.not_written(error)
        else:
            self._hearing.written()
        with suppress(StateError):  # _follow tells of it
            await self._run(lambda: self._roster.read(self._database))

    def _write_row(self, row: NodeRow) -> None:
        self._twin.look(self._database.nodes())
        self._database.heartbeat(row)
        self._twin.wrote()

    # --- once a second

    async def tick(self) -> None:
        """Signing keys, staleness, blocks that wait for the database, counters, the local copy, what is due by itself."""
        if not self._opened:
            return
        if self._publisher.renew_signing_keys():
            self._log.info("signing_keys_renewed")
        self._look_for_staleness()
        await self.blocks.record_pending(recording)
        if self._rest_problem and self._is_time("rest", REST_INTERVAL_S):
            self._spawn(self._serve_rest())
        if self._is_time("use", USE_INTERVAL_S):
            self._publisher.ask_usage()
            self._spawn(self.usage.write(self._database))
        if self._is_time("copy", self._copying.interval_s):
            await self._write_copy()
        self.blocks.copied(self._copying.seq)
        if all(self.name < name for name in self._roster.alive()):  # two that both think so do no harm: a transaction decides
            if self._is_time("due", DUE_INTERVAL_S):
                self._spawn(self._upkeep.rotate_what_is_due())
            if self._is_time("sync", SYNC_INTERVAL_S):
                self._spawn(self._upkeep.sync_with_aws())

    def _is_time(self, what: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + interval_s
        return True

    def _look_for_staleness(self) -> None:
        """A store that does not want to be served from old news is refused after its time."""
        with self._store.reading() as state:
            stale = self._hearing.look_for_staleness(state)
        if stale is not None:
            self.blocks.withhold_stale(stale)

    async def _write_copy(self) -> None:
        if not await self._copying.write(self._store, self._database, self._secrets, lambda: self._sealer):
            return
        try:
            await self._run(self._make_checkpoint)
        except StateError as error:
            self._log.warning("checkpoint_not_written", problem=str(error))

    def _make_checkpoint(self) -> None:
        """In the state thread: a MAC over where the log ends, by which a truncation is seen."""
        write_checkpoint(self._database, lambda data: self._sealer.mac(CHECKPOINT_LABEL, data), _now_ms())

    # --- end

    async def close(self, *, drained: bool) -> None:
        """The last local copy, then everything is let go. Other nodes are told of the end first, so that no block misses this one."""
        if self._api is not None:
            await self._api.close()
        if self._opened:
            if drained:  # else another one may have taken our place already
                self._stopped = True
                await self._say_alive()
            await self.usage.write(self._database)
            await self._write_copy()
            await self._peers.close()
        self._stop.set()
        for task in tuple(self._tasks):
            task.cancel()
        if self._opened:
            self._database.close()
        self._run.close()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What ends by a fault of ours must not end in silence."""
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._log.error("task_failed", problem=type(fault).__name__, where=frames_of(fault))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
