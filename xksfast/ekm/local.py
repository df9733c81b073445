# SPDX-License-Identifier: Apache-2.0
"""The `local` key source: AES-256 keys in this process's memory, used inline on the event loop (a microsecond each)."""

from __future__ import annotations

from xksfast._version import __version__
from xksfast.ekm.base import Fleet, FleetMember, KeyBinding
from xksfast.errors import NativeError
from xksfast.model import Key, KeyVersion
from xksfast.native.aes_gcm_key import AesGcmKey
from xksfast.native.crypto import Secret, SecretPages

HEALTH_TEXT = b"xksfast health check"


class LocalKeys:
    """Keys whose bytes came in the secret pages beside the delta. A ticket is the key itself; None: it was not unsealed."""

    name = "local"

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._health_key = _random_key()
        self.check()

    def request(self, version: KeyVersion, pages: SecretPages | None) -> AesGcmKey | None:
        """Take the key's bytes over from its slot."""
        if version.local_slot is None or pages is None or version.local_slot >= len(pages):
            return None
        return AesGcmKey(pages, version.local_slot)

    def binding(self, ticket: AesGcmKey | None, key: Key, version: KeyVersion) -> KeyBinding:
        """The key's address, or why there is none."""
        if ticket is None:
            return KeyBinding(problem=f"local key {version.label!r} was not unsealed")
        return KeyBinding(local_address=ticket.address, owner=ticket)

    def release(self, ticket: object) -> None:
        """Nothing: its memory is wiped when nobody holds it any more."""

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


def _random_key() -> AesGcmKey:
    """A key of its own for health checks, gone with the process."""
    pages = SecretPages.new(1)
    pages.put(0, Secret.random())
    return AesGcmKey(pages, 0)
