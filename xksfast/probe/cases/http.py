# SPDX-License-Identifier: Apache-2.0
"""HTTP: paths, methods, connections, and requests that are none. Requirements 1, 2, 14 to 20, 111."""

from __future__ import annotations

import json
import time

from xksfast.errors import XksErrorName
from xksfast.probe.asking import OPERATIONS, Asking
from xksfast.probe.case import CannotTell, case
from xksfast.probe.client import Answer, CallFailed, Closed, Connection, Silent, request_bytes
from xksfast.probe.target import API_PATH

METHOD_NOT_ALLOWED = 405
CLOSE_WITHIN_S = 2.0
CONTINUE_WITHIN_S = 0.9  # curl gives up waiting after a second
PIECES, PAUSE_S = 5, 0.05
LARGE_BODY_BYTES = 4 * 1024 * 1024


def _signed_health(asking: Asking) -> tuple[str, dict[str, str], bytes]:
    path, body = asking.path("health"), json.dumps(asking.document("health")).encode()
    return path, asking.headers(path, body), body


@case(
    "http.get", 16,
    says="GET on each of the four URIs is answered 405.",
    why="The API asks for it; AWS's people use it to see whether a proxy is there.",
    do="Route POST only, and answer the rest with 405 and a JSON body.",
)  # fmt: skip
def get(asking: Asking) -> None:
    for operation in OPERATIONS:
        path = asking.path(operation, asking.target.keys.default or "any")
        answer = asking.send("GET", path, {"Host": asking.target.address.authority}, b"", label=f"GET {operation}")
        if answer.status != METHOD_NOT_ALLOWED:
            asking.wrong(f"GET {operation}: answered {answer}, right is 405")


