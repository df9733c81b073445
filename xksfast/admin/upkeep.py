# SPDX-License-Identifier: Apache-2.0
"""What one node of all does by itself: rotations that are due, and looking at AWS for linked stores."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from xksfast.admin.actors import system_actor
from xksfast.admin.schedule import due
from xksfast.admin.service import Service
from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.state.store import StateStore

if TYPE_CHECKING:
    from xksfast.admin.linking import Linking


class Upkeep:
    """linking: brings what reaches into AWS when it is needed."""

    def __init__(self, service: Service, store: StateStore, linking: Callable[[], Awaitable[Linking]], log: Log) -> None:
        self._service = service
        self._store = store
        self._linking = linking
        self._log = log

    async def rotate_what_is_due(self) -> None:
        """A credential of a linked store goes to AWS as well."""
        with self._store.reading() as state:
            found = due(state, int(time.time()))
        if not found:
            return
        from xksfast.admin.requests import KeyRotate  # it brings pydantic, which REST has loaded by now

        actor = system_actor("rotation")
        for one in found:
            try:
                if one.action == "rotate_credential":
                    await self._service.rotate_credential(actor, one.store)
                    if self._service.store(actor, one.store).link is not None:
                        await (await self._linking()).update_store(actor, one.store)
                else:
                    await self._service.rotate_key(actor, one.store, one.external_key_id, KeyRotate())
            except OperatorError as error:
                self._log.error("rotation_failed", key_store=one.store, external_key_id=one.external_key_id, problem=str(error))
            else:
                self._log.info(
                    "rotated", what=one.action, key_store=one.store, external_key_id=one.external_key_id, why=one.why
                )

    async def sync_with_aws(self) -> None:
        """Every linked store; new drift is logged."""
        actor = system_actor("sync")
        for store in self._service.list_stores(actor).values():
            if store.link is None:
                continue
            try:
                synced = await (await self._linking()).sync_store(actor, store.name)
            except OperatorError as error:
                self._log.warning("sync_failed", key_store=store.name, problem=str(error))
            else:
                if synced.link is not None and synced.link.drift != store.link.drift:
                    self._log.warning("drift", key_store=store.name, drift=synced.link.drift)
