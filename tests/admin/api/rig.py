# SPDX-License-Identifier: Apache-2.0
"""The administration of one node, real but for workers and tokens: SQLite, sealing, the service, a TLS listener. In its own thread."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from xksfast.admin.actors import new_token, system_actor
from xksfast.admin.api.app import prepared_app
from xksfast.admin.api.log_reads import LogReads
from xksfast.admin.api.parts import Parts
from xksfast.admin.api.peers import PeerDoor
from xksfast.admin.api.replays import Box, DatabaseShelf, Replays
from xksfast.admin.api.server import ApiServer, serve_api
from xksfast.admin.block_journal import BlockJournal
from xksfast.admin.blocks import Blocks
from xksfast.admin.dev_certificates import Authority, CertificateFiles
from xksfast.admin.peers import is_authentic
from xksfast.admin.publisher import Publisher
from xksfast.admin.refusals import Refused
from xksfast.admin.roster import Roster
from xksfast.admin.service import Service
from xksfast.admin.state_thread import StateThread
from xksfast.admin.usage import Usage
from xksfast.config import Config, PartitionGroup
from xksfast.config import State as StateConfig
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.proxy.listener import bind
from xksfast.state.chain import CHECKPOINT_LABEL
from xksfast.state.database import Database
from xksfast.state.delta import DeltaBuilder
from xksfast.state.events import Change, Event
from xksfast.state.master_key import configured_master_key
from xksfast.state.objects import Operator
from xksfast.state.projection import State
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Plan, StateStore

NODE = "n1"
ROLES = ("admin", "operator", "auditor", "blocker")
Answer = TypeVar("Answer")


class Tokens:
    """Source keys of partition group "main": nothing is made, and `problem` is what goes wrong."""

    def __init__(self) -> None:
        self.problem = ""
        self.made: list[str] = []

    async def make(self, group: str, wanted: Mapping[str, Sequence[str]]) -> None:
        """See SourceKeys."""
        for label, usage in wanted.items():
            await self.prove(group, label, usage)
            if label not in self.made:
                self.made.append(label)

    async def prove(self, group: str, label: str, usage: Sequence[str]) -> None:
        """See SourceKeys."""
        if self.problem:
            raise Refused("unavailable", "trial-failed", self.problem)


class OtherNodes:
    """Nodes that share the state, by what they say when they are told of a block; "" confirms. takes_s: how long that takes them."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.takes_s = 0.0

    def alive(self) -> list[str]:
        """See Peers."""
        return list(self.says)

    def names(self) -> list[str]:
        """See Peers."""
        return list(self.says)

    async def newcomers(self) -> list[str]:
        """See Peers."""
        return list(self.says)

    def heartbeat_ms(self, node: str) -> int:
        """See Peers."""
        return 0

    async def tell_block(self, node: str, block: object) -> None:
        """See Peers."""
        await asyncio.sleep(self.takes_s)
        if self.says[node]:
            raise OperatorError(self.says[node])

    async def restricted(self, node: str, seq: int, *, since_ms: int = 0) -> None:
        """See Peers."""
        await asyncio.sleep(self.takes_s)
        if self.says[node]:
            raise OperatorError(self.says[node])


