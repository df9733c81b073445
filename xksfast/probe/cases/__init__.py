# SPDX-License-Identifier: Apache-2.0
"""The cases, put into the order in which they run: reaching the proxy first, those that look back at all answers last."""

from __future__ import annotations

from xksfast.probe.case import CASES
from xksfast.probe.cases import answers, authentication, bodies, decrypt, encrypt, health, http, keys, load, reach, rights

__all__ = ["answers", "authentication", "bodies", "decrypt", "encrypt", "health", "http", "keys", "load", "reach", "rights"]

AREAS = (
    "reach", "tls", "health", "authentication", "metadata", "encrypt", "decrypt", "bodies", "http", "rights", "load", "answers",
)  # fmt: skip

for _name in sorted(CASES, key=lambda name: AREAS.index(CASES[name].area)):
    CASES[_name] = CASES.pop(_name)
