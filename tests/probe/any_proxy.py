# SPDX-License-Identifier: Apache-2.0
"""A small XKS proxy of its own, right by default and wrong by a switch: what `xksfast test` must find is made here on purpose.

What lives here: HTTP, how refusals are written, and delays; the API is in any_api.py, the names of the switches in wrongness.py.
It shares no code with ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from tests.probe.any_api import AnyApi, Refused


class AnyProxy(AnyApi):
    """wrong and quota: see AnyApi."""

    def __init__(self, *wrong: str, quota: int = 0) -> None:
        super().__init__(*wrong, quota=quota)
        self.in_flight = 0
        self.delay_s: dict[str, float] = {}  # by operation
        self.delayed_calls = -1  # how many; -1: all

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # the end, of the connection or of the test
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; whether the connection goes on."""
        if self.is_("one read"):
            data = await reader.read(65536)
            if not data:
                return False
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                await self._write(writer, 400, {"errorName": "ValidationException"})
                return False
            head += end
        else:
            head, rest = await reader.readuntil(b"\r\n\r\n"), b""
        try:
            method, path, headers = self._parse(head)
            length = int(headers.get("content-length", "0").lstrip("+"))
            roomy = any(self.is_(switch) for switch in ("reads all", "AAD of any length", "takes more"))
            if length > (1 << 24 if self.is_("reads all") else 1 << 20 if roomy else 65536):
                raise Refused("ValidationException", 413)
        except Refused as refused:
            await self._write(writer, refused.status, {"errorName": refused.name})
            return False
        if headers.get("expect") == "100-continue" and self.is_("no Expect"):
            await self._write(writer, 417, {"errorName": "ValidationException"})
            return False
        if headers.get("expect") == "100-continue" and not self.is_("no continue"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = rest if len(rest) >= length else rest + await reader.readexactly(length - len(rest))
        status, document = await self._answer(method, path, headers, body)
        if status == 405 and self.is_("GET is not found"):
            status, document = 404, {"errorName": "InvalidUriPathException"}
        await self._write(writer, status, document, head_only=method == "HEAD")
        closes = headers.get("connection") == "close" and not self.is_("never closes")
        return not closes and method != "HEAD" and not self.is_("one request a connection")

    def _parse(self, head: bytes) -> tuple[str, str, dict[str, str]]:
        lines = head.decode("latin-1").split("\r\n")[:-2]
        lenient = self.is_("lenient HTTP")
        line = re.fullmatch(r"([A-Z]+) ([!-~]+) HTTP/1\.1", lines[0])
        if line is None:
            raise Refused("ValidationException")
        headers: dict[str, str] = {}
        names = []
        for text in lines[1:]:
            space = " *" if lenient else ""
            found = re.fullmatch(rf"([!#$%&'*+.^_`|~0-9A-Za-z-]+){space}:[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)", text)
            if found is None:
                if lenient:
                    continue
                raise Refused("ValidationException")
            names.append(found[1].lower())
            headers.setdefault(found[1].lower(), found[2].strip())
        bad_length = not re.fullmatch(r"[0-9]{1,15}", headers.get("content-length", "0"))
        if not lenient and (names.count("host") != 1 or names.count("content-length") > 1 or bad_length):
            raise Refused("ValidationException")
        return line[1], line[2], headers

    async def _write(self, writer: asyncio.StreamWriter, status: int, document: Any, *, head_only: bool = False) -> None:
        content_type = "application/json"
        body = json.dumps(document, indent=2 if self.is_("pretty JSON") else None).encode()
        if status >= 400 and self.is_("HTML errors"):
            content_type = "text/html"
        if status >= 400 and self.is_("empty errors"):
            body = b""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + (b"" if head_only else body))
        await writer.drain()

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        self.in_flight += 1
        try:
            if self.is_("twenty at once"):
                await asyncio.sleep(0.05)
                if self.in_flight > 20:
                    raise Refused("InternalException")
            operation = path.rpartition("/")[2]
            if operation in self.delay_s and self.delayed_calls:
                self.delayed_calls -= 1
                await asyncio.sleep(self.delay_s[operation])
            return 200, self.operation(method, path, headers, body)
        except Refused as refused:
            return self._refusal(refused, body)
        except Exception:
            return 500, {"errorName": "InternalException"}
        finally:
            self.in_flight -= 1

    def _refusal(self, refused: Refused, body: bytes) -> tuple[int, dict[str, Any]]:
        document = {"errorName": refused.name, "errorMessage": "A rule was broken"}
        status = refused.status
        if self.is_("other error names") and refused.name == "ValidationException":
            document["errorName"] = "BadRequestException"
        if self.is_("other statuses") and refused.name == "ValidationException":
            status = 422
        if self.is_("long messages"):
            document["errorMessage"] = "x" * 512
        if self.is_("plaintext in messages"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                document["errorMessage"] = "cannot use " + json.loads(body)["plaintext"]
        return status, document


@contextlib.contextmanager
def serving(proxy: AnyProxy, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve on a free port of 127.0.0.1, in a thread of its own; the port."""
    ready: list[int] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context, limit=1 << 20)
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        await asyncio.sleep(
            0
        )  # what was accepted becomes a connection: asyncio forgets the socket of one that a closed server gets
        server.close()
        while pending := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    try:
        assert started.wait(10)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
