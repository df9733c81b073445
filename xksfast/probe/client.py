# SPDX-License-Identifier: Apache-2.0
"""A connection to a proxy over plain sockets, so that what no HTTP library would send can be sent, and every part is timed.

What lives here: connecting, TLS, sending bytes, reading answers strictly. What must not: opinions about what an answer should be.
A newcomer's trap: with TLS 1.3 a server that refuses a client certificate says so only after the client's handshake is done, so a
refusal shows when the answer is read, not when the connection is made.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from dataclasses import dataclass, replace
from typing import Any

from xksfast.probe.target import Address

TIMEOUT_S = 5.0  # long enough that what is too slow is seen as slow, and not as silent
EARLY_S = 0.2
MAX_ANSWER_BYTES = 1024 * 1024
_RECV_BYTES = 65536
_STATUS = re.compile(r"[1-9][0-9]{2}(?: |$)")
_LENGTH = re.compile(r"[0-9]{1,8}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,6})(?:;.*)?")


class CallFailed(Exception):
    """No usable answer came; the text says what happened instead."""


class NotReached(CallFailed):
    """No TCP connection."""


class HandshakeFailed(CallFailed):
    """No TLS. certificate_problem: what is wrong with the server's certificate, "" when it is something else."""

    def __init__(self, text: str, certificate_problem: str = "") -> None:
        super().__init__(text)
        self.certificate_problem = certificate_problem


class Closed(CallFailed):
    """The connection ended before the answer did. began: whether a part of the answer had come."""

    def __init__(self, text: str, *, began: bool = False) -> None:
        super().__init__(text)
        self.began = began


class Silent(CallFailed):
    """Nothing came within TIMEOUT_S."""


class BadAnswer(CallFailed):
    """What came is no HTTP/1.1 answer."""


@dataclass(frozen=True)
class Answer:
    """status; headers with lower-case names; body as received. ms: from the first byte sent to the last byte received.

    connect_ms, tls_ms: of the connection, None on one that was used before. interim: statuses of the 1xx answers before it.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    interim: tuple[int, ...] = ()
    ms: float = 0.0
    connect_ms: float | None = None
    tls_ms: float | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header, name in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def closes(self) -> bool:
        """Whether the proxy says that it closes the connection."""
        return "close" in (self.header("connection") or "").lower()

    @property
    def document(self) -> dict[str, Any] | None:
        """The body as a JSON object, None when it is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def error_name(self) -> str:
        """errorName, "" without one. A stranger's text: only what looks like a name is shown."""
        name = (self.document or {}).get("errorName", "")
        return name if isinstance(name, str) and name.isascii() and name.isalnum() and len(name) <= 64 else "?" if name else ""

    def __str__(self) -> str:
        return f"{self.status} {self.error_name}".rstrip()


def parse_answer(data: bytes, *, eof: bool, head_only: bool = False) -> tuple[Answer, int] | None:
    """The first answer in `data` with the bytes it takes, None when it is not complete. BadAnswer when it cannot become one.

    eof: nothing more comes. head_only: the answer to HEAD, whose length is that of a body which does not come.
    """
    interim: list[int] = []
    start = 0
    while True:
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            if not data[start:].startswith(b"HTTP/1."[: len(data) - start]):
                raise BadAnswer("the answer does not begin with HTTP/1.1")
            return None
        status, headers = _head(data[start:end])
        start = end + 4
        if 100 <= status < 200 and status != 101:
            interim.append(status)
            continue
        break
    ended = _body(data, start, status, dict(headers), eof=eof, head_only=head_only)
    if ended is None:
        return None
    body, used = ended
    return Answer(status, headers, body, tuple(interim)), used


def _head(data: bytes) -> tuple[int, tuple[tuple[str, str], ...]]:
    lines = data.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not _STATUS.match(rest):
        raise BadAnswer("the answer does not begin with an HTTP/1.1 status line")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadAnswer("the answer has a header line that is none")
        headers.append((name.lower(), value.strip()))
    return int(rest[:3]), tuple(headers)


def _body(
    data: bytes, start: int, status: int, headers: dict[str, str], *, eof: bool, head_only: bool
) -> tuple[bytes, int] | None:
    """The body that begins at `start`, and where it ends; None when it is not complete."""
    if head_only or status in (204, 304):
        return b"", start
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return _chunks(data, start)
    if "content-length" in headers:
        if not _LENGTH.fullmatch(headers["content-length"]):
            raise BadAnswer("the answer has a Content-Length that is no number")
        end = start + int(headers["content-length"])
        return (data[start:end], end) if end <= len(data) else None
    return (data[start:], len(data)) if eof else None


