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
from typing import TYPE_CHECKING

import msgspec

from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.roster import Roster
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


class HttpPeers:
    """ca_file: "" trusts the system's authorities. read_nodes: reads the nodes table again."""

    def __init__(
        self, roster: Roster, sealer: Callable[[], Sealer], ca_file: str, read_nodes: Callable[[], Awaitable[list[NodeRow]]]
    ) -> None:
        self._roster = roster
        self._sealer = sealer
        self._read_nodes = read_nodes
        self._context = ssl.create_default_context(cafile=ca_file or None)
        self._client: httpx.AsyncClient | None = None

    async def prepare(self) -> httpx.AsyncClient:
        """Bring what it takes to reach them: a fifth of a second on a slow core, for which neither a start nor a block should wait."""
        if self._client is None:
            httpx = await asyncio.to_thread(importlib.import_module, "httpx")
            self._client = self._client or httpx.AsyncClient(verify=self._context, timeout=ANSWER_WITHIN_S, trust_env=False)
        return self._client

    def alive(self) -> list[str]:
        """See Roster."""
        return self._roster.alive()

    def may_serve(self) -> list[str]:
        """See Roster."""
        return self._roster.may_serve()

    async def tell_block(self, node: str, block: PendingBlock) -> None:
        """Returns when the node's workers have confirmed."""
        peer = self._roster.find(node)
        if peer is None:
            raise OperatorError("it was forgotten just now")
        if not peer.url:
            raise OperatorError(f"it has no [admin] url, so it hears of blocks through the database only{peer.doubt}")
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
            raise OperatorError(f"no answer in time from {peer.url}{peer.doubt}") from None
        except httpx.HTTPError as error:
            raise OperatorError(f"{peer.url} cannot be reached: {type(error).__name__}{peer.doubt}") from None
        if answer.status_code != 200:
            raise OperatorError(f"{peer.url} answered {answer.status_code}{peer.doubt}")

    async def restricted(self, node: str, seq: int) -> None:
        """Until the node says so in the database, or that it serves nothing any more."""
        while True:
            row = {row.name: row for row in await self._read_nodes()}.get(node)
            if row is None or row.is_stopped:
                return
            if row.details.get("problems"):  # it follows another log, or none
                raise OperatorError("; ".join(map(str, row.details["problems"])))
            if row.restricted_seq >= seq:
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
