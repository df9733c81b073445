# SPDX-License-Identifier: Apache-2.0
"""Typed messages between two processes of one machine, each with at most one file descriptor beside it.

Frame:  u32be header | payload; header = bit 31: a descriptor belongs to this frame; bits 0..30: payload length
        payload = one tagged msgspec struct as MessagePack
Transport: a connected AF_UNIX SOCK_STREAM socket. The descriptor travels by SCM_RIGHTS with the first byte of its frame.

What must not live here: what a message means. A newcomer's trap: the kernel may hand a descriptor over together with bytes of
*earlier* frames, so a descriptor cannot be matched with the read it came with; the header bit says which frame owns it, and
descriptors keep their order. One that this process has no number for is lost to its frame alone, which then comes without.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

MAX_FRAME_BYTES = 256 * 1024 * 1024  # far above any message: a state comes in parts
READ_BYTES = 256 * 1024
READS_PER_WAKE = 8  # then the loop gets its turn
MAX_DESCRIPTORS_PER_READ = 16
CONGESTED_BYTES = 1024 * 1024
RETRY_AFTER_S = 0.05
NO_DESCRIPTOR = "a file descriptor could not be received: raise the limit of open files (ulimit -n)"

_HEADER = struct.Struct(">I")
_HAS_DESCRIPTOR = 0x8000_0000
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS_PER_READ * array.array("i").itemsize)


class Channel:
    """One end. Belongs to the loop that made it.

    sock: a connected AF_UNIX stream socket; the channel owns it from now on.
    decode: the union of message types that the peer sends.
    on_message(message, fd): the receiver owns fd, which is None also when it was lost. on_close(): the peer is gone, called once and
    after its last message; not called after close().
    """

    def __init__(
        self,
        sock: socket.socket,
        decode: Any,
        *,
        on_message: Callable[[Any, int | None], None],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._decoder = msgspec.msgpack.Decoder(decode)
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message = on_message
        self._on_close = on_close
        self._closed = False
        self._write_failed = False
        self._received = bytearray()
        self._descriptors: deque[int | None] = deque()  # received, not yet given away; None: lost
        self._out: deque[tuple[memoryview, int | None]] = deque()  # the descriptors in it are our own copies
        self._writing = False
        self._emptied: asyncio.Event = asyncio.Event()
        self._emptied.set()
        self.pending_bytes = 0
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def closed(self) -> bool:
        """Whether close() was called or the peer is gone."""
        return self._closed

    @property
    def congested(self) -> bool:
        """Whether the peer reads so slowly that a sender with a choice should choose another one."""
        return self.pending_bytes > CONGESTED_BYTES

    def send(self, message: msgspec.Struct, fd: int | None = None) -> bool:
        """Send, or queue when the peer is slow. fd stays the caller's, who may close it at once. False: the peer is gone."""
        if self._closed or self._write_failed:
            return False
        payload = self._encoder.encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise ValueError(f"a message of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
        frame = memoryview(_HEADER.pack(len(payload) | (0 if fd is None else _HAS_DESCRIPTOR)) + payload)
        if self._out:
            self._on_writable()  # whoever sends much at once does not let the loop do it
        if not self._out:
            sent = self._try_send(frame, fd)
            if sent == len(frame):
                return True
            if self._write_failed:
                return False
            if sent:
                frame, fd = frame[sent:], None
        self._out.append((frame, None if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)))
        self.pending_bytes += len(frame)
        self._emptied.clear()
        self._watch_writable()
        return True

    def poll(self) -> None:
        """Deliver now what the kernel holds: the last words of a process that has ended."""
        if not self._closed:
            self._on_readable()

    async def drained(self) -> None:
        """Until all that was sent is with the kernel, or the peer is gone."""
        await self._emptied.wait()

    def close(self) -> None:
        """Close this end and every descriptor that was not given away. What was queued and not sent is lost."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._discard_output()
        while self._descriptors:
            fd = self._descriptors.popleft()
            if fd is not None:
                os.close(fd)
        self._received.clear()
        self._sock.close()

    # --- out

    def _try_send(self, frame: memoryview, fd: int | None) -> int:
        """Bytes the kernel took; 0 when it takes none now. fd went along if any byte did."""
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            return self._sock.sendmsg([frame], ancillary, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS):  # too many descriptors under way: they drain by themselves
                return 0
            # The peer is gone. What it sent before may still be in our receive buffer: the reader will find the end.
            self._write_failed = True
            return 0

    def _watch_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        while self._out:
            frame, fd = self._out[0]
            sent = self._try_send(frame, fd)
            if self._write_failed:
                self._discard_output()
                return
            if sent == 0:
                if fd is not None:  # possibly ETOOMANYREFS, for which "writable" would come at once
                    self._stop_writing()
                    self._loop.call_later(RETRY_AFTER_S, self._resume_writing)
                return
            self.pending_bytes -= sent
            if fd is not None:
                os.close(fd)
            if sent == len(frame):
                self._out.popleft()
            else:
                self._out[0] = (frame[sent:], None)
        self._stop_writing()
        self._emptied.set()

    def _resume_writing(self) -> None:
        if not self._closed and self._out:
            self._watch_writable()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _discard_output(self) -> None:
        self._stop_writing()
        while self._out:
            _, fd = self._out.popleft()
            if fd is not None:
                os.close(fd)
        self.pending_bytes = 0
        self._emptied.set()

    # --- in

    def _on_readable(self) -> None:
        for _ in range(READS_PER_WAKE):
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._peer_gone()
                return
            lost = bool(flags & socket.MSG_CTRUNC)
            for level, kind, packed in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors = array.array("i")
                    descriptors.frombytes(packed[: len(packed) - len(packed) % descriptors.itemsize])
                    self._descriptors.extend(descriptors)
                    if lost and descriptors:  # of several in one message, and which is not said: later ones would go astray
                        self._fail(NO_DESCRIPTOR)
                        return
            if lost:  # no free number; a sender gives each frame's descriptor a message of its own, so it was this one
                self._descriptors.append(None)
            if not data:
                self._peer_gone()
                return
            self._received += data
            delivered = self._deliver()
            if self._closed or len(data) < READ_BYTES // 2 or delivered > READ_BYTES // 2:
                return  # large messages take their time: the loop has its turn between them

    def _deliver(self) -> int:
        """Hand every complete frame to the owner; the bytes that were in them."""
        received, start = self._received, 0
        try:
            while len(received) - start >= _HEADER.size:
                (header,) = _HEADER.unpack_from(received, start)
                length = header & ~_HAS_DESCRIPTOR
                if length > MAX_FRAME_BYTES:
                    self._fail(f"a frame of {length} bytes")
                    break
                end = start + _HEADER.size + length
                if len(received) < end:
                    break
                fd: int | None = None
                if header & _HAS_DESCRIPTOR:
                    if not self._descriptors:
                        self._fail("a frame without its file descriptor")
                        break
                    fd = self._descriptors.popleft()
                payload = bytes(memoryview(received)[start + _HEADER.size : end])
                start = end
                if not self._hand_over(payload, fd):
                    break
        finally:
            if start and not self._closed:
                del received[:start]
        return start

    def _hand_over(self, payload: bytes, fd: int | None) -> bool:
        """False when there is nobody to hand over to any more."""
        try:
            message = self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            if fd is not None:
                os.close(fd)
            self._fail(f"an unreadable message: {error}")
            return False
        try:
            self._on_message(message, fd)
        except Exception as error:  # the owner's bug must not cost the messages behind this one
            self._loop.call_exception_handler({"message": f"{type(message).__name__} was not handled", "exception": error})
        return not self._closed

    def _fail(self, what: str) -> None:
        """The peer broke the framing: nothing after it can be trusted."""
        self._loop.call_exception_handler({"message": f"channel closed: {what}"})
        self._peer_gone()

    def _peer_gone(self) -> None:
        on_close = self._on_close
        self.close()
        if on_close is not None:
            on_close()
