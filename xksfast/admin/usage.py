# SPDX-License-Identifier: Apache-2.0
"""What was used: encryptions of each key version, and when each credential last signed. Counted in the database, warned about here.

A report that the database does not take is kept for the next time. What was counted is never lowered; a crash loses what was
not reported yet, some seconds of it.
"""

from __future__ import annotations

from xksfast.admin.schedule import invocation_level
from xksfast.admin.state_thread import StateThread
from xksfast.log import Log
from xksfast.messages import CredentialUse, KeyUse, UsageReport
from xksfast.state.database import Database
from xksfast.state.errors import StateError


class Usage:
    """encryptions: (store, external key id, version) -> how many on all nodes, as far as is known here. last_used: unix seconds."""

    def __init__(self, run: StateThread, log: Log) -> None:
        self.encryptions: dict[tuple[str, str, int], int] = {}
        self.last_used: dict[tuple[str, str], int] = {}
        self._run = run
        self._log = log
        self._keys: list[KeyUse] = []  # not in the database yet
        self._credentials: list[CredentialUse] = []

    async def read(self, database: Database) -> None:
        """What all nodes have counted until now."""
        use = await self._run(database.use)
        self.encryptions = {(one.store, one.external_key_id, one.version): one.encryptions for one in use.keys}
        self.last_used = {(one.store, one.access_key_id): one.last_used for one in use.credentials}

    def add(self, report: UsageReport) -> None:
        """A worker's report; written with the next `write`."""
        for use in report.keys:
            named = (use.store, use.external_key_id, use.version)
            before = self.encryptions.get(named, 0)
            after = self.encryptions[named] = before + use.encryptions
            if invocation_level(before) != invocation_level(after):
                self._log.warning(
                    "key_is_worn",
                    key_store=use.store,
                    external_key_id=use.external_key_id,
                    version=use.version,
                    encryptions=after,
                    next=f"xksfast key rotate {use.store} {use.external_key_id}",
                )
        for credential in report.credentials:
            self.last_used[credential.store, credential.access_key_id] = credential.last_used
        self._keys += report.keys
        self._credentials += report.credentials

    async def write(self, database: Database) -> None:
        """Into the database; kept for the next time when it is away."""
        if not self._keys and not self._credentials:
            return
        keys, credentials = self._keys, self._credentials
        self._keys, self._credentials = [], []
        try:
            await self._run(lambda: database.add_use(keys, credentials))
        except StateError as error:
            self._keys, self._credentials = keys + self._keys, credentials + self._credentials
            self._log.warning("use_not_counted", problem=str(error))
