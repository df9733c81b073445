# SPDX-License-Identifier: Apache-2.0
"""What stands in for a database that could not be reached at the start: whatever is asked of it, it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from xksfast.state.errors import StateUnavailable


class AwayDatabase:
    """why: what kept it from being opened, in words."""

    def __init__(self, why: str) -> None:
        self.description = "the database"
        self._why = why

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def unavailable(*_: Any, **__: Any) -> NoReturn:
            raise StateUnavailable(self._why)

        return unavailable

    def close(self) -> None:
        """Nothing is open."""
