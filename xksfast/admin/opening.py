# SPDX-License-Identifier: Apache-2.0
"""Where a node's state comes from at its start: the database, or the local copy while that is away or lacks keys that the copy has.

All of it runs in the state thread. What must not be here: what is done with the state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from xksfast.admin.block_journal import BlockJournal
from xksfast.admin.copying import Copying
from xksfast.admin.kept_blocks import keep_blocks, keep_nodes
from xksfast.admin.older_state import Older, OlderState
from xksfast.admin.roster import Roster
from xksfast.admin.twin import Twin
from xksfast.log import Log
from xksfast.state.away import AwayDatabase
from xksfast.state.database import Database
from xksfast.state.errors import StateAbsent, StateError, StateUnavailable
from xksfast.state.events import Event
from xksfast.state.local_copy import LocalCopy, is_genuine, read_copy
from xksfast.state.master_key import MasterKey
from xksfast.state.records import Loaded
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import StateStore

Position = tuple[int, bytes]  # number and hash of an event


@dataclass
class Opened:
    """What a node begins with. away: database only says that it is away. follows: the state is the database's, and not the copy's."""

    database: Database
    sealer: Sealer
    secrets: SecretRows
    store: StateStore
    away: bool = False
    follows: bool = True


class Opening:
    """url: of the database. node: the name of this node. twin: None, nobody looks whether another node has the name."""

    def __init__(
        self,
        url: str,
        node: str,
        *,
        master: MasterKey,
        copying: Copying,
        roster: Roster,
        older: OlderState,
        twin: Twin | None,
        on_events: Callable[[list[Event]], None],
        log: Log,
    ) -> None:
        self._url = url
        self._node = node
        self._master = master
        self._copying = copying
        self._roster = roster
        self._older = older
        self._twin = twin
        self._on_events = on_events
        self._log = log

    def connect(self, known_seq: int, *, serves: bool) -> Database:
        """Open it, with a data key in it, which the first node of a new state makes under the write lock.

        known_seq: the newest event that this node has served; 0: none. A database that holds nothing is then not made a new state of:
        it is another one, or waits for its backup. serves: this node does already; else SameName: another node of this name uses it.
        """
        database = Database.open(self._url, create=not known_seq)
        try:
            if self._twin is not None and not serves:
                self._twin.refuse_start(database)
            rows = database.data_keys()
            if not rows and known_seq:
                raise StateAbsent(
                    f"{database.description} holds no state, but this node has served event {known_seq}: restore a backup, or correct "
                    f"[state] url. To begin with a new state, stop the node and move {self._copying.file} away"
                )
            if not rows:
                with database.write(self._node) as writer:
                    if not writer.data_keys():
                        _, row = Sealer.new(self._master, now=int(time.time()))
                        writer.put_data_key(row)
        except BaseException:
            database.close()
            raise
        return database

    def sealer(self, database: Database) -> Sealer:
        """Of its data keys."""
        self._copying.data_keys = database.data_keys()
        return Sealer.open_with(self._master, self._copying.data_keys)

    def from_database(self, journal: BlockJournal, known: Position | None) -> Opened:
        """What it holds; what the local copy holds, when the database went back to before keys of it. known: where the copy ends."""
        database = self.connect(known[0] if known else 0, serves=False)
        try:
            opened = self._opened(database, self.sealer(database))
            opened.store.open()
            opened.secrets.load()
            if not opened.sealer.knows(opened.secrets.rows()):
                raise StateError("the data key was rotated while this node was started: start it again")
            if known is not None and database.news(known[0], limit=1)[0] != known[1]:
                self._went_back(opened, journal)
        except BaseException:
            database.close()
            raise
        return opened

    def _went_back(self, opened: Opened, journal: BlockJournal) -> None:
        """A database that was restored from before a block must not undo it, nor lose a key."""
        outcome = self._older.went_back(Older(opened.database, opened.sealer, opened.store, opened.secrets, self._master))
        keep_nodes(opened.database, self._roster.all(), time.time_ns() // 1_000_000)
        if outcome.served is None:
            with opened.store.reading() as state:
                keep_blocks(journal, outcome.copy, state, self._node, self._log)
            return
        opened.sealer = outcome.served
        opened.secrets.connect(opened.database, opened.sealer)
        self._adopt(opened, outcome.copy)

    def from_copy(self, why: StateError) -> Opened:
        """What we knew, until the database is there. OperatorError: there is no copy that could be served; why: raised then, too."""
        copy = read_copy(self._copying.file)
        if copy is None:
            raise why
        known, mac, over = copy
        sealer = Sealer.open_with(self._master, known.data_keys)
        if not is_genuine(mac, over, sealer):
            raise StateUnavailable(f"{why}. {self._copying.file} cannot be served instead: it was changed") from why
        opened = self._opened(cast(Database, AwayDatabase(str(why))), sealer)
        opened.away = True
        self._adopt(opened, known)
        self._log.error("local_copy_served", seq=known.seq, why=str(why))
        return opened

    def _opened(self, database: Database, sealer: Sealer) -> Opened:
        secrets = SecretRows(database, sealer)
        return Opened(database, sealer, secrets, StateStore(database, self._node, secrets=secrets, on_events=self._on_events))

    def _adopt(self, opened: Opened, known: LocalCopy) -> None:
        opened.store.adopt(Loaded(known.objects, known.seq, known.head))
        opened.secrets.adopt(known.secrets)
        opened.follows = False
        self._copying.seq, self._copying.data_keys = known.seq, known.data_keys