class Rig:
    """tokens: role -> the token of an operator of that name. url, trust: for clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._clients: dict[str, httpx.Client] = {}
        self.other_nodes, self.source_keys = OtherNodes(), Tokens()
        self.tokens: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="admin")
        self._thread.start()
        self.call(self._start())

    def call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run it on the listener's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def read(self, look: Callable[[State], Answer]) -> Answer:
        """Something of the state."""
        with self.store.reading() as state:
            return look(state)

    async def _start(self) -> None:
        master_key = self.directory / "master.key"
        master_key.write_text(os.urandom(32).hex())
        master_key.chmod(0o600)
        state = StateConfig(url=f"sqlite:///{self.directory}/xksfast.db", master_key_file=str(master_key))
        config = Config(state=state, partition_groups={"main": PartitionGroup(partitions=("p0",))})
        log = Log("test")
        master = configured_master_key(state, _no_token)
        self._run = StateThread(self._on_events)
        self.database = await self._run(lambda: Database.open(state.url))
        self.sealer, data_key = Sealer.new(master, now=1)
        await self._run(lambda: self._put_data_key(data_key))
        self._secrets = SecretRows(self.database, self.sealer)
        self.store = StateStore(self.database, NODE, secrets=self._secrets, on_events=self._run.applied)
        await self._run(self.store.open)
        builder = DeltaBuilder(self._secrets, lambda problem: None)
        self.usage = Usage(self._run, log)
        self._publisher = Publisher(builder, log, self.usage.add)
        self.blocks = Blocks(
            node=NODE,
            journal=BlockJournal(self.directory / "node"),
            builder=builder,
            publisher=self._publisher,
            store=self.store,
            peers=self.other_nodes,  # type: ignore[arg-type]
            run=self._run,
            log=log,
        )
        self.service = Service(
            config=config,
            store=self.store,
            sealer=self.sealer,
            secrets=self._secrets,
            publisher=self._publisher,
            source_keys=self.source_keys,
            blocks=self.blocks,
            run=self._run,
        )
        self._publisher.serve(self.store.reading)
        await self._run(self._make_operators)
        reads = LogReads(
            lambda: self.database,
            self._run,
            Roster("n1", self.directory / "peers.json", Log("test")),
            open_another=lambda: Database.open(state.url),
            is_mac=lambda data, mac: self.sealer.verify_mac(CHECKPOINT_LABEL, data, mac),
            seq=lambda: self.store.seq,
        )
        self.parts = Parts(
            service=self.service,
            reading=self.store.reading,
            groups=config.partition_groups,
            events=reads.events,
            nodes=reads.nodes,
            verify_log=reads.verify,
            used=lambda name: self.usage.of_store(self.database, name),
            replays=Replays(DatabaseShelf(lambda: self.database, self._run), Box(self.sealer.mac)),
            log=log,
            peers=PeerDoor(
                lambda stamp, mac, body: is_authentic(self.sealer, stamp, mac, body, int(stamp or 0)), self.blocks.enforce
            ),
        )
        self.app = await prepared_app(self.parts)
        authority = Authority(self.directory)
        server = CertificateFiles(self.directory / "server.pem", self.directory / "server.key")
        authority.issue_server(server)
        self.ca_file = authority.files.certificate
        self.trust = ssl.create_default_context(cafile=str(self.ca_file))
        self.server: ApiServer = await serve_api(
            self.app, bind("127.0.0.1:0"), log, certificate=str(server.certificate), private_key=str(server.private_key)
        )
        self.url = self.server.url

    def _put_data_key(self, data_key: Any) -> None:
        with self.database.write(NODE) as writer:
            writer.put_data_key(data_key)

    def _make_operators(self) -> None:
        changes = []
        for role in ROLES:
            self.tokens[role], hashed = new_token()
            operator = Operator(name=role, role=role, token_sha256=hashed, created_at=1)  # type: ignore[arg-type]
            changes.append(Change("operator.create", operator.kind, operator.id, None, operator))
        self.store.transact(system_actor("test").origin, lambda state: Plan(changes=changes))

    def _on_events(self, events: list[Event]) -> None:
        self._publisher.publish(events)
        self.blocks.on_events(events)

    def add_operator(self, name: str, role: str, *, stores: tuple[str, ...] = (), expires_at: int = 0) -> str:
        """Its token."""
        token, hashed = new_token()
        operator = Operator(name=name, role=role, token_sha256=hashed, stores=stores, expires_at=expires_at, created_at=1)  # type: ignore[arg-type]
        change = Change("operator.create", operator.kind, operator.id, None, operator)
        self.store.transact(system_actor("test").origin, lambda state: Plan(changes=[change]))
        return token

    def client(self, role: str = "admin", *, token: str | None = None) -> httpx.Client:
        """To be closed."""
        return httpx.Client(
            base_url=self.url,
            verify=self.trust,
            headers={"Authorization": f"Bearer {token or self.tokens[role]}"},
            timeout=30,
            trust_env=False,
        )

    def as_role(self, role: str) -> httpx.Client:
        """One that stays open. role "nobody": without a token."""
        if role not in self._clients:
            self._clients[role] = self.client(token="none" if role == "nobody" else self.tokens[role])
        return self._clients[role]

    def forgive(self) -> None:
        """No login has failed so far."""
        self.parts.failures.forgive()

    def close(self) -> None:
        """Leave nothing behind."""
        for client in self._clients.values():
            client.close()
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        await self.server.close()
        await self._run(self.database.close)
        self._run.close()


def _no_token(partition: str, label: str) -> Any:
    raise AssertionError("no master key in a token here")


@contextmanager
def running(directory: Path) -> Iterator[Rig]:
    """A rig for a while."""
    rig = Rig(directory)
    try:
        yield rig
    finally:
        rig.close()
