# SPDX-License-Identifier: Apache-2.0
"""Idempotency-Key: a POST that is sent again with the same token and the same key gets the first answer again.

Kept in the database for KEPT_S, so that every node knows of it, and in the transaction of the change itself: there is never a change
without its answer. Only what was done is kept: a refusal changed nothing, so the same key may be tried again. A newcomer's trap: an
answer can show a secret, so what is kept is encrypted, under a key that only who can open the state's secrets has.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel

from xksfast.admin.refusals import Refused
from xksfast.state.database import Database
from xksfast.state.projection import State
from xksfast.state.records import Idempotency
from xksfast.state.store import Once

KEPT_S = 24 * 3600
MAX_KEY_CHARS = 128
REPLAYED_HEADER = "Idempotent-Replayed"
MAC_LABEL = "xksfast answer"
NONCE_BYTES = 12

Answer = TypeVar("Answer")


class Box:
    """Hides what answers showed. mac: Sealer.mac: gives each answer a key of its own."""

    def __init__(self, mac: Callable[[str, bytes], bytes]) -> None:
        self._mac = mac

    def close(self, key: str, content: bytes) -> bytes:
        """Encrypted, bound to the key that the answer is kept under."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._mac(MAC_LABEL, key.encode())).encrypt(nonce, content, None)

    def open(self, key: str, closed: bytes) -> bytes | None:
        """What was in it; None when it is of another key, was damaged, or the data key was rotated since."""
        try:
            return AESGCM(self._mac(MAC_LABEL, key.encode())).decrypt(closed[:NONCE_BYTES], closed[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            return None


class Shelf(Protocol):
    """Where answers are kept."""

    async def find(self, key: str) -> Idempotency | None:
        """The one with this key, however old."""


class DatabaseShelf:
    """For all nodes that share the database. run: runs a function in the thread of the database."""

    def __init__(self, database: Callable[[], Database], run: RunsInThread) -> None:
        self._database = database
        self._run = run

    async def find(self, key: str) -> Idempotency | None:
        """The one with this key."""
        return await self._run(lambda: self._database().idempotency(key))


class RunsInThread(Protocol):
    """See DatabaseShelf."""

    async def __call__(self, work: Callable[[], Answer]) -> Answer:
        """The result of work()."""


class Replays:
    """Of one listener."""

    def __init__(self, shelf: Shelf, box: Box, clock: Callable[[], float] = time.time) -> None:
        self._shelf = shelf
        self._box = box
        self._clock = clock
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
        row = await self._shelf.find(key)
        if row is None or row.at_ms <= (self._clock() - KEPT_S) * 1000:
            return None
        return self.answer_of(row, request_sha256)

    def answer_of(self, row: Idempotency, request_sha256: str) -> tuple[int, bytes]:
        """(status, body) of what is kept. Refused when it is the answer to another request, or cannot be opened."""
        if row.request_sha256 != request_sha256:
            raise Refused(
                "conflict",
                "idempotency-key-reused",
                "This Idempotency-Key came with another request before",
                why="A key stands for one request, so that a repetition is not carried out twice",
                next="Send a new key with a new request",
                field="Idempotency-Key",
            )
        body = self._box.open(row.key, row.response)
        if body is None:
            raise Refused(
                "conflict",
                "idempotent-answer-lost",
                "This request was carried out, but its answer can no longer be shown: the data key was rotated since",
                next="Look at the object; issue a new credential or operator when its secret was missed",
                field="Idempotency-Key",
            )
        return row.status, body

    def kept(self, key: str, actor: str, request_sha256: str, status: int, body: bytes) -> Idempotency:
        """What is put into the database for the next time."""
        return Idempotency(
            key=key,
            actor=actor,
            request_sha256=request_sha256,
            status=status,
            response=self._box.close(key, body),
            at_ms=int(self._clock() * 1000),
        )

    @property
    def kept_since_ms(self) -> int:
        """Answers from before are none any more."""
        return int((self._clock() - KEPT_S) * 1000)


@dataclass(frozen=True)
class Asked:
    """A request that came with an Idempotency-Key. key: as it is kept. request_sha256: see fingerprint."""

    replays: Replays
    key: str
    actor: str
    request_sha256: str

    def once(self, status: int, view: Callable[[State, Any], BaseModel]) -> Once:
        """For the use case. view(state, what the plan answers): the body of the answer."""

        def answer(state: State, result: Any) -> Idempotency:
            body = view(state, result).model_dump_json().encode()
            return self.replays.kept(self.key, self.actor, self.request_sha256, status, body)

        return Once(self.key, answer, self.replays.kept_since_ms)


def checked_key(token: str, given: str) -> str:
    """The key of a request, as it is kept. token: the hash of the one that it came with, for a name may be another operator's later.

    Refused when it is not 1 to 128 printable characters.
    """
    if not 1 <= len(given) <= MAX_KEY_CHARS or not given.isascii() or not given.isprintable():
        raise Refused(
            "invalid",
            "idempotency-key-invalid",
            f"Idempotency-Key: must have 1 to {MAX_KEY_CHARS} printable ASCII characters",
            next="Send a random UUID",
            field="Idempotency-Key",
        )
    return hashlib.sha256(f"{token}\n{given}".encode()).hexdigest()


def fingerprint(method: str, target: str, body: bytes) -> str:
    """What makes two requests the same."""
    return hashlib.sha256(f"{method} {target}\n".encode() + body).hexdigest()
