# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the state, by what an operator does about it. No text of these holds a password.

A newcomer's trap: OutcomeUnknown is not a failure. What was to be written may be there, and is told apart only by looking again.
"""

from __future__ import annotations

from xksfast.errors import OperatorError

NEXT_STEP = (
    "Bring the newer database back. To go on from the older state, restart the nodes one after the other, first those that know the "
    "newest events (`xksfast node list`): each puts back keys and blocks that only it knows, keeps its local copy, and names what else "
    "is lost. Nodes that are all started with `xksfast serve --accept-older-state` put no keys back"
)


class StateError(OperatorError):
    """The state cannot be read or changed."""


class StateUnavailable(StateError):
    """It cannot be reached, does not answer in time, or another node holds its lock. Nothing was changed; trying again may help."""


class StateAbsent(StateUnavailable):
    """The database can be reached and holds no state."""


class StateFull(StateError):
    """There is no room on its disk. Nothing was changed."""


class StateReadOnly(StateError):
    """It may be read but not changed. Nothing was changed."""


class StateCorrupt(StateError):
    """What it holds contradicts itself."""


class StateTooNew(StateError):
    """A newer program has written it."""


class OutcomeUnknown(StateError):
    """The connection was lost while a transaction was committed: it is there, or it is not.

    transaction: by which its events are found.
    """

    def __init__(self, message: str, transaction: str) -> None:
        super().__init__(message)
        self.transaction = transaction


class StateWentBack(StateError):
    """The database is not the one that we knew, or was restored from an older backup. Nothing of it was taken over.

    ours, theirs: (seq, hash) of the newest event here and there.
    """

    def __init__(self, where: str, ours: tuple[int, bytes], theirs: tuple[int, bytes]) -> None:
        super().__init__(
            f"{where} went back: this node knows event {ours[0]} ({ours[1].hex()[:16]}…), "
            f"but the database ends at event {theirs[0]} ({theirs[1].hex()[:16]}…) "
            + ("and holds another event in its place" if theirs[0] >= ours[0] else "and has never heard of it")
            + f". It was restored from an older backup, or it is another database. This node goes on serving what it knows. {NEXT_STEP}"
        )
        self.ours = ours
        self.theirs = theirs
