# SPDX-License-Identifier: Apache-2.0
"""One TCP connection that never sends anything again: what happens to each request on it is seen as it is."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from tests.client import Client


@dataclass(frozen=True)
class RawAnswer:
    """status, headers (names and values in lower case), the body's bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether it says that the connection ends after it."""
        return self.headers.get("connection") == "close"


class RawConnection:
    """Bytes out, whole answers in."""

    def __init__(self, address: tuple[str, int], *, tls: ssl.SSLContext | None = None, timeout_s: float = 20) -> None:
        self.sock: socket.socket = socket.create_connection(address, timeout=timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self._rest = b""

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, *, of_head: bool = False) -> RawAnswer | None:
        """The next answer, interim ones included; None when the connection ends before it."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                assert self._rest == b"", self._rest[:200]
                return None
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        lines = head.decode("ascii").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = 0 if of_head else int(headers.get("content-length", 0))
        while len(self._rest) < length:
            assert self._more(), "closed in the middle of an answer"
        body, self._rest = self._rest[:length], self._rest[length:]
        return RawAnswer(int(lines[0].split(" ")[1]), headers, body)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return False
        self._rest += data
        return bool(data)


def signed(client: Client, operation: str = "health", document: Any = None, **more: str) -> bytes:
    """A whole signed request. more: further headers."""
    path, body = client.path(operation), json.dumps(document or client.valid(operation)).encode()
    headers = client.target.sign(path, body) | {"Content-Length": str(len(body))} | more
    return (f"POST {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n").encode() + body
