# SPDX-License-Identifier: Apache-2.0
"""Blocks that other nodes tell this one directly, since the kill switch cannot wait for a database.

How they are authenticated stands in admin/peers.py. On top of that a MAC is taken once: whoever recorded a message cannot block again
with it what was unblocked since.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel

from xksfast.admin.api.door import admit
from xksfast.admin.api.problems import documented
from xksfast.admin.block_journal import PendingBlock
from xksfast.admin.peers import ALLOWED_SKEW_S, MAC_HEADER, PEER_PATH, TIME_HEADER
from xksfast.admin.refusals import Refused

MAX_HEARD = 10_000

router = APIRouter(tags=["peers"])


class PeerDoor:
    """authentic: of (time stamp, MAC, body), whether a node of ours sent it just now. enforce: returns when it is in force."""

    def __init__(
        self,
        authentic: Callable[[str, str, bytes], bool],
        enforce: Callable[[PendingBlock], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authentic = authentic
        self._enforce = enforce
        self._clock = clock
        self._heard: dict[str, float] = {}  # MAC -> until when it would count as authentic

    async def take(self, stamp: str, mac: str, body: bytes, admit: Callable[[], None] = lambda: None) -> None:
        """Refused unless another node has sent this just now, for the first time. OperatorError: a worker did not confirm.

        admit: called when it is another node's.
        """
        if not self._authentic(stamp, mac.lower(), body):
            raise Refused(
                "unauthenticated",
                "peer-unknown",
                "Whoever sent this has another data key than this node, or another time",
                next="Let all nodes share one database and one master key, and set their clocks by NTP",
            )
        try:
            block = msgspec.json.decode(body, type=PendingBlock)
        except msgspec.MsgspecError as error:
            raise Refused(
                "invalid", "body-invalid", f"It is no block: {error}", next="Run the same version on all nodes"
            ) from None
        now = self._clock()
        self._heard = {heard: until for heard, until in self._heard.items() if until >= now}
        if mac.lower() in self._heard:
            raise Refused("conflict", "peer-replayed", "This message was heard before", next="Send it with a new time stamp")
        if len(self._heard) >= MAX_HEARD:
            raise Refused("unavailable", "peer-busy", "This node has heard too many blocks in a minute", next="Send it again")
        self._heard[mac.lower()] = now + 2 * ALLOWED_SKEW_S
        admit()
        await self._enforce(block)


class Heard(BaseModel):
    """This node serves nothing more of it."""

    confirmed: bool = True


@router.post(PEER_PATH, response_model=Heard, responses=documented(404, 409, 413), include_in_schema=False)
async def hear_block(
    request: Request,
    stamp: Annotated[str, Header(alias=TIME_HEADER)] = "",
    mac: Annotated[str, Header(alias=MAC_HEADER)] = "",
) -> Response:
    """For nodes only."""
    peers: PeerDoor | None = request.app.state.parts.peers
    if peers is None:
        raise Refused("not_found", "no-peers", "This node shares its state with no other")
    await peers.take(stamp, mac, await request.body(), lambda: admit(request.scope))
    return Response(Heard().model_dump_json(), media_type="application/json")
