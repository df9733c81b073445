# SPDX-License-Identifier: Apache-2.0
"""What the database holds besides events and objects: rows as frozen values. No rules, no I/O, no plaintext secret.

Structs, and not dataclasses: there may be a hundred thousand secrets, and a frozen dataclass takes some 16 times as long to make.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import msgspec

from xksfast.messages import CredentialUse, KeyUse
from xksfast.state.objects import Stored

Purpose = Literal["credential", "local_key", "pin"]


class Record(msgspec.Struct, frozen=True, gc=False):
    """A row, whose fields are named as its columns are. not_shown: fields that repr() leaves out."""

    not_shown: ClassVar[frozenset[str]] = frozenset()

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in self.not_shown)
        return f"{type(self).__name__}({', '.join(shown)})"


class SealedSecret(Record, frozen=True):
    """A secret as it is stored. version: from 1, one more each time it is sealed anew; bound to it as its id is."""

    not_shown = frozenset({"sealed"})

    id: str
    purpose: Purpose
    version: int
    data_key_id: str
    sealed: bytes


class WrappedDataKey(Record, frozen=True):
    """The key that secrets are sealed under, wrapped by a master key. provider, parameters: how the master key is come by.

    created_at: unix seconds.
    """

    not_shown = frozenset({"wrapped"})

    id: str
    provider: str
    parameters: dict[str, Any]
    wrapped: bytes
    created_at: int


class Checkpoint(Record, frozen=True):
    """The log ended at event `seq` with this hash; mac: by whoever could open the secrets then."""

    seq: int
    hash: bytes
    mac: bytes
    at_ms: int


class NodeRow(Record, frozen=True):
    """A node as it last told of itself. acked_seq: all its workers serve it; restricted_seq: what it forbids is in force there.

    details: "problems", a sentence each; "stopped": it has ended, and served nothing any more when it said so; "instance", "run":
    ids of the node and of its process; "twin": a sentence, while another node has the same name.
    """

    name: str
    version: str
    url: str
    started_at_ms: int
    heartbeat_ms: int
    acked_seq: int
    restricted_seq: int
    details: dict[str, Any] = {}

    @property
    def is_stopped(self) -> bool:
        """Until it is started again."""
        return bool(self.details.get("stopped"))

    @property
    def twin(self) -> str:
        """A sentence while another node runs under the same name, or ""."""
        return str(self.details.get("twin", ""))

    @property
    def problems(self) -> tuple[str, ...]:
        """Why nothing that it says of itself counts, a sentence each."""
        return (*map(str, self.details.get("problems", ())), *filter(None, (self.twin,)))


class Idempotency(Record, frozen=True):
    """A request that was carried out, by the key that its sender gave it, and the answer to it.

    response: what a repetition is answered with; sealed by whoever puts it here when it shows a secret.
    """

    not_shown = frozenset({"response"})

    key: str
    actor: str
    request_sha256: str
    status: int
    response: bytes
    at_ms: int


class Use(msgspec.Struct, frozen=True):
    """All that was ever used: encryptions with each key version, the last use of each credential."""

    keys: list[KeyUse]
    credentials: list[CredentialUse]


class Loaded(msgspec.Struct, frozen=True):
    """The whole state as of event `seq`: (object, seq of its last change) in the order of their making; head: that event's hash.

    objects: perhaps to be read only once.
    """

    objects: Iterable[tuple[Stored, int]]
    seq: int
    head: bytes
