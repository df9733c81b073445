# SPDX-License-Identifier: Apache-2.0
"""Blocks that other nodes tell this one directly, since the kill switch cannot wait for a database.

Authenticated by a MAC that only nodes with the same data key can make. Signed text: "POST /v1/peer/blocks" LF time LF body, where time is
unix milliseconds in decimal. Headers: X-Xksfast-Time, X-Xksfast-Mac (hexadecimal). A time that is more than a minute off is refused, and
a MAC is taken once: whoever recorded one cannot block again with it what was unblocked since.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field

from xksfast.admin.api.problems import documented
from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.refusals import Refused

PATH = "/v1/peer/blocks"
MAC_LABEL = "peer"
MAX_SKEW_MS = 60_000
TIME_HEADER = "X-Xksfast-Time"
MAC_HEADER = "X-Xksfast-Mac"
MAX_HEARD = 10_000

router = APIRouter(tags=["peers"])


def signed_text(time_ms: str, body: bytes) -> bytes:
    """What the MAC is made of."""
    return b"POST " + PATH.encode() + b"\n" + time_ms.encode() + b"\n" + body


def signed_headers(mac: Callable[[str, bytes], bytes], body: bytes, now_ms: int) -> dict[str, str]:
    """For the sender. mac: Sealer.mac."""
    return {TIME_HEADER: str(now_ms), MAC_HEADER: mac(MAC_LABEL, signed_text(str(now_ms), body)).hex()}


class PeerDoor:
    """verify: Sealer.verify_mac. enforce: returns when this node serves nothing more of it."""

    def __init__(
        self,
        verify: Callable[[str, bytes, bytes], bool],
        enforce: Callable[[PendingBlock], Awaitable[None]],
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._verify = verify
        self._enforce = enforce
        self._clock_ms = clock_ms
        self._heard: dict[str, int] = {}  # MAC -> its time

    async def take(self, time_ms: str, mac: str, body: bytes) -> None:
        """Refused unless another node has sent this just now, for the first time. OperatorError: a worker did not confirm."""
        now = self._clock_ms()
        if not (time_ms.isascii() and time_ms.isdigit() and len(time_ms) < 20) or abs(now - int(time_ms)) > MAX_SKEW_MS:
            raise Refused(
                "unauthenticated",
                "peer-clock",
                "The time of this request is more than a minute from this node's",
                next="Set both clocks by NTP",
            )
        try:
            given = bytes.fromhex(mac)
        except ValueError:
            given = b""
        if not self._verify(MAC_LABEL, signed_text(time_ms, body), given):
            raise Refused(
                "unauthenticated",
                "peer-unknown",
                "Whoever sent this does not have the data key of this state",
                next="Let all nodes share one database and one master key",
            )
        self._heard = {heard: at for heard, at in self._heard.items() if abs(now - at) <= MAX_SKEW_MS}
        if given.hex() in self._heard:
            raise Refused("conflict", "peer-replayed", "This request was heard before", next="Sign it anew")
        if len(self._heard) >= MAX_HEARD:
            raise Refused("unavailable", "peer-busy", "This node has heard too many blocks in a minute")
        try:
            block = msgspec.json.decode(body, type=PendingBlock)
        except msgspec.MsgspecError as error:
            raise Refused(
                "invalid", "body-invalid", f"It is no block: {error}", next="Run the same version on all nodes"
            ) from None
        self._heard[given.hex()] = int(time_ms)
        await self._enforce(block)


class Heard(BaseModel):
    """This node serves nothing more of it."""

    confirmed: bool = Field(True)


@router.post(
    PATH,
    summary="A block that another node was asked for",
    response_model=Heard,
    responses=documented(404, 409, 413),
    include_in_schema=False,
)
async def hear_block(
    request: Request,
    time_ms: Annotated[str, Header(alias=TIME_HEADER)] = "",
    mac: Annotated[str, Header(alias=MAC_HEADER)] = "",
) -> Response:
    """For nodes only."""
    peers: PeerDoor | None = request.app.state.parts.peers
    if peers is None:
        raise Refused("not_found", "no-peers", "This node shares its state with no other")
    await peers.take(time_ms, mac, await request.body())
    return Response(Heard().model_dump_json(), media_type="application/json")
