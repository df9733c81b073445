# SPDX-License-Identifier: Apache-2.0
"""Idempotency-Key: a POST that is sent again by the same operator with the same key gets the first answer again.

Kept for KEPT_S. Only what was done is kept: a refusal changed nothing, so the same key may be tried again. A newcomer's trap: an answer
can show a secret, so what is kept is sealed (`Box`), in pieces, since the sealer takes small secrets only.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from xksfast.admin.refusals import Refused

KEPT_S = 24 * 3600
MAX_KEY_CHARS = 128
MAX_KEPT = 20_000
REPLAYED_HEADER = "Idempotent-Replayed"


@dataclass(frozen=True)
class Kept:
    """A request that was carried out. key: the operator's and the request's; request_sha256: of method, target and body.

    response: sealed; see Box.
    """

    key: str
    actor: str
    request_sha256: str
    status: int
    response: bytes
    at_ms: int


class Box(Protocol):
    """Hides what an answer showed."""

    def close(self, key: str, content: bytes) -> bytes:
        """Sealed, bound to the key."""

    def open(self, key: str, sealed: bytes) -> bytes:
        """What was in it. OperatorError: it is of another key or was damaged."""


class Shelf(Protocol):
    """Where answers are kept: in this process, or in the database for all nodes."""

    async def find(self, key: str) -> Kept | None:
        """The one with this key."""

    async def put(self, kept: Kept) -> None:
        """Keep it."""


class MemoryShelf:
    """In this process: another node does not know of it, and a restart forgets it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[str, Kept] = {}

    async def find(self, key: str) -> Kept | None:
        """Unless it is too old."""
        kept = self._kept.get(key)
        return kept if kept is not None and kept.at_ms > (self._clock() - KEPT_S) * 1000 else None

    async def put(self, kept: Kept) -> None:
        """The oldest go when there are too many."""
        self._kept.pop(kept.key, None)
        self._kept[kept.key] = kept
        while len(self._kept) > MAX_KEPT or next(iter(self._kept.values())).at_ms <= (self._clock() - KEPT_S) * 1000:
            del self._kept[next(iter(self._kept))]


class Replays:
    """Of one listener."""

    def __init__(self, shelf: Shelf, box: Box) -> None:
        self._shelf = shelf
        self._box = box
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def once(self, key: str) -> AsyncIterator[None]:
        """One request with this key at a time: the second one waits for the answer of the first."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)

    async def find(self, key: str, request_sha256: str) -> tuple[int, bytes] | None:
        """(status, body) of the first answer. Refused when the first request was another one."""
        kept = await self._shelf.find(key)
        if kept is None:
            return None
        if kept.request_sha256 != request_sha256:
            raise Refused(
                "conflict",
                "idempotency-key-reused",
                "This Idempotency-Key came with another request before",
                why="A key stands for one request, so that a repetition is not carried out twice",
                next="Send a new key with a new request",
                field="Idempotency-Key",
            )
        return kept.status, self._box.open(key, kept.response)

    async def keep(self, key: str, actor: str, request_sha256: str, status: int, body: bytes) -> None:
        """For the next time."""
        sealed = self._box.close(key, body)
        await self._shelf.put(Kept(key, actor, request_sha256, status, sealed, int(time.time() * 1000)))


def checked_key(actor: str, given: str) -> str:
    """The key of an operator's request, as it is kept. Refused when it is not 1 to 128 printable characters."""
    if not 1 <= len(given) <= MAX_KEY_CHARS or not given.isascii() or not given.isprintable():
        raise Refused(
            "invalid",
            "idempotency-key-invalid",
            f"Idempotency-Key: must have 1 to {MAX_KEY_CHARS} printable ASCII characters",
            next="Send a random UUID",
            field="Idempotency-Key",
        )
    return hashlib.sha256(f"{actor}\n{given}".encode()).hexdigest()


def fingerprint(method: str, target: str, body: bytes) -> str:
    """What makes two requests the same."""
    return hashlib.sha256(f"{method} {target}\n".encode() + body).hexdigest()
