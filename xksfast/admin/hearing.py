# SPDX-License-Identifier: Apache-2.0
"""How this node stands with its database: what is wrong, since when, and which stores may not be served from news that old.

Said once in the log when it begins and once when it ends, and in a sentence for whoever asks meanwhile (`xksfast status`, `node list`).
A newcomer's trap: a database may be read though it takes no changes (a standby, a full disk), so both are watched, each for itself.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from xksfast.log import Log
from xksfast.state import rules
from xksfast.state.errors import StateError, StateWentBack
from xksfast.state.projection import State

Target = tuple[str, str]  # (kind, id)


class Hearing:
    """Of one node. From the loop only."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._heard_at = time.monotonic()
        self._silence: StateError | None = None
        self._silent_since = ""
        self._refusal = ""
        self._refused_since = ""
        self._stale: frozenset[str] = frozenset()

    # --- reading

    def heard(self) -> None:
        """What the database says was read, and it goes on from what this node knows."""
        if self._silence is not None:
            self._log.info("state_heard_again", silent_s=round(self.silent_s, 1))
        self._silence = None
        self._heard_at = time.monotonic()

    def not_heard(self, error: StateError) -> None:
        """It cannot be read, or went back: in both cases this node has no news."""
        former = self._silence
        if former is None:
            self._silent_since = _now()
        if isinstance(error, StateWentBack):
            if isinstance(former, StateWentBack) and former.ours == error.ours:
                return  # the older state goes on, which makes it no other problem
            self._log.error("state_went_back", problem=str(error))
        elif former is None or isinstance(former, StateWentBack):
            self._log.error("state_not_heard", problem=str(error))
        self._silence = error

    @property
    def silent_s(self) -> float:
        """Seconds without news."""
        return time.monotonic() - self._heard_at

    # --- writing

    def written(self) -> None:
        """It takes changes."""
        if self._refusal:
            self._log.info("state_written_again")
        self._refusal = ""

    def not_written(self, error: StateError) -> None:
        """It took no change. Nothing is said of one that cannot be read either: that is told already."""
        if self._silence is not None:
            self._refusal = ""
            return
        if not self._refusal:
            self._refused_since = _now()
            self._log.error("state_not_written", problem=str(error))
        self._refusal = str(error)

    # --- staleness

    def look_for_staleness(self, state: State) -> set[Target] | None:
        """The stores that are refused from now on, since they do not want to be served from old news; None: the same as before."""
        if self.silent_s < rules.LEAST_STALE_AFTER_S and not self._stale:
            return None
        stale = frozenset(
            store.name
            for store in state.key_stores.values()
            if store.on_stale == "refuse" and self.silent_s > store.stale_after_s
        )
        if stale == self._stale:
            return None
        self._log.warning("stale_stores", refused=sorted(stale), silent_s=round(self.silent_s))
        self._stale = stale
        return {("key_store", name) for name in stale}

    # --- for whoever asks

    def problems(self, *, named: bool = True) -> tuple[str, ...]:
        """A sentence each; the same text as long as it is the same problem. named: whoever hears it may see every key store."""
        found = []
        if isinstance(self._silence, StateWentBack):
            found.append(f"since {self._silent_since}: {self._silence}")
        elif self._silence is not None:
            found.append(f"no news since {self._silent_since}, what is known goes on being served: {self._silence}")
        if self._refusal:
            found.append(f"no changes since {self._refused_since}, what is known goes on being served: {self._refusal}")
        if self._stale:
            which = (
                f"key stores {', '.join(sorted(self._stale))}"
                if named
                else f"{len(self._stale)} key stores, which its log names,"
            )
            found.append(
                f"{which} are refused: they want no service without news for longer than their "
                "stale_after_s (on_stale = refuse)"
            )
        return tuple(found)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
