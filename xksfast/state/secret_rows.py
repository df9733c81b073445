# SPDX-License-Identifier: Apache-2.0
"""The sealed secrets of a database in memory, as the SecretSource of deltas. They stay sealed until a key is derived from one, in C."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xksfast.errors import OperatorError
from xksfast.native.crypto import SecretPages
from xksfast.state.database import Database
from xksfast.state.delta import Days
from xksfast.state.events import Event
from xksfast.state.objects import Credential, SourceKey
from xksfast.state.records import SealedSecret
from xksfast.state.sealing import Sealer


class SecretRows:
    """sealer: replaced when the data key is rotated. Looked up by one thread while another follows the log."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self.sealer = sealer
        self._database = database
        self._rows: dict[str, SealedSecret] = {}

    def load(self) -> None:
        """All of them, in the place of what was known before."""
        self._rows = {row.id: row for row in self._database.secrets()}

    def adopt(self, rows: Iterable[SealedSecret]) -> None:
        """The same from a local copy, while the database is away."""
        self._rows = {row.id: row for row in rows}

    def connect(self, database: Database, sealer: Sealer) -> None:
        """It is there again."""
        self._database, self.sealer = database, sealer

    def rows(self) -> list[SealedSecret]:
        """All of them."""
        return list(self._rows.values())

    def fetch(self, events: Iterable[Event], known: Iterable[SealedSecret] = ()) -> None:
        """What these events name, before they are applied. known: what need not be asked of the database, which may be away by now."""
        self._rows.update((row.id, row) for row in known)
        for event in events:
            after = event.object_after() if event.kind in ("credential", "source_key") else None
            if isinstance(after, (Credential, SourceKey)) and after.secret_id and after.secret_id not in self._rows:
                row = self._database.secret(after.secret_id)
                if row is not None:  # else a later event has removed it again
                    self._rows[row.id] = row

    def follow(self, events: Iterable[Event]) -> None:
        """Let go of what these events, which are applied, have removed."""
        for event in events:
            before = event.object_before() if event.kind in ("credential", "source_key") and event.after is None else None
            if isinstance(before, (Credential, SourceKey)):
                self._rows.pop(before.secret_id, None)

    def derive_signing_keys(self, credential: Credential, region: str, days: Days, pages: SecretPages, first_slot: int) -> None:
        """See SecretSource."""
        self.sealer.derive_signing_keys(self.row(credential.secret_id), days, region, pages, first_slot)

    def unseal_local_keys(self, sources: Mapping[int, SourceKey], pages: SecretPages) -> dict[int, OperatorError]:
        """See SecretSource."""
        rows: dict[int, SealedSecret] = {}
        problems: dict[int, OperatorError] = {}
        for slot, source in sources.items():
            try:
                rows[slot] = self.row(source.secret_id)
            except OperatorError as error:
                problems[slot] = error
        problems.update(self.sealer.open_all_into(rows, pages))
        return problems

    def row(self, secret_id: str) -> SealedSecret:
        """OperatorError when it is not there."""
        row = self._rows.get(secret_id)
        if row is None:
            raise OperatorError(
                f"its secret {secret_id!r} is not in the state: restore the state from a backup, or make it anew"
            )
        return row
