# SPDX-License-Identifier: Apache-2.0
"""What SIGHUP asks for, by numbers: which of the configurations that were asked for is in use is known from who took which.

Pure. A newcomer's trap: two SIGHUPs may follow each other at once, and the answer to the first is not that to the second, whose files
may be bad ones.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xksfast.config import Config

KEPT = 16  # an answer that is so late means nothing any more


class Reloads:
    """The last configurations that were asked for; number 0 is none of them."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: dict[int, Config] = {}
        self._bad: set[int] = set()  # to workers; their certificates are not those of administration
        self._proxy_taken = self._admin_taken = 0

    def ask(self, used: Config, fresh: Config) -> tuple[int, Config, list[str]]:
        """The number and the configuration to ask for: `used` with the certificates of `fresh`, and keys that only a start changes."""
        tls = fresh.proxy.tls if fresh.proxy.tls and used.proxy.tls else used.proxy.tls
        admin = used.admin
        if admin is not None and fresh.admin is not None:
            admin = msgspec.structs.replace(admin, certificate=fresh.admin.certificate, private_key=fresh.admin.private_key)
        asked = msgspec.structs.replace(used, proxy=msgspec.structs.replace(used.proxy, tls=tls), admin=admin)
        self._number += 1
        self._asked.pop(self._number - KEPT, None)
        self._bad.discard(self._number - KEPT)
        self._asked[self._number] = asked
        return self._number, asked, different_keys(msgspec.to_builtins(asked), msgspec.to_builtins(fresh))

    def newest_for_worker(self, used: Config) -> tuple[int, Config]:
        """What a worker that refused to work is tried with: the newest that is not known to be bad, or what is in use."""
        number = max((number for number in self._asked if number not in self._bad), default=0)
        return number, self._asked.get(number, used)

    def newest_for_control(self, used: Config) -> Config:
        """The same for the control process, which looks at other files."""
        return self._asked.get(self._number, used)

    def taken_by_worker(self, number: int, used: Config) -> Config:
        """What is in use when a worker serves with the certificates of this number."""
        asked = self._asked.get(number)
        if asked is None or number < self._proxy_taken:
            return used
        self._proxy_taken = number
        return msgspec.structs.replace(used, proxy=asked.proxy)

    def refused_by_worker(self, number: int) -> None:
        """Its files are bad: no worker is started with it."""
        self._bad.add(number)

    def taken_by_control(self, number: int, used: Config) -> Config:
        """What is in use when the control process serves administration with the certificate of this number."""
        asked = self._asked.get(number)
        if asked is None or number < self._admin_taken:
            return used
        self._admin_taken = number
        return msgspec.structs.replace(used, admin=asked.admin)


def different_keys(former: Any, new: Any, key: str = "") -> list[str]:
    """The dotted keys in which two configurations differ."""
    if isinstance(former, dict) and isinstance(new, dict):
        found = []
        for name in sorted({*former, *new}):
            found += different_keys(former.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        return found
    return [] if former == new else [key]
