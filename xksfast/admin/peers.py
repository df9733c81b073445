# SPDX-License-Identifier: Apache-2.0
"""The other nodes that share the database: who they are, and how a block reaches them when the database cannot carry it.

A message between nodes is authenticated by a MAC under a key that only who can open the state's secrets has, bound to a time stamp;
TLS keeps it from being read. Repeating one within that minute repeats a block that is named by its id, which changes nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from xksfast.admin.block_journal import PendingBlock
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
ALIVE_WITHIN_MS = 10_000  # a heartbeat is sent every second
ASK_AGAIN_S = 0.1


class HttpPeers:
    """ca_file: "" trusts the system's authorities. read_nodes: reads the nodes table again."""

    def __init__(
        self, node: str, sealer: Callable[[], Sealer], ca_file: str, read_nodes: Callable[[], Awaitable[list[NodeRow]]]
    ) -> None:
        self._node = node
        self._sealer = sealer
        self._read_nodes = read_nodes
        self._rows: dict[str, NodeRow] = {}
        self._context = ssl.create_default_context(cafile=ca_file or None)
        self._client: httpx.AsyncClient | None = None

    async def prepare(self) -> httpx.AsyncClient:
        """Bring what it takes to reach them: a fifth of a second on a slow core, for which neither a start nor a block should wait."""
        if self._client is None:
            httpx = await asyncio.to_thread(importlib.import_module, "httpx")
            self._client = self._client or httpx.AsyncClient(verify=self._context, timeout=httpx.Timeout(2.0), trust_env=False)
        return self._client

    def update(self, rows: Iterable[NodeRow]) -> None:
        """What the database last said. While it is away the nodes that were alive then count as alive: one of them may not be."""
        rows = list(rows)
        newest = max((row.heartbeat_ms for row in rows), default=0)
        self._rows = {row.name: row for row in rows if row.name != self._node and row.heartbeat_ms >= newest - ALIVE_WITHIN_MS}

    def names(self) -> list[str]:
        """Of the nodes that are alive."""
        return sorted(self._rows)

    async def tell_block(self, node: str, block: PendingBlock) -> None:
        """Returns when the node's workers have confirmed."""
        row = self._rows.get(node)
        if row is None:
            raise OperatorError("it has not been heard of for a while")
        if not row.url:
            raise OperatorError("it has no [admin] url, so it hears of blocks through the database only")
        body = msgspec.json.encode(block)
        stamp = str(int(time.time()))
        mac = self._sealer().mac(MAC_LABEL, signed_part(stamp, body))
        client = await self.prepare()
        import httpx  # is there already

        try:
            answer = await client.post(
                row.url.rstrip("/") + PEER_PATH,
                content=body,
                headers={TIME_HEADER: stamp, MAC_HEADER: mac.hex(), "content-type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise OperatorError(f"{row.url} cannot be reached: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise OperatorError(f"{row.url} answered {answer.status_code}")

    async def restricted(self, node: str, seq: int) -> None:
        """Until the node says so in the database."""
        while True:
            row = {row.name: row for row in await self._read_nodes()}.get(node)
            if row is not None and row.details.get("problems"):  # it follows another log, or none
                raise OperatorError("; ".join(map(str, row.details["problems"])))
            if row is None or row.restricted_seq >= seq:
                return
            await asyncio.sleep(ASK_AGAIN_S)

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.aclose()


def signed_part(stamp: str, body: bytes) -> bytes:
    """What the MAC is over."""
    return stamp.encode() + b"\n" + body


def is_authentic(sealer: Sealer, stamp: str, mac: str, body: bytes, now: int) -> bool:
    """Whether a node of ours sent it within the last minute."""
    try:
        given, age_s = bytes.fromhex(mac), abs(now - int(stamp))
    except ValueError:
        return False
    return sealer.verify_mac(MAC_LABEL, signed_part(stamp, body), given) and age_s <= ALLOWED_SKEW_S
