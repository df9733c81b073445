# SPDX-License-Identifier: Apache-2.0
"""The `local` key source: AES-256 keys in this process's memory, used inline on the event loop (a microsecond each)."""

from __future__ import annotations

from xksfast._version import __version__
from xksfast.ekm.base import Fleet, FleetMember, KeyBinding
from xksfast.errors import NativeError
from xksfast.model import Key
from xksfast.native.crypto import AesGcmKey, SecretPages, random_key

HEALTH_TEXT = b"xksfast health check"


class LocalKeys:
    """Keys whose bytes came in the secret pages beside the snapshot."""

    name = "local"

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._keys: dict[int, AesGcmKey] = {}
        self._next_ticket = 0
        self._health_key = random_key()
        self.check()

    def request(self, key: Key, pages: SecretPages) -> int:
        """Take the key's bytes over from its slot."""
        self._next_ticket += 1
        if key.local_slot is not None:
            self._keys[self._next_ticket] = AesGcmKey(pages, key.local_slot)
        return self._next_ticket

    def binding(self, ticket: int, key: Key) -> KeyBinding:
        """The key's address, or why there is none."""
        found = self._keys.get(ticket)
        if found is None:
            return KeyBinding(problem=f"local key {key.label!r} was not unsealed", absent=True)
        return KeyBinding(local_address=found.address, owner=found)

    def release(self, ticket: int) -> None:
        """Forget the key; its memory is wiped with the last binding."""
        self._keys.pop(ticket, None)

    def check(self) -> None:
        """A real encrypt and decrypt with a health check key of its own, never one behind a KMS key."""
        try:
            iv, ciphertext, tag = self._health_key.encrypt(HEALTH_TEXT, b"")
            healthy = self._health_key.decrypt(iv, ciphertext, tag, b"") == HEALTH_TEXT
        except NativeError:
            healthy = False
        self.fleet.update(
            (FleetMember("local", f"xksfast local keys {__version__}", "ACTIVE" if healthy else "UNAVAILABLE", "xksfast"),)
        )
