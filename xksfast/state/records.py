# SPDX-License-Identifier: Apache-2.0
"""What the database holds besides events and objects: rows as frozen values. No rules, no I/O, no plaintext secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Purpose = Literal["credential", "local_key", "pin"]


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret as it is stored. version: from 1, one more each time it is sealed anew; bound to it as its id is."""

    id: str
    purpose: Purpose
    version: int
    data_key_id: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WrappedDataKey:
    """The key that secrets are sealed under, wrapped by a master key. provider, parameters: how the master key is come by.

    created_at: unix seconds.
    """

    id: str
    provider: str
    parameters: dict[str, Any]
    wrapped: bytes = field(repr=False)
    created_at: int
