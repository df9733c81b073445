# SPDX-License-Identifier: Apache-2.0
"""What was used: encryptions of each key version, and when each credential last signed. Counted in the database, warned about here.

A report that the database does not take is kept for the next time. What was counted is never lowered; a crash loses what was
not reported yet, some seconds of it. So the numbers lag, and no IV depends on them: they only say when a rotation is due, long before.
A newcomer's trap: what other nodes count is in the database only, so what is shown is read from there, if that is not asked too much.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from xksfast.admin.schedule import WARN_INVOCATIONS, Level, invocation_level, rotation_hint
from xksfast.admin.state_thread import StateThread
from xksfast.log import Log
from xksfast.messages import CredentialUse, KeyUse, UsageReport
from xksfast.state.database import Database
from xksfast.state.errors import StateError
from xksfast.state.use_reads import often_used, use_of_store

SHOWN_FOR_S = 5.0  # as often as workers report
READ_PATIENCE_S = 0.5  # whoever looks at a key does not wait for a database that hangs
WORN_INTERVAL_S = 300.0  # how often we look for keys that all nodes together have worn


@dataclass
class StoreUse:
    """Of one key store. encryptions: (external key id, version) -> how many, on all nodes. last_used: access key id -> unix seconds."""

    encryptions: dict[tuple[str, int], int] = field(default_factory=dict)
    last_used: dict[str, int] = field(default_factory=dict)


class Usage:
    """As far as is known here: what all nodes had written when it was last read, and what our workers have reported since."""

    def __init__(self, run: StateThread, log: Log) -> None:
        self._stores: dict[str, StoreUse] = {}
        self._run = run
        self._log = log
        self._keys: list[KeyUse] = []  # not in the database yet
        self._credentials: list[CredentialUse] = []
        self._told: dict[tuple[str, str, int], Level] = {}  # what was warned about
        self._read_at: dict[str, float] = {}  # store -> time.monotonic()
        self._looked_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # --- counting

    async def read(self, database: Database) -> None:
        """What all nodes have counted until now."""
        use = await self._run(database.use)
        for one in use.keys:
            self._note(one, tell=False)
        for credential in use.credentials:
            self._note_credential(credential)

    def add(self, report: UsageReport) -> None:
        """A worker's report; written with the next `write`."""
        for use in report.keys:
            known = self._store(use.store).encryptions
            total = known.get((use.external_key_id, use.version), 0) + use.encryptions
            self._note(KeyUse(store=use.store, external_key_id=use.external_key_id, version=use.version, encryptions=total))
        for credential in report.credentials:
            self._note_credential(credential)
        self._keys += report.keys
        self._credentials += report.credentials

    async def write(self, database: Database) -> None:
        """Into the database; kept for the next time when it is away. Now and then, a look at what all nodes together have counted."""
        if self._keys or self._credentials:
            keys, credentials = self._keys, self._credentials
            self._keys, self._credentials = [], []
            try:
                await self._run(lambda: database.add_use(keys, credentials))
            except StateError as error:
                self._keys, self._credentials = keys + self._keys, credentials + self._credentials
                self._log.warning("use_not_counted", problem=str(error))
                return
        now = time.monotonic()
        if now - self._looked_at >= WORN_INTERVAL_S:
            self._looked_at = now
            try:
                worn = await self._run(lambda: often_used(database, WARN_INVOCATIONS))
            except StateError:
                return
            for one in worn:
                self._note(one)

    # --- showing

    async def of_store(self, database: Database, store: str) -> StoreUse:
        """Some seconds old at most, unless the database is away: then what is known here. Not to be changed."""
        now = time.monotonic()
        if now - self._read_at.get(store, -SHOWN_FOR_S) >= SHOWN_FOR_S:
            self._read_at[store] = now
            task = asyncio.get_running_loop().create_task(self._refresh(database, store))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.wait((task,), timeout=READ_PATIENCE_S)
        return self._store(store)

    async def _refresh(self, database: Database, store: str) -> None:
        try:
            use = await self._run(lambda: use_of_store(database, store))
        except StateError:
            return  # whoever follows the log tells of it
        for one in use.keys:
            self._note(one)
        for credential in use.credentials:
            self._note_credential(credential)

    # --- shared

    def _store(self, name: str) -> StoreUse:
        return self._stores.setdefault(name, StoreUse())

    def _note(self, use: KeyUse, *, tell: bool = True) -> None:
        """A total. One that is lower than ours does not have our newest reports yet."""
        known = self._store(use.store).encryptions
        version = (use.external_key_id, use.version)
        total = known[version] = max(use.encryptions, known.get(version, 0))
        level, named = invocation_level(total), (use.store, *version)
        if level == self._told.get(named, "ok"):
            return
        self._told[named] = level
        if tell:
            self._log.warning(
                "key_is_worn",
                key_store=use.store,
                external_key_id=use.external_key_id,
                version=use.version,
                encryptions=total,
                next=rotation_hint(use.store, use.external_key_id, use.version, total),
            )

    def _note_credential(self, use: CredentialUse) -> None:
        known = self._store(use.store).last_used
        known[use.access_key_id] = max(use.last_used, known.get(use.access_key_id, 0))
