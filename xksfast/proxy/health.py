# SPDX-License-Identifier: Apache-2.0
"""Keeps the answer to GetHealthStatus fresh: asks every key source once a second what its background probes found.

KMS may call at any time and must get a result that is at most a minute old; the probes run every ten seconds by default, in the
sources' own threads. A change of health is logged, once; so is a key manager that is away from the start, and each new reason for it.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from xksfast.ekm.base import FleetMember, KeySource

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
        self._known: dict[str, FleetMember] = {}
        self._served: set[str] = set()

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
                name = member.id.partition(":")[0]  # the serial number is known only once the token has been found
                former = self._known.get(name)
                if self._is_news(name, former, member):
                    self._log(
                        "key_manager_health",
                        key_manager=member.id,
                        former=former.status if former else None,
                        status=member.status,
                        reason=member.note,
                    )
                self._known[name] = member
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

    def _is_news(self, name: str, former: FleetMember | None, member: FleetMember) -> bool:
        """Whether the health changed, or a key manager that has not served yet gives a new reason."""
        if member.status != "UNAVAILABLE":
            self._served.add(name)
        away = name not in self._served and member.note not in ("", former.note if former else "")
        return away or (former is not None and former.status != member.status)
