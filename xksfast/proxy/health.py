# SPDX-License-Identifier: Apache-2.0
"""Keeps the answer to GetHealthStatus fresh: asks every key source once a second what its background probes found.

KMS may call at any time and must get a result that is at most a minute old; the probes run every ten seconds by default, in the
sources' own threads. A change of health is logged, once.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from xksfast.ekm.base import KeySource

CHECK_INTERVAL_S = 1.0


class HealthMonitor:
    """Refreshes the fleets of `sources`. log: callable(event, **fields). news: what else to log, asked for at each check."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        sources: Sequence[KeySource],
        log: Callable[..., Any],
        news: Callable[[], Iterable[tuple[str, Mapping[str, Any]]]] = tuple,
    ) -> None:
        self._loop = loop
        self._sources = sources
        self._log = log
        self._news = news
        self._timer: TimerHandle | None = None
        self._known: dict[str, str] = {}

    @property
    def healthy(self) -> bool:
        """Whether every key source can serve."""
        return all(source.fleet.serves for source in self._sources)

    def start(self) -> None:
        """Check now and from now on."""
        self._check()

    def stop(self) -> None:
        """Check no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        for event, fields in self._news():
            self._log(event, **fields)
        for source in self._sources:
            source.check()
            for member in source.fleet.members:
                former = self._known.get(member.id)
                if former not in (None, member.status):
                    self._log(
                        "key_manager_health", key_manager=member.id, former=former, status=member.status, reason=member.note
                    )
                self._known[member.id] = member.status
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)
