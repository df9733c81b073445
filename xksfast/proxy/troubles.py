# SPDX-License-Identifier: Apache-2.0
"""Why child processes do not work, from their own words or from how they ended, until they do.

What lives here: remembering, saying it in the log, and the sentence for the status. What must not: starting processes (child.py). A
newcomer's trap: a child that refuses is tried again for ever, so the same words are logged once a minute and not at every try.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from xksfast.log import Log

SAID_AGAIN_AFTER_S = 60.0
STUCK_AFTER_ENDS = 3
TRIED_AGAIN = "it is tried again by itself, and at once when SIGHUP is sent"
WAITS = "it is not tried again by itself, since a token may lock: set that right, then send SIGHUP or start the proxy again"


@dataclass
class _Trouble:
    problems: tuple[str, ...]
    final: bool = False
    said_at: float = float("-inf")
    of_this_process: bool = True
    in_words: bool = True  # else known from how its processes ended
    ends: int = 0  # of processes that did not work


class Troubles:
    """Children that do not work, by the names of their processes."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._troubles: dict[str, _Trouble] = {}

    def refused(self, who: str, problems: tuple[str, ...], *, final: bool) -> None:
        """The process of `who` says why it will not work. final: only a person's word starts another one."""
        former = self._troubles.get(who)
        again = former is not None and (former.problems, former.final) == (problems, final)
        trouble = _Trouble(problems, final, ends=former.ends if former is not None else 0)
        if former is not None and again:
            trouble.said_at = former.said_at
        self._troubles[who] = trouble
        now = monotonic()
        if now - trouble.said_at >= SAID_AGAIN_AFTER_S:
            trouble.said_at = now
            for problem in problems:
                self._log.error("refused", by=who, problem=problem, next=WAITS if final else TRIED_AGAIN)

    def ended(self, who: str, cause: str) -> None:
        """Its process is gone. Words that this process left behind say more than how it ended."""
        trouble = self._troubles.get(who)
        if trouble is None or not trouble.of_this_process:
            trouble = _Trouble((f"its process ended ({cause})",), in_words=False, ends=trouble.ends if trouble else 0)
            self._troubles[who] = trouble
        trouble.ends += 1

    def started(self, who: str) -> None:
        """It is tried again; what was wrong stays said until it works."""
        if who in self._troubles:
            self._troubles[who].of_this_process = False

    def works(self, who: str) -> None:
        """Nothing is wrong any more."""
        self._troubles.pop(who, None)

    def is_stuck(self, who: str) -> bool:
        """Whether the next try is likely to fail as well: it refused, or its processes end again and again."""
        trouble = self._troubles.get(who)
        return trouble is not None and (trouble.in_words or trouble.ends >= STUCK_AFTER_ENDS)

    def has_refused(self, who: str) -> bool:
        """Whether it has said itself why it does not work; it is tried again, or waits for a person."""
        trouble = self._troubles.get(who)
        return trouble is not None and trouble.in_words

    def is_final(self, who: str) -> bool:
        """Whether it waits for a person."""
        return who in self._troubles and self._troubles[who].final

    def why(self, who: str) -> str:
        """One sentence: what is wrong and what comes next; "" when nothing is."""
        trouble = self._troubles.get(who)
        return f"{'; '.join(trouble.problems)}; {WAITS if trouble.final else TRIED_AGAIN}" if trouble is not None else ""
