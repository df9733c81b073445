# SPDX-License-Identifier: Apache-2.0
"""A node whose state is a database: the composition of what administers it, and its heartbeat.

Start: database -> master key -> data key -> state -> blocks that the database has not heard of -> workers -> REST. A database that is
away at the start is no reason not to serve: then the node serves its local copy, and looks for the database once a second. One that
went back (restored from an older backup) is followed only after a restart, and every block that this node knew stays in force.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from xksfast import messages
from xksfast._version import __version__
from xksfast.admin.actors import new_token, system_actor
from xksfast.admin.applying import carry_out, make_source_keys
from xksfast.admin.block_journal import BlockJournal, PendingBlock
from xksfast.admin.blocks import Blocks
from xksfast.admin.declaration import ApplyRequest, plan_of
from xksfast.admin.peers import HttpPeers
from xksfast.admin.plans import keys as key_plans
from xksfast.admin.plans import stores as store_plans
from xksfast.admin.publisher import Publisher
from xksfast.admin.service import Service
from xksfast.admin.source_keys import TokenSourceKeys
from xksfast.admin.state_thread import StateThread
from xksfast.admin.token_master import TokenMasterKey
from xksfast.admin.upkeep import Upkeep
from xksfast.admin.usage import Usage
from xksfast.config import Admin, Config
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.state.away import AwayDatabase
from xksfast.state.chain import CHECKPOINT_LABEL, write_checkpoint
from xksfast.state.database import Database
from xksfast.state.declared import read_declared
from xksfast.state.delta import DeltaBuilder
from xksfast.state.errors import StateError, StateUnavailable, StateWentBack
from xksfast.state.events import Change, Event
from xksfast.state.local_copy import LocalCopy, is_genuine, read_copy, write_copy
from xksfast.state.master_key import configured_master_key
from xksfast.state.objects import Operator
from xksfast.state.projection import State
from xksfast.state.records import Loaded, NodeRow
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Plan, StateStore

if TYPE_CHECKING:
    from xksfast.admin.api.server import ApiServer
    from xksfast.admin.linking import Linking

POLL_INTERVAL_S = 0.25
HEARTBEAT_INTERVAL_S = 1.0
USE_INTERVAL_S = 5.0
COPY_INTERVAL_S = 1.0  # or as much longer as keeps writing it to a twentieth of the time
DUE_INTERVAL_S = 60.0
SYNC_INTERVAL_S = 300.0
ROOT = "root"


class Node:
    """Everything of one node. listener: of REST; None: it is not served."""

    def __init__(self, config: Config, log: Log, listener: socket.socket | None) -> None:
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
        self._opened = False
        self._heard_at = time.monotonic()  # when the database last answered
        self._stale: frozenset[str] = frozenset()
        self._copied_seq = 0
        self._copy_interval_s = COPY_INTERVAL_S
        self._hint = asyncio.Event()
        self.usage = Usage(self._run, log)
        self._api: ApiServer | None = None
        self._linked: Linking | None = None
        self._went_back = ""
        self._silence = ""
        self._away = False

    # --- start

    async def load(self) -> messages.StateLoaded:
        """At the start, everything; later there is nothing to read again, since the log is followed all the time."""
        if not self._opened:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._open()
            self._opened = True
            for work in (self._follow(), self._beat(), self._serve_rest()):
                self._spawn(work)
        with self._store.reading() as state:
            return messages.StateLoaded(seq=state.seq, key_stores=len(state.key_stores), keys=len(state.keys))

    async def _open(self) -> None:
        self._master = configured_master_key(self._config.state, partial(TokenMasterKey.of, self._config))
        journal = BlockJournal(self._directory)
        copy = await self._run(lambda: read_copy(self._copy_file))
        try:
            self._database, self._sealer = await self._run(self._connect)
        except StateUnavailable as error:
            if copy is None:
                raise
            await self._run(partial(self._take_copy, copy, error))
        else:
            self._secrets = SecretRows(self._database, self._sealer)
            self._store = StateStore(self._database, self.name, secrets=self._secrets, on_events=self._run.applied)
            await self._run(self._store.open)
            await self._run(self._secrets.load)
            await self._run(lambda: self._keep_blocks(journal, copy))
            self._begin_to_listen()
        builder = DeltaBuilder(self._secrets, lambda problem: self._log.error("secret_not_opened", problem=problem))
        self._publisher = Publisher(builder, self._log, self.usage.add)
        self._peers = HttpPeers(self.name, lambda: self._sealer, self._admin.ca_file, lambda: self._run(self._database.nodes))
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
            await self._make_root()
            await self.usage.read(self._database)
            await self._apply_declared()
        self._publisher.serve(self._store.reading)

    def _connect(self) -> tuple[Database, Sealer]:
        """In the state thread. The first node of a new state makes its data key, under the write lock."""
        database = Database.open(self._config.state.url)
        try:
            rows = database.data_keys()
            if not rows:
                with database.write(self.name) as writer:
                    rows = writer.data_keys()
                    if not rows:
                        _, row = Sealer.new(self._master, now=int(time.time()))
                        writer.put_data_key(row)
                        rows = [row]
            return database, Sealer.open_with(self._master, rows)
        except BaseException:
            database.close()
            raise

    def _take_copy(self, copy: tuple[LocalCopy, bytes, bytes], why: StateUnavailable) -> None:
        """In the state thread: serve what we knew, until the database is there."""
        known, mac, over = copy
        self._sealer = Sealer.open_with(self._master, known.data_keys)
        if not is_genuine(mac, over, self._sealer):
            raise StateUnavailable(f"{why}. {self._copy_file} cannot be served instead: it was changed") from why
        self._database = cast(Database, AwayDatabase(str(why)))
        self._secrets = SecretRows(self._database, self._sealer)
        self._store = StateStore(self._database, self.name, secrets=self._secrets, on_events=self._run.applied)
        self._store.adopt(Loaded(known.objects, known.seq, known.head))
        self._secrets.adopt(known.secrets)
        self._away = True
        self._heard_at = time.monotonic()
        self._log.error("local_copy_served", seq=known.seq, why=str(why))

    async def _come_back(self) -> None:
        """The database may be there now: follow it, if it goes on where the copy ended."""
        database, self._sealer = await self._run(self._connect)
        self._database = database
        self._store.connect(database)
        self._secrets.connect(database, self._sealer)
        self._away = False
        self._begin_to_listen()
        await self._make_root()
        await self.usage.read(self._database)
        self._log.info("database_is_back")

    def _begin_to_listen(self) -> None:
        threading.Thread(target=self._listen, args=(self._database,), daemon=True, name="listen").start()

    async def _apply_declared(self) -> None:
        """What the file of [state] apply names and is not there yet. What cannot be done is logged, and does not keep the rest."""
        if not self._config.state.apply:
            return
        declared = await asyncio.to_thread(read_declared, Path(self._config.state.apply))
        request = ApplyRequest.model_validate({"key_stores": declared})
        actor = system_actor("apply")
        with self._store.reading() as state:
            planned = plan_of(state, request, groups=self._config.partition_groups)
        for problem in planned.problems:
            self._log.error("not_applied", problem=problem)
        if not planned.problems:
            await make_source_keys(self.service, actor, planned)
        for step in () if planned.problems else planned.steps:
            try:
                await carry_out(self.service, actor, step)
            except OperatorError as error:
                self._log.error("not_applied", target=step.target, what=step.what, problem=str(error))
            else:
                self._log.info("applied", target=step.target, what=step.what)

    async def _linking(self) -> Linking:
        """It brings boto3, half a second's import: when it is needed, and not on the loop."""
        if self._linked is None:
            module = await asyncio.to_thread(importlib.import_module, "xksfast.admin.linking")
            self._linked = self._linked or module.Linking(self.service)
        return self._linked

    async def _serve_rest(self) -> None:
        if self._listener is None:
            return
        rest = await asyncio.to_thread(importlib.import_module, "xksfast.admin.rest")  # FastAPI takes its time as well
        try:
            self._api = await rest.serve_rest(
                self._config,
                self._listener,
                node=self.name,
                service=self.service,
                linking=await self._linking(),
                blocks=self.blocks,
                store=self._store,
                run=self._run,
                database=lambda: self._database,
                sealer=lambda: self._sealer,
                log=self._log,
            )
        except OperatorError as error:
            self._log.error("admin_not_served", problem=str(error))

    @property
    def _copy_file(self) -> Path:
        return self._directory / "copy.jsonl"

    def _keep_blocks(self, journal: BlockJournal, copy: tuple[LocalCopy, bytes, bytes] | None) -> None:
        """In the state thread. A database that was restored from before a block must not undo it: the block goes to the journal."""
        if copy is None or not is_genuine(copy[1], copy[2], self._sealer):
            return
        known = copy[0]
        if known.seq == 0 or self._database.news(known.seq)[0] == known.head:  # it goes on where we were
            return
        with self._store.reading() as state:
            for value, _ in known.objects:
                blocked = getattr(value, "blocked", False)
                now = state.find(value.kind, value.id)
                if blocked and now is not None and not getattr(now, "blocked", False):
                    journal.add(
                        PendingBlock(
                            block_id=f"restored-{known.seq}-{value.kind}-{value.id}",
                            kind=value.kind,
                            target=value.id,
                            reason=getattr(value, "blocked_reason", "") or "it was blocked before the database was restored",
                            actor="system:restore",
                            address="local",
                            node=self.name,
                            at_ms=_now_ms(),
                        )
                    )
                    self._log.warning("block_kept", kind=value.kind, id=value.id, why="the database went back to before it")

    async def _make_root(self) -> None:
        """The first operator; its token goes to a file that only we can read, before the operator exists."""
        with self._store.reading() as state:
            if state.operators:
                return
        token, hashed = new_token()
        path = Path(self._admin.token_file)
        await self._run(lambda: _write_secret_file(path, token))

        def plan(state: State) -> Plan:
            if state.operators:  # another node was faster
                return Plan()
            root = Operator(name=ROOT, role="admin", token_sha256=hashed, created_at=int(time.time()))
            return Plan(changes=[Change("operator.create", root.kind, root.id, None, root)])

        committed = await self._run(lambda: self._store.transact(system_actor("start").origin, plan))
        if committed.events:
            self._log.info("operator_created", name=ROOT, token_file=str(path))
        else:
            path.unlink(missing_ok=True)

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
        self._publisher.publish(events)
        self.blocks.on_events(events)

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
                events = await self._run(self._store.catch_up)
            except StateWentBack as error:
                if str(error) != self._went_back:
                    self._went_back = str(error)
                    self._log.error("state_went_back", problem=str(error))
            except StateError as error:
                self._say_silence(str(error))
                await asyncio.sleep(POLL_INTERVAL_S)
            else:
                self._say_silence("")
                self._heard_at = time.monotonic()
                if events:
                    await self._say_alive()  # other nodes wait for our acknowledgement

    def _say_silence(self, problem: str) -> None:
        """Once when the database falls silent, once when it is heard again."""
        if bool(problem) != bool(self._silence):
            if problem:
                self._log.error("state_not_heard", problem=problem)
            else:
                self._log.info("state_heard_again", silent_s=round(time.monotonic() - self._heard_at, 1))
        self._silence = problem

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
        )
        try:
            await self._run(lambda: self._database.heartbeat(row))
            self._peers.update(await self._run(self._database.nodes))
        except StateError:
            pass  # _follow tells of it

    # --- once a second

    async def tick(self) -> None:
        """Signing keys, staleness, blocks that wait for the database, counters, the local copy, what is due by itself."""
        if not self._opened:
            return
        if self._publisher.renew_signing_keys():
            self._log.info("signing_keys_renewed")
        self._look_for_staleness()
        await self.blocks.record_pending(_plan_of)
        if self._is_time("use", USE_INTERVAL_S):
            self._publisher.ask_usage()
            self._spawn(self.usage.write(self._database))
        if self._is_time("copy", self._copy_interval_s):
            await self._write_copy()
        self.blocks.copied(self._copied_seq)
        if all(self.name < name for name in self._peers.names()):  # two that both think so do no harm: a transaction decides
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
        silent_s = time.monotonic() - self._heard_at
        with self._store.reading() as state:
            stale = frozenset(
                store.name
                for store in state.key_stores.values()
                if store.on_stale == "refuse" and silent_s > store.stale_after_s
            )
        if stale != self._stale:
            self._log.warning("stale_stores", refused=sorted(stale), silent_s=round(silent_s))
            self._stale = stale
            self.blocks.withhold_stale({("key_store", name) for name in stale})

    async def _write_copy(self) -> None:
        with self._store.reading() as state:
            if state.seq == self._copied_seq:
                return

        def write() -> int:
            with self._store.reading() as state:  # the values only: whoever reads the state must not wait for a disk
                objects = [(value, state.revisions[value.kind, value.id]) for value in state.objects()]
                known = Loaded(objects, state.seq, state.head)
            write_copy(self._copy_file, known, self._database.data_keys(), self._secrets.rows(), self._sealer)
            return known.seq

        began = time.monotonic()
        try:
            self._copied_seq = await self._run(write)
            self._copy_interval_s = max(COPY_INTERVAL_S, 20 * (time.monotonic() - began))
            await self._run(self._make_checkpoint)
        except (OSError, StateError) as error:
            self._log.warning("local_copy_not_written", problem=str(error))

    def _make_checkpoint(self) -> None:
        """In the state thread: a MAC over where the log ends, by which a truncation is seen."""
        write_checkpoint(self._database, lambda data: self._sealer.mac(CHECKPOINT_LABEL, data), _now_ms())

    # --- end

    async def close(self) -> None:
        """The last local copy, then everything is let go."""
        if self._api is not None:
            await self._api.close()
        if self._opened:
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
        task.add_done_callback(self._tasks.discard)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _write_secret_file(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, text.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


def _plan_of(block: PendingBlock) -> Callable[[State], list[Change]]:
    if block.kind == "key_store":
        return lambda state: store_plans.set_blocked(state, block.target, True, block.reason)
    store, _, external_key_id = block.target.partition("/")
    return lambda state: key_plans.set_blocked(state, store, external_key_id, True, block.reason)