def _chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    """The chunks joined; trailers are none that anybody sends here."""
    parts: list[bytes] = []
    while (line := data.find(b"\r\n", at)) >= 0:
        found = _CHUNK.fullmatch(data[at:line])
        if found is None:
            raise BadAnswer("the answer has a chunk without a length")
        size = int(found[1], 16)
        at = line + 2 + size + 2
        if at > len(data):
            return None
        if not size:
            return b"".join(parts), at
        parts.append(data[line + 2 : line + 2 + size])
    return None


class Connection:
    """One connection. context: None for plain HTTP. connect_ms, tls_ms: what making it took.

    Raises NotReached or HandshakeFailed.
    """

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        self.calls = 0
        self._buffer = b""
        self._eof = False
        self._reason = ""  # why it ended, when it did not end by itself
        begin = time.perf_counter()
        try:
            self.socket: socket.socket = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
        except OSError as error:
            raise NotReached(f"no connection to {address.host} port {address.port}: {error.strerror or error}") from None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connect_ms = (time.perf_counter() - begin) * 1000
        self.tls_ms = 0.0
        if context is not None:
            begin = time.perf_counter()
            try:
                self.socket = context.wrap_socket(self.socket, server_hostname=address.host)
            except ssl.SSLCertVerificationError as error:
                self.socket.close()
                raise HandshakeFailed(
                    f"the certificate is not accepted: {error.verify_message}", error.verify_message
                ) from None
            except (OSError, ValueError) as error:
                self.socket.close()
                reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
                raise HandshakeFailed(f"the TLS handshake failed: {reason}") from None
            self.tls_ms = (time.perf_counter() - begin) * 1000

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; more than once is fine."""
        self.socket.close()

    @property
    def tls_version(self) -> str:
        """ "TLSv1.3", "" on plain HTTP."""
        return self.socket.version() or "" if isinstance(self.socket, ssl.SSLSocket) else ""

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the suite, "" on plain HTTP."""
        found = self.socket.cipher() if isinstance(self.socket, ssl.SSLSocket) else None
        return found[0] if found else ""

    def send(self, data: bytes) -> None:
        """All of it, as far as the proxy takes it: one that refuses early may answer and close while we still send."""
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise Silent(f"the proxy read nothing for {TIMEOUT_S:g} s") from None
        except OSError as error:
            if not self._poll(EARLY_S) or not self._buffer:
                raise Closed(f"the proxy closed the connection: {error.strerror or error}") from None

    def receive(self, *, head_only: bool = False) -> Answer:
        """The next answer."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            parsed = parse_answer(self._buffer, eof=self._eof, head_only=head_only)
            if parsed is not None:
                answer, used = parsed
                self._buffer = self._buffer[used:]
                return answer
            if self._eof:
                where = "in the middle of its answer" if self._buffer else "without an answer"
                raise Closed(f"the proxy closed the connection {where}{self._reason}", began=bool(self._buffer))
            if len(self._buffer) > MAX_ANSWER_BYTES:
                raise BadAnswer(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            left = deadline - time.monotonic()
            if left <= 0:
                raise Silent(f"no answer within {TIMEOUT_S:g} s")
            self._fill(left)

    def call(self, data: bytes, *, head_only: bool = False) -> Answer:
        """Send one request, read one answer, time both."""
        first = self.calls == 0
        self.calls += 1
        begin = time.perf_counter()
        self.send(data)
        answer = self.receive(head_only=head_only)
        ms = (time.perf_counter() - begin) * 1000
        if not first:
            return replace(answer, ms=ms)
        return replace(answer, ms=ms, connect_ms=self.connect_ms, tls_ms=self.tls_ms)

    def early(self, wait_s: float) -> bool:
        """Whether an answer begins, or the connection ends, within the time, without more being sent."""
        return self._poll(wait_s)

    def ended(self, wait_s: float) -> bool:
        """Whether the proxy closes the connection within the time."""
        self._poll(wait_s)
        return self._eof

    def _poll(self, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while not self._buffer and not self._eof and (left := deadline - time.monotonic()) > 0:
            self._fill(left)
        return bool(self._buffer) or self._eof

    def _fill(self, wait_s: float) -> None:
        """Take what comes within the time into the buffer; TLS records without data (session tickets) count as nothing."""
        self.socket.settimeout(wait_s)
        try:
            part = self.socket.recv(_RECV_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            self._reason = f": {getattr(error, 'reason', None) or error.strerror or error}"
            part = b""
        self._eof = not part
        self._buffer += part


def request_bytes(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """A request as it goes over the wire; Content-Length is set unless `headers` has one."""
    if not any(name.lower() == "content-length" for name in headers):
        headers = {**headers, "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def client_context(
    ca_file: str | None, certificate: str | None = None, private_key: str | None = None, *, verify: bool = True
) -> ssl.SSLContext:
    """The TLS settings of KMS: 1.2 or later, server certificate and name verified, a client certificate when there is one."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, private_key)
    return context
