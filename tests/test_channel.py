# SPDX-License-Identifier: Apache-2.0
"""Channel: frames and descriptors keep together and in order, however the kernel cuts them."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
import uvloop

from xksfast.channel import Channel


class Note(msgspec.Struct, frozen=True, tag=True):
    number: int
    text: str = ""


class Blob(msgspec.Struct, frozen=True, tag=True):
    data: bytes


Notes = Note | Blob


class Inbox:
    """What one end received."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, int | None]] = []
        self.closed = 0
        self.changed = asyncio.Event()

    def on_message(self, message: Any, fd: int | None) -> None:
        self.messages.append((message, fd))
        self.changed.set()

    def on_close(self) -> None:
        self.closed += 1
        self.changed.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def run(test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Distinct files, each holding its own number."""
    made = []
    for number in range(200):
        fd = os.memfd_create(f"test{number}")
        os.write(fd, str(number).encode())
        made.append(fd)
    yield made
    for fd in made:
        os.close(fd)


def frame(message: msgspec.Struct, *, has_fd: bool = False) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return struct.pack(">I", len(payload) | (0x8000_0000 if has_fd else 0)) + payload


def send_raw(sock: socket.socket, data: bytes, *fds: int) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def test_messages_arrive_in_order_in_both_directions() -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        at_left, at_right = Inbox(), Inbox()
        a = Channel(left, Notes, on_message=at_left.on_message, on_close=at_left.on_close)
        b = Channel(right, Notes, on_message=at_right.on_message, on_close=at_right.on_close)
        for number in range(1000):
            assert a.send(Note(number))
            assert b.send(Note(-number, "é"))
        await at_right.until(lambda: len(at_right.messages) == 1000)
        await at_left.until(lambda: len(at_left.messages) == 1000)
        assert [message.number for message, _ in at_right.messages] == list(range(1000))
        assert at_left.messages[7] == (Note(-7, "é"), None)
        a.close()
        await at_right.until(lambda: at_right.closed == 1)
        assert at_left.closed == 0, "on_close is for the peer's end, not for our own close()"
        assert b.closed

    run(body)


def test_a_stream_dribbled_byte_by_byte_gives_the_same_messages_and_descriptors(files: list[int]) -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        inbox = Inbox()
        channel = Channel(right, Notes, on_message=inbox.on_message)
        stream = [(frame(Note(1)), None), (frame(Note(2), has_fd=True), files[2]), (frame(Note(3), has_fd=True), files[3])]
        for data, fd in stream:
            for index in range(len(data)):
                send_raw(left, data[index : index + 1], *([fd] if fd is not None and index == 0 else []))
                await asyncio.sleep(0)
        await inbox.until(lambda: len(inbox.messages) == 3)
        assert [message.number for message, _ in inbox.messages] == [1, 2, 3]
        assert inbox.messages[0][1] is None
        for message, fd in inbox.messages[1:]:
            assert fd is not None
            assert os.pread(fd, 8, 0) == str(message.number).encode()
            os.close(fd)
        channel.close()
        left.close()

    run(body)


def test_a_descriptor_read_together_with_earlier_frames_goes_to_its_own_frame(files: list[int]) -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        inbox = Inbox()
        # All is in the kernel's buffer before the channel reads once: it joins the plain bytes with those that carry a fd.
        send_raw(left, frame(Note(1)) + frame(Note(2)))
        send_raw(left, frame(Note(3), has_fd=True), files[3])
        send_raw(left, frame(Note(4)))
        send_raw(left, frame(Note(5), has_fd=True) + frame(Note(6)), files[5])
        channel = Channel(right, Notes, on_message=inbox.on_message)
        await inbox.until(lambda: len(inbox.messages) == 6)
        owners = {message.number: fd for message, fd in inbox.messages}
        assert [number for number, fd in owners.items() if fd is not None] == [3, 5]
        for number in (3, 5):
            assert os.pread(owners[number], 8, 0) == str(number).encode()
            os.close(owners[number])
        channel.close()
        left.close()

    run(body)


def test_many_descriptors_to_a_slow_reader_all_arrive_and_none_leaks(files: list[int]) -> None:
    async def body() -> None:
        before = open_descriptors()
        left, right = socket.socketpair()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sender = Channel(left, Notes, on_message=Inbox().on_message)
        for number, fd in enumerate(files):
            assert sender.send(Note(number, "x" * 500), fd)
        assert sender.pending_bytes > 0, "the test means to fill the kernel's buffer"
        inbox = Inbox()
        receiver = Channel(right, Notes, on_message=inbox.on_message)
        await inbox.until(lambda: len(inbox.messages) == len(files))
        await sender.drained()
        assert sender.pending_bytes == 0
        for message, fd in inbox.messages:
            assert fd is not None
            assert os.pread(fd, 8, 0) == str(message.number).encode()
            assert not os.get_inheritable(fd)
            os.close(fd)
        sender.close()
        receiver.close()
        assert open_descriptors() == before

    run(body)


def test_what_is_queued_goes_on_while_the_sender_keeps_its_loop_to_itself() -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sender = Channel(left, Notes, on_message=Inbox().on_message)
        received = 0

        def read() -> None:
            nonlocal received
            while data := right.recv(65536):
                received += len(data)

        reader = threading.Thread(target=read)
        reader.start()
        messages = [Note(number, "x" * 5000) for number in range(100)]
        deadline = time.monotonic() + 20
        for message in messages:
            assert sender.send(message)
            while (
                sender.pending_bytes > 4 * 5000 and time.monotonic() < deadline
            ):  # the reader is slow, and nothing is awaited here
                time.sleep(0.001)
                sender.send(Note(0))
        assert time.monotonic() < deadline
        assert received > 90 * 5000
        await sender.drained()
        sender.close()
        reader.join()
        right.close()

    run(body)


def test_a_ten_megabyte_message_with_a_descriptor_is_followed_by_others(files: list[int]) -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        inbox = Inbox()
        sender = Channel(left, Notes, on_message=Inbox().on_message)
        data = os.urandom(1024) * 10 * 1024
        assert sender.send(Blob(data), files[7])
        assert sender.congested
        assert sender.send(Note(8), files[8])
        receiver = Channel(right, Notes, on_message=inbox.on_message)
        await inbox.until(lambda: len(inbox.messages) == 2)
        assert not sender.congested
        (blob, first), (note, second) = inbox.messages
        assert blob.data == data
        assert note == Note(8)
        assert (os.pread(first, 8, 0), os.pread(second, 8, 0)) == (b"7", b"8")
        os.close(first)
        os.close(second)
        sender.close()
        receiver.close()

    run(body)


def test_what_a_peer_sent_before_its_end_is_delivered_before_on_close() -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        inbox = Inbox()
        send_raw(left, frame(Note(1)) + frame(Note(2)) + frame(Note(3))[:5])
        left.close()
        channel = Channel(right, Notes, on_message=inbox.on_message, on_close=inbox.on_close)
        channel.send(Note(9))  # fails: must not cost what is still to be read
        await inbox.until(lambda: inbox.closed == 1)
        assert [message.number for message, _ in inbox.messages] == [1, 2]
        assert channel.send(Note(10)) is False

    run(body)


def test_a_peer_that_dies_with_our_queue_full_costs_no_descriptor(files: list[int]) -> None:
    async def body() -> None:
        before = open_descriptors()
        left, right = socket.socketpair()
        inbox = Inbox()
        channel = Channel(left, Notes, on_message=inbox.on_message, on_close=inbox.on_close)
        for number, fd in enumerate(files):
            channel.send(Note(number, "x" * 20_000), fd)
        assert channel.pending_bytes > 0
        right.close()
        await inbox.until(lambda: inbox.closed == 1)
        await channel.drained()
        assert open_descriptors() == before

    run(body)


def test_close_releases_received_descriptors_that_no_frame_claimed(files: list[int]) -> None:
    async def body() -> None:
        before = open_descriptors()
        left, right = socket.socketpair()
        inbox = Inbox()
        channel = Channel(right, Notes, on_message=inbox.on_message)
        send_raw(left, frame(Note(1)) + frame(Note(2), has_fd=True)[:6], files[0])
        await inbox.until(lambda: len(inbox.messages) == 1)
        assert open_descriptors() == before + 3
        channel.close()
        left.close()
        assert open_descriptors() == before

    run(body)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack(">I", 0x7FFF_FFFF), id="absurd length"),
        pytest.param(frame(Note(1), has_fd=True), id="descriptor promised and not sent"),
        pytest.param(struct.pack(">I", 3) + b"\xc1\xc1\xc1", id="not MessagePack"),
        pytest.param(struct.pack(">I", 1) + b"\x80", id="no tag"),
    ],
)
def test_broken_framing_closes_the_channel_and_tells_its_owner(data: bytes) -> None:
    async def body() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        left, right = socket.socketpair()
        inbox = Inbox()
        channel = Channel(right, Notes, on_message=inbox.on_message, on_close=inbox.on_close)
        send_raw(left, data)
        await inbox.until(lambda: inbox.closed == 1)
        assert channel.closed
        assert inbox.messages == []
        assert len(reports) == 1
        left.close()

    run(body)


def test_a_descriptor_that_finds_no_number_is_lost_to_its_own_message_only(files: list[int]) -> None:
    async def body() -> None:
        left, right = socket.socketpair()
        inbox = Inbox()
        channel = Channel(right, Notes, on_message=inbox.on_message, on_close=inbox.on_close)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for number in range(1, 4):
            send_raw(left, frame(Note(number), has_fd=True), files[number])
        send_raw(left, frame(Note(4)))
        taken: list[int] = []
        try:
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, hard))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(files[0]))
            os.close(taken.pop())
            os.close(taken.pop())  # two numbers are free for three descriptors
            await inbox.until(lambda: len(inbox.messages) == 4)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        send_raw(left, frame(Note(5), has_fd=True), files[5])
        await inbox.until(lambda: len(inbox.messages) == 5)
        assert [message.number for message, _ in inbox.messages] == [1, 2, 3, 4, 5]
        got = [None if fd is None else os.pread(fd, 8, 0) for _, fd in inbox.messages]
        assert got == [b"1", b"2", None, None, b"5"], "the fourth never had one"
        for _, fd in inbox.messages:
            if fd is not None:
                os.close(fd)
        assert inbox.closed == 0
        channel.close()
        left.close()

    run(body)


def test_a_failing_handler_does_not_cost_the_next_message() -> None:
    async def body() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        left, right = socket.socketpair()
        inbox = Inbox()

        def on_message(message: Any, fd: int | None) -> None:
            if message.number == 1:
                raise RuntimeError("a bug of the owner")
            inbox.on_message(message, fd)

        channel = Channel(right, Notes, on_message=on_message)
        send_raw(left, frame(Note(1)) + frame(Note(2)))
        await inbox.until(lambda: len(inbox.messages) == 1)
        assert inbox.messages == [(Note(2), None)]
        assert len(reports) == 1
        channel.close()
        left.close()

    run(body)


def test_a_channel_may_be_closed_by_its_own_message_handler(files: list[int]) -> None:
    async def body() -> None:
        before = open_descriptors()
        left, right = socket.socketpair()
        inbox = Inbox()

        def on_message(message: Any, fd: int | None) -> None:
            inbox.on_message(message, fd)
            channel.close()

        channel = Channel(right, Notes, on_message=on_message)
        send_raw(left, frame(Note(1)) + frame(Note(2), has_fd=True), files[0])
        await inbox.until(lambda: len(inbox.messages) == 1)
        left.close()
        assert [message.number for message, _ in inbox.messages] == [1]
        assert open_descriptors() == before

    run(body)
