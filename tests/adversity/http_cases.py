# SPDX-License-Identifier: Apache-2.0
"""Requests that must be refused, as bytes. After RFC 9112 and our own bounds (wire/limits.py).

{p} is a valid path of the health operation. Each row: name, bytes, the HTTP statuses that are right, whether the connection ends.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """raw: the bytes; statuses: any of these; closes: nothing more is served on the connection."""

    name: str
    raw: str
    statuses: tuple[int, ...]
    closes: bool = True


def head(*lines: str, start: str = "POST {p} HTTP/1.1", host: bool = True) -> str:
    return "\r\n".join([start, *(["Host: localhost"] if host else []), *lines]) + "\r\n\r\n"


CASES = [
    Case("no host", head("Content-Length: 0", host=False), (400,)),
    Case("two hosts", head("Host: other", "Content-Length: 0"), (400,)),
    Case("the same host twice", head("Host: localhost", "Content-Length: 0"), (400,)),
    Case("empty host", head("Host:", "Content-Length: 0", host=False), (400,)),
    Case("host with a slash", head("Host: a/b", "Content-Length: 0", host=False), (400,)),
    Case("host with a user", head("Host: user@localhost", "Content-Length: 0", host=False), (400,)),
    Case("host list", head("Host: a, b", "Content-Length: 0", host=False), (400,)),
    Case("no content length", head(), (411,)),
    Case("two content lengths", head("Content-Length: 2", "Content-Length: 3") + "{}", (400,)),
    Case("the same content length twice", head("Content-Length: 2", "Content-Length: 2") + "{}", (400,)),
    Case("content length list", head("Content-Length: 2, 2") + "{}", (400,)),
    Case("negative content length", head("Content-Length: -1"), (400,)),
    Case("signed content length", head("Content-Length: +2") + "{}", (400,)),
    Case("hexadecimal content length", head("Content-Length: 0x2") + "{}", (400,)),
    Case("fractional content length", head("Content-Length: 2.0") + "{}", (400,)),
    Case("empty content length", head("Content-Length:"), (400,)),
    Case("content length with a space", head("Content-Length: 1 1") + "x" * 11, (400,)),
    Case("huge content length", head("Content-Length: 99999999999999999999"), (400, 413)),
    Case("content length over the bound", head("Content-Length: 65537"), (413,)),
    Case("chunked", head("Transfer-Encoding: chunked") + "2\r\n{}\r\n0\r\n\r\n", (400,)),
    Case("chunked and content length", head("Content-Length: 2", "Transfer-Encoding: chunked") + "0\r\n\r\n", (400,)),
    Case("identity transfer encoding", head("Content-Length: 2", "Transfer-Encoding: identity") + "{}", (400,)),
    Case("transfer encoding in disguise", head("Content-Length: 2", "Transfer-Encoding: xchunked") + "{}", (400,)),
    Case("transfer encoding with a tab", head("Content-Length: 2", "Transfer-Encoding:\tchunked") + "0\r\n\r\n", (400,)),
    Case("upgrade", head("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 2") + "{}", (400,)),
    Case("websocket", head("Connection: Upgrade", "Upgrade: websocket", start="GET {p} HTTP/1.1"), (400,)),
    Case("trailer", head("Trailer: X", "Content-Length: 2") + "{}", (400,)),
    Case("another expectation", head("Expect: the-unexpected", "Content-Length: 2") + "{}", (400, 417)),
    Case("http 0.9", "POST {p}\r\n\r\n", (400, 505)),
    Case("http 1.0", head("Content-Length: 2", start="POST {p} HTTP/1.0") + "{}", (505,)),
    Case("http 1.0 without host", "POST {p} HTTP/1.0\r\n\r\n", (400, 505)),
    Case("http 1.2", head("Content-Length: 2", start="POST {p} HTTP/1.2") + "{}", (400, 505)),
    Case("http 2.0", head("Content-Length: 2", start="POST {p} HTTP/2.0") + "{}", (400, 505)),
    Case("http 2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
    Case("lower-case version", head("Content-Length: 2", start="POST {p} http/1.1") + "{}", (400,)),
    Case("version with a letter", head("Content-Length: 2", start="POST {p} HTTP/1.x") + "{}", (400,)),
    Case("lower-case method", head("Content-Length: 2", start="post {p} HTTP/1.1") + "{}", (400, 405)),
    Case("unknown method", head("Content-Length: 2", start="FROB {p} HTTP/1.1") + "{}", (400, 405)),
    Case("method with a colon", head(start="PO:ST {p} HTTP/1.1"), (400,)),
    Case("two spaces", head("Content-Length: 0", start="POST  {p} HTTP/1.1"), (400, 401), closes=False),
    Case("tab for a space", head("Content-Length: 0", start="POST\t{p} HTTP/1.1"), (400,)),
    Case("space in the target", head("Content-Length: 0", start="POST {p} x HTTP/1.1"), (400,)),
    Case("absolute form", head("Content-Length: 0", start="POST http://localhost{p} HTTP/1.1"), (400, 404), closes=False),
    Case("authority form", head(start="CONNECT localhost:80 HTTP/1.1"), (400, 404, 405)),
    Case("asterisk form", head(start="OPTIONS * HTTP/1.1"), (400, 404)),
    Case("get", head(start="GET {p} HTTP/1.1"), (405,)),
    Case("get of another path", head(start="GET / HTTP/1.1"), (404,)),
    Case("put with a body", head("Content-Length: 2", start="PUT {p} HTTP/1.1") + "{}", (405,)),
    Case("fragment", head("Content-Length: 0", start="POST {p}#x HTTP/1.1"), (400, 404), closes=False),
    Case("query", head("Content-Length: 0", start="POST {p}?x=1 HTTP/1.1"), (404,), closes=False),
    Case("control character in the target", head("Content-Length: 0", start="POST {p}\x01 HTTP/1.1"), (400,)),
    Case("byte above ascii in the target", head("Content-Length: 0", start="POST {p}\xe9 HTTP/1.1"), (400,)),
    Case("overlong target", head("Content-Length: 0", start="POST /" + "x" * 9000 + " HTTP/1.1"), (431,)),
    Case("long target", head("Content-Length: 0", start="POST /" + "x" * 300 + " HTTP/1.1"), (404,), closes=False),
    Case("bare line feeds", "POST {p} HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n", (400,)),
    Case("one bare line feed", "POST {p} HTTP/1.1\r\nHost: localhost\nContent-Length: 0\r\n\r\n", (400,)),
    Case("bare carriage return", "POST {p} HTTP/1.1\r\nHost: local\rhost\r\nContent-Length: 0\r\n\r\n", (400,)),
    Case("folded header", head("X-A: 1", " 2", "Content-Length: 0"), (400,)),
    Case("header folded with a tab", head("X-A: 1", "\t2", "Content-Length: 0"), (400,)),
    Case("first header folded", "POST {p} HTTP/1.1\r\n Host: localhost\r\nContent-Length: 0\r\n\r\n", (400,)),
    Case("space before the colon", head("X-A : 1", "Content-Length: 0"), (400,)),
    Case("header without a colon", head("X-A", "Content-Length: 0"), (400,)),
    Case("header without a name", head(": x", "Content-Length: 0"), (400,)),
    Case("space in a header name", head("X A: 1", "Content-Length: 0"), (400,)),
    Case("parenthesis in a header name", head("X(A): 1", "Content-Length: 0"), (400,)),
    Case("byte above ascii in a header name", head("X\xe9: 1", "Content-Length: 0"), (400,)),
    Case("nul in a header name", head("X\0A: 1", "Content-Length: 0"), (400,)),
    Case("nul in a header value", head("X-A: a\0b", "Content-Length: 0"), (400,)),
    Case("escape in a header value", head("X-A: a\x1bb", "Content-Length: 0"), (400,)),
    Case("delete in a header value", head("X-A: a\x7fb", "Content-Length: 0"), (400,)),
    Case("33 headers", head(*(f"X-{i}: 1" for i in range(31)), "Content-Length: 0"), (431, 400)),
    Case("headers over the bound", head("X-A: " + "a" * 8200, "Content-Length: 0"), (431,)),
    Case("headers that never end", "POST {p} HTTP/1.1\r\nX-A: " + "a" * 9000, (431,)),
    Case("garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
    Case("garbage before the request", "xx\r\n" + head("Content-Length: 0"), (400,)),
]
