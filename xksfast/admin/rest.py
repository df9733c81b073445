# SPDX-License-Identifier: Apache-2.0
"""The REST listener of a node: its parts put together from what the node is made of."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from xksfast.admin.api.app import prepared_app
from xksfast.admin.api.log_reads import LogReads
from xksfast.admin.api.parts import Parts
from xksfast.admin.api.peers import PeerDoor
from xksfast.admin.api.replays import Box, DatabaseShelf, Replays
from xksfast.admin.api.server import ApiServer, serve_api
from xksfast.admin.blocks import Blocks
from xksfast.admin.linking import Linking
from xksfast.admin.peers import is_authentic
from xksfast.admin.roster import Roster
from xksfast.admin.service import Service
from xksfast.admin.state_thread import StateThread
from xksfast.admin.usage import Usage
from xksfast.config import Admin, Config
from xksfast.log import Log
from xksfast.state.chain import CHECKPOINT_LABEL
from xksfast.state.database import Database
from xksfast.state.sealing import Sealer
from xksfast.state.store import StateStore


async def serve_rest(
    config: Config,
    listener: socket.socket,
    *,
    node: str,
    service: Service,
    linking: Linking,
    roster: Roster,
    blocks: Blocks,
    usage: Usage,
    store: StateStore,
    run: StateThread,
    database: Callable[[], Database],
    sealer: Callable[[], Sealer],
    log: Log,
) -> ApiServer:
    """Serving when it returns. database, sealer: as they are now; either may be replaced while the node lives."""
    reads = LogReads(
        database,
        run,
        roster,
        open_another=lambda: Database.open(config.state.url, create=False),
        is_mac=lambda data, mac: sealer().verify_mac(CHECKPOINT_LABEL, data, mac),
        seq=lambda: store.seq,
    )
    parts = Parts(
        service=service,
        reading=store.reading,
        groups=config.partition_groups,
        events=reads.events,
        nodes=reads.nodes,
        verify_log=reads.verify,
        used=lambda name: usage.of_store(database(), name),
        replays=Replays(DatabaseShelf(database, run), Box(lambda label, data: sealer().mac(label, data))),
        log=log,
        certificate=Path(config.proxy.tls.certificate) if config.proxy.tls is not None else None,
        peers=PeerDoor(lambda stamp, mac, body: is_authentic(sealer(), stamp, mac, body, int(time.time())), blocks.enforce),
        linking=linking,
    )
    certificate, private_key = tls_files(config)
    return await serve_api(await prepared_app(parts), listener, log, certificate=certificate, private_key=private_key)


def tls_files(config: Config) -> tuple[str, str]:
    """Its own pair, or the proxy's; ("", ""): plain HTTP, on loopback."""
    admin = config.admin or Admin()
    if admin.certificate:
        return admin.certificate, admin.private_key
    tls = config.proxy.tls
    return (tls.certificate, tls.private_key) if tls is not None else ("", "")
