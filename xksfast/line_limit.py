# SPDX-License-Identifier: Apache-2.0
"""The bound on what strangers write into the log: a few lines a second of each kind, and how many more there were.

Everybody who can open a connection can be refused, as often as they like, for less work than a line costs. A newcomer's trap: the
number of kinds must be bounded too, so a kind is made of our own words, never of the peer's.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable
from typing import Any

LINES_PER_WINDOW = 5
WINDOW_S = 1.0


class _Window:
    """What there was of one kind since its first line."""

    __slots__ = ("left_out", "written")

    def __init__(self) -> None:
        self.written = 0
        self.left_out = 0


class LineLimit:
    """Of one event loop. say(event, **fields): writes the line that tells how many were left out."""

    def __init__(self, say: Callable[..., Any]) -> None:
        self._say = say
        self._windows: dict[tuple[str, str], _Window] = {}

    def admits(self, event: str, result: str = "") -> bool:
        """Whether a line of this kind may be written now; if not, it is counted."""
        kind = (event, result)
        window = self._windows.get(kind)
        if window is None:
            window = self._windows[kind] = _Window()
            get_running_loop().call_later(WINDOW_S, self._end, kind)
        if window.written < LINES_PER_WINDOW:
            window.written += 1
            return True
        window.left_out += 1
        return False

    def close(self) -> None:
        """Say what is not said yet."""
        for kind in list(self._windows):
            self._end(kind)

    def _end(self, kind: tuple[str, str]) -> None:
        window = self._windows.pop(kind, None)
        if window is not None and window.left_out:
            event, result = kind
            self._say("lines_left_out", of=event, **({"result": result} if result else {}), suppressed=window.left_out)
