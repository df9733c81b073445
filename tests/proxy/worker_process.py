# SPDX-License-Identifier: Apache-2.0
"""A real worker process with the test as its supervisor, its control process and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import msgspec

from bench.requests import Target
from tests.client import Client
from tests.servers import wait_until
from tests.setups import ACCESS_KEY_IDS, REGION
from xksfast import messages
from xksfast.channel import Channel
from xksfast.config import Config
from xksfast.model import AadScheme, Credential, Delta, Key, KeySource, KeyStore, KeyUsage, KeyVersion
from xksfast.native.crypto import Secret, SecretPages, derive_signing_key, utc_day

TIMEOUT_S = 20.0


class State:
    """What the worker is told: makes objects of the model and the secret pages that their slots point into."""

    def __init__(self) -> None:
        self.secrets = {name: secrets.token_urlsafe(30) for name in ACCESS_KEY_IDS}
        self.local_keys: dict[str, bytes] = {}
        self._slots: list[Callable[[SecretPages, int], None]] = []

    def store(
        self,
        name: str = "one",
        *,
        prefix: str | None = None,
        key_source: KeySource = "local",
        aad_scheme: AadScheme = "xksfast",
        blocked: bool = False,
        allowed_principals: tuple[str, ...] = (),
    ) -> KeyStore:
        return KeyStore(
            name=name,
            uri_path_prefix=f"/{name}" if prefix is None else prefix,
            region=REGION,
            key_source=key_source,
            partition_group="main" if key_source == "pkcs11" else None,
            aad_scheme=aad_scheme,
            blocked=blocked,
            allowed_principals=allowed_principals,
        )

    def credential(self, store: str = "one", number: int = 0, days: tuple[int, ...] = (-1, 0, 1)) -> Credential:
        """days: relative to today."""
        access_key_id = ACCESS_KEY_IDS[number]
        signing_keys = {}
        for day in (utc_day(int(time.time()) + 86400 * offset) for offset in days):
            secret = Secret.from_bytes(self.secrets[access_key_id].encode())
            signing_keys[day] = self._slot(
                lambda pages, slot, secret=secret, day=day: derive_signing_key(secret, day, REGION, pages, slot)  # type: ignore[misc]
            )
        return Credential(store=store, access_key_id=access_key_id, signing_keys=signing_keys)

    def key(
        self,
        external_key_id: str = "k1",
        store: str = "one",
        *,
        versions: tuple[int, ...] = (1,),
        usage: tuple[KeyUsage, ...] = ("ENCRYPT", "DECRYPT"),
        enabled: bool = True,
        blocked: bool = False,
        local: bool = True,
    ) -> Key:
        """Version n of k1 has the label "k1-n"."""
        made = []
        for number in versions:
            label = f"{external_key_id}-{number}"
            slot = None
            if local:
                data = self.local_keys.setdefault(f"{store}/{label}", secrets.token_bytes(32))
                slot = self._slot(lambda pages, slot, data=data: pages.write(slot, data))  # type: ignore[misc]
            made.append(KeyVersion(number=number, label=label, local_slot=slot))
        return Key(
            store=store, external_key_id=external_key_id, versions=tuple(made), usage=usage, enabled=enabled, blocked=blocked
        )

    def pages(self) -> SecretPages | None:
        """For all slots given out since the last call."""
        fills, self._slots = self._slots, []
        if not fills:
            return None
        pages = SecretPages.new(len(fills))
        for slot, fill in enumerate(fills):
            fill(pages, slot)
        return pages

    def _slot(self, fill: Callable[[SecretPages, int], None]) -> int:
        self._slots.append(fill)
        return len(self._slots) - 1


class Worker:
    """The process and its lines. got: (when, what it told the control process); ready: what it told its supervisor."""

    def __init__(self, config: Config, state: State | None = None) -> None:
        self.state = state or State()
        self.got: list[tuple[float, Any]] = []
        self.told: list[Any] = []
        self._config = config
        self._seq = 0
        self._pages: list[SecretPages | None] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._accepting: asyncio.Task[None] | None = None
        self._thread.start()
        self.call(self._start())

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xksfast", "_worker", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._supervisor = Channel(ours, messages.FromWorker, on_message=lambda message, _: self.told.append(message))
        self._supervisor.send(messages.Start(worker=3, config=self._config))
        self._link()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._accepting = self._loop.create_task(self._accept())

    def _link(self) -> None:
        at_control, at_worker = socket.socketpair()
        with at_worker:
            self._supervisor.send(messages.ControlLink(), at_worker.fileno())
        self._control = Channel(
            at_control,
            messages.WorkerToControl,
            on_message=lambda message, _: self.got.append((time.monotonic(), message)),
        )

    async def _accept(self) -> None:
        while True:
            connected, _ = await self._loop.sock_accept(self._listener)
            with connected:
                self._supervisor.send(messages.Accept(tls=False), connected.fileno())

    def call(self, work: Any) -> Any:
        """Run a coroutine, or a plain call, on the loop."""

        async def wrapped() -> Any:
            return await work if asyncio.iscoroutine(work) else work()

        future: Future[Any] = asyncio.run_coroutine_threadsafe(wrapped(), self._loop)
        return future.result(TIMEOUT_S)

    # --- telling it

    def tell(self, *, seq: int | None = None, base_seq: int | None = None, complete: bool = True, **parts: Any) -> int:
        """A delta that follows on the last one, with the secret pages of all that was made since; its seq."""
        base_seq = self._seq if base_seq is None else base_seq
        seq = base_seq + 1 if seq is None else seq
        delta = Delta(base_seq=base_seq, seq=seq, complete=complete, **parts)
        pages = self.state.pages()
        self._pages.append(pages)  # wiped when nobody holds them
        fd = None if pages is None else pages.fd
        self.call(lambda: self._control.send(messages.ApplyDelta(delta=delta), fd))
        if complete:
            self._seq = seq
        return seq

    def change(self, **parts: Any) -> None:
        """tell(), and wait until it is served."""
        self.applied(self.tell(**parts))

    def begin(self, *, key_source: KeySource = "local", keys: tuple[Key, ...] = (), **store: Any) -> None:
        """A first state: the store "one" with one credential and the key "k1", or these keys; ready afterwards."""
        state = self.state
        self.change(
            reset=True,
            key_stores=(state.store(key_source=key_source, **store),),
            credentials=(state.credential(),),
            keys=keys or (state.key(local=key_source == "local"),),
        )
        wait_until(lambda: any(isinstance(message, messages.WorkerReady) for message in self.told), "ready")

    def send_control(self, message: Any) -> None:
        self.call(lambda: self._control.send(message))

    def send_supervisor(self, message: Any) -> None:
        self.call(lambda: self._supervisor.send(message))

    def link_anew(self) -> None:
        """Another control process takes over."""
        self.call(self._link)

    # --- what it says

    def all_of(self, kind: type[msgspec.Struct]) -> list[Any]:
        return [message for _, message in tuple(self.got) if isinstance(message, kind)]

    def when(self, kind: type[msgspec.Struct], seq: int) -> float:
        """When the worker said so, by time.monotonic(); waits for it."""

        def look() -> float | None:
            return next((at for at, said in tuple(self.got) if isinstance(said, kind) and said.seq == seq), None)  # type: ignore[attr-defined]

        return float(wait_until(look, f"{kind.__name__} of {seq}", TIMEOUT_S))

    def restricted(self, seq: int) -> float:
        return self.when(messages.DeltaRestricted, seq)

    def applied(self, seq: int) -> messages.DeltaApplied:
        self.when(messages.DeltaApplied, seq)
        return next(said for said in self.all_of(messages.DeltaApplied) if said.seq == seq)

    def usage(self) -> messages.UsageReport:
        """Ask, and wait for the answer."""
        before = len(self.all_of(messages.UsageReport))
        self.send_control(messages.AskUsage())
        return wait_until(lambda: self.all_of(messages.UsageReport)[before:], "a usage report")[0]

    # --- its clients

    def target(self, prefix: str = "/one", credential: int = 0) -> Target:
        name = ACCESS_KEY_IDS[credential]
        return Target(f"http://127.0.0.1:{self.port}", prefix, REGION, name, self.state.secrets[name])

    def client(self, prefix: str = "/one", credential: int = 0) -> Client:
        return Client({"keys": {"default": "k1"}}, self.target(prefix, credential))

    # --- end

    def drain(self) -> int:
        """Have it end by itself; its exit code."""
        self.send_supervisor(messages.Drain())
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        async def stop() -> None:
            if self._accepting is not None:
                self._accepting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._accepting
            self._listener.close()
            self._supervisor.close()  # alone, it ends by itself
            self._control.close()

        self.call(stop())
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # hung in a token
            self.process.kill()
            self.process.wait(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@contextmanager
def running_worker(config: Config | None = None, state: State | None = None) -> Iterator[Worker]:
    """A worker process, ended whatever happens."""
    worker = Worker(config or Config(), state)
    try:
        yield worker
    finally:
        worker.close()
