# SPDX-License-Identifier: Apache-2.0
"""How a block reaches the other nodes when the database cannot carry it, or is slower. Who they are: `roster.py`.

A message between nodes is authenticated by a MAC under a key that only who can open the state's secrets has, bound to a time stamp;
TLS keeps it from being read. Repeating one within that minute repeats a block that is named by its id, which changes nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec

from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.blocks import NobodyThere, ServesNothing
from xksfast.admin.roster import Peer, Roster
from xksfast.admin.twin import Twin
from xksfast.errors import OperatorError
from xksfast.state.records import NodeRow
from xksfast.state.sealing import Sealer

if TYPE_CHECKING:
    import httpx

PEER_PATH = "/v1/peer/blocks"
MAC_LABEL = "xksfast peer"
TIME_HEADER = "x-xksfast-time"
MAC_HEADER = "x-xksfast-mac"
ALLOWED_SKEW_S = 60
ANSWER_WITHIN_S = 1.8  # less than a block waits for: who asked is told what became of the message
ASK_AGAIN_S = 0.1
NOT_WAITED_FOR_S = 30.0  # after a silent or stopped node did not answer: many blocks in a row would take minutes longer


class HttpPeers:
    """ca_file: "" trusts the system's authorities. read_nodes: reads the nodes table again, and tells the roster.

    twin: another node that runs under our own name, if there is one.
    """

    def __init__(
        self,
        roster: Roster,
        sealer: Callable[[], Sealer],
        ca_file: str,
        read_nodes: Callable[[], Awaitable[list[NodeRow]]],
        twin: Twin | None = None,
    ) -> None:
        self._roster = roster
        self._twin = twin
        self._sealer = sealer
        self._read_nodes = read_nodes
        self._context = ssl.create_default_context(cafile=ca_file or None)
        self._client: httpx.AsyncClient | None = None
        self._unanswered: dict[str, tuple[float, str]] = {}  # silent nodes: until when none waits for them, and why
        self._messages: set[asyncio.Task[None]] = set()  # that nobody waits for

    async def prepare(self) -> httpx.AsyncClient:
        """Bring what it takes to reach them: a fifth of a second on a slow core, for which neither a start nor a block should wait."""
        if self._client is None:
            httpx = await asyncio.to_thread(importlib.import_module, "httpx")
            self._client = self._client or httpx.AsyncClient(verify=self._context, timeout=ANSWER_WITHIN_S, trust_env=False)
        return self._client

    def alive(self) -> list[str]:
        """See Roster."""
        return self._roster.alive()

    def names(self) -> list[str]:
        """Of all that may serve."""
        twins = [self._twin.alias] if self._twin is not None and self._twin.problem else []
        return [peer.name for peer in self._roster.all()] + twins

    async def newcomers(self) -> list[str]:
        """See Peers. Who has come when the database does not answer is not known."""
        try:
            await asyncio.wait_for(self._read_nodes(), ANSWER_WITHIN_S)
        except (OperatorError, TimeoutError):
            return []
        return self.names()

    def heartbeat_ms(self, node: str) -> int:
        """See Peers."""
        peer = self._roster.find(node)
        return peer.heartbeat_ms if peer is not None else 0

    async def tell_block(self, node: str, block: PendingBlock) -> None:
        """Returns when the node's workers have confirmed. See Peers."""
        if self._is_twin(node):
            await self._tell_twin(block)
        peer = self._roster.find(node)
        if peer is None:
            raise ServesNothing("it was forgotten just now")
        until, why = self._unanswered.get(node, (0.0, ""))
        if peer.doubt and time.monotonic() < until:
            task = asyncio.ensure_future(self._tell_anyhow(peer, block))
            self._messages.add(task)
            task.add_done_callback(self._messages.discard)
            raise self._nothing_expected(peer, why)
        try:
            await self._send(peer, block)
        except OperatorError as error:
            if not peer.doubt:
                raise
            self._unanswered[node] = time.monotonic() + NOT_WAITED_FOR_S, str(error)
            raise self._nothing_expected(peer, str(error)) from None
        self._unanswered.pop(node, None)
        if peer.twin:  # one of the two has confirmed
            raise OperatorError(peer.twin)

    def _is_twin(self, node: str) -> bool:
        return self._twin is not None and node == self._twin.alias

    async def _tell_twin(self, block: PendingBlock) -> NoReturn:
        """Told it is, but what it answers proves nothing: the same address may be either's."""
        assert self._twin is not None
        if self._twin.url:
            with suppress(OperatorError):
                await self._send(Peer(self._twin.alias, self._twin.url), block)
        raise OperatorError(self._twin.problem)

    async def _tell_anyhow(self, peer: Peer, block: PendingBlock) -> None:
        """It may be there again."""
        with suppress(OperatorError):
            await self._send(peer, block)
            self._unanswered.pop(peer.name, None)

    def _nothing_expected(self, peer: Peer, why: str) -> OperatorError:
        """Of a stopped node one is sure only while the database tells: it may have been started since."""
        return (ServesNothing if peer.stopped and self._roster.has_news() else NobodyThere)(f"{why}{peer.doubt}")

    async def _send(self, peer: Peer, block: PendingBlock) -> None:
        if not peer.url:
            raise OperatorError("it has no [admin] url, so it hears of blocks through the database only")
        body = msgspec.json.encode(block)
        stamp = str(int(time.time()))
        mac = self._sealer().mac(MAC_LABEL, signed_part(stamp, body))
        client = await self.prepare()
        import httpx  # is there already

        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                answer = await client.post(
                    peer.url.rstrip("/") + PEER_PATH,
                    content=body,
                    headers={TIME_HEADER: stamp, MAC_HEADER: mac.hex(), "content-type": "application/json"},
                )
        except (httpx.TimeoutException, TimeoutError):
            raise OperatorError(f"no answer in time from {peer.url}") from None
        except httpx.HTTPError as error:
            raise OperatorError(f"{peer.url} cannot be reached: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise OperatorError(f"{peer.url} answered {answer.status_code}")

    async def restricted(self, node: str, seq: int, *, since_ms: int = 0) -> None:
        """Until the node says so in the database. See Peers."""
        if self._twin is not None and self._is_twin(node):
            raise OperatorError(self._twin.problem)
        while True:
            row = {row.name: row for row in await self._read_nodes()}.get(node)
            if row is None or row.is_stopped:
                raise ServesNothing("it stopped or was forgotten just now")
            if row.problems:  # it follows another log, or none, or it is two
                raise OperatorError("; ".join(row.problems))
            if row.restricted_seq >= seq and row.heartbeat_ms != since_ms:
                return
            await asyncio.sleep(ASK_AGAIN_S)

    async def close(self) -> None:
        """Close every connection."""
        for task in tuple(self._messages):
            task.cancel()
        if self._client is not None:
            await self._client.aclose()


def signed_part(stamp: str, body: bytes) -> bytes:
    """What the MAC is over."""
    return stamp.encode() + b"\n" + body


def is_authentic(sealer: Sealer, stamp: str, mac: str, body: bytes, now: int) -> bool:
    """Whether a node of ours sent it within the last minute. mac: in the one way to write it, since it is taken once."""
    try:
        given, age_s = bytes.fromhex(mac), abs(now - int(stamp))
    except ValueError:
        return False
    if given.hex() != mac:  # blanks between its bytes make another text of the same MAC
        return False
    return sealer.verify_mac(MAC_LABEL, signed_part(stamp, body), given) and age_s <= ALLOWED_SKEW_S