@case(
    "http.other-methods", 15,
    says="PUT, DELETE, PATCH, HEAD and OPTIONS are refused with a 4xx or 501.",
    why="The API knows POST only; what else is served is served without anybody having thought of it.",
    do="Route POST only.",
)  # fmt: skip
def other_methods(asking: Asking) -> None:
    path, headers, body = _signed_health(asking)
    for method in ("PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        answer = asking.send(method, path, headers, b"" if method == "HEAD" else body, label=f"{method} health")
        if not (400 <= answer.status < 500 or answer.status == 501):
            asking.wrong(f"{method} health: answered {answer}")


@case(
    "http.unknown-paths", 14, 18, 111, 160,
    says="Any other path is answered 404 InvalidUriPathException, however well it is signed.",
    why="KMS tells the operator that the path is wrong; another answer sends them to look elsewhere.",
    do="Answer unknown prefixes and paths yourself instead of leaving it to the framework.",
)  # fmt: skip
def unknown_paths(asking: Asking) -> None:
    prefix = asking.target.address.prefix
    paths = [
        f"{prefix}/invalid{API_PATH}/health", f"{prefix}{API_PATH}/nothing", f"{prefix}/kms/xks/v0/health", f"{prefix}{API_PATH}",
        f"{prefix}{API_PATH}/keys/any/sign", f"{prefix}{API_PATH}/keys/any/encrypt/more", f"/no-such-prefix{API_PATH}/health",
    ]  # fmt: skip
    for path in paths:
        answer = asking.post(path, asking.document("health"), label="unknown path")
        asking.expect_error(answer, path, XksErrorName.INVALID_URI_PATH)


@case(
    "http.keep-alive", 2,
    says="A connection serves many requests.",
    why="A new TCP connection and TLS handshake for each request takes a good part of KMS' 250 ms.",
    do="Keep connections open, longer than the load balancer's idle time-out.",
)  # fmt: skip
def keep_alive(asking: Asking) -> None:
    with asking.connect() as connection:
        for i in range(5):
            path, headers, body = _signed_health(asking)
            try:
                answer = asking.on(connection, request_bytes("POST", path, headers, body), label="health")
            except Closed:
                asking.wrong(f"the connection was closed after {i} requests")
                return
            asking.expect_ok(answer, f"request {i + 1} of one connection")
            if answer.closes:
                asking.wrong(f"the answer to request {i + 1} says Connection: close")
                return


@case(
    "http.close", 2,
    says="A request with Connection: close is answered, and the connection closed after it.",
    why="Whoever waits for the end would wait for the idle time-out.",
    do="Honour Connection: close.",
)  # fmt: skip
def close(asking: Asking) -> None:
    path, headers, body = _signed_health(asking)
    with asking.connect() as connection:
        data = request_bytes("POST", path, {**headers, "Connection": "close"}, body)
        asking.expect_ok(asking.on(connection, data, label="health"), "with Connection: close")
        if not connection.ended(CLOSE_WITHIN_S):
            asking.wrong(f"the connection was still open {CLOSE_WITHIN_S:g} s after the answer")


@case(
    "http.expect-continue", 155,
    says="Expect: 100-continue is answered with 100, or with the final answer, before the body is sent.",
    why="curl, by which AWS's people look for faults, waits a second for it with larger bodies.",
    do="Answer 100 Continue when the headers are good.",
    timed=False,
)  # fmt: skip
def expect_continue(asking: Asking) -> None:
    path, headers, body = _signed_health(asking)
    data = request_bytes("POST", path, {**headers, "Expect": "100-continue"}, body)
    with asking.connect() as connection:
        connection.send(data[: len(data) - len(body)])
        early = connection.early(CONTINUE_WITHIN_S)
        answer = asking.on(connection, body, label="health")
    if answer.status == 417:
        raise CannotTell("it answers 417: it does not support Expect, which HTTP allows, and curl sends the request again")
    asking.expect_ok(answer, "with Expect: 100-continue")
    if not early:
        asking.wrong(f"nothing came within {CONTINUE_WITHIN_S:g} s while it waited for the body")


@case(
    "http.request-in-pieces", 2,
    says="A request that arrives in pieces is served.",
    why="Networks cut where they like; a proxy that expects a request in one read fails at random.",
    do="Read until the request is complete.",
    timed=False,
)  # fmt: skip
def request_in_pieces(asking: Asking) -> None:
    path, headers, body = _signed_health(asking)
    data = request_bytes("POST", path, headers, body)
    with asking.connect() as connection:
        size = len(data) // PIECES + 1
        *first, last = (data[at : at + size] for at in range(0, len(data), size))
        for piece in first:
            connection.send(piece)
            time.sleep(PAUSE_S)  # so that they are not joined again on the way
        answer = asking.on(connection, last, label="health")
        asking.expect_ok(answer, f"in {PIECES} pieces")


def _malformed(path: str, headers: dict[str, str], body: bytes) -> dict[str, bytes]:
    """Requests that RFC 9112 has refused, around a body that is signed rightly: one that is served was taken for a good one."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    length = f"Content-Length: {len(body)}"

    def request(*more: str, start: str = f"POST {path} HTTP/1.1", drop: str = "") -> bytes:
        kept = [line for line in lines if not drop or not line.startswith(drop)]
        return "\r\n".join([start, *kept, *more, "", ""]).encode("latin-1") + body

    return {
        "without Host": request(length, drop="Host"),
        "with two Hosts": request(length, "Host: other.example"),
        "with two different Content-Lengths": request(f"Content-Length: {len(body) - 1}", length),
        "with a signed Content-Length": request(f"Content-Length: +{len(body)}"),
        "with a space before a colon": request("X-Test : 1", length),
        "with a NUL in a header": request("X-Test: a\0b", length),
        "with a space in the path": request(length, start=f"POST {path} x HTTP/1.1"),
        "with no version": request(length, start=f"POST {path}"),
        "with version HTTP/9.9": request(length, start=f"POST {path} HTTP/9.9"),
    }


@case(
    "http.malformed", 2,
    says="Requests that HTTP/1.1 has refused are refused: a 4xx or 5xx that fits, or the end of the connection.",
    why="Where a load balancer and a proxy read one request differently, a second one can be hidden in it.",
    do="Use an HTTP parser in its strict mode, and check Host and Content-Length (RFC 9112).",
)  # fmt: skip
def malformed(asking: Asking) -> None:
    for what, data in _malformed(*_signed_health(asking)).items():
        with asking.connect() as connection:
            try:
                answer = asking.on(connection, data, label=what)
            except Silent:
                asking.wrong(f"{what}: neither answered nor closed within 5 s")
            except CallFailed:
                continue  # closed: a refusal as well
            else:
                if not (400 <= answer.status < 500 or answer.status in (501, 505)):
                    asking.wrong(f"{what}: answered {answer}")


@case(
    "http.large-body", 2,
    says="An unsigned request that announces 4 MiB is refused before all of it is read.",
    why="Reading whatever strangers send fills the memory of a proxy before a signature is checked.",
    do="Bound the body: the largest valid one is under 24 KiB.",
    timed=False,
)  # fmt: skip
def large_body(asking: Asking) -> None:
    address = asking.target.address
    head = {"Host": address.authority, "Content-Type": "application/json", "Content-Length": str(LARGE_BODY_BYTES)}
    with Connection(address, asking.context()) as connection:
        try:
            answer: Answer = asking.on(
                connection, request_bytes("POST", asking.path("health"), head, b"{" * 65536), label="4 MiB"
            )
        except Silent:
            asking.wrong("64 KiB of 4 MiB were sent: neither answered nor closed within 5 s")
            return
        except CallFailed:
            return
    if answer.status < 400:
        asking.wrong(f"4 MiB announced: answered {answer}")


@case(
    "http.still-there", 2,
    says="After all of this a signed request is served as before, within 250 ms.",
    why="A proxy that bad requests slow down or stop can be stopped by anybody.",
    do="Look for crashes and leaked connections in the proxy's log.",
)  # fmt: skip
def still_there(asking: Asking) -> None:
    asking.close()
    asking.expect_ok(asking.call("health"), "health")
