# SPDX-License-Identifier: Apache-2.0
"""The start of a node whose database went back: nothing that only this node still knows is lost by it.

Keys, key versions and source keys that the older state lacks are put back into it. Where that cannot be, because something else has
their place, the older state is not followed at all and the local copy is served, unless the operator has said that it is to be followed
as it is. Before it is followed the local copy gets a second name. What else differs is named, until somebody has seen to it.
A newcomer's trap: a crash may come between any two of these steps, so each of them may be done twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from xksfast.errors import OperatorError
from xksfast.log import Log
from xksfast.secret_file import write_secret_file
from xksfast.state.database import Database
from xksfast.state.difference import Difference, SealedRows, compare, put_back, some
from xksfast.state.errors import NEXT_STEP
from xksfast.state.events import Origin
from xksfast.state.local_copy import LocalCopy, is_genuine, keep_copy, kept_copies, read_copy
from xksfast.state.master_key import MasterKey
from xksfast.state.projection import State
from xksfast.state.sealing import Sealer
from xksfast.state.secret_rows import SecretRows
from xksfast.state.store import Plan, StateStore

KEPT_AT_LEAST = 10  # of older ones those go whose keys the state has
RESTORE = Origin(actor="system:restore")


@dataclass(frozen=True)
class Older:
    """A database that went back. database, sealer, store, secrets: as it is now; store: it is open. master: opens its data keys."""

    database: Database
    sealer: Sealer
    store: StateStore
    secrets: SecretRows
    master: MasterKey

    @property
    def rows(self) -> SealedRows:
        """Its secrets."""
        return SealedRows(self.secrets.rows(), self.sealer)


@dataclass(frozen=True)
class Known:
    """What a local copy says. sealer: opens its secrets; None: nothing here does, or somebody has changed the copy."""

    copy: LocalCopy
    state: State
    sealer: Sealer | None

    @property
    def rows(self) -> SealedRows:
        """Its secrets."""
        return SealedRows(self.copy.secrets, self.sealer)


@dataclass(frozen=True)
class Outcome:
    """copy: what this node knew. served: opens its secrets when it is served in the place of the database; None: that is followed."""

    copy: LocalCopy
    served: Sealer | None


class OlderState:
    """Of one node. copy_file: its local copy, beside which others are kept. accept: follow whatever the database holds."""

    def __init__(self, copy_file: Path, log: Log, *, accept: bool = False) -> None:
        self._copy_file = copy_file
        self._log = log
        self._accept = accept
        self._unkept = ""
        self._told: dict[Path, str] = {}
        for file in sorted(copy_file.parent.glob("copy-*.txt")):
            self._told[file] = _first_line(file)

    def problems(self) -> tuple[str, ...]:
        """What is to be looked at after older states were followed; a sentence each, until its file is removed."""
        self._told = {file: text for file, text in self._told.items() if file.exists()}
        return (*self._told.values(), *filter(None, (self._unkept,)))

    def went_back(self, older: Older) -> Outcome:
        """In the state thread, before anything is served. OperatorError: neither the database nor the copy can be served."""
        read = read_copy(self._copy_file)
        if read is None:
            raise OperatorError(f"{self._copy_file} was removed while this node was started: start it again")
        copy, mac, over = read
        known = Known(copy, state_of(copy), _sealer_of(copy, mac, over, older))
        difference = self._difference(known, older)
        if difference.keys and not self._accept:
            self._put_back(known, older)
            difference = self._difference(known, older)
            if difference.keys:
                return Outcome(copy, served=self._not_followed(known, older, difference))
        seq = older.store.seq
        try:
            kept = keep_copy(self._copy_file, copy.seq)
        except OSError as error:
            return Outcome(copy, served=self._not_kept(known, older, error.strerror or str(error)))
        self._log.error(
            "older_state_served",
            known_seq=copy.seq,
            seq=seq,
            keys_lost=difference.keys,
            allowed_again=difference.lifted,
            gone=difference.lost,
            kept=str(kept),
            next="see to what is named here; changes after its backup are to be made again",
        )
        self._tell(kept, copy.seq, seq, difference)
        self._let_go(kept, older)
        return Outcome(copy, served=None)

    def _difference(self, known: Known, older: Older) -> Difference:
        with older.store.reading() as state:
            return compare(known.state, state, known.rows.is_same(older.rows))

    def _put_back(self, known: Known, older: Older) -> None:
        """What nothing else has the place of. StateError: the database takes no changes now."""
        if known.sealer is None:  # who has changed the copy must not change the state by it
            return
        ours = known.rows
        names: list[str] = []

        def plan(state: State) -> Plan:
            theirs = older.rows
            changes = put_back(known.state, state, ours.is_same(theirs), ours.takes(theirs))
            named = [getattr(change.after, "secret_id", "") for change in changes if change.before is None]
            names[:] = [f"{change.kind} {change.id}" for change in changes]
            moved = (ours.moved(ours.by_id[id_], theirs) for id_ in named if id_ and id_ not in theirs.by_id)
            return Plan(changes=changes, new_secrets=[row for row in moved if row is not None])

        if older.store.transact(RESTORE, plan).events:
            self._log.warning("keys_put_back", put_back=names, why="the database went back to before them")

    def _not_followed(self, known: Known, older: Older, difference: Difference) -> Sealer:
        lacking = f"{older.database.description} went back, and lacks {some(difference.keys)}, which this node knows"
        if known.sealer is None:
            raise OperatorError(
                f"{lacking}. {self._copy_file} cannot be served instead: it was changed, or belongs to another master key. Bring the "
                "newer database or the right master key back, or start with --accept-older-state to follow the older state without "
                "these keys; the local copy is kept"
            )
        self._log.error("older_state_not_followed", keys=difference.keys, seq=older.store.seq, next=NEXT_STEP)
        return known.sealer

    def _not_kept(self, known: Known, older: Older, why: str) -> Sealer:
        problem = (
            f"{older.database.description} went back, and {self._copy_file}, which may hold what nothing else has, cannot be kept "
            f"under another name: {why}. Until then the older state is not followed: see that its directory has room and is yours "
            "to write in, then start this node again"
        )
        if known.sealer is None:
            raise OperatorError(problem)
        self._log.error("older_state_not_followed", problem=problem, seq=older.store.seq)
        self._unkept = problem
        return known.sealer

    # --- telling

    def _tell(self, kept: Path, known_seq: int, seq: int, difference: Difference) -> None:
        """A file beside the copy that is kept, which keeps the problem alive over restarts."""
        parts = (
            ("keys that are gone", difference.keys),
            ("allowed again", difference.lifted),
            ("gone", difference.lost),
        )
        if not any(words for _, words in parts):
            return
        file = kept.with_suffix(".txt")
        said = "; ".join(f"{what}: {some(words)}" for what, words in parts if words)
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        text = (
            f"since {at} an older state is served, event {seq} in the place of {known_seq}: {said}. See to them, then remove {file}, "
            f"which names all of them; {kept} is what this node knew before"
        )
        lines = [text, *(f"{what}: {word}" for what, words in parts for word in words)]
        self._told[file] = text
        try:
            write_secret_file(file, "\n".join(lines).encode() + b"\n", over=True)
        except OperatorError as error:
            self._log.warning("not_kept", problem=str(error), why="a restart would forget what the older state lacks")

    def _let_go(self, newest: Path, older: Older) -> None:
        """Of very old copies those whose keys are all in the state."""
        for kept in kept_copies(self._copy_file.parent)[:-KEPT_AT_LEAST]:
            if kept == newest:
                continue
            try:
                read = read_copy(kept)
                if read is None:
                    continue
                copy, mac, over = read
                known = Known(copy, state_of(copy), _sealer_of(copy, mac, over, older))
                if self._difference(known, older).keys:
                    continue
                kept.unlink()
            except (OperatorError, OSError) as error:
                self._log.warning("copy_kept", file=str(kept), problem=str(error))


def state_of(copy: LocalCopy) -> State:
    """The objects of a local copy, with their indexes."""
    state = State()
    state.load(copy.objects, copy.seq, copy.head)
    return state


def _sealer_of(copy: LocalCopy, mac: bytes, over: bytes, older: Older) -> Sealer | None:
    """The data key may be another one by now, and so may the master key that wraps it."""
    if is_genuine(mac, over, older.sealer):
        return older.sealer
    try:
        sealer = Sealer.open_with(older.master, copy.data_keys)
    except OperatorError:
        return None
    return sealer if is_genuine(mac, over, sealer) else None


def _first_line(file: Path) -> str:
    try:
        with file.open() as lines:
            return lines.readline().strip()
    except (OSError, ValueError) as error:
        return f"{file} names what an older state lacks, and cannot be read: {error}"
