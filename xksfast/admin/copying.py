# SPDX-License-Identifier: Apache-2.0
"""When and how the local copy is written, and what to say when it cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from xksfast.admin.state_thread import StateThread
from xksfast.log import Log
from xksfast.state.database import Database
from xksfast.state.errors import StateError
from xksfast.state.local_copy import write_copy
from xksfast.state.records import Loaded, WrappedDataKey
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import StateStore

COPY_INTERVAL_S = 1.0  # or as much longer as keeps writing it to these shares:
CPU_SHARE, TIME_SHARE = 1 / 20, 1 / 5  # of a core, and of the state thread's time, which may pass in waiting for a disk


class Copying:
    """seq: the newest event that the copy has; 0: none was written yet. interval_s: to keep between two. problem: a sentence, or ""."""

    def __init__(self, file: Path, run: StateThread, log: Log) -> None:
        self.file = file
        self.seq = 0
        self.interval_s = COPY_INTERVAL_S
        self.problem = ""
        self.data_keys: list[WrappedDataKey] = []  # as they were last read
        self._run = run
        self._log = log

    async def write(self, store: StateStore, database: Database, secrets: SecretRows, sealer: Callable[[], Sealer]) -> bool:
        """When there is anything new; whether it was written. What keeps it from being written is logged once, and is the problem."""
        with store.reading() as state:
            if state.seq == self.seq:
                return False

        def write() -> tuple[int, float]:
            with store.reading() as state:  # the values only: whoever reads the state must not wait for a disk
                known = Loaded(state.with_revisions(), state.seq, state.head)
            data_keys = self._data_keys(database, sealer().data_key_id)
            began, cpu_began = (
                time.monotonic(),
                time.thread_time(),
            )  # not before: waiting for the database is no cost of the copy
            write_copy(self.file, known, data_keys, secrets.rows(), sealer())
            return known.seq, max((time.thread_time() - cpu_began) / CPU_SHARE, (time.monotonic() - began) / TIME_SHARE)

        try:
            self.seq, interval_s = await self._run(write)
        except StateError:  # whoever follows the log tells of it
            return False
        except OSError as error:
            self._not_written(error.strerror or str(error))
            return False
        self.interval_s = max(COPY_INTERVAL_S, interval_s)
        if self.problem:
            self._log.info("local_copy_written_again", file=str(self.file))
        self.problem = ""
        return True

    def _data_keys(self, database: Database, needed: str) -> list[WrappedDataKey]:
        """What a database that is away, or went back to another data key, does not tell is known from before: what only this node knows
        must not wait for it. StateError: it is not known either."""
        try:
            found = database.data_keys()
        except StateError:
            if not self.data_keys:
                raise
            return self.data_keys
        if any(row.id == needed for row in found) or not self.data_keys:
            self.data_keys = found
        return self.data_keys

    def _not_written(self, why: str) -> None:
        if self.problem:
            return
        self._log.warning("local_copy_not_written", file=str(self.file), problem=why)
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.problem = (
            f"no local copy since {since}: {self.file} cannot be written: {why}. Without it a start that finds no database serves "
            "nothing, or what is older, and a restored database may undo blocks: make it writable"
        )
