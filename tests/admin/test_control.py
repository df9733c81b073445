# SPDX-License-Identifier: Apache-2.0
"""The control process, spoken to as the supervisor and workers do."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from xksfast import messages
from xksfast.channel import Channel
from xksfast.config import load_config
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import SecretPages

TIMEOUT_S = 20.0
STORES = """
[key_stores.a]
uri_path_prefix = "/a"
region = "us-east-1"
key_source = "local"
[[key_stores.a.credentials]]
access_key_id = "AAAAAAAAAAAAAAAAAAAA"
secret_access_key_file = "secret"
[key_stores.a.keys.k1]
label = "k1"
create = true
"""


class Line:
    """Our end of a channel: what came, and waiting for it."""

    def __init__(self, sock: socket.socket, decode: Any) -> None:
        self.got: asyncio.Queue[tuple[Any, int | None]] = asyncio.Queue()
        self.channel = Channel(sock, decode, on_message=lambda message, fd: self.got.put_nowait((message, fd)))

    async def next(self) -> tuple[Any, int | None]:
        return await asyncio.wait_for(self.got.get(), TIMEOUT_S)


class Control:
    """A control process with us as its supervisor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xksfast", "_control", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self.line = Line(ours, messages.FromControl)

    def start(self) -> None:
        self.line.channel.send(messages.StartControl(config=load_config(self.directory / "xksfast.toml")))

    def reload(self) -> None:
        self.line.channel.send(messages.ReloadState(config=load_config(self.directory / "xksfast.toml")))

    async def loaded(self) -> messages.StateLoaded:
        message, _ = await self.line.next()
        assert isinstance(message, messages.StateLoaded), message
        return message

    def link(self, worker: int) -> Line:
        """Become that worker."""
        at_control, at_worker = socket.socketpair()
        with at_control:
            self.line.channel.send(messages.WorkerLink(worker=worker), at_control.fileno())
        return Line(at_worker, messages.ControlToWorker)

    def secret_page_sets(self) -> int:
        """How many memfds the process holds."""
        found = 0
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                found += os.readlink(entry).startswith("/memfd:")
            except FileNotFoundError:
                continue
        return found

    async def ended(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), TIMEOUT_S)


@pytest.fixture
def with_control(tmp_path: Path) -> Callable[[Callable[[Control], Awaitable[None]]], None]:
    (tmp_path / "xksfast.toml").write_text('[state]\nurl = "file:stores.toml"\nmaster_key_file = "master.key"\n')
    (tmp_path / "stores.toml").write_text(STORES)
    for name in ("secret", "master.key"):
        (tmp_path / name).write_text(secrets.token_hex(32))
        (tmp_path / name).chmod(0o600)

    def run(body: Callable[[Control], Awaitable[None]]) -> None:
        async def main() -> None:
            control = Control(tmp_path)
            try:
                await body(control)
            finally:
                control.line.channel.close()  # alone, it ends by itself
                assert await control.ended() == 0

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_every_worker_gets_the_state_with_its_pages_whenever_it_comes(with_control) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        control.start()
        early = control.link(0)
        loaded = await control.loaded()
        assert (loaded.key_stores, loaded.keys) == (1, 1)
        late = control.link(1)
        for worker in (early, late):
            message, fd = await worker.next()
            assert message.delta.seq == loaded.seq
            assert fd is not None
            slot = message.delta.keys[0].versions[0].local_slot
            iv, ciphertext, tag = AesGcmKey(SecretPages.open(fd), slot).encrypt(b"hello", b"")
            assert AesGcmKey(SecretPages.open(fd), slot).decrypt(iv, ciphertext, tag, b"") == b"hello"
            os.close(fd)

    with_control(body)


def test_a_reload_pushes_a_greater_seq_and_old_pages_go_when_all_workers_have_the_new(with_control) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        control.start()
        first = await control.loaded()
        workers = [control.link(0), control.link(1)]
        for worker in workers:
            _, fd = await worker.next()
            os.close(fd)
        (control.directory / "stores.toml").write_text(STORES.replace("keys.k1", "keys.k2"))
        control.reload()
        second = await control.loaded()
        assert second.seq > first.seq
        for worker in workers:
            message, fd = await worker.next()
            os.close(fd)
            assert [key.external_key_id for key in message.delta.keys] == ["k2"]
        assert control.secret_page_sets() == 2
        workers[0].channel.send(messages.DeltaApplied(seq=second.seq, worker=0, number=2))
        await asyncio.sleep(0.2)  # time in which it must not happen: worker 1 may still read the old ones
        assert control.secret_page_sets() == 2
        workers[1].channel.send(messages.DeltaApplied(seq=second.seq, worker=1, number=2))
        await until(lambda: control.secret_page_sets() <= 1)  # the new ones, until they are not needed for newcomers

    with_control(body)


def test_a_worker_that_is_gone_keeps_no_old_pages(with_control) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        control.start()
        await control.loaded()
        worker = control.link(0)
        await worker.next()
        control.reload()
        await control.loaded()
        assert control.secret_page_sets() == 2
        worker.channel.close()
        await until(lambda: control.secret_page_sets() <= 1)

    with_control(body)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[key_stores.a]\nregoin = 1\n", "did you mean 'region'"), ("nonsense", "not TOML"), (None, "cannot be read")],
)
def test_a_state_that_cannot_be_used_is_refused_and_the_former_stays(with_control, text: str | None, words: str) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        control.start()
        first = await control.loaded()
        path = control.directory / "stores.toml"
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        control.reload()
        refused, _ = await control.line.next()
        assert isinstance(refused, messages.StateRefused)
        assert any(words in problem for problem in refused.problems), refused
        message, fd = await control.link(0).next()
        assert message.delta.seq == first.seq
        os.close(fd)
        path.write_text(STORES)
        control.reload()
        assert (await control.loaded()).seq > first.seq

    with_control(body)


@pytest.mark.parametrize("name", ["secret", "master.key"])
def test_a_secret_that_others_can_read_is_refused_with_the_remedy(with_control, name: str) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        (control.directory / name).chmod(0o640)
        control.start()
        refused, _ = await control.line.next()
        assert isinstance(refused, messages.StateRefused)
        assert f"chmod 600 {control.directory / name}" in "".join(refused.problems)

    with_control(body)


def test_a_token_that_cannot_be_reached_does_not_keep_the_others_from_serving(with_control) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        with (control.directory / "xksfast.toml").open("a") as file:
            file.write(
                '[modules.hsm]\npath = "/nonexistent.so"\n[partitions.p0]\nmodule = "hsm"\ntoken_label = "t0"\n'
                '[partition_groups.main]\npartitions = ["p0"]\n'
            )
        other = STORES.replace("stores.a", "stores.b").replace('"/a"', '"/b"')
        (control.directory / "stores.toml").write_text(
            STORES + other.replace('key_source = "local"', 'partition_group = "main"')
        )
        control.start()
        loaded = await control.loaded()
        assert loaded.key_stores == 2

    with_control(body)


def test_it_ends_when_told_to(with_control) -> None:  # type: ignore[no-untyped-def]
    async def body(control: Control) -> None:
        control.start()
        await control.loaded()
        control.line.channel.send(messages.Drain())
        assert await control.ended() == 0

    with_control(body)
