# SPDX-License-Identifier: Apache-2.0
"""What happened, in order: the append-only log of every change, and the hash chain through it.

hash(event) = SHA-256("xksfast event 1" | 0x00 | hash of the event before (32 bytes) | the event's canonical JSON)
Canonical JSON: the members seq, at_ms, transaction, node, actor, origin, action, kind, id, before, after in this order, compact, UTF-8;
before and after are the objects' own compact JSON or null. The first event follows 32 zero bytes. Whoever holds the hash of the
newest event can tell whether any event before it was changed, removed or added.

No event holds a secret. The events of one transaction take effect together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from xksfast.state.objects import KINDS, Stored

GENESIS = bytes(32)
_DOMAIN = b"xksfast event 1\x00"

_encoder = msgspec.json.Encoder()
_decoders = {kind: msgspec.json.Decoder(type_) for kind, type_ in KINDS.items()}


class Origin(msgspec.Struct, frozen=True):
    """Who changes something, and from where. actor: "operator:alice", "system:rotation". address: of the client, or "local"."""

    actor: str
    address: str = "local"


class Change(msgspec.Struct, frozen=True):
    """One object before and after; before None: it is new; after None: it is gone. action: "store.block", "key.rotate" and so on."""

    action: str
    kind: str
    id: str
    before: Stored | None
    after: Stored | None


class Event(msgspec.Struct, frozen=True):
    """A change that was made. before, after: the object's JSON, or None. hash: of this event and all before it."""

    seq: int
    at_ms: int
    transaction: str
    node: str
    actor: str
    origin: str
    action: str
    kind: str
    id: str
    before: bytes | None
    after: bytes | None
    hash: bytes

    def object_before(self) -> Stored | None:
        """The object as it was until then; None: it is new."""
        return None if self.before is None else decode_object(self.kind, self.before)

    def object_after(self) -> Stored | None:
        """The object as it is since then; None: gone. DecodeError when a newer program wrote it."""
        return None if self.after is None else decode_object(self.kind, self.after)


def encode_object(value: Stored) -> bytes:
    """Compact JSON, the same bytes for equal objects."""
    return _encoder.encode(value)


def encode_lines(values: Sequence[Any]) -> bytes:
    """As encode_object, of objects and whatever holds them, a line each."""
    return _encoder.encode_lines(values)


def decode_object(kind: str, body: bytes | str) -> Stored:
    """From encode_object's bytes, or the text that they are."""
    return _decoders[kind].decode(body)


def chain(
    changes: Iterable[Change], *, after_seq: int, head: bytes, at_ms: int, transaction: str, node: str, origin: Origin
) -> list[Event]:
    """The events of one transaction, to follow event `after_seq` whose hash is `head`."""
    events = []
    for number, change in enumerate(changes, after_seq + 1):
        event = Event(
            seq=number,
            at_ms=at_ms,
            transaction=transaction,
            node=node,
            actor=origin.actor,
            origin=origin.address,
            action=change.action,
            kind=change.kind,
            id=change.id,
            before=None if change.before is None else encode_object(change.before),
            after=None if change.after is None else encode_object(change.after),
            hash=b"",
        )
        head = event_hash(event, head)
        events.append(msgspec.structs.replace(event, hash=head))
    return events


def event_hash(event: Event, head: bytes) -> bytes:
    """What event.hash must be, when `head` is the hash of the event before it. 32 bytes."""
    body = {
        "seq": event.seq,
        "at_ms": event.at_ms,
        "transaction": event.transaction,
        "node": event.node,
        "actor": event.actor,
        "origin": event.origin,
        "action": event.action,
        "kind": event.kind,
        "id": event.id,
        "before": None if event.before is None else msgspec.Raw(event.before),
        "after": None if event.after is None else msgspec.Raw(event.after),
    }
    return hashlib.sha256(_DOMAIN + head + _encoder.encode(body)).digest()
